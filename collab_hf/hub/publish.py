"""Publish compressed checkpoints on the Hugging Face Hub."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HTTPError,  # of the HTTP client, whichever this version uses
)
from transformers import PreTrainedModel

from ..checkpoint.precheck import check_local
from ..files import CARD_FILE, WEIGHT_FILES, checkpoint_files, matches
from ..modeling.errors import CheckpointError
from ..progress import stage
from .card import renewed_card
from .facts import CardFacts
from .names import check_id
from .plain_errors import plain_errors

# Seconds before a lost connection is tried again; files that arrived are not sent twice.
_PAUSES = (1.0, 3.0)


def push(
    directory: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | bool | None = None,
    base_model: str | None = None,
    evaluation: Mapping[str, Any] | None = None,
    bench: Mapping[str, Any] | None = None,
    export: Mapping[str, Any] | None = None,
    keep_card: bool = False,
) -> str:
    """Publish a compressed checkpoint, in one commit.

    The large files travel first and become visible with the commit alone, so that a lost connection leaves
    the repository as it was; the same call then sends what had not arrived.

    Args:
        directory: as `collab-hf compress` or `save_pretrained` wrote it.
        repo_id: `owner/name`, or `name` for a repository of your own; made if it is not there.
        private: whether a new repository is private; None for the owner's default.
        revision: branch to publish on, made if it is not there; None for main.
        message: of the commit.
        token: access token; None for HF_TOKEN, or the one that `hf auth login` stored; False for none.
        base_model: Hub id of the original, for the card, where that was a local copy.
        evaluation: what `collab-hf evaluate --json` printed, for the card.
        bench: what `collab-hf bench --json` printed, for the card.
        export: what `collab-hf export --json` printed, for the card.
        keep_card: whether a card that the repository has stays as it is.

    Returns:
        URL of the commit.

    Raises:
        CheckpointError: directory is not a complete compressed checkpoint.
        ConfigError: a name that no repository can have.
        HubError: no token, no right to write, or no connection.
    """
    if base_model is not None:
        check_id("base_model", base_model)
    files = _files(directory)
    measured = {"evaluation": evaluation, "bench": bench, "export": export}
    if not keep_card:  # before there is a repository
        renewed_card(directory, repo_id, base_model=base_model, **measured)
    stage(f"Publishing on {repo_id}")
    api = HfApi(token=token)
    with plain_errors(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision not in (None, "main"):
            api.create_branch(repo_id, branch=str(revision), exist_ok=True)
        additions = [CommitOperationAdd(name, file) for name, file in files.items() if name != CARD_FILE]
        if not (keep_card and api.file_exists(repo_id, CARD_FILE, revision=revision)):
            card = renewed_card(directory, repo_id, base_model=base_model, **measured)
            additions.append(CommitOperationAdd(CARD_FILE, card.encode()))
        # create_commit, as upload_folder makes several commits where hf_xet is installed
        for pause in (*_PAUSES, None):
            try:
                present = api.list_repo_files(repo_id, revision=revision)
                stale = [
                    CommitOperationDelete(name)
                    for name in present
                    if name not in files and matches(name, WEIGHT_FILES)
                ]
                commit = api.create_commit(
                    repo_id,
                    [*additions, *stale],
                    commit_message=message or f"Publish {repo_id.rpartition('/')[2]}",
                    revision=revision,
                )
                return str(commit.commit_url)
            except (HTTPError, RuntimeError) as error:
                if pause is None or not _passes(error):
                    raise
                time.sleep(pause)
    raise AssertionError  # the last pause is None


def push_model(
    model: PreTrainedModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    max_shard_size: int | str = "50GB",
    **ignored: Any,
) -> str:
    """What `model.push_to_hub` does: the weights, the code, and a card where the repository has none yet.

    Args:
        model: a compressed model.
        repo_id: as for `push`.
        commit_message: as for `push`.
        private: as for `push`.
        revision: as for `push`.
        token: as for `push`; True for the environment's too.
        max_shard_size: size of one file of weights at most.
        **ignored: what transformers takes besides.

    Returns:
        URL of the commit.

    Raises:
        ConfigError: a name that no repository can have.
        HubError: no token, no right to write, or no connection.
    """
    key = None if token is True else token
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / repo_id.rpartition("/")[2]
        model.save_pretrained(directory, max_shard_size=max_shard_size)
        return push(
            directory,
            repo_id,
            private=private,
            revision=revision,
            message=commit_message,
            token=key,
            keep_card=True,
        )


def _files(directory: Path) -> dict[str, Path]:
    """What is published, by its name in the repository."""
    check_local(directory)
    facts = CardFacts.read(directory)
    files = checkpoint_files(directory)
    names = (file.relative_to(directory) for file in sorted(directory.rglob("*")) if file.is_file())
    others = [
        name.as_posix()
        for name in names
        if name.as_posix() not in files
        and not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
    ]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        warnings.warn(
            f"not published, since no checkpoint needs it: {', '.join(others[:3])}{more}", stacklevel=3
        )
    if facts.weight_bytes == 0:
        raise CheckpointError(f"{directory} has no safetensors weights")
    entrance = set() if facts.portable else {"configuration_collab."}
    for reference in {*entrance, *dict(facts.config.get("auto_map", {})).values()}:
        code = f"{str(reference).partition('.')[0]}.py"
        if code not in files:
            raise CheckpointError(
                f"{directory} lacks {code}, which trust_remote_code needs; write it with save_pretrained"
            )
    return files


def _passes(error: Exception) -> bool:
    """Whether a later try may succeed: no answer at all, or the server's own failure."""
    if isinstance(error, RuntimeError):
        # What the upload of a large file raises, whatever happened to it.
        return isinstance(error.__cause__, HTTPError) and _passes(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    return True
