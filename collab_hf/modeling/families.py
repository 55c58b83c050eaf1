"""One row per host attention class: where its projections, sizes and dropout are, and how its forward ends.

This file ships with saved checkpoints: it imports torch and transformers alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from .shapes import AttentionShape


@dataclass(frozen=True)
class Family:
    """Names of one host attention class's attributes.

    Paths lead from the attention module down; `..` in front leads to the module around it first.

    Args:
        model_types: transformers' `config.model_type` of the models that use the class.
        query: the query projection, an nn.Linear; likewise key and value.
        key: the key projection.
        value: the value projection.
        output: path of the output projection, an nn.Linear that reads all heads side by side.
        num_heads: number of heads.
        head_dim: width of one head.
        dropout: dropout of the attention weights, an nn.Dropout or a float.
        ending: what forward does after the attention: `none`, `linear` (the output projection), or `albert`
            (output projection, dropout, residual, LayerNorm).
        gain: path of the vector that scales the output's dimensions before the next layer reads them (of a
            LayerNorm behind it, or of a layer scale); None where there is none.
        cross: the keys come from another sequence, `encoder_hidden_states`.
    """

    model_types: tuple[str, ...]
    query: str = "query"
    key: str = "key"
    value: str = "value"
    output: str = "..output.dense"
    num_heads: str = "num_attention_heads"
    head_dim: str = "attention_head_size"
    dropout: str = "dropout"
    ending: Literal["none", "linear", "albert"] = "none"
    gain: str | None = "..output.LayerNorm.weight"
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
    query="q_proj",
    key="k_proj",
    value="v_proj",
    output="o_proj",
    head_dim="head_dim",
    dropout="attention_dropout",
    ending="linear",
    gain=None,
)

FAMILIES: dict[str, Family] = {
    "BertSelfAttention": _BERT,
    "BertCrossAttention": replace(_BERT, cross=True),
    "AlbertAttention": replace(
        _BERT,
        model_types=("albert",),
        dropout="attention_dropout",
        ending="albert",
        output="dense",
        gain="LayerNorm.weight",
    ),
    "ViTAttention": _VIT,
    "DeiTAttention": replace(_VIT, model_types=("deit",)),
    "Dinov2Attention": replace(_VIT, model_types=("dinov2",), gain="..layer_scale1.lambda1"),
}


@dataclass(frozen=True)
class FeedForward:
    """Names of one host feed-forward's attributes.

    It computes down(activation(up(x))), or down(activation(gate(x)) * up(x)).

    Paths lead from the module that holds the projections down; `..` in front leads to the one around it.

    Args:
        up: the projection to the neurons, an nn.Linear.
        down: the projection back, an nn.Linear, which reads the neurons.
        gate: the projection that the activation is applied to; None where there is none.
        gain: as for `Family`.
    """

    up: str
    down: str
    gate: str | None = None
    gain: str | None = None


FEED_FORWARDS: dict[str, FeedForward] = {
    "BertLayer": FeedForward("intermediate.dense", "output.dense", gain="output.LayerNorm.weight"),
    "AlbertLayer": FeedForward("ffn", "ffn_output", gain="full_layer_layer_norm.weight"),
    "ViTMLP": FeedForward("fc1", "fc2"),
    "DeiTMLP": FeedForward("fc1", "fc2"),
    "Dinov2MLP": FeedForward("fc1", "fc2", gain="..layer_scale2.lambda1"),
    "Dinov2SwiGLUFFN": FeedForward("up_proj", "down_proj", "gate_proj", gain="..layer_scale2.lambda1"),
}


def feed_forward_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, FeedForward]]:
    """Walk the feed-forward modules that collab_hf knows.

    Args:
        model: a transformers model, with or without a task head.

    Yields:
        Name relative to the base model, module, row. A module that several layers share comes once.
    """
    for name, module in model.named_modules():
        row = FEED_FORWARDS.get(type(module).__name__)
        if row is not None and type(module).__module__.startswith("transformers."):
            yield relative_name(model, name), module, row


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


def submodule_at(module: nn.Module, around: nn.Module, path: str) -> Any:
    """The module or parameter at a path of a row.

    Args:
        module: what the row is of.
        around: the module that holds it.
        path: names joined by dots; `..` in front starts at `around`.

    Returns:
        What is there.
    """
    found: Any = module
    if path.startswith(".."):
        found, path = around, path[2:]
    for name in path.split("."):
        found = getattr(found, name)
    return found


def relative_name(model: nn.Module, name: str) -> str:
    """A module's name without the prefix that a task head puts before the base model's."""
    prefix = getattr(model, "base_model_prefix", "")
    return name.removeprefix(f"{prefix}.") if prefix else name
