"""From dense torch modules to shared queries and keys: one nn.MultiheadAttention, or all of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..config import AttentionShape, LayerPlan
from ..errors import ConfigError, FamilyError
from ..factors import SharedFactors
from ..tensors import Moments, ScoreTensor, decompose
from .multihead import MultiheadAttention
from .scores import layer_plan
from .statistics import InputMoments, collect_moments


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        plan: its form; `convert_layers_` needs it to read the weights again.
        relative_error: ||T - T^||_F / ||T||_F of the score tensor, in the metric of the data where given.
        qk_parameters_before: numbers of the dense query and key, biases included.
        qk_parameters_after: numbers of the shared ones, mixing and content bias included.
    """

    plan: LayerPlan
    relative_error: float
    qk_parameters_before: int
    qk_parameters_after: int


def shared_from_dense(
    dense: nn.MultiheadAttention,
    rank: int | None = None,
    *,
    plan: LayerPlan | None = None,
    dims_per_head: int | None = None,
    calibration: Moments | None = None,
    key_calibration: Moments | None = None,
    damping: float = 1e-3,
    seed: int = 0,
) -> tuple[MultiheadAttention, SharedFactors]:
    """Give a dense module's queries and keys a shared form, in a new module.

    At full rank, num_heads * head_dim, the new module's outputs and weights are those of the old one. It
    keeps device, dtype, training mode and requires_grad.

    Args:
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
        plan = _dense_plan(heads.scores.shape, rank, plan, dims_per_head)
        factors = decompose(
            heads.scores,
            plan,
            query_moments=calibration,
            key_moments=key_calibration,
            damping=damping,
            seed=seed,
        )
    biased = dense.in_proj_bias is not None or calibration is not None
    shared = like_dense(dense, factors.plan, content_bias=biased)
    shared.scores.load_(factors)
    _copy_values_(shared, dense, heads)
    if shared.scores.sinks is not None:
        same = heads.scores.shape.key_size == heads.scores.shape.query_size
        moments = calibration if key_calibration is None and same else key_calibration
        _fill_sinks_(shared.scores.sinks, dense, heads, factors, None if moments is None else moments.mean)
    return shared, factors


def like_dense(
    dense: nn.MultiheadAttention, plan: LayerPlan, *, content_bias: bool | None = None
) -> MultiheadAttention:
    """A module of a dense one's sizes and settings, with parameters of no meaning yet.

    Args:
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
        shared = MultiheadAttention(
            dense.embed_dim,
            dense.num_heads,
            dense.dropout,
            bias=dense.in_proj_bias is not None,
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
    trains = dense.q_proj_weight if dense.in_proj_weight is None else dense.in_proj_weight
    for part in (shared.scores, shared.value):
        part.requires_grad_(trains.requires_grad)
    for name, parameter in shared.out_proj.named_parameters():
        parameter.requires_grad_(getattr(dense.out_proj, name).requires_grad)
    if shared.bias_v is not None and dense.bias_v is not None:
        shared.bias_v.requires_grad_(dense.bias_v.requires_grad)
    return shared.train(dense.training)


def compress_layers_(
    model: nn.Module,
    rank: int | None = None,
    *,
    plan: LayerPlan | None = None,
    dims_per_head: int | None = None,
    calibration: Iterable[Any] | Mapping[str, InputMoments] | None = None,
    layers: str = "*",
    damping: float = 1e-3,
    seed: int = 0,
) -> dict[str, LayerReport]:
    """Give every nn.MultiheadAttention of a torch model shared queries and keys, in place.

    This is for models built on torch's own modules, nn.Transformer and its parts included; `collab_hf.
    compress_` is for those of transformers. Modules stay the objects they are, with their hooks. Encoders
    leave torch's fused path, which would read dense weights, also where a padding mask would have made them
    pack their input. Nothing changes where an error is raised.

    Args:
        model: any module.
        rank: width of both shared projections of every layer.
        plan: another form for every layer, instead of a rank.
        dims_per_head: number of shared dimensions that each head uses; None for all of them.
        calibration: batches of the model's inputs, each a tensor, a sequence of arguments or a mapping of
            keywords; or moments by layer name; None minimises the error of the weights.
        layers: shell-style pattern of the names of the layers to change.
        damping: as for `decompose`.
        seed: as for `decompose`.

    Returns:
        A report by layer name.

    Raises:
        FamilyError: no nn.MultiheadAttention left to change.
        ConfigError: neither a rank nor a plan, or both.
        RankError: a rank that a layer can't have.
        CalibrationError: a layer that no batch reached, or values that are not finite.
        DecompositionError: moments that do not fit, or weights that are not finite.
    """
    if rank is None and plan is None:
        raise ConfigError("give a rank or a plan")
    found = dense_layers(model, layers)
    plans = {name: _dense_plan(_shape(layer), rank, plan, dims_per_head) for name, layer in found.items()}
    moments: Mapping[str, InputMoments] = {}
    if isinstance(calibration, Mapping):
        moments = calibration
    elif calibration is not None:
        moments = collect_moments(model, found, calibration)
    made = {}
    for name, layer in found.items():
        seen = moments.get(name)
        made[name] = shared_from_dense(
            layer,
            plan=plans[name],
            calibration=None if seen is None else seen.query,
            key_calibration=None if seen is None else seen.key,
            damping=damping,
            seed=seed,
        )
    reports = {
        name: LayerReport(
            shared.plan, factors.relative_error, _shape(found[name]).dense_parameters, _count(shared)
        )
        for name, (shared, factors) in made.items()
    }
    _install_(model, found, {name: shared for name, (shared, _) in made.items()})
    return reports


def convert_layers_(
    model: nn.Module, plans: Mapping[str, LayerPlan], *, content_bias: bool | None = None
) -> None:
    """Give layers the modules of their plans without any decomposition, ready for `load_state_dict`.

    Args:
        model: a dense model of the same architecture as the compressed one.
        plans: forms by layer name, as the reports of `compress_layers_` have them.
        content_bias: whether scores have a content bias: True where the model was compressed on data; None
            where the dense layer has biases.

    Raises:
        FamilyError: a name that is no nn.MultiheadAttention of the model.
        RankError: a plan that a layer can't have.
    """
    found = dense_layers(model, "*")
    for name in plans:
        if name not in found:
            raise FamilyError(f"the model has no torch.nn.MultiheadAttention at {name!r}")
    made = {name: like_dense(found[name], plan, content_bias=content_bias) for name, plan in plans.items()}
    _install_(model, {name: found[name] for name in plans}, made)


def dense_layers(model: nn.Module, pattern: str = "*") -> dict[str, nn.MultiheadAttention]:
    """The attention layers of a torch model that have dense projections.

    Args:
        model: any module.
        pattern: shell-style pattern of their names.

    Returns:
        Plain nn.MultiheadAttention modules by name; subclasses, whose forward may be another, are left out.

    Raises:
        FamilyError: there are none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.MultiheadAttention and fnmatchcase(name, pattern)
    }
    if not found:
        raise FamilyError(
            f"{type(model).__name__} has no dense torch.nn.MultiheadAttention named {pattern!r}; it may be "
            "compressed already"
        )
    return found


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
        if dense.in_proj_weight is None:
            query, key, value = dense.q_proj_weight, dense.k_proj_weight, dense.v_proj_weight
        else:
            query, key, value = dense.in_proj_weight.chunk(3)
        heads = dense.num_heads
        # (H*d, D) -> (H, D, d)
        per_head = [weight.double().unflatten(0, (heads, -1)).transpose(1, 2) for weight in (query, key)]
        if dense.in_proj_bias is None:
            zeros = per_head[0].new_zeros(heads, dense.head_dim)
            return cls(ScoreTensor(*per_head), zeros, value, None)
        query_bias, key_bias, value_bias = dense.in_proj_bias.chunk(3)
        biases = [bias.double().unflatten(0, (heads, -1)) for bias in (query_bias, key_bias)]
        return cls(ScoreTensor(*per_head, biases[0]), biases[1], value, value_bias)


def _shape(dense: nn.MultiheadAttention) -> AttentionShape:
    biases = 0 if dense.in_proj_bias is None else 2 * dense.embed_dim
    return AttentionShape(dense.embed_dim, dense.kdim, dense.num_heads, dense.head_dim, biases)


def _dense_plan(
    shape: AttentionShape, rank: int | None, plan: LayerPlan | None, dims_per_head: int | None
) -> LayerPlan:
    """The form; a rank alone keeps the content bias exact, which costs H * D numbers and no accuracy."""
    chosen = layer_plan(shape, rank, plan, dims_per_head)
    return replace(chosen, content_bias="exact") if plan is None and rank is not None else chosen


@torch.no_grad()
def _copy_values_(shared: MultiheadAttention, dense: nn.MultiheadAttention, heads: _DenseHeads) -> None:
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


def _count(shared: MultiheadAttention) -> int:
    return sum(parameter.numel() for parameter in shared.scores.parameters())


def _install_(
    model: nn.Module, dense: Mapping[str, nn.MultiheadAttention], made: Mapping[str, MultiheadAttention]
) -> None:
    """Turn the dense modules, as objects, into the ones made: references, hooks and shared uses stay."""
    for name, module in dense.items():
        hooks = {key: value for key, value in module.__dict__.items() if key.endswith(_HOOKS)}
        module.__class__ = MultiheadAttention
        module.__dict__.clear()
        module.__dict__.update({**made[name].__dict__, **hooks})
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(
            isinstance(module, MultiheadAttention) for module in encoder.modules()
        ):
            # It packs padded input for the fused path of its layers, and reads their dense weights to do so.
            encoder.use_nested_tensor = False


_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called", "_is_full_backward_hook")
