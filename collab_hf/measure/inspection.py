"""What there is to gain in a model's attention, before anything is compressed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..calibration.statistics import collect_statistics
from ..config import CollabConfig
from ..host.sites import dense_layers
from ..modeling.plan import AttentionShape, LayerPlan
from ..parts.query_key.costs import attention_flops, break_even_length
from ..parts.query_key.forms import Form, all_forms, seen_scores
from ..planning import score_tensor
from ..tensors import ScoreTensor
from ..tensors.linalg import product_svd
from ..tensors.moments import LayerStatistics

SHARES = (0.5, 0.25, 0.125, 0.0625)
LENGTHS = (128, 512)


@dataclass(frozen=True)
class Spectra:
    """How the energy of one layer's scores is spread, in one metric (weights, or data).

    Energies are cumulative shares in [0, 1]: entry i is what the i + 1 leading directions carry.

    Attributes:
        heads: for every head alone, (num_heads, head_dim).
        product: all heads together, as the paper draws it: of W_Q W_K^T, (directions,).
        shared_key: all heads together, in the best key basis that they can share, (directions,).
        similarity: cosine between the score matrices of two heads, (num_heads, num_heads).
        key_overlap: share of one head's key space that lies in another's, (num_heads, num_heads).
    """

    heads: list[list[float]]
    product: list[float]
    shared_key: list[float]
    similarity: list[list[float]]
    key_overlap: list[list[float]]

    def dimensions(self, energy: float = 0.95) -> tuple[float, int]:
        """Directions that carry this share: of a head on average, and of all heads in a shared key basis."""
        alone = [1 + sum(e < energy for e in head) for head in self.heads]
        return sum(alone) / len(alone), 1 + sum(e < energy for e in self.shared_key)


@dataclass(frozen=True)
class Offer:
    """The best form of one layer at a share of its parameters, and what it costs.

    Attributes:
        share: share of the dense parameters that was allowed.
        plan: the form.
        error: relative error by truncation.
        parameters: numbers of the form.
        flops_share: by sequence length, operations over the dense layer's.
        break_even: sequence length from which it takes more operations than dense; None for never.
    """

    share: float
    plan: LayerPlan
    error: float
    parameters: int
    flops_share: dict[int, float]
    break_even: float | None


@dataclass(frozen=True)
class LayerInspection:
    """One attention layer.

    Attributes:
        name: relative to the base model.
        shape: sizes of the dense layer.
        weights: spectra of the weights.
        data: spectra of what the softmax sees; None without calibration data.
        curves: by method, points of (share of the dense parameters, relative error) in the metric of the data
            (of the weights without data), each the best of its size.
        offers: the best forms at a half to a sixteenth; those that the layer is too small for are left out.
    """

    name: str
    shape: AttentionShape
    weights: Spectra
    data: Spectra | None
    curves: dict[str, list[tuple[float, float]]]
    offers: list[Offer]


@dataclass(frozen=True)
class Inspection:
    """All attention layers of a model.

    Attributes:
        model: name for titles.
        layers: in the model's order.
        parameters: all parameters of the model.
    """

    model: str
    layers: list[LayerInspection]
    parameters: int

    @property
    def qk_parameters(self) -> int:
        """Query/key weights of all layers."""
        return sum(layer.shape.dense_parameters for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "qk_parameters": self.qk_parameters,
            "layers": [_layer_to_dict(layer) for layer in self.layers],
        }


def inspect_model(
    model: PreTrainedModel,
    calibration: Iterable[Mapping[str, Any]] | Mapping[str, LayerStatistics] | None = None,
    *,
    name: str = "",
    damping: float = 1e-3,
    progress: bool = False,
) -> Inspection:
    """Look at every attention layer; the model stays as it is.

    Args:
        model: a dense transformers model.
        calibration: batches of model inputs, statistics, or None for the weights alone.
        name: the model's name for titles.
        damping: added to the covariances' diagonals, relative to their mean.
        progress: whether to draw progress bars on stderr.

    Returns:
        Spectra, redundancy, errors and costs by layer.

    Raises:
        FamilyError: no attention layer that collab_hf knows, or one that is compressed already.
        CalibrationError: calibration data that is empty or does not run.
        DecompositionError: weights that are not finite.
    """
    layers = dense_layers(model)
    statistics: Mapping[str, LayerStatistics] | None
    if calibration is None or isinstance(calibration, Mapping):
        statistics = calibration
    else:
        modules: dict[str, nn.Module] = {key: module for key, (module, _) in layers.items()}
        statistics = collect_statistics(model, modules, calibration, progress=progress)
    config = CollabConfig(damping=damping)
    found = []
    for key, (module, family) in tqdm(layers.items(), desc="Spectra", unit="layer", disable=not progress):
        scores = score_tensor(module, family, key, config)
        with torch.no_grad():
            seen = None if statistics is None else statistics[key]
            found.append(_inspect_layer(key, scores, seen, config, cross=family.cross))
    return Inspection(
        name or type(model).__name__, found, sum(parameter.numel() for parameter in model.parameters())
    )


def _inspect_layer(
    name: str,
    scores: ScoreTensor,
    statistics: LayerStatistics | None,
    config: CollabConfig,
    *,
    cross: bool,
) -> LayerInspection:
    seen = seen_scores(scores, statistics, config.damping)
    forms = [form for form in all_forms(seen, config, cross=cross) if form.plan is not None]
    dense = scores.shape.dense_parameters
    curves: dict[str, list[tuple[float, float]]] = {}
    for form in sorted(forms, key=lambda f: (f.parameters, f.error)):
        points = curves.setdefault(form.kind, [])
        if not points or form.error < points[-1][1]:
            points.append((form.parameters / dense, form.error))
    return LayerInspection(
        name,
        scores.shape,
        _spectra(scores),
        None if statistics is None else _spectra(seen),
        curves,
        [offer for share in SHARES if (offer := _offer(share, forms, scores.shape)) is not None],
    )


def _offer(share: float, forms: list[Form], shape: AttentionShape) -> Offer | None:
    fitting = [form for form in forms if form.parameters <= share * shape.dense_parameters]
    if not fitting:
        return None
    form = min(fitting, key=lambda f: f.error)
    if form.plan is None:
        return None
    dearer_from = break_even_length(form.plan, shape)
    costs = {n: attention_flops(form.plan, shape, n) / attention_flops(None, shape, n) for n in LENGTHS}
    even = None if math.isinf(dearer_from) else dearer_from
    return Offer(share, form.plan, form.error, form.parameters, costs, even)


def _spectra(scores: ScoreTensor) -> Spectra:
    query, key = scores.query, scores.key
    all_query, all_key = query.transpose(0, 1).flatten(1), key.transpose(0, 1).flatten(1)
    left, right = query.mT @ query, key.mT @ key
    products = torch.einsum("hid,gie->hgde", query, query) * torch.einsum("hid,gie->hgde", key, key)
    inner = products.sum((2, 3))
    norms = left.mul(right).sum((1, 2)).clamp_min(torch.finfo(inner.dtype).tiny).sqrt()
    bases = product_svd(query, key)[2]
    overlap = torch.einsum("hid,gie->hgde", bases, bases).square().sum((2, 3)) / bases.shape[2]
    return Spectra(
        [_cumulative(values) for values in product_svd(query, key)[1].square()],
        _cumulative(product_svd(all_query, all_key)[1].square()),
        _cumulative(torch.linalg.eigvalsh(scores.key_gram(left)).flip(0).clamp_min(0)),
        _rounded(inner / norms / norms.unsqueeze(1)),
        _rounded(overlap),
    )


def _cumulative(energies: Tensor) -> list[float]:
    total = energies.sum().clamp_min(torch.finfo(energies.dtype).tiny)
    return [round(float(e), 5) for e in energies.cumsum(0) / total]


def _rounded(matrix: Tensor) -> list[list[float]]:
    return [[round(float(value), 4) for value in row] for row in matrix]


def _layer_to_dict(layer: LayerInspection) -> dict[str, Any]:
    def spectra(values: Spectra) -> dict[str, Any]:
        alone, together = values.dimensions()
        return {**vars(values), "dimensions_95_per_head": alone, "dimensions_95_shared": together}

    return {
        "name": layer.name,
        "num_heads": layer.shape.num_heads,
        "head_dim": layer.shape.head_dim,
        "qk_parameters": layer.shape.dense_parameters,
        "weights": spectra(layer.weights),
        "data": None if layer.data is None else spectra(layer.data),
        "error_over_share": {kind: [list(p) for p in points] for kind, points in layer.curves.items()},
        "offers": [
            {
                "share": offer.share,
                "plan": offer.plan.to_dict(),
                "relative_error": offer.error,
                "parameters": offer.parameters,
                "flops_share": {str(n): value for n, value in offer.flops_share.items()},
                "break_even_length": offer.break_even,
            }
            for offer in layer.offers
        ],
    }
