"""`python -m collab_hf` is the `collab-hf` command."""

from .cli import main

main()
