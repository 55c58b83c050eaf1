"""Query and key projections of all heads, in shared form."""
