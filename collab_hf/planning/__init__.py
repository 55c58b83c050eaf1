"""From what the user asks to a form for each layer."""

from __future__ import annotations

from ..parts.query_key.candidates import DEFAULT_BUDGET, candidate_plans, choose_factors
from .curves import score_tensor
from .divergence import Divergence, split_batches
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
