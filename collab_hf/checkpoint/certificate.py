"""A few numbers that tell whether a checkpoint still computes what it did when it was written.

They are projections of the outputs on fixed random inputs, kept in the report, so that `verify` needs neither
the original nor data.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import ExportError
from ..files import REPORT_FILE
from ..host.inputs import evaluating, example_inputs
from ..modeling.errors import CheckpointError
from .fresh_load import run_batches
from .precheck import one_sentence, read_json

# Waves that outputs are projected on: a change that misses one does not miss all.
_WAVES = 16

# Of the outputs' root mean square. On a GPU torch lets convolutions of float32 have a mantissa of ten bits,
# 5e-4 of each number; what is float16 or bfloat16 has eleven or eight in every layer.
_TOLERANCE, _HALF_TOLERANCE = 5e-3, 0.05


def certify(directory: Path, model: PreTrainedModel) -> None:
    """Put the certificate of a model into its checkpoint's report, in place of an older one.

    Args:
        directory: of the checkpoint; without a report nothing happens.
        model: as it was saved there.
    """
    path = directory / REPORT_FILE
    if not path.is_file():
        return
    report = read_json(path)
    report.pop("certificate", None)
    if (found := _certificate(model)) is not None:
        report["certificate"] = found
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def check_certificate(directory: Path, model: PreTrainedModel) -> float | None:
    """Compute the certificate again.

    Args:
        directory: of the checkpoint.
        model: as it was loaded from there.

    Returns:
        How far the outputs' projections are from the certified ones, relative to the outputs' root mean
        square; None where there is no certificate, or another version of torch draws other inputs.

    Raises:
        CheckpointError: further than rounding explains, or a certificate that is none.
    """
    path = directory / REPORT_FILE
    wanted = read_json(path).get("certificate") if path.is_file() else None
    if wanted is None:
        return None
    found = _certificate(model)
    try:
        inputs, scale = int(wanted["inputs"]), float(wanted["scale"])
        pairs = list(zip(map(float, wanted["outputs"]), (found or wanted)["outputs"], strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"certificate in {path} can't be read: {one_sentence(error)}") from error
    if found is None or found["inputs"] != inputs:
        return None
    most = max((abs(mine - theirs) for mine, theirs in pairs), default=math.inf)
    difference: float = most / scale if scale > 0 else most
    allowed = _HALF_TOLERANCE if model.dtype.itemsize < 4 else _TOLERANCE
    if not difference <= allowed:
        raise CheckpointError(
            f"{directory} is not what its report certifies: outputs on fixed inputs moved by "
            f"{difference:.2g} of their size, where rounding explains {allowed:g}; "
            "its weights were changed since"
        )
    return difference


@torch.no_grad()
def _certificate(model: PreTrainedModel) -> dict[str, Any] | None:
    """Inputs by their checksum, and what the model makes of them; None where no inputs can be made up."""
    try:
        inputs = example_inputs(model, batch=2, length=16)
        with evaluating(model):
            (output,) = run_batches(model, {f"0.{name}": value for name, value in inputs.items()}).values()
    except (ExportError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
        return None  # a model that wants more than text or images
    values = output.double().flatten()
    scale = float(values.square().mean().sqrt())
    if not math.isfinite(scale):
        return None
    return {"inputs": _checksum(inputs), "scale": scale, "outputs": _projections(values)}


def _projections(values: Tensor) -> list[float]:
    """Products with waves, so scaled that a random change moves them by its root mean square."""
    places = torch.arange(len(values), dtype=torch.float64)
    waves = ((places * (1 + number) * 0.618).cos() for number in range(_WAVES))
    return [float(values @ wave) * math.sqrt(2 / len(values)) for wave in waves]


def _checksum(inputs: dict[str, Tensor]) -> int:
    digest = 0
    for value in inputs.values():
        digest = zlib.crc32(value.contiguous().numpy().tobytes(), digest)
    return digest
