"""Load checkpoints with plain errors, whatever is wrong with them."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
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
from ..modeling.errors import CheckpointError, CollabError
from .former_heads import with_pruned_heads
from .precheck import check_local, explain_json, explain_pickles
from .precheck import one_sentence as one_sentence
from .remote import find_on_hub, is_local

# Weights that released checkpoints carry although their own class does not read them: a buffer of older
# versions, copies of tied weights, and of BERT the pooler and the second head of its pretraining.
_SILENTLY_UNUSED = re.compile(r"position_ids$|^cls\.predictions\.decoder\.(weight|bias)$")
_KNOWN_UNUSED = re.compile(r"(^|\.)pooler\.|^cls\.seq_relationship\.")
_PROCESSOR_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model"),
    *("spiece.model", "preprocessor_config.json"),
)


def load_model(
    name: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    backbone: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint, compressed or not, with the task head it was saved with, in eval mode.

    Args:
        name: a local directory, or an id on the Hub; a Path, and text that can only be a path, is never
            looked up there.
        dtype: dtype of the weights; `auto` keeps the checkpoint's.
        device: where to put the model; None for the CPU.
        revision: branch, tag or commit on the Hub.
        subfolder: folder of the checkpoint inside the repository or directory.
        token: access token for private repositories; None for the environment's, False for none.
        trust_remote_code: whether code in the checkpoint may run.
        backbone: load the model without its task head, and leave weights that nothing reads.

    Returns:
        The model. Where the checkpoint has no weights for a pooler, it has no pooler.

    Raises:
        CheckpointError: the checkpoint is absent, corrupt, quantised, of an unknown architecture, lacks
            weights, or has weights that its class does not read.
    """
    where = {"subfolder": subfolder, **_find(name, revision, subfolder, token)}
    where["trust_remote_code"] = trust_remote_code
    local = Path(name) / subfolder if is_local(name) else None
    try:
        model, info = _from_pretrained(name, dtype, backbone, where)
    except CollabError:
        raise
    except Exception as error:  # whatever a malformed config makes transformers run into
        if local is not None:
            explain_pickles(local)
        how = "" if isinstance(error, OSError) else ", which config.json describes"
        raise CheckpointError(f"cannot load {name}{how}: {one_sentence(error)}") from error
    _check_weights(model, info, str(name), backbone)
    loaded: PreTrainedModel = model
    if device is not None:
        nn.Module.to(loaded, torch.device(device))
    return loaded


