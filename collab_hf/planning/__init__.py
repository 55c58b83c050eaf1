"""From what the user asks to a form for each layer."""

from __future__ import annotations

from .uniform import DEFAULT_BUDGET, candidate_plans, choose_factors

__all__ = ["DEFAULT_BUDGET", "candidate_plans", "choose_factors"]
