"""Load checkpoints with plain errors, and write them whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..modeling import modeling_collab
from ..modeling.errors import CheckpointError
from ..registration import register

# What transformers raises for a path, a config or weights that it can't use.
_LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError)


def load_model(
    name: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    token: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint, compressed or not, with the task head it was saved with, in eval mode.

    Args:
        name: a local directory, or an id on the Hub.
        dtype: dtype of the weights; `auto` keeps the checkpoint's.
        device: where to put the model; None for the CPU.
        revision: branch, tag or commit on the Hub.
        subfolder: folder of the checkpoint inside the repository or directory.
        token: access token for private repositories; None for the environment's.
        trust_remote_code: whether code in the checkpoint may run.

    Returns:
        The model.

    Raises:
        CheckpointError: the checkpoint is absent, corrupt, of an unknown architecture, or lacks weights.
    """
    register()
    _check_local(Path(name) / subfolder, str(name))
    where = {
        "revision": revision,
        "subfolder": subfolder,
        "token": token,
        "trust_remote_code": trust_remote_code,
    }
    try:
        config = AutoConfig.from_pretrained(name, **where)
        model, info = _model_class(config).from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, **where
        )
    except _LOADING_ERRORS as error:
        raise CheckpointError(f"cannot load {name}: {_one_sentence(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}"
        )
    loaded: PreTrainedModel = model
    if device is not None:
        nn.Module.to(loaded, torch.device(device))
    return loaded


def load_processor(name: str | Path, **where: Any) -> Any:
    """Load a checkpoint's tokenizer, or else its image processor.

    Args:
        name: a local directory, or an id on the Hub.
        **where: revision, subfolder, token, as for `load_model`.

    Returns:
        The tokenizer or image processor, or None where the checkpoint has neither.
    """
    register()
    for auto in (AutoTokenizer, AutoImageProcessor):
        try:
            processor = auto.from_pretrained(name, **where)
        except _LOADING_ERRORS:
            continue
        # Without any file transformers makes a tokenizer that knows its special tokens alone.
        if auto is AutoImageProcessor or len(processor) > len(processor.all_special_ids):
            return processor
    return None


def _check_local(path: Path, name: str) -> None:
    if not path.exists():
        # A Hub id is `name` or `owner/name`; anything else can only have been meant as a path.
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
            raise CheckpointError(f"{name or 'the empty path'} is not a directory")
        return
    if not path.is_dir():
        raise CheckpointError(f"{name} is a file; give the checkpoint's directory")
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{name} has no config.json, so it is no transformers checkpoint")
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is corrupt or truncated: {_one_sentence(error)}") from error


def _model_class(config: PreTrainedConfig) -> Any:
    """The class that the checkpoint was saved from, or AutoModel where it is not transformers' own."""
    name = (config.architectures or [""])[0]
    home = modeling_collab if name.startswith("Collab") else transformers
    return getattr(home, name, AutoModel) if name else AutoModel


def _one_sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0].strip() if text else type(error).__name__
