"""Heads: gate them, score them, take them out ("Are Sixteen Heads Really Better than One?").

from collab_hf import heads

scores = heads.score_heads(model, batches)
with heads.gated(model, heads.without(model, [("encoder.layer.0.attention.self", 3)])):
...
"""

from __future__ import annotations

from .measure.ablation import HeadEffect, ablate_heads, effects_by_layer, heat_map, reducible_layers
from .parts.heads.gates import changed_heads, gated, without
from .parts.heads.importance import HeadScores, score_heads
from .parts.heads.losses import labelled_loss, sampled_loss
from .parts.heads.orders import first_to_go, heads_left, order_by, random_order
from .parts.heads.sites import Head, head_counts, head_sites
from .planning.head_orders import ORDERS, pruning_order
from .surgery.heads import pruning_curve, pruning_plan

__all__ = [
    "ORDERS",
    "Head",
    "HeadEffect",
    "HeadScores",
    "ablate_heads",
    "changed_heads",
    "effects_by_layer",
    "first_to_go",
    "gated",
    "head_counts",
    "head_sites",
    "heads_left",
    "heat_map",
    "labelled_loss",
    "order_by",
    "pruning_curve",
    "pruning_order",
    "pruning_plan",
    "random_order",
    "reducible_layers",
    "sampled_loss",
    "score_heads",
    "without",
]
