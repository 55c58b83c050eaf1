"""Where the commands `collab-hf` and `hf-collab` start.

The file lies beside the package and not in it, since importing any part of a package runs its __init__ first.
There, that this module is loaded says that the process is the command, so that help does not wait for
transformers, which takes seconds: a command registers the models once it has read its arguments. Nothing else
imports this module.
"""


def main() -> None:
    """The console script."""
    from collab_hf.cli import main as start

    start()
