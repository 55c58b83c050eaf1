"""Attention classes that copy one that has a row, as new models of transformers mostly do.

This file ships with saved checkpoints: it imports torch and siblings alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from .families_contracts import BART, BERT, CLIP, DPT, LAYOUT, LLAMA, OPT, VIT
from .families_row import Family

ROTARY_PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
CONTRACTS = (BERT, LAYOUT, VIT, DPT, CLIP, BART, OPT)
# What the forward of such a class may name besides a row's own attributes. Anything else, a norm of the
# queries say, is not part of the contract.
NEUTRAL = frozenset(
    {
        "ALL_ATTENTION_FUNCTIONS",
        "EncoderDecoderCache",
        "_attn_implementation",
        "all_head_size",
        "config",
        "contiguous",
        "cross_attention_cache",
        "eager_attention_forward",
        "get",
        "get_interface",
        "is_causal",
        "is_updated",
        "isinstance",
        "keys",
        "layer_idx",
        "layers",
        "num_attention_heads",
        "num_heads",
        "p",
        "reshape",
        "self_attention_cache",
        "shape",
        "size",
        "training",
        "transpose",
        "update",
        "values",
        "view",
    }
)


def contract_of(host: type[nn.Module]) -> Family | None:
    """The row that a class without one of its own fits.

    Args:
        host: any module's class.

    Returns:
        The row, or None.
    """
    named = _names(host)
    if named >= ROTARY_PROJECTIONS and any("rotary" in name for name in named):
        return replace(LLAMA, keeps_heads="collab_hf does not know what else its class does with its heads")
    return next((row for row in CONTRACTS if _is_copy(host, row)), None)


def _names(host: type[nn.Module]) -> set[str]:
    """Attributes and globals that an attention class's forward names."""
    code = getattr(host.forward, "__code__", None)
    return set(code.co_names) if code is not None and "Attention" in host.__name__ else set()


def _is_copy(host: type[nn.Module], row: Family) -> bool:
    """Whether a class does what a row says: its forward names the row's attributes, and nothing unknown."""
    named = _names(host)
    if not named:
        return False
    code: Any = host.forward.__code__
    own = {row.query, row.key, row.value, row.head_dim, row.dropout, str(row.scaling)}
    own |= {row.output} if row.ending == "linear" else set()
    arguments = set(code.co_varnames[: code.co_argcount])
    read = {row.mask, row.cache, row.source} - {None}
    unread = arguments - {"self", "hidden_states", "output_attentions"} - read
    # A cross-attention's arguments are all there, or the contract is another one.
    has_source = row.source is None or row.source in arguments
    return own <= named <= own | NEUTRAL and not unread and has_source
