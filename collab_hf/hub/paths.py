"""Keep paths of this machine out of what is published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Absolute and home paths of any system, file URLs, and relative paths that climb; no other URL and no Hub id.
_PATH = re.compile(
    r"file:/+[^\s'\"|)\]]+"
    r"|\b[A-Za-z]:\\[^\s'\"|)\]]+"
    r"|(?<![\w:/.~])(?:~|\.\.?)?(?:/[^/\s'\"|,:;)\]]+)+/?"
)


def hide_paths(text: str) -> str:
    """Replace paths of this machine by their last part.

    Args:
        text: anything but a URL's scheme is searched.

    Returns:
        The text without absolute, home or climbing paths.
    """
    return _PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


def is_path(text: str) -> bool:
    """Whether a text holds a path of some machine, or is one."""
    return bool(_PATH.search(text)) or "\\" in text or text.count("/") > 1


def last_part(text: str) -> str:
    """A path's last name, whichever slash it is written with."""
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def without_paths(value: Any) -> Any:
    """Plain values with every path replaced by its last name."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return last_part(value) if isinstance(value, str) and is_path(value) else value
