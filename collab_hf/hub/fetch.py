"""Fetch what belongs to a checkpoint from the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from ..files import WEIGHT_FILES
from .plain_errors import plain_errors


def fetch_files(
    name: str | Path, *, revision: str | None = None, subfolder: str = "", token: str | None = None
) -> Path:
    """A local directory with what belongs to a checkpoint besides its weights.

    Args:
        name: a local directory, which is returned as it is, or an id on the Hub, whose files are downloaded
            into the cache: tokenizer, image processor, generation config, sentence-transformers' modules,
            card and licence.
        revision: branch, tag or commit on the Hub.
        subfolder: folder of the checkpoint inside the repository or directory.
        token: access token for private repositories; None for the environment's.

    Returns:
        The checkpoint's directory.

    Raises:
        ConfigError: a name that no repository can have.
        HubError: the repository can't be reached or read.
    """
    if Path(name).is_dir():
        return Path(name) / subfolder
    with plain_errors(str(name)):
        folder = snapshot_download(
            str(name),
            revision=revision,
            token=token,
            allow_patterns=f"{subfolder}/*" if subfolder else None,
            ignore_patterns=list(WEIGHT_FILES),
        )
    return Path(folder) / subfolder
