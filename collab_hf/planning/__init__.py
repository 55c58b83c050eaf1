"""One budget over all layers: what each form loses, and the choice that loses least."""

from .divergence import Divergence
from .planner import ModelPlan, plan_model, planned_layers

__all__ = ["Divergence", "ModelPlan", "plan_model", "planned_layers"]
