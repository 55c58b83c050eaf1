"""Values narrower than a head."""
