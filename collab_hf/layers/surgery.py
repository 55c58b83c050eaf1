"""Every nn.MultiheadAttention of a torch model gets shared queries and keys, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..errors import ConfigError, FamilyError
from ..modeling.plan import LayerPlan
from .dense import dense_plan, dense_shape, like_dense, shared_from_dense
from .multihead import MultiheadAttention
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
    plans = {name: dense_plan(dense_shape(layer), rank, plan, dims_per_head) for name, layer in found.items()}
    moments: Mapping[str, InputMoments] = {}
    if isinstance(calibration, Mapping):
        moments = calibration
    elif calibration is not None:
        moments = collect_moments(model, found, calibration)
    made = {}
    for name, layer in found.items():
        seen = moments.get(name)
        made[name] = shared_from_dense(
            MultiheadAttention,
            layer,
            plan=plans[name],
            calibration=None if seen is None else seen.query,
            key_calibration=None if seen is None else seen.key,
            damping=damping,
            seed=seed,
        )
    reports = {
        name: LayerReport(
            shared.plan, factors.relative_error, dense_shape(found[name]).dense_parameters, _count(shared)
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
    made = {
        name: like_dense(MultiheadAttention, found[name], plan, content_bias=content_bias)
        for name, plan in plans.items()
    }
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


def _count(shared: MultiheadAttention) -> int:
    return sum(parameter.numel() for parameter in shared.scores.parameters())


def _install_(
    model: nn.Module, dense: Mapping[str, nn.MultiheadAttention], made: Mapping[str, MultiheadAttention]
) -> None:
    """Turn the dense modules, as objects, into the ones made: references, hooks and shared uses stay."""
    for name, module in dense.items():
        module.__class__ = MultiheadAttention
        state = {key: value for key, value in made[name].__dict__.items() if "_hook" not in key}
        module.__dict__.update(state)
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(
            isinstance(module, MultiheadAttention) for module in encoder.modules()
        ):
            # It packs padded input for the fused path of its layers, and reads their dense weights to do so.
            encoder.use_nested_tensor = False
