"""What a model's output loses when one part of one layer becomes smaller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..asked_parts import PART_NAMES
from ..calibration.held_out import split_batches
from ..config import CollabConfig
from .measured import measure_parts

# Of a part's parameters in one layer.
SHARES = (0.75, 0.5, 0.25)


@dataclass(frozen=True)
class SiteRedundancy:
    """One part of one layer.

    Attributes:
        part: its name, such as `feed_forward`.
        name: the layer's, relative to the base model.
        parameters: that it has.
        losses: by the share of the parameters that stays, the divergence of the model's output with nothing
            else changed, before any recovery; a share that no form meets is left out.
    """

    part: str
    name: str
    parameters: int
    losses: Mapping[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**vars(self), "losses": {f"{share:g}": loss for share, loss in self.losses.items()}}


def inspect_parts(
    model: PreTrainedModel,
    calibration: Iterable[Mapping[str, Any]],
    parts: Sequence[str] = PART_NAMES,
    *,
    damping: float = 1e-3,
    progress: bool = False,
) -> list[SiteRedundancy]:
    """Measure what each part of each layer could give up; the model stays as it is.

    Args:
        model: a dense transformers model.
        calibration: batches of model inputs; every fourth example measures, the others are fitted to.
        parts: names of the parts.
        damping: added to the covariances' diagonals, relative to their mean.
        progress: whether to draw progress bars on stderr.

    Returns:
        Part by part, in the model's order.

    Raises:
        ConfigError: an unknown part.
        FamilyError: nothing of the parts that can be made smaller, or a layer that is compressed already.
        CalibrationError: calibration data that is empty or does not run.
        DecompositionError: weights that are not finite.
    """
    config = CollabConfig(flops=0.5, parts=tuple(parts), damping=damping)  # checks the names of the parts
    seen, held_out = split_batches(list(calibration))
    measured = measure_parts(model, parts, config, seen, held_out, progress=progress)
    found = []
    for part in parts:
        for name, curve in measured.curves.get(part, {}).items():
            pairs = list(zip(curve.options, curve.losses_alone(), strict=True))
            losses = {}
            for share in SHARES:
                fitting = [loss for o, loss in pairs if o.parameters <= share * curve.dense_parameters]
                if fitting:
                    losses[share] = float(min(fitting))
            found.append(SiteRedundancy(part, name, curve.dense_parameters, losses))
    return found
