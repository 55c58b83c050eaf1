"""Heads: gate them, score them, take them out ("Are Sixteen Heads Really Better than One?").

from collab_hf import heads

scores = heads.score_heads(model, batches)
with heads.gated(model, heads.without(model, [("encoder.layer.0.attention.self", 3)])):
...
"""

from __future__ import annotations

from .parts.heads.gates import changed_heads, gated, without
from .parts.heads.importance import HeadScores, score_heads
from .parts.heads.orders import first_to_go, heads_left, order_by, random_order
from .parts.heads.sites import Head, head_counts, head_sites
from .surgery.heads import ORDERS, HeadEffect, ablate_heads, pruning_plan

__all__ = [
    "ORDERS",
    "Head",
    "HeadEffect",
    "HeadScores",
    "ablate_heads",
    "changed_heads",
    "first_to_go",
    "gated",
    "head_counts",
    "head_sites",
    "heads_left",
    "order_by",
    "pruning_plan",
    "random_order",
    "score_heads",
    "without",
]
