"""What a compression would give, without doing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..config import CollabConfig
from ..host.sites import dense_layers
from ..modeling.plan import AttentionShape, LayerPlan
from ..parts.query_key.costs import attention_flops
from ..planning import ModelPlan, candidate_plans, plan_model, planned_layers
from ..tensors.moments import LayerStatistics

# Lengths at which the cost is predicted: a sentence, a paragraph, a page.
LENGTHS = (32, 128, 512)


@dataclass(frozen=True)
class LayerPreview:
    """One layer's form to come.

    Attributes:
        name: the layer's name relative to the base model.
        shape: sizes of the dense layer.
        plan: its form, or None where it stays dense.
        parameters: query/key numbers of the form.
        loss: predicted divergence with this layer alone in its form; None where it was not planned.
    """

    name: str
    shape: AttentionShape
    plan: LayerPlan | None
    parameters: int
    loss: float | None


@dataclass(frozen=True)
class Preview:
    """The forms of all layers.

    Attributes:
        layers: in the model's order.
        planned: what the planner chose; None where every layer's form was given.
        parameters_before: all parameters of the model.
    """

    layers: tuple[LayerPreview, ...]
    planned: ModelPlan | None
    parameters_before: int

    @property
    def qk_parameters_before(self) -> int:
        """Query/key weights of all dense layers."""
        return sum(layer.shape.dense_parameters for layer in self.layers)

    @property
    def qk_parameters_after(self) -> int:
        """Query/key numbers of all forms."""
        return sum(layer.parameters for layer in self.layers)

    def flops_share(self, length: int) -> float:
        """Operations for queries, keys and scores at a sequence length, over the dense ones."""
        dense = sum(attention_flops(None, layer.shape, length) for layer in self.layers)
        return sum(attention_flops(layer.plan, layer.shape, length) for layer in self.layers) / dense

    def to_dict(self) -> dict[str, Any]:
        """The preview as plain values, ready for JSON."""
        layers = [
            {
                "name": layer.name,
                "plan": "dense" if layer.plan is None else layer.plan.to_dict(),
                "qk_parameters": layer.parameters,
                "predicted_loss": layer.loss,
            }
            for layer in self.layers
        ]
        return {
            "dry_run": True,
            "layers": layers,
            "qk_parameters_before": self.qk_parameters_before,
            "qk_parameters_after": self.qk_parameters_after,
            "parameters_before": self.parameters_before,
            "flops_share": {str(length): self.flops_share(length) for length in LENGTHS},
            "predicted_loss": None if self.planned is None else self.planned.predicted_loss,
            "measured": self.planned is not None and self.planned.measured,
        }


def preview(
    model: PreTrainedModel,
    config: CollabConfig,
    calibration: Iterable[Mapping[str, Any]] | Mapping[str, LayerStatistics] | None = None,
    *,
    progress: bool = False,
) -> Preview:
    """Choose the forms as `compress_` would, and stop there.

    Args:
        model: a dense transformers model; left as it was found.
        config: what would be given to `compress_`.
        calibration: likewise.
        progress: whether to draw progress bars on stderr.

    Returns:
        The forms and their predicted size, cost and loss. Where a method other than auto is given with a
        budget, the largest form at the budget stands for the one that its error would choose.

    Raises:
        FamilyError: no attention layer that collab_hf knows, or one that is compressed already.
        ConfigError: settings that contradict each other, or a target that nothing meets.
        CalibrationError: calibration data that is empty or does not run.
    """
    layers = dense_layers(model)
    config.check_goals(layers)
    open_to_plan = planned_layers(config, layers)
    planned = plan_model(model, layers, config, calibration, progress=progress) if open_to_plan else None
    chosen = {} if planned is None else {layer.name: layer for layer in planned.layers}
    found = []
    for name, (module, family) in layers.items():
        shape = family.shape(module)
        settings = config.for_layer(name)
        if name in chosen:
            plan, loss = chosen[name].plan, chosen[name].loss
        elif settings is None:
            plan, loss = None, None
        else:
            plan = max(candidate_plans(settings, shape, name), key=lambda p: p.num_parameters(shape))
            loss = None
        size = shape.dense_parameters if plan is None else plan.num_parameters(shape)
        found.append(LayerPreview(name, shape, plan, size, loss))
    return Preview(tuple(found), planned, sum(p.numel() for p in model.parameters()))
