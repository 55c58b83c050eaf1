"""What travels with a checkpoint: the collaborative classes, in torch and transformers alone."""
