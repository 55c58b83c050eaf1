"""Surgery on all parts of a model under one budget."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from ..config import CollabConfig
from ..host.adoption import adopt_
from ..host.sites import AttentionSite
from ..modeling.plans import Plans
from ..parts.heads.removal import columns_of
from ..parts.query_key.methods import METHODS
from ..parts.registry import FEED_FORWARDS, HEADS, QUERY_KEY, VALUES
from ..parts.shrunk import moments_of
from ..planning.attention_options import AttentionForm
from ..planning.whole import Measured, WholePlan


@torch.no_grad()
def build_(model: PreTrainedModel, measured: Measured, plan: WholePlan, config: CollabConfig) -> Plans:
    """Give every site of a model its form, in place: heads first, then values, queries and keys over what stays.

    Args:
        model: the dense model that was measured.
        measured: statistics of its sites.
        plan: what every site gets.
        config: settings of the solvers.

    Returns:
        The forms that were installed, by section and site.
    """
    plans: Plans = {}
    for name, option in plan.options.items():
        if isinstance(option.plan, AttentionForm):
            _build_attention_(measured.attention[name], measured, option.plan, config, plans)
        elif option.plan is not None:
            site = measured.feed_forward[name]
            trial = FEED_FORWARDS.trial(site, measured.neurons[name])
            FEED_FORWARDS.install_(site, trial.solve(option.plan))
            plans.setdefault(FEED_FORWARDS.name, {})[name] = option.plan
    adopt_(model, plans)
    return plans


def _build_attention_(
    site: AttentionSite, measured: Measured, form: AttentionForm, config: CollabConfig, plans: Plans
) -> None:
    moments, query_key = measured.outputs[site.name], form.query_key
    if form.heads is not None:
        HEADS.install_(site, HEADS.trial(site, moments).solve(form.heads))
        plans.setdefault(HEADS.name, {})[site.name] = form.heads
        moments = moments_of(moments, columns_of(form.heads, site.shape.head_dim))
        site = replace(site, shape=site.family.shape(site.module))
    if form.values is not None:
        VALUES.install_(site, VALUES.trial(site, moments).solve(form.values))
        plans.setdefault(VALUES.name, {})[site.name] = form.values
        if query_key is None:  # hosts have values as wide as a head; ours take any
            query_key = METHODS["copy"].given(config, site.shape)
    if query_key is not None:
        statistics = measured.statistics.get(site.name)
        solution = QUERY_KEY.solve(site, config, [query_key.check(site.shape, site.name)], statistics)
        QUERY_KEY.install_(site, solution)
        plans.setdefault("layers", {})[site.name] = solution.plan
