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
        found: Plans = {}
        for name, option in self.options.items():
            form = option.plan
            if isinstance(form, AttentionForm):
                for section, plan in zip(
                    form.sections, (form.heads, form.values, form.query_key), strict=True
                ):
                    if plan is not None:
                        found.setdefault(section, {})[name] = plan
            elif form is not None:
                found.setdefault(form.section, {})[name] = form
        return found
