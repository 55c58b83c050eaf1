"""The attention classes of transformers whose queries and keys stay as they are, one row each.

This file ships with saved checkpoints: it imports siblings alone.
"""

from __future__ import annotations

from dataclasses import replace

from .families_contracts import (
    BERT,
    GATED_POSITIONS,
    HEADS_NORM,
    LLAMA,
    OPT,
    RELATIVE,
    ROTARY,
    SHORTENED,
    VIT,
    rows,
)
from .families_row import Family

KEPT: dict[str, Family] = {
    "WavLMAttention": replace(
        OPT, model_types=("wavlm",), refuses=GATED_POSITIONS, keeps_heads=GATED_POSITIONS
    ),
    **rows(
        LLAMA,
        "Attention",
        {
            "gemma": "Gemma",
            "gemma2": "Gemma2",
            "gemma3_text": "Gemma3",
            "granite": "Granite",
            "llama": "Llama",
            "mistral": "Mistral",
            "olmo": "Olmo",
            "qwen2": "Qwen2",
            "qwen3": "Qwen3",
            "smollm3": "SmolLM3",
        },
    ),
    **rows(LLAMA, "Attention", {"olmo2": "Olmo2"}, keeps_heads=HEADS_NORM),
    **rows(LLAMA, "Attention", {"cohere": "Cohere"}, keeps_heads=HEADS_NORM, keeps_heads_if="use_qk_norm"),
    **rows(
        LLAMA,
        "Attention",
        {"nomic_bert": "NomicBert"},
        shares_keys=False,
        gain="..post_attention_layernorm.weight",
    ),
    **rows(
        VIT,
        "Attention",
        {"dinov3_vit": "DINOv3ViT"},
        num_heads="num_heads",
        dropout="dropout",
        gain="..layer_scale1.lambda1",
        refuses=ROTARY,
    ),
    **rows(VIT, "Attention", {"segformer": "Segformer"}, refuses=SHORTENED, keeps_heads=SHORTENED),
    "ModernBertAttention": replace(
        VIT,
        model_types=("modernbert",),
        query="Wqkv:0/3",
        key="Wqkv:1/3",
        value="Wqkv:2/3",
        output="Wo",
        num_heads=None,
        refuses=ROTARY,
    ),
    "RoFormerSelfAttention": replace(
        BERT,
        model_types=("roformer",),
        all_heads="all_head_size",
        source="encoder_hidden_states",
        refuses=ROTARY,
    ),
    # Named by its module too, as two have the name. The first's one projection interleaves the heads, so that
    # thirds of it have the right sizes alone.
    "deberta.DisentangledSelfAttention": replace(
        BERT,
        model_types=("deberta",),
        query="in_proj:0/3",
        key="in_proj:1/3",
        value="in_proj:2/3",
        refuses=RELATIVE,
        keeps_heads=RELATIVE,
    ),
    "DisentangledSelfAttention": replace(
        BERT,
        model_types=("deberta-v2",),
        query="query_proj",
        key="key_proj",
        value="value_proj",
        refuses=RELATIVE,
        keeps_heads=RELATIVE,
    ),
}
