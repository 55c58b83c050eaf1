"""What attention classes of transformers have in common: rows that many classes share.

This file ships with saved checkpoints: it imports siblings alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .families_row import Family

ROTARY = "its queries and keys are turned by their positions (rotary embeddings)"
HEAD_BIAS = "each of its heads has a position bias of its own"
HEADS_NORM = "its queries and keys are normed over all heads together"
SHORTENED = "its keys and values read a shorter sequence that its forward makes"
GATED_POSITIONS = "its scores are gated by relative positions and queries"
RELATIVE = "its scores hold terms of queries and keys with relative positions"


def rows(row: Family, suffix: str, hosts: dict[str, str], **changes: Any) -> dict[str, Family]:
    """A row for each of some classes.

    Args:
        row: what they have in common.
        suffix: end of the classes' names.
        hosts: beginning of a class's name by model type.
        **changes: fields that differ from the row's.

    Returns:
        Rows by class name.
    """
    row = replace(row, **changes)
    return {prefix + suffix: replace(row, model_types=(kind,)) for kind, prefix in hosts.items()}


# --- the contracts that classes share

BERT = Family(gain="..output.LayerNorm.weight")
BERT_CROSS = replace(BERT, cross=True, source="encoder_hidden_states")
# As BERT's, with its dropout's probability beside it and no cache.
LAYOUT = replace(BERT, dropout="attention_dropout")
BY_HAND = replace(BERT, all_heads="all_head_size", source="encoder_hidden_states", scaling=None)
VIT = Family(
    query="q_proj",
    key="k_proj",
    value="v_proj",
    output="o_proj",
    head_dim="head_dim",
    dropout="attention_dropout",
    ending="linear",
)
DPT = Family(all_heads="all_head_size", dropout="dropout_prob")
CLIP = replace(VIT, output="out_proj", num_heads="num_heads", dropout="dropout", scaling="scale")
BART = replace(CLIP, scaling="scaling", source="key_value_states")
OPT = replace(BART, source=None)
POST_NORM = "..{}_layer_norm.weight"
T5 = Family(
    query="q",
    key="k",
    value="v",
    output="o",
    num_heads="n_heads",
    head_dim="key_value_proj_dim",
    ending="linear",
    source="key_value_states",
    mask="mask",
    bias="buckets",
    keeps_heads=HEAD_BIAS,
    results="t5",
)
GPT2 = Family(
    query="c_attn:0/3",
    key="c_attn:1/3",
    value="c_attn:2/3",
    output="c_proj",
    num_heads="num_heads",
    head_dim="head_dim",
    dropout="attn_dropout",
    ending="dropout",
    source="encoder_hidden_states",
    source_mask="encoder_attention_mask",
    all_heads="split_size",
    crossing=(("query", "q_attn"), ("key", "c_attn:0/2"), ("value", "c_attn:1/2"), ("cross", True)),
)
LLAMA = replace(VIT, num_heads=None, shares_keys=True, refuses=ROTARY)
