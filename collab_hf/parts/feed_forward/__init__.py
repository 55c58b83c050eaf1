"""Feed-forwards with fewer neurons."""
