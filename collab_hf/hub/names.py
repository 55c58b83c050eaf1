"""Names of repositories on the Hub."""

from __future__ import annotations

import re

from ..modeling.errors import ConfigError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_id(name: str) -> bool:
    """Whether a repository could have the name."""
    return _HUB_ID.fullmatch(name) is not None


def check_id(what: str, name: str) -> None:
    """Refuse a name that no repository can have.

    Args:
        what: what the user calls it.
        name: `name` or `owner/name`.

    Raises:
        ConfigError: another form.
    """
    if not is_hub_id(name):
        raise ConfigError(f"{what} must be a Hub id such as owner/name, got {name!r}")