def _from_pretrained(
    name: str | Path, dtype: torch.dtype | str, backbone: bool, where: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model and transformers' loading report."""
    config = AutoConfig.from_pretrained(name, **where)
    _check_config(config, str(name))
    config = with_pruned_heads(config)
    chosen = _model_class(config, str(name), backbone, where["trust_remote_code"])
    # Lenient about shapes, since transformers' own refusal names no weight.
    given = {"config": config, "dtype": dtype, "ignore_mismatched_sizes": True, **where}
    if getattr(config, "output_attentions", False):
        # No other backend gives them, and transformers does not save a model that would have to.
        given["attn_implementation"] = "eager"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        model, info = chosen.from_pretrained(name, output_loading_info=True, **given)
        if not _lacks_pooler(model, info):
            return model, info
        given["add_pooling_layer"] = False
        model, info = chosen.from_pretrained(name, output_loading_info=True, **given)
    warnings.warn(f"{name} has no weights for a pooler, so the model has none", stacklevel=3)
    return model, info


def load_processor(name: str | Path, **where: Any) -> Any:
    """Load a checkpoint's tokenizer, or else its image processor.

    Args:
        name: a local directory, or an id on the Hub.
        **where: revision, subfolder, token, trust_remote_code, as for `load_model`.

    Returns:
        The tokenizer or image processor, or None where the checkpoint has neither.

    Raises:
        CheckpointError: the checkpoint's directory has files of one that can't be read.
    """
    reasons = []
    for auto in (AutoTokenizer, AutoImageProcessor):
        try:
            processor = auto.from_pretrained(name, **where)
        except Exception as error:  # noqa: BLE001 - tokenizers raises bare ones, and bad files lead anywhere
            reasons.append(one_sentence(error))
            continue
        if auto is AutoImageProcessor:
            return processor
        # Without any file transformers makes a tokenizer that knows its special tokens alone.
        if len(processor) > len(processor.all_special_ids):
            _check_length(processor, name)
            return processor
    place = Path(name) / where.get("subfolder", "")
    present = [file for file in _PROCESSOR_FILES if (place / file).is_file()]
    if not present or not reasons:
        return None
    explain_json(place, (*present, "special_tokens_map.json", "added_tokens.json"))
    # The image processor's complaint is the one that counts only where it has a file.
    reason = reasons[-1] if present == ["preprocessor_config.json"] else reasons[0]
    raise CheckpointError(f"cannot load what {place} has in {', '.join(present)}: {reason}")


def _check_length(tokenizer: Any, name: str | Path) -> None:
    """Transformers compares this number with lengths, whatever it is."""
    most = tokenizer.model_max_length
    if not isinstance(most, int | float) or isinstance(most, bool) or not most >= 1:
        raise CheckpointError(f"model_max_length of {name}'s tokenizer must be at least 1, got {most!r}")


def _find(name: str | Path, revision: str | None, subfolder: str, token: str | bool | None) -> dict[str, Any]:
    """Make sure that there is such a checkpoint; how transformers is told where."""
    if not str(name).strip():
        raise CheckpointError("the model's name is empty; give a directory or an id on the Hub")
    where: dict[str, Any] = {"revision": revision, "token": token}
    if is_local(name):
        if Path(name).is_dir() and not (Path(name) / subfolder).is_dir():
            raise CheckpointError(f"{name} has no folder {subfolder!r}")
        check_local(Path(name) / subfolder)
        return where
    if not find_on_hub(str(name), revision, subfolder, token):
        where["local_files_only"] = True
    return where


def _check_config(config: PreTrainedConfig, name: str) -> None:
    quantised = getattr(config, "quantization_config", None)
    if quantised and not getattr(config, "collab", None):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise CheckpointError(
            f"{name} is quantised{f' ({method})' if method else ''}; give the checkpoint it was made from"
        )


def _model_class(config: PreTrainedConfig, name: str, backbone: bool, trusted: bool) -> Any:
    """The class that the checkpoint was saved from, or AutoModel where it names none."""
    saved = (config.architectures or [""])[0]
    if backbone or not saved:
        return AutoModel
    home = modeling_collab if saved.startswith("Collab") else transformers
    found = getattr(home, saved, None) or modeling_collab.own_class(saved)
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        _check_class(found, config, name)
        return found
    references = getattr(config, "auto_map", None) or {}
    if trusted:
        # The checkpoint's own code: the Auto class that stands for its class.
        for auto, reference in references.items():
            if str(reference).rpartition(".")[2] == saved and hasattr(transformers, auto):
                return getattr(transformers, auto)
    raise CheckpointError(
        f"{name} was saved from {saved}, which transformers does not know; import what defines "
        f"{saved.removeprefix('Collab')} first, or leave out its task head by backbone=True (--backbone)"
    )


def _check_class(found: type[PreTrainedModel], config: PreTrainedConfig, name: str) -> None:
    """Refuse a class of another family, which would read what it finds in the config as its own."""
    own = found.config_class
    if own is not None and not isinstance(config, own):
        raise CheckpointError(
            f"config.json of {name} is of model_type {config.model_type}, and names {found.__name__}, "
            f"which is of {own.model_type}"
        )


def _lacks_pooler(model: PreTrainedModel, info: dict[str, Any]) -> bool:
    """Whether all that is missing is a base model's pooler, which many task heads do without."""
    missing = info["missing_keys"]
    if not missing or not all(key.startswith("pooler.") for key in missing):
        return False
    return any("add_pooling_layer" in inspect.signature(c).parameters for c in type(model).__mro__[:-1])


def _check_weights(model: PreTrainedModel, info: dict[str, Any], name: str, backbone: bool) -> None:
    kind = type(model).__name__
    if info["mismatched_keys"]:
        key, found, expected = min(info["mismatched_keys"])
        raise CheckpointError(
            f"{key} of {name} has shape {tuple(found)}, where config.json says {tuple(expected)}"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(f"{name} lacks {_counted(missing)} of {kind}, such as {missing[0]}")
    unused = sorted(key for key in info["unexpected_keys"] if not _SILENTLY_UNUSED.search(key))
    if not unused or backbone:
        return
    if all(_KNOWN_UNUSED.search(key) for key in unused):
        warnings.warn(
            f"{name} has {_counted(unused)} that {kind} does not read, such as {unused[0]}, left out here",
            stacklevel=3,
        )
        return
    raise CheckpointError(
        f"{name} has {_counted(unused)} that {kind} does not read, such as {unused[0]}; backbone=True "
        "(--backbone) leaves them out"
    )


def _counted(names: list[str]) -> str:
    return f"{len(names)} weight{'s' if len(names) > 1 else ''}"
