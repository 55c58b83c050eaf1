"""Makes other libraries know the collaborative classes."""
