"""`MultiheadAttention`: torch's module of that name with shared queries and keys.

Shapes: N batch, L queries, S keys, E embed_dim, H num_heads, V width of one head's values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..errors import ConfigError, LayerError
from ..modeling.initialisation import MixingInit
from ..modeling.plan import LayerPlan
from ..modeling.shapes import AttentionShape
from ..tensors import Moments
from .checks import check_inputs, checked_dropout, checked_head_dim, describe
from .core import attend
from .dense import shared_from_dense
from .initialisation import fill_projection_, initialise_
from .masks import allow_sinks, combine, head_mask, padding_mask
from .scores import SharedScores, layer_plan


class MultiheadAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention with the same arguments and results, whose heads may share queries and keys.

    An instance of torch's class, so that code that looks for that finds it; but in_proj_weight, in_proj_bias
    and bias_k are None, and torch's fused encoder path, which reads them, is never taken. (An encoder that
    was built with dense layers still reads them where it packs padded input; `compress_layers_` sets its
    use_nested_tensor to False, and who puts a module in by hand should do so too.) The key and the
    value that add_bias_kv and add_zero_attn append are sinks: the scores of the appended key are a linear
    function of the query (D to H), which is what they are in torch, at any rank. Two differences: a query
    that may attend nothing gets weights of zero, where torch gives NaN with need_weights; and is_causal
    never hides what add_bias_kv and add_zero_attn append, as it does in torch without need_weights.

    Args:
        embed_dim: width of queries and of the output.
        num_heads: number of heads.
        dropout: probability of dropping an attention weight, in training.
        bias: whether scores have a content bias, and values and output a bias.
        add_bias_kv: append a learned key and value.
        add_zero_attn: append a value of zeros; its score begins at zero.
        kdim: width of the keys' input; None for embed_dim.
        vdim: width of the values' input; None for embed_dim.
        batch_first: whether inputs are (N, L, E) rather than (L, N, E).
        device: of the parameters.
        dtype: of the parameters.
        rank: width of both shared projections, 1 to num_heads * head_dim; None for heads of their own.
        plan: another form, such as tucker, instead of a rank.
        dims_per_head: number of shared dimensions that each head uses; None for all of them.
        head_dim: sets the scale, 1 / sqrt(head_dim), and the width of a head's values; None for
            embed_dim / num_heads.
        mixing: how the mixing begins, see `initialise_`.
        content_bias: whether scores have a content bias; None for what `bias` says.

    Raises:
        ConfigError: sizes or settings that contradict each other.
        RankError: a rank that the layer can't have.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int | None = None,
        plan: LayerPlan | None = None,
        dims_per_head: int | None = None,
        head_dim: int | None = None,
        mixing: MixingInit | None = None,
        content_bias: bool | None = None,
    ) -> None:
        nn.Module.__init__(self)  # torch's own __init__ would make the dense projections
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        self.head_dim = checked_head_dim(embed_dim, num_heads, head_dim)
        self.dropout = checked_dropout(dropout)
        self.batch_first, self.add_zero_attn = batch_first, add_zero_attn
        for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            self.register_parameter(name, None)
        self.bias_k = None
        self._qkv_same_embed_dim = False  # with it, and without in_proj_bias, encoders leave their fast path
        self.shape = AttentionShape(embed_dim, self.kdim, num_heads, self.head_dim)
        self.plan = layer_plan(self.shape, rank, plan, dims_per_head)
        self.scores = SharedScores(
            self.plan,
            self.shape,
            content_bias=bias if content_bias is None else content_bias,
            sinks=int(add_bias_kv) + int(add_zero_attn),
        )
        inner = num_heads * self.head_dim
        self.value = nn.Linear(self.vdim, inner, bias=bias)
        self.bias_v = nn.Parameter(torch.empty(1, 1, inner)) if add_bias_kv else None
        self.out_proj = NonDynamicallyQuantizableLinear(inner, embed_dim, bias=bias)
        self._reset_parameters(mixing)
        self.to(device=device, dtype=dtype)

    @classmethod
    def from_dense(
        cls,
        dense: nn.MultiheadAttention,
        rank: int | None = None,
        *,
        plan: LayerPlan | None = None,
        dims_per_head: int | None = None,
        calibration: Moments | None = None,
        key_calibration: Moments | None = None,
    ) -> MultiheadAttention:
        """Give a dense module's queries and keys a shared form, in a new module.

        At full rank, num_heads * head_dim, outputs and weights are those of the dense module. Device, dtype,
        training mode and requires_grad are kept.

        Args:
            dense: torch's module itself, no subclass.
            rank: width of both shared projections; None with no plan copies the heads as they are.
            plan: another form, such as tucker, instead of a rank.
            dims_per_head: number of shared dimensions that each head uses; None for all of them.
            calibration: moments of the queries' input; None minimises the error of the weights.
            key_calibration: moments of the keys' input; None for those of the queries.

        Returns:
            The module.

        Raises:
            FamilyError: not a plain nn.MultiheadAttention.
            RankError: a rank that the layer can't have.
            ConfigError: a rank and a plan.
            DecompositionError: moments that do not fit, or weights that are not finite.
        """
        shared, _ = shared_from_dense(
            cls,
            dense,
            rank,
            plan=plan,
            dims_per_head=dims_per_head,
            calibration=calibration,
            key_calibration=key_calibration,
        )
        return shared

    def _reset_parameters(self, mixing: MixingInit | None = None) -> None:
        initialise_(self.scores, mixing)
        for projection in (self.value, self.out_proj):
            fill_projection_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        if self.scores.sinks is not None:
            nn.init.zeros_(self.scores.sinks.weight)
            nn.init.zeros_(self.scores.sinks.bias)
        if self.bias_v is not None and self.scores.sinks is not None:
            nn.init.xavier_normal_(self.bias_v)
            # The same variance that a query has against torch's xavier_normal_ bias_k.
            learned = self.scores.sinks.weight.unflatten(0, (self.num_heads, -1))[:, 0]
            nn.init.normal_(learned, std=math.sqrt(2 * self.head_dim) / self.embed_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, with the arguments and results of nn.MultiheadAttention.

        Args:
            query: (L, N, E), (N, L, E) where batch_first, or (L, E); or nested (N, L, E).
            key: (S, N, kdim), (N, S, kdim) or (S, kdim).
            value: (S, N, vdim), (N, S, vdim) or (S, vdim).
            key_padding_mask: (N, S) or (S), boolean (True blocks) or additive.
            need_weights: whether to return the weights, which costs the fast kernels.
            attn_mask: (L, S) or (N * H, L, S), boolean (True blocks) or additive.
            average_attn_weights: whether the weights are the mean over heads.
            is_causal: the promise that attn_mask is the causal mask.

        Returns:
            The output in the layout of the query; and the weights, (N, L, S) or (N, H, L, S), without N for
            unbatched input, with S increased by what add_bias_kv and add_zero_attn append; or None.

        Raises:
            LayerError: inputs or masks that do not fit.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            if query is not key or key is not value or need_weights:
                raise LayerError("nested tensors serve self-attention with need_weights=False only")
            return self._attend_nested(query, key_padding_mask, attn_mask), None
        batched = query.dim() == 3
        check_inputs(query, key, value, (self.embed_dim, self.kdim, self.vdim), self.batch_first)
        if is_causal and attn_mask is None:
            raise LayerError("is_causal needs attn_mask too, as in torch.nn.MultiheadAttention")
        same = query is key
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        causal = self._follows_hint(is_causal, need_weights, key_padding_mask, query, key)
        mask = combine(
            None if causal else head_mask(attn_mask, self.num_heads, query, key),
            padding_mask(key_padding_mask, len(key), key.shape[1]),
            query.dtype,
        )
        output, weights = self._attend(query, key, value, mask, same, causal, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _follows_hint(
        self,
        is_causal: bool,
        need_weights: bool,
        key_padding_mask: Tensor | None,
        query: Tensor,
        key: Tensor,
    ) -> bool:
        """Whether the mask need not be read: kernels have a causal mask of their own, of tokens alone."""
        square = query.shape[1] == key.shape[1]
        return is_causal and bool(square) and not need_weights and key_padding_mask is None and not self.sinks

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        same: bool,
        causal: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """(N, L, E) and (N, H, L, S + sinks) from inputs of (N, L or S, width)."""
        shared = self.scores.query(query)
        scores = self.scores(query, shared, self.scores.shared_keys(key, shared if same else None))
        # (N, S, H*V) -> (N, H, S, V)
        values = self._append_sinks(self.value(value)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        output, weights = attend(
            scores,
            values,
            allow_sinks(mask, self.sinks),
            causal=causal,
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
        )
        return self.out_proj(output.flatten(2)), weights

    def _append_sinks(self, values: Tensor) -> Tensor:
        appended = [values]
        if self.bias_v is not None:
            appended.append(self.bias_v.to(values.dtype).expand(len(values), -1, -1))
        if self.add_zero_attn:
            appended.append(values.new_zeros(len(values), 1, values.shape[2]))
        return torch.cat(appended, 1) if len(appended) > 1 else values

    def _attend_nested(
        self, query: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> Tensor:
        """Self-attention of sequences of different lengths; torch has this in its fused path only."""
        if key_padding_mask is not None or attn_mask is not None:
            raise LayerError("nested tensors say themselves what is padding; leave out both masks")
        lengths = [len(row) for row in query.unbind()]
        padded = query.to_padded_tensor(0.0)
        places = torch.arange(padded.shape[1], device=padded.device)
        ends = torch.tensor(lengths, device=padded.device).unsqueeze(1)
        mask = (places < ends)[:, None, None]
        output, _ = self._attend(padded, padded, padded, mask, True, False, False)
        rows = [row[:length] for row, length in zip(output, lengths, strict=True)]
        return torch.nested.as_nested_tensor(rows, layout=query.layout)

    @property
    def sinks(self) -> int:
        """Number of keys that add_bias_kv and add_zero_attn append."""
        return self.scores.num_sinks

    def extra_repr(self) -> str:
        """The form and its ranks."""
        return describe(self.shape, self.plan)

    def merge_masks(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor
    ) -> tuple[Tensor | None, int | None]:
        """Refused with a ConfigError: it belongs to torch's fused path, which needs dense projections."""
        raise ConfigError("the fused path of torch needs dense projections, which shared ones replace")
