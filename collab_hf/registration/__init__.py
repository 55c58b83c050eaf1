"""Makes other libraries know the collaborative classes."""

from __future__ import annotations

from functools import cache


@cache
def register() -> None:
    """Make transformers' Auto classes know the collaborative models, once.

    Raises:
        VersionError: transformers is too old.
    """
    from .versions import check_versions

    check_versions()  # before anything that an older version lacks is imported
    from .auto_classes import register as register_configs

    register_configs()
