"""One row per host attention class: where its projections, sizes and dropout are, and how its forward ends.

This file ships with saved checkpoints: it imports torch and transformers alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from .plan import AttentionShape


@dataclass(frozen=True)
class Family:
    """Names of one host attention class's attributes.

    Args:
        model_types: transformers' `config.model_type` of the models that use the class.
        query: the query projection, an nn.Linear; likewise key and value.
        key: the key projection.
        value: the value projection.
        num_heads: number of heads.
        head_dim: width of one head.
        dropout: dropout of the attention weights, an nn.Dropout or a float.
        ending: what forward does after the attention: `none`, `linear` (an output projection), or `albert`
            (output projection, dropout, residual, LayerNorm).
        output: the output projection, where forward applies one.
        cross: the keys come from another sequence, `encoder_hidden_states`.
    """

    model_types: tuple[str, ...]
    query: str = "query"
    key: str = "key"
    value: str = "value"
    num_heads: str = "num_attention_heads"
    head_dim: str = "attention_head_size"
    dropout: str = "dropout"
    ending: Literal["none", "linear", "albert"] = "none"
    output: str = ""
    cross: bool = False

    def shape(self, module: nn.Module) -> AttentionShape:
        """Sizes of an attention module of this family, dense or converted."""
        query = self.projection(module, "query")
        key = query if self.lacks_key(module) else self.projection(module, "key")
        biases = sum(linear.bias.numel() for linear in (query, key) if linear.bias is not None)
        heads, head_dim = getattr(module, self.num_heads), getattr(module, self.head_dim)
        return AttentionShape(query.in_features, key.in_features, heads, head_dim, biases, self.cross)

    def projection(self, module: nn.Module, role: Literal["query", "key", "value"]) -> nn.Linear:
        """The module's projection for a role; there is none for the key where `lacks_key`."""
        linear: nn.Linear = getattr(module, getattr(self, role))
        return linear

    def lacks_key(self, module: nn.Module) -> bool:
        """Whether the keys of a converted module come from its query projection alone."""
        return getattr(module, self.key) is None

    def head_factors(self, module: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
        """Per-head factors of a dense attention module, views of its weights.

        Args:
            module: a dense attention module of this family.

        Returns:
            W_Q (num_heads, query_size, head_dim), W_K (num_heads, key_size, head_dim), and the query bias
            (num_heads, head_dim) or None.
        """
        shape = self.shape(module)
        query, key = self.projection(module, "query"), self.projection(module, "key")

        def heads(weight: Tensor) -> Tensor:
            return weight.detach().view(shape.num_heads, shape.head_dim, -1).transpose(1, 2)

        bias = None if query.bias is None else query.bias.detach().view(shape.num_heads, shape.head_dim)
        return heads(query.weight), heads(key.weight), bias


_BERT = Family(("bert",))
_VIT = Family(
    ("vit",),
    "q_proj",
    "k_proj",
    "v_proj",
    "num_attention_heads",
    "head_dim",
    "attention_dropout",
    "linear",
    "o_proj",
)

FAMILIES: dict[str, Family] = {
    "BertSelfAttention": _BERT,
    "BertCrossAttention": replace(_BERT, cross=True),
    "AlbertAttention": replace(
        _BERT, model_types=("albert",), dropout="attention_dropout", ending="albert", output="dense"
    ),
    "ViTAttention": _VIT,
    "DeiTAttention": replace(_VIT, model_types=("deit",)),
    "Dinov2Attention": replace(_VIT, model_types=("dinov2",)),
}


def attention_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, Family]]:
    """Walk the dense attention layers that collab_hf knows.

    Args:
        model: a transformers model, with or without a task head.

    Yields:
        Name relative to the base model (the same for every task head), module, family. A module that several
        layers share comes once.
    """
    for name, module in model.named_modules():
        family = FAMILIES.get(type(module).__name__)
        if family is not None and type(module).__module__.startswith("transformers."):
            yield relative_name(model, name), module, family


def relative_name(model: nn.Module, name: str) -> str:
    """A module's name without the prefix that a task head puts before the base model's."""
    prefix = getattr(model, "base_model_prefix", "")
    return name.removeprefix(f"{prefix}.") if prefix else name
