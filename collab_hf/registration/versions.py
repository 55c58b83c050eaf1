"""Which versions of other libraries collab_hf works with.

docs/benchmarks/compatibility.md has what was tried.
"""

from __future__ import annotations

import importlib.metadata

from ..modeling.errors import VersionError

# The oldest that every test of scripts/compatibility.py passes with; pyproject.toml says the same.
MINIMUM_TRANSFORMERS = "5.18"


def check_versions() -> None:
    """Refuse a transformers that is too old, in a moment: it is not imported for it.

    Raises:
        VersionError: names the version that is here, and the oldest that works.
    """
    try:
        found = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return  # a copy that no installer put there; what it lacks shows when it is used
    if _release(found) < _release(MINIMUM_TRANSFORMERS):
        raise VersionError(
            f"collab_hf needs transformers {MINIMUM_TRANSFORMERS} or newer, got {found}; "
            f"run: pip install -U 'transformers>={MINIMUM_TRANSFORMERS}'"
        )


def _release(version: str) -> tuple[int, ...]:
    """Its first two numbers, which is where transformers' interfaces change."""
    return tuple(int(number) for number in version.split(".")[:2])
