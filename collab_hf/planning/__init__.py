"""From what the user asks to a form for each layer."""

from __future__ import annotations

from ..calibration.held_out import split_batches
from ..host.sites import score_tensor
from ..parts.query_key.candidates import DEFAULT_BUDGET, candidate_plans, choose_factors
from .divergence import Divergence
from .planner import ModelPlan, PlannedLayer, plan_model, planned_layers

__all__ = [
    "DEFAULT_BUDGET",
    "Divergence",
    "ModelPlan",
    "PlannedLayer",
    "candidate_plans",
    "choose_factors",
    "plan_model",
    "planned_layers",
    "score_tensor",
    "split_batches",
]
