"""What a compression would give, without doing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..config import CollabConfig
from ..host.sites import AttentionSite
from ..modeling.kinds import check_kinds
from ..parts.part import Option
from ..parts.registry import PARTS, QUERY_KEY
from ..planning import ModelPlan, plan_model, planned_layers
from ..planning.planner import largest
from ..tensors.moments import LayerStatistics

# Lengths at which the cost is predicted: a sentence, a paragraph, a page.
LENGTHS = (32, 128, 512)


@dataclass(frozen=True)
class Preview:
    """The forms of all layers.

    Attributes:
        sites: the layers by name, in the model's order.
        options: what each is to get; without a loss where it was not planned.
        planned: what the planner chose; None where every layer's form was given.
        parameters_before: all parameters of the model.
    """

    sites: Mapping[str, AttentionSite]
    options: Mapping[str, Option]
    planned: ModelPlan | None
    parameters_before: int

    @property
    def qk_parameters_before(self) -> int:
        """Query/key weights of all dense layers."""
        return sum(site.shape.dense_parameters for site in self.sites.values())

    @property
    def qk_parameters_after(self) -> int:
        """Query/key numbers of all forms."""
        return sum(option.parameters for option in self.options.values())

    def operations_share(self, length: int) -> float:
        """Operations for queries, keys and scores at a sequence length, over the dense ones."""
        part = QUERY_KEY
        dense = sum(part.operations(None, site.shape, length) for site in self.sites.values())
        plans = {name: option.plan for name, option in self.options.items()}
        kept = sum(part.operations(plans[name], site.shape, length) for name, site in self.sites.items())
        return kept / dense

    def to_dict(self) -> dict[str, Any]:
        """The preview as plain values, ready for JSON."""
        layers = [
            {
                "name": name,
                "plan": "dense" if option.plan is None else option.plan.to_dict(),
                "qk_parameters": option.parameters,
                "predicted_loss": option.loss,
            }
            for name, option in self.options.items()
        ]
        return {
            "dry_run": True,
            "layers": layers,
            "qk_parameters_before": self.qk_parameters_before,
            "qk_parameters_after": self.qk_parameters_after,
            "parameters_before": self.parameters_before,
            "flops_share": {str(length): self.operations_share(length) for length in LENGTHS},
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
    part = PARTS["query_key"]
    sites = part.sites(model)
    check_kinds(sites, config.attention)
    config.check_goals(sites)
    open_to_plan = planned_layers(config, sites)
    planned = plan_model(model, part, sites, config, calibration, progress=progress) if open_to_plan else None
    options = {}
    for name, site in sites.items():
        settings = config.for_layer(name)
        if planned is not None and name in planned.options:
            options[name] = planned.options[name]
        elif settings is None:
            options[name] = Option(None, part.parameters(None, site.shape), 0.0)
        else:
            options[name] = largest(part, settings, site)
    return Preview(sites, options, planned, sum(p.numel() for p in model.parameters()))
