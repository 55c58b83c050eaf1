"""From one dense nn.MultiheadAttention to shared queries and keys.

Shapes: D query_size, H num_heads, d head_dim, w score_width, n sinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import FamilyError
from ..modeling.plan import LayerPlan
from ..modeling.shapes import AttentionShape
from ..tensors import Moments, ScoreTensor, decompose
from ..tensors.factors import SharedFactors
from .scores import layer_plan

# `MultiheadAttention` or a subclass: the module to make.
Shared = TypeVar("Shared", bound=nn.Module)


def shared_from_dense(
    kind: type[Shared],
    dense: nn.MultiheadAttention,
    rank: int | None = None,
    *,
    plan: LayerPlan | None = None,
    dims_per_head: int | None = None,
    calibration: Moments | None = None,
    key_calibration: Moments | None = None,
    damping: float = 1e-3,
    seed: int = 0,
) -> tuple[Shared, SharedFactors]:
    """Give a dense module's queries and keys a shared form, in a new module.

    At full rank, num_heads * head_dim, the new module's outputs and weights are those of the old one. It
    keeps device, dtype, training mode and requires_grad.

    Args:
        kind: class of the new module.
        dense: torch's module itself, no subclass.
        rank: width of both shared projections; None with no plan copies the heads as they are.
        plan: another form, such as tucker, instead of a rank.
        dims_per_head: number of shared dimensions that each head uses; None for all of them.
        calibration: moments of the queries' input; None minimises the error of the weights.
        key_calibration: moments of the keys' input; None for those of the queries.
        damping: as for `decompose`.
        seed: as for `decompose`.

    Returns:
        The module, and what the decomposition found.

    Raises:
        FamilyError: not a plain nn.MultiheadAttention.
        RankError: a rank that the layer can't have.
        ConfigError: a rank and a plan.
        DecompositionError: moments that do not fit, or weights that are not finite.
    """
    if type(dense) is not nn.MultiheadAttention:
        raise FamilyError(f"from_dense needs a torch.nn.MultiheadAttention, got {type(dense).__name__}")
    with torch.no_grad():
        heads = _DenseHeads.read(dense)
        plan = dense_plan(heads.scores.shape, rank, plan, dims_per_head)
        factors = decompose(
            heads.scores,
            plan,
            query_moments=calibration,
            key_moments=key_calibration,
            damping=damping,
            seed=seed,
        )
    biased = _has_biases(dense) or calibration is not None
    shared: Any = like_dense(kind, dense, factors.plan, content_bias=biased)
    shared.scores.load_(factors)
    _copy_values_(shared, dense, heads)
    if shared.scores.sinks is not None:
        same = heads.scores.shape.key_size == heads.scores.shape.query_size
        moments = calibration if key_calibration is None and same else key_calibration
        _fill_sinks_(shared.scores.sinks, dense, heads, factors, None if moments is None else moments.mean)
    return shared, factors


def like_dense(
    kind: type[Shared], dense: nn.MultiheadAttention, plan: LayerPlan, *, content_bias: bool | None = None
) -> Shared:
    """A module of a dense one's sizes and settings, with parameters of no meaning yet.

    Args:
        kind: class of the new module.
        dense: torch's module.
        plan: the form.
        content_bias: whether scores have a content bias; None where the dense module has biases.

    Returns:
        The module, on the same device, of the same dtype, training mode and requires_grad.

    Raises:
        RankError: a plan that the layer can't have.
    """
    weight = dense.out_proj.weight
    with torch.random.fork_rng(devices=[]):  # surgery leaves the state of random numbers alone
        shared: Any = kind(
            dense.embed_dim,
            dense.num_heads,
            dense.dropout,
            bias=_has_biases(dense),
            add_bias_kv=dense.bias_k is not None,
            add_zero_attn=dense.add_zero_attn,
            kdim=dense.kdim,
            vdim=dense.vdim,
            batch_first=dense.batch_first,
            dtype=weight.dtype,
            plan=plan,
            content_bias=content_bias,
        )
    shared.to(weight.device)
    trains = next(w for w in (dense.in_proj_weight, dense.q_proj_weight) if w is not None)
    for part in (shared.scores, shared.value):
        part.requires_grad_(trains.requires_grad)
    for name, parameter in shared.out_proj.named_parameters():
        parameter.requires_grad_(getattr(dense.out_proj, name).requires_grad)
    if shared.bias_v is not None and dense.bias_v is not None:
        shared.bias_v.requires_grad_(dense.bias_v.requires_grad)
    made: Shared = shared.train(dense.training)
    return made


def dense_shape(dense: nn.MultiheadAttention) -> AttentionShape:
    """Sizes of a dense module.

    Args:
        dense: torch's module.

    Returns:
        Its sizes, biases included.
    """
    biases = 2 * dense.embed_dim if _has_biases(dense) else 0
    return AttentionShape(dense.embed_dim, dense.kdim, dense.num_heads, dense.head_dim, biases)


def dense_plan(
    shape: AttentionShape, rank: int | None, plan: LayerPlan | None, dims_per_head: int | None
) -> LayerPlan:
    """The form that a dense layer gets; a rank alone keeps its content bias exact, which costs H * D numbers.

    Args:
        shape: sizes of the dense layer.
        rank: as for `layer_plan`.
        plan: as for `layer_plan`.
        dims_per_head: as for `layer_plan`.

    Returns:
        The plan, checked against the shape.
    """
    chosen = layer_plan(shape, rank, plan, dims_per_head)
    return replace(chosen, content_bias="exact") if plan is None and rank is not None else chosen


@dataclass(frozen=True, eq=False)
class _DenseHeads:
    """A dense module's parameters, head by head where queries and keys are concerned.

    Attributes:
        scores: query (H, E, d), key (H, kdim, d) and the query's bias.
        key_bias: (H, d), zeros without biases.
        value: (E, vdim).
        value_bias: (E,) or None.
    """

    scores: ScoreTensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor | None

    @classmethod
    def read(cls, dense: nn.MultiheadAttention) -> _DenseHeads:
        packed: Tensor | None = dense.in_proj_weight
        parts: Sequence[Tensor] = (dense.q_proj_weight, dense.k_proj_weight, dense.v_proj_weight)
        query, key, value = parts if packed is None else packed.chunk(3)
        heads = dense.num_heads
        # (H*d, D) -> (H, D, d)
        query, key = (weight.double().unflatten(0, (heads, -1)).transpose(1, 2) for weight in (query, key))
        if not _has_biases(dense):
            return cls(ScoreTensor(query, key), query.new_zeros(heads, dense.head_dim), value, None)
        query_bias, key_bias, value_bias = dense.in_proj_bias.chunk(3)
        query_bias, key_bias = (bias.double().unflatten(0, (heads, -1)) for bias in (query_bias, key_bias))
        return cls(ScoreTensor(query, key, query_bias), key_bias, value, value_bias)


def _has_biases(dense: nn.MultiheadAttention) -> bool:
    bias: Tensor | None = dense.in_proj_bias
    return bias is not None


@torch.no_grad()
def _copy_values_(shared: Any, dense: nn.MultiheadAttention, heads: _DenseHeads) -> None:
    shared.value.weight.copy_(heads.value)
    if heads.value_bias is not None:
        shared.value.bias.copy_(heads.value_bias)
    shared.out_proj.load_state_dict(dense.out_proj.state_dict())
    if shared.bias_v is not None and dense.bias_v is not None:
        shared.bias_v.copy_(dense.bias_v)


@torch.no_grad()
def _fill_sinks_(
    sinks: nn.Linear,
    dense: nn.MultiheadAttention,
    heads: _DenseHeads,
    factors: SharedFactors,
    key_mean: Tensor | None,
) -> None:
    """Scores of the keys that dense attention appends after its projection.

    Softmax ignores what all keys have in common; against appended keys two such terms count. The bias of
    the key projection is one: keys of tokens do without it here, so appended ones are less by it. The other
    is the part of the decomposition's error that depends on the query alone, which on data is its value at
    the mean key.
    """
    scores = heads.scores
    query_bias = heads.key_bias * 0 if scores.query_bias is None else scores.query_bias
    keys = []
    if dense.bias_k is not None:
        keys.append(dense.bias_k.double().view(dense.num_heads, -1) - heads.key_bias)
    if dense.add_zero_attn:
        keys.append(-heads.key_bias)
    appended = torch.stack(keys, 1)  # (H, n, d)
    weight = torch.einsum("hnd,hid->hni", appended, scores.query)
    bias = torch.einsum("hnd,hd->hn", appended, query_bias)
    if key_mean is not None:
        mean = key_mean.to(scores.query)
        seen = torch.einsum("hjd,j->hd", scores.key, mean)  # W_K^hT mean
        mixing = factors.mixing
        right = (mean @ factors.shared_key) @ mixing.key_maps().to(mean)  # (H, w)
        left = factors.shared_query @ mixing.query_maps().to(mean)  # (H, D, w)
        missed = torch.einsum("hid,hd->hi", scores.query, seen) - torch.einsum("hiw,hw->hi", left, right)
        missed_bias = (query_bias * seen).sum(1) - factors.expand_content_bias() @ mean
        weight, bias = weight - missed.unsqueeze(1), bias - missed_bias.unsqueeze(1)
    sinks.weight.copy_(weight.flatten(0, 1))
    sinks.bias.copy_(bias.flatten())
