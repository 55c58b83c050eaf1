"""`CollaborativeAttention`: attention with shared queries and keys, for architectures of one's own.

Shapes: B batch, T queries, S keys, D hidden_size, E key_value_size, H num_heads, V value_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError, LayerError
from ..modeling.initialisation import MixingInit
from ..modeling.plan import LayerPlan
from ..modeling.shapes import AttentionShape
from .cache import KeyValueCache
from .checks import checked_dropout, checked_head_dim, describe
from .core import attend
from .initialisation import fill_projection_, initialise_
from .masks import causal_mask, combine, padding_mask, to_internal
from .scores import SharedScores, layer_plan


class CollaborativeAttention(nn.Module):
    """Multi-head attention whose heads share one query projection W_Q and one key projection W_K.

    Head h scores query x against key y as x W_Q diag(m_h) W_K^T y^T / sqrt(head_dim), where m_h is its mixing
    vector (the other forms of `LayerPlan` have a small matrix in its place). Values and output are those of
    ordinary attention. Without a rank and a plan nothing is shared, which is ordinary attention whose
    head_dim need not be hidden_size / num_heads: the fixed head size of Bhojanapalli et al.

    Args:
        hidden_size: width of the input and of the output, D.
        num_heads: number of heads.
        rank: width of both shared projections, 1 to num_heads * head_dim; None for heads of their own.
        plan: another form, such as tucker, instead of a rank.
        dims_per_head: number of shared dimensions that each head uses; None for all of them.
        head_dim: sets the scale, 1 / sqrt(head_dim), and with heads of their own their width; None for
            hidden_size / num_heads.
        value_dim: width of one head's values; None for head_dim.
        key_value_size: width of the sequence that cross-attention reads; None for hidden_size.
        cross: keys and values come from another sequence.
        causal: each query attends the keys up to its own position only.
        dropout: probability of dropping an attention weight, in training.
        bias: whether scores have a content bias, and values and output a bias. Keys need none: softmax
            would drop it.
        mixing: how the mixing begins, see `initialise_`.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigError: sizes or settings that contradict each other.
        RankError: a rank that the layer can't have.

    Source:
        Cordonnier et al. 2020, arXiv:2006.16362, section 4; Bhojanapalli et al. 2020, arXiv:2002.07028, for
        head_dim apart from hidden_size / num_heads.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        rank: int | None = None,
        *,
        plan: LayerPlan | None = None,
        dims_per_head: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        key_value_size: int | None = None,
        cross: bool = False,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        mixing: MixingInit | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if cross and causal:
            raise ConfigError("causal belongs to self-attention, got it with cross")
        if key_value_size is not None and not cross:
            raise ConfigError("key_value_size belongs to cross-attention, got it without cross")
        head_dim = checked_head_dim(hidden_size, num_heads, head_dim)
        source = key_value_size or hidden_size
        self.shape = AttentionShape(hidden_size, source, num_heads, head_dim, cross=cross)
        self.plan = layer_plan(self.shape, rank, plan, dims_per_head)
        self.num_heads, self.value_dim = num_heads, value_dim or head_dim
        self.cross, self.causal, self.dropout = cross, causal, checked_dropout(dropout)
        self.scores = SharedScores(self.plan, self.shape, content_bias=bias)
        self.value = nn.Linear(source, num_heads * self.value_dim, bias=bias)
        self.output = nn.Linear(num_heads * self.value_dim, hidden_size, bias=bias)
        self.reset_parameters(mixing)
        self.to(device=device, dtype=dtype)

    def reset_parameters(self, mixing: MixingInit | None = None) -> None:
        """Draw new first values for all parameters.

        Args:
            mixing: how the mixing begins, see `initialise_`.
        """
        initialise_(self.scores, mixing)
        for projection in (self.value, self.output):
            fill_projection_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def forward(
        self,
        hidden_states: Tensor,
        key_value: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden_states: (B, T, D); with a cache, the new tokens alone.
            key_value: (B, S, E) for cross-attention; with a cache that is filled it is not read.
            attention_mask: broadcastable to (B, H, T, S) from the right, (B, T, S) in three dimensions;
                boolean, where True blocks as in nn.MultiheadAttention, or added to the scores.
            key_padding_mask: (B, S), boolean (True blocks) or additive; S counts the tokens of a cache too.
            need_weights: whether to return the weights, which costs the fast kernels.
            cache: of this layer and these sequences; new tokens are appended, and in cross-attention the
                first call fills it.

        Returns:
            (B, T, D), and weights (B, H, T, S) after dropout, or None. A query that may attend nothing gets
            weights of zero.

        Raises:
            LayerError: inputs, masks or a cache that do not fit.
        """
        self._check_inputs(hidden_states, key_value, cache)
        query = self.scores.query(hidden_states)
        key, value = self._keys_and_values(hidden_states, query, key_value, cache)
        (batch, length, _), keys = hidden_states.shape, key.shape[1]
        mask = combine(
            self._attention_mask(attention_mask, batch, length, keys),
            padding_mask(key_padding_mask, batch, keys),
            query.dtype,
        )
        causal = self.causal
        if causal and cache is not None and keys > length:
            causal = False  # kernels count from the first key, and one new query sees all keys anyway
            if length > 1:
                mask = combine(mask, causal_mask(length, keys, query.device), query.dtype)
        decoding = cache is not None and length == 1
        value = value.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, S, H*V) -> (B, H, S, V)
        output, weights = attend(
            self.scores(hidden_states, query, key, decoding=decoding),
            value,
            mask,
            causal=causal,
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
        )
        return self.output(output.flatten(2)), weights

    def _keys_and_values(
        self, hidden_states: Tensor, query: Tensor, key_value: Tensor | None, cache: KeyValueCache | None
    ) -> tuple[Tensor, Tensor]:
        if self.cross and cache is not None and cache.key is not None and cache.value is not None:
            return cache.key, cache.value
        source = hidden_states if key_value is None else key_value
        key = self.scores.shared_keys(source, query if key_value is None else None)
        value = self.value(source)
        return (key, value) if cache is None else cache.append_(key, value)

    def _attention_mask(self, mask: Tensor | None, batch: int, length: int, keys: int) -> Tensor | None:
        if mask is None:
            return None
        whole = (batch, self.num_heads, length, keys)
        four = mask.unsqueeze(1) if mask.dim() == 3 else mask[(None,) * max(0, 4 - mask.dim())]
        if four.dim() != 4 or any(n not in (1, m) for n, m in zip(four.shape, whole, strict=True)):
            raise LayerError(
                f"attention_mask must broadcast to {whole} (batch, heads, queries, keys), got "
                f"{tuple(mask.shape)}"
            )
        return to_internal(four, "attention_mask")

    def _check_inputs(
        self, hidden_states: Tensor, key_value: Tensor | None, cache: KeyValueCache | None
    ) -> None:
        shape = self.shape
        if hidden_states.dim() != 3 or hidden_states.shape[2] != shape.query_size:
            raise LayerError(
                f"hidden_states must have shape (batch, length, {shape.query_size}), got "
                f"{tuple(hidden_states.shape)}"
            )
        if not self.cross and key_value is not None:
            raise LayerError("key_value belongs to cross-attention; build the layer with cross=True")
        if self.cross and key_value is None and (cache is None or not cache.length):
            raise LayerError("cross-attention needs key_value, or a cache that an earlier call filled")
        if key_value is not None and (
            key_value.dim() != 3 or key_value.shape[::2] != (len(hidden_states), shape.key_size)
        ):
            raise LayerError(
                f"key_value must have shape ({len(hidden_states)}, length, {shape.key_size}), got "
                f"{tuple(key_value.shape)}"
            )

    def extra_repr(self) -> str:
        """The form and its ranks."""
        settings = {"cross": self.cross, "causal": self.causal, "dropout": self.dropout}
        return ", ".join([describe(self.shape, self.plan), *(f"{k}={v}" for k, v in settings.items() if v)])
