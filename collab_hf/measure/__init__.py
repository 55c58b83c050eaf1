"""How good, how fast and how redundant a model is."""
