"""What one row of the tables of host classes says, and how a module is read by it.

This file ships with saved checkpoints: it imports torch and siblings alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

from torch import Tensor, nn

from .errors import ConfigError
from .shapes import AttentionShape
from .slots import Slot, slot_of

Role = Literal["query", "key", "value"]

# Names of the projections that a conversion makes of a fused one.
_APART: dict[Role, str] = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}


@dataclass(frozen=True)
class Family:
    """Names of one host attention class's attributes, and of its forward's arguments.

    Paths lead from the attention module down; `..` in front leads to the module around it first. `c_attn:0/3`
    is the first of three equal parts of the outputs of c_attn.

    Args:
        model_types: transformers' `config.model_type` of the models that use the class.
        query: the query projection, an nn.Linear, or Conv1D where it is part of one; likewise key and value.
        key: the key projection.
        value: the value projection.
        output: path of the output projection, which reads all heads side by side.
        num_heads: number of heads; None where forward takes as many as the query projection gives.
        shares_keys: several queries' heads may share one head of keys and values.
        head_dim: width of one head.
        all_heads: an attribute with the width of all heads that forward goes by; None for none.
        dropout: dropout of the attention weights, an nn.Dropout or a float.
        scaling: factor of the scores: an attribute, a number, or None for head_dim ** -0.5.
        ending: what forward does after the attention: `none`, `linear` (the output projection), `dropout`
            (output projection and `resid_dropout`), or `albert` (output projection, dropout, residual,
            LayerNorm).
        gain: path of the vector that scales the output's dimensions before the next layer reads them (of a
            LayerNorm behind it, or of a layer scale); None where there is none. `{}` in it stands for the
            name that the layer around has for the module.
        cross: the keys come from another sequence.
        source: forward's argument with that sequence; None where the class has self-attention alone.
        value_source: forward's argument that the values come from, where it is not the keys'.
        mask: forward's argument with the mask.
        source_mask: forward's argument with the mask for `source`, where it is another one.
        cache: forward's argument with the cache.
        layer_index: the layer's number in the cache.
        bias: name in `position_bias.BIASES` of what the class adds to the scores; None for nothing.
        keeps_heads: why no head of the class can go; None where one can.
        keeps_heads_if: an attribute that is true where they can't; None for always.
        results: what forward gives: `pair` of output and weights, `listed` (weights where asked for), `t5`
            (the position bias between them), or the `output` alone.
        refuses: why queries and keys of the class can't be compressed; None where they can.
        refuses_if: an attribute that is `refuses_value` where they can't; None for always.
        refuses_value: its value then.
        crossing: fields, with their values, of a module whose attribute `is_cross_attention` is true.
    """

    model_types: tuple[str, ...] = ()
    query: str = "query"
    key: str = "key"
    value: str = "value"
    output: str = "..output.dense"
    num_heads: str | None = "num_attention_heads"
    shares_keys: bool = False
    head_dim: str = "attention_head_size"
    all_heads: str | None = None
    dropout: str = "dropout"
    scaling: str | float | None = "scaling"
    ending: Literal["none", "linear", "dropout", "albert"] = "none"
    gain: str | None = None
    cross: bool = False
    source: str | None = None
    value_source: str | None = None
    mask: str = "attention_mask"
    source_mask: str | None = None
    cache: str = "past_key_values"
    layer_index: str = "layer_idx"
    bias: str | None = None
    keeps_heads: str | None = None
    keeps_heads_if: str | None = None
    results: Literal["pair", "listed", "t5", "output"] = "pair"
    refuses: str | None = None
    refuses_if: str | None = None
    refuses_value: Any = True
    crossing: tuple[tuple[str, Any], ...] = ()

    def refusal(self, module: nn.Module, part: str = "query_key") -> str | None:
        """Why a part of a module can't be made smaller.

        Args:
            module: of this family.
            part: `query_key`, `heads` or `value_output`.

        Returns:
            The reason, or None where it can.
        """
        row = self
        if self.refuses_if is not None and attrgetter(self.refuses_if)(module) != self.refuses_value:
            row = replace(row, refuses=None)
        if self.keeps_heads_if is not None and not getattr(module, self.keeps_heads_if):
            row = replace(row, keeps_heads=None)
        return row.reason(part)

    def reason(self, part: str) -> str | None:
        """Why a part can't be made smaller in modules of this family that are refused at all."""
        if part == "query_key":
            return self.refuses
        if part == "heads":
            return self.keeps_heads
        if self.refuses is not None:
            return "values get narrower only beside a form of queries and keys"
        return "its queries, keys and values are parts of one projection" if self.is_fused else None

    def shape(self, module: nn.Module) -> AttentionShape:
        """Sizes of an attention module of this family, dense or converted."""
        query = self.slot(module, "query")
        key = query if self.lacks_key(module) else self.slot(module, "key")
        biases = sum(slot.bias.numel() for slot in (query, key) if slot.bias is not None)
        sizes = query.weight.shape[1], key.weight.shape[1]
        shared = self.key_value_heads(module) if self.shares_keys else 0
        return AttentionShape(*sizes, self.heads(module), self.width(module), biases, self.cross, shared)

    def heads(self, module: nn.Module) -> int:
        """Number of heads."""
        if self.num_heads is None:
            return len(self.slot(module, "query").weight) // self.width(module)
        return int(attrgetter(self.num_heads)(module))

    def key_value_heads(self, module: nn.Module) -> int:
        """Number of heads of keys and values."""
        if self.shares_keys:
            return len(self.slot(module, "key").weight) // self.width(module)
        return self.heads(module)

    def width(self, module: nn.Module) -> int:
        """Width of one head."""
        return int(attrgetter(self.head_dim)(module))

    def scale(self, module: nn.Module) -> float:
        """The host's own factor of the scores."""
        if isinstance(self.scaling, str):
            return float(attrgetter(self.scaling)(module))
        return float(self.width(module) ** -0.5 if self.scaling is None else self.scaling)

    def slot(self, module: nn.Module, role: Role) -> Slot:
        """Where the weights of a role's projection are; there is none for the key where `lacks_key`."""
        apart = _APART[role]
        return slot_of(module, apart if self.is_fused and hasattr(module, apart) else getattr(self, role))

    def projection(self, module: nn.Module, role: Role) -> nn.Linear:
        """The module's own projection for a role; there is none for the key where `lacks_key`.

        Args:
            module: dense or converted.
            role: which projection.

        Returns:
            The projection.

        Raises:
            ConfigError: it is part of another module, which only a conversion takes apart.
        """
        slot = self.slot(module, role)
        if slot.parts > 1:
            raise ConfigError(f"the {role} of {type(module).__name__} is part of another projection")
        linear: nn.Linear = slot.module
        return linear

    @property
    def is_fused(self) -> bool:
        """Whether query, key and value are parts of one projection."""
        return ":" in self.key

    def taken_apart(self) -> Family:
        """The row of a converted module: its projections are modules of their own."""
        return replace(self, **_APART) if self.is_fused else self  # type: ignore[arg-type]

    def lacks_key(self, module: nn.Module) -> bool:
        """Whether the keys of a converted module come from its query projection alone."""
        return not self.is_fused and getattr(module, self.key) is None

    def head_factors(self, module: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
        """Per-head factors of a dense attention module, views of its weights.

        Args:
            module: a dense attention module of this family.

        Returns:
            W_Q (num_heads, query_size, head_dim), W_K (num_heads, key_size, head_dim), and the query bias
            (num_heads, head_dim) or None.
        """
        heads, width = self.heads(module), self.width(module)
        query, key = self.slot(module, "query"), self.slot(module, "key")

        def split(weight: Tensor) -> Tensor:
            return weight.detach().view(heads, width, -1).transpose(1, 2)

        bias = None if query.bias is None else query.bias.detach().view(heads, width)
        return split(query.weight), split(key.weight), bias

    def swap_heads_(
        self, module: nn.Module, query: Tensor, bias: Tensor | None, key: Tensor
    ) -> Callable[[], None]:
        """Give a dense module other query and key weights for a while.

        Args:
            module: a dense attention module of this family.
            query: (num_heads * head_dim, query_size).
            bias: of the queries, (num_heads * head_dim,); None leaves the module's.
            key: (num_heads * head_dim, key_size).

        Returns:
            A function that puts the module's own parameters back.
        """
        slots = self.slot(module, "query"), self.slot(module, "key")
        owners = list({id(slot.module): slot.module for slot in slots}.values())
        before = [(owner, owner.weight, owner.bias) for owner in owners]
        for owner, weight, old in before:
            owner.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
            owner.bias = None if old is None else nn.Parameter(old.detach().clone(), requires_grad=False)
        slots[0].weight.data.copy_(query)
        slots[1].weight.data.copy_(key)
        held = slots[0].bias
        if bias is not None and held is None:
            slots[0].module.bias = nn.Parameter(bias.to(slots[0].weight), requires_grad=False)
        elif bias is not None and held is not None:
            held.data.copy_(bias)

        def restore() -> None:
            for owner, weight, old in before:
                owner.weight, owner.bias = weight, old

        return restore


@dataclass(frozen=True)
class FeedForward:
    """Names of one host feed-forward's attributes.

    It computes down(activation(up(x))), or down(activation(gate(x)) * up(x)).

    Paths lead from the module that holds the projections down; `..` in front leads to the one around it.
    `Wi:0/2` is the first half of the outputs of Wi.

    Args:
        up: the projection to the neurons, an nn.Linear or Conv1D, or part of one.
        down: the projection back, which reads the neurons.
        gate: the projection that the activation is applied to; None where there is none.
        gain: as for `Family`.
        model_types: as for `Family`.
    """

    up: str
    down: str
    gate: str | None = None
    gain: str | None = None
    model_types: tuple[str, ...] = ()
