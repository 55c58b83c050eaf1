"""`python -m collab_hf` is the `collab-hf` command."""

from collab_hf.cli import main

main()
