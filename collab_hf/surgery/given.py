"""What `compress_` is given, in any shape that people have it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..calibration.given import Calibration, given_batches
from ..calibration.sources import DEFAULT
from ..checkpoint.load import load_processor
from ..config import CollabConfig
from ..errors import CalibrationError, CheckpointError, ConfigError


def read_settings(config: Any, settings: Mapping[str, Any]) -> CollabConfig:
    """The settings, from an object, a mapping or arguments.

    Args:
        config: a CollabConfig, a mapping of its fields, or None.
        settings: fields given as arguments.

    Returns:
        The settings.

    Raises:
        ConfigError: both were given, an unknown field, or something else.
    """
    if config is None:
        return CollabConfig.from_dict(settings)
    if settings:
        raise ConfigError(
            f"give settings in config or as arguments, not both; got config and {', '.join(settings)}"
        )
    if isinstance(config, CollabConfig):
        return config
    if isinstance(config, Mapping) and all(isinstance(name, str) for name in config):
        return CollabConfig.from_dict(config)
    raise ConfigError(
        f"config must be a CollabConfig or a mapping of its fields, got {type(config).__name__}; "
        "calibration data goes into calibration="
    )


def find_batches(
    given: nn.Module, model: PreTrainedModel, config: CollabConfig, calibration: Any, tokenizer: Any
) -> Calibration:
    """The calibration data as batches of model inputs.

    Args:
        given: what the user passed as the model.
        model: the transformers model in it.
        config: the settings.
        calibration: as for `compress_`.
        tokenizer: likewise.

    Returns:
        Batches, statistics, or None where the weights alone are to be decomposed.

    Raises:
        CalibrationError: data that can't be read, or examples without a tokenizer.

    Warns:
        UserWarning: no tokenizer was found for the default examples.
    """
    if config.exact:
        return None
    found = tokenizer if tokenizer is not None else getattr(given, "tokenizer", None)
    if isinstance(calibration, str) and calibration == DEFAULT and not config.is_whole:
        found = found if found is not None else _own_processor(model)
        if found is None:
            warnings.warn(
                f"no tokenizer was found for this {type(model).__name__}, so its weights alone decide what "
                "is lost, which is more than with examples; pass tokenizer=, or calibration= with batches, "
                "or calibration=None to have it so",
                stacklevel=3,
            )
            return None

    def processor() -> Any:
        own = found if found is not None else _own_processor(model)
        if own is None:
            raise CalibrationError(
                f"examples need a tokenizer, and none was found for this {type(model).__name__}; pass "
                "tokenizer=, or batches of model inputs"
            )
        return own

    return given_batches(calibration, processor, config=model.config, seed=config.seed)


def _own_processor(model: PreTrainedModel) -> Any:
    """The tokenizer or image processor from where a model was loaded; None for none that suits the model."""
    name = model.config.name_or_path
    if not name:
        return None
    try:
        found = load_processor(name)
    except CheckpointError:
        return None
    reads_images = hasattr(model.config, "vision_config") or model.main_input_name == "pixel_values"
    names = getattr(found, "model_input_names", ())
    return found if ("pixel_values" in names) == reads_images else None
