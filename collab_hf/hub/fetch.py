"""Fetch what belongs to a checkpoint from the Hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download

from ..files import FOLDERS, IN_FOLDERS, OWN_FILES, TAKEN_OVER, module_folders
from .plain_errors import plain_errors


def fetch_files(
    name: str | Path, *, revision: str | None = None, subfolder: str = "", token: str | bool | None = None
) -> Path:
    """A local directory with what belongs to a checkpoint besides its weights.

    Args:
        name: a Hub id, or a local directory, which is returned as it is.
        revision: branch, tag or commit.
        subfolder: folder of the checkpoint inside the repository or directory.
        token: access token; None for the environment's, False for none.

    Returns:
        The checkpoint's directory.

    Raises:
        ConfigError: a name that no repository can have.
        HubError: the repository can't be reached or read.
    """
    if Path(name).is_dir():
        return Path(name) / subfolder

    def download(patterns: Iterable[str]) -> Path:
        prefix = f"{subfolder}/" if subfolder else ""
        folder = snapshot_download(
            str(name), revision=revision, token=token, allow_patterns=[f"{prefix}{p}" for p in patterns]
        )
        return Path(folder) / subfolder

    with plain_errors(str(name)):
        folder = download(("config.json", *TAKEN_OVER, *OWN_FILES, *_inside(FOLDERS)))
        modules = module_folders(folder)
        return download(_inside(modules)) if modules else folder


def _inside(folders: Iterable[str]) -> list[str]:
    return [f"{folder}/{pattern}" for folder in folders for pattern in IN_FOLDERS]
