"""The feed-forward classes of transformers that collab_hf knows, one row each.

This file ships with saved checkpoints: it imports siblings alone.
"""

from __future__ import annotations

from .families_row import FeedForward

FEED_FORWARDS: dict[str, FeedForward] = {
    "BertLayer": FeedForward("intermediate.dense", "output.dense", gain="output.LayerNorm.weight"),
    "AlbertLayer": FeedForward("ffn", "ffn_output", gain="full_layer_layer_norm.weight"),
    "ViTMLP": FeedForward("fc1", "fc2"),
    "DeiTMLP": FeedForward("fc1", "fc2"),
    "Dinov2MLP": FeedForward("fc1", "fc2", gain="..layer_scale2.lambda1"),
    "Dinov2SwiGLUFFN": FeedForward("up_proj", "down_proj", "gate_proj", gain="..layer_scale2.lambda1"),
}
