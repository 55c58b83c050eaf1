"""Queries and keys as a part: what the planner, surgery and recovery ask of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from ...config import CollabConfig
from ...errors import DecompositionError
from ...host.sites import AttentionSite, AttentionSites, attention_sites
from ...modeling.attention import CollabAttention
from ...modeling.families import relative_name
from ...modeling.plan import LayerPlan
from ...modeling.shapes import AttentionShape
from ...tensors import Problem, ScoreTensor
from ...tensors.factors import SharedFactors
from ...tensors.moments import LayerStatistics
from ..part import LayerwisePart, Option
from .candidates import candidate_plans, choose_factors, layer_problem, layer_settings, score_tensor
from .costs import attention_operations
from .dense_heads import replaced
from .graft import factor_parameters, graft_, read_factors
from .methods import METHODS
from .options import kind, layer_options, worthwhile
from .spectra import seen_scores

# Sweeps before a form is measured: after three, the error is within a per cent of where it ends.
_TRIAL_SWEEPS = 3


class QueryKey(LayerwisePart):
    """Query and key projections of all heads of an attention layer, in shared form."""

    name = "query_key"
    size_name = "score width"
    place = "attention"

    def sites(self, model: nn.Module) -> AttentionSites:  # noqa: D102
        return attention_sites(model)

    def size(self, plan: LayerPlan | None, shape: AttentionShape) -> int:  # noqa: D102
        return shape.head_dim if plan is None else plan.score_width

    def parameters(self, plan: LayerPlan | None, shape: AttentionShape) -> int:  # noqa: D102
        return shape.dense_parameters if plan is None else plan.num_parameters(shape)

    def operations(self, plan: LayerPlan | None, shape: AttentionShape, length: int) -> int:  # noqa: D102
        return attention_operations(plan, shape, length)

    def candidates(self, config: CollabConfig, shape: AttentionShape, name: str) -> list[LayerPlan]:  # noqa: D102
        return candidate_plans(config, shape, name)

    def settings(self, plan: LayerPlan | None) -> Mapping[str, Any] | Literal["dense"]:  # noqa: D102
        return layer_settings(plan)

    def solve(  # noqa: D102
        self,
        site: AttentionSite,
        config: CollabConfig,
        plans: Sequence[LayerPlan],
        statistics: LayerStatistics | None,
    ) -> SharedFactors:
        scores = score_tensor(site, config)
        try:
            return choose_factors(scores, config, plans, statistics)
        except DecompositionError as error:
            raise DecompositionError(f"{error} ({site.name})") from error

    def trial(  # noqa: D102
        self, site: AttentionSite, config: CollabConfig, statistics: LayerStatistics | None
    ) -> QueryKeyTrial:
        scores = score_tensor(site, config)
        with torch.no_grad():
            seen = seen_scores(scores, statistics, config.damping)
            options = tuple(layer_options(seen, config, site.shape))
        return QueryKeyTrial(site, config, options, scores, statistics)

    def replaced(  # noqa: D102
        self, sites: AttentionSites, solutions: Mapping[str, SharedFactors]
    ) -> AbstractContextManager[None]:
        return replaced(sites, solutions)

    def install_(self, site: AttentionSite, solution: SharedFactors) -> None:  # noqa: D102
        graft_(site.module, solution)

    def read(self, module: nn.Module, solution: SharedFactors) -> SharedFactors:  # noqa: D102
        return read_factors(cast(CollabAttention, module), solution.relative_error)

    def converted(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:  # noqa: D102
        for name, module in model.named_modules():
            if isinstance(module, CollabAttention):
                yield relative_name(model, name), module

    def trained(self, module: nn.Module) -> Iterable[nn.Parameter]:  # noqa: D102
        return factor_parameters(cast(CollabAttention, module))


@dataclass(frozen=True, eq=False)
class QueryKeyTrial:
    """One layer in the coordinates that its data give.

    Attributes:
        site: the layer.
        config: its settings.
        options: forms with their errors by truncation.
        scores: the layer's factors.
        statistics: moments of its inputs, or None for the weights alone.
    """

    site: AttentionSite
    config: CollabConfig
    options: tuple[Option, ...]
    scores: ScoreTensor
    statistics: LayerStatistics | None

    @cached_property
    def problem(self) -> Problem:
        """Whitened factors, worked out once for all forms."""
        return layer_problem(self.scores, self.config, self.statistics)

    def solve(self, plan: LayerPlan) -> SharedFactors:
        """Decompose a layer nearly to the end, with a content bias that the dense host can hold."""
        return self.problem.solve(replace(plan, content_bias="folded"), max_sweeps=_TRIAL_SWEEPS)

    def solved_options(self, solved: Sequence[tuple[float, Option, float]]) -> tuple[Option, ...]:
        """The options with the errors that sweeps bring them to, without those that others beat then.

        Truncation is the best answer for svd but not for tucker, which would look too bad next to it,
        and the more so where queries and keys have subspaces of their own.
        """
        gains: dict[str, list[tuple[float, float]]] = {}
        for name in sorted({kind(o) for o in self.options if o.plan and METHODS[o.plan.method].swept}):
            found = gains.setdefault(name, [])
            for most, measured, error in solved:
                fitting = [o for o in self.options if kind(o) == name and o.parameters <= most]
                if not fitting:
                    continue
                option = min(fitting, key=lambda o: o.error)
                if option != measured:
                    error = self.solve(option.plan).relative_error
                if option.error > 0:
                    found.append((option.error, min(1.0, error / option.error)))

        def swept(option: Option) -> float:
            if not gains.get(kind(option)):
                return option.error
            errors, ratios = zip(*sorted(gains[kind(option)]), strict=True)
            return option.error * float(np.interp(option.error, errors, ratios))

        return tuple(worthwhile([replace(option, error=swept(option)) for option in self.options]))
