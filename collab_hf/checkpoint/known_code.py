"""Whose code a checkpoint ships: this version's, a former version's, or someone else's."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Literal

from ..modeling import modeling_collab
from ..modeling.errors import CheckpointError

Origin = Literal["own", "former", "foreign"]

# SHA-256 of every file that a former version shipped, by name: code that may run without being trusted.
FORMER: dict[str, frozenset[str]] = {
    "attention.py": frozenset({"46201c6885993dc52454d43075cc32ca953144164c388d4ac9284f0a55b5d69b"}),
    "config.py": frozenset({"5418f764ddb6dc417cb801ae6dc15a3fd07c2d52b06d989b0b06b30b1aa4a067"}),
    "configuration_collab.py": frozenset(
        {"7a99f653efc1f483c9b8eb7a841c55c3cac31bf146bc92300efb1672371d2f3a"}
    ),
    "errors.py": frozenset({"6b7fd2d31cf4d8b4dbc6f3ce0f004a424cf84f83987e258a4056ca8900c66fe4"}),
    "families.py": frozenset({"79f4ed4240af34c2c4d6e80f0b66828ad33989923adcec9aed19dc33ad03350e"}),
    "mixing.py": frozenset({"2a8c5f8415918c6fe753baac1ef4b5a18e1814f71f96f865038766b0407748d8"}),
    "modeling_collab.py": frozenset({"02ef9392717def832f51c5d20f9c1739ad4f7ea53ca47b122b9350ef73bf58bd"}),
    "pieces.py": frozenset({"c81591bdfb9b0c9c106133af6337afeb3aebd644e6089ee593d835eeaa0a373b"}),
}
_ENTRANCES = ("configuration_collab.py", "modeling_collab.py")


def origin_of_code(directory: Path) -> Origin:
    """Find out whose code a checkpoint ships, by its bytes; none of it runs.

    Args:
        directory: the checkpoint.

    Returns:
        `own` where each file is this version's, `former` where each is a former version's, else `foreign`.

    Raises:
        CheckpointError: the code that transformers looks for is absent, so that it loads nowhere else.
    """
    shipped = {file.name: file.read_bytes() for file in sorted(directory.glob("*.py"))}
    for name in _ENTRANCES:
        if name not in shipped:
            raise CheckpointError(f"{directory} lacks {name}, so it does not load where collab_hf is missing")
    home = Path(modeling_collab.__file__).parent
    if all((home / n).is_file() and (home / n).read_bytes() == code for n, code in shipped.items()):
        return "own"
    known = all(sha256(code).hexdigest() in FORMER.get(name, ()) for name, code in shipped.items())
    return "former" if known else "foreign"
