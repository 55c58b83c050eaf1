"""What every site of a model is to get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..modeling.plans import Plans
from ..parts.part import Option
from .attention_options import AttentionForm


@dataclass(frozen=True)
class WholePlan:
    """What every site of a model is to get.

    Attributes:
        options: by site name; the plan of an attention layer is an `AttentionForm`.
        length: tokens of the sequence that operations were counted for.
        dense_operations: of all sites as they are, for one sequence.
        dense_parameters: of all sites as they are.
    """

    options: Mapping[str, Option]
    length: int
    dense_operations: int
    dense_parameters: int

    @property
    def operations(self) -> int:
        """Operations of all sites, for one sequence."""
        return sum(option.operations or 0 for option in self.options.values())

    @property
    def parameters(self) -> int:
        """Trainable numbers of all sites."""
        return sum(option.parameters for option in self.options.values())

    @property
    def predicted_loss(self) -> float:
        """Sum of the sites' losses, each measured alone."""
        return sum(option.loss or 0.0 for option in self.options.values())

    def plans(self) -> Plans:
        """The forms by section and site, as config.json keeps them; what stays dense is left out."""
        found: Plans = {"heads": {}, "value_output": {}, "layers": {}, "feed_forward": {}}
        for name, option in self.options.items():
            if not isinstance(option.plan, AttentionForm):
                if option.plan is not None:
                    found["feed_forward"][name] = option.plan
                continue
            for section, plan in (
                ("heads", option.plan.heads),
                ("value_output", option.plan.values),
                ("layers", option.plan.query_key),
            ):
                if plan is not None:
                    found[section][name] = plan
        return found
