"""What there is to gain in a model's attention, before anything is compressed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration.statistics import collect_statistics
from ..config import CollabConfig
from ..host.sites import AttentionSite, attention_sites
from ..modeling.plan import LayerPlan
from ..modeling.shapes import AttentionShape
from ..parts.part import Option
from ..parts.query_key.candidates import score_tensor
from ..parts.query_key.costs import attention_operations, break_even_length
from ..parts.query_key.options import all_options, kind
from ..parts.query_key.spectra import seen_scores
from ..progress import Steps
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
class LayerInspection:
    """One attention layer.

    Attributes:
        name: relative to the base model.
        shape: sizes of the dense layer.
        weights: spectra of the weights.
        data: spectra of what the softmax sees; None without calibration data.
        curves: by method, points of (share of the dense parameters, relative error) in the metric of the data
            (of the weights without data), each the best of its size.
        offers: the best forms by the share of the dense parameters that was allowed, a half to a sixteenth;
            those that the layer is too small for are left out.
    """

    name: str
    shape: AttentionShape
    weights: Spectra
    data: Spectra | None
    curves: dict[str, list[tuple[float, float]]]
    offers: dict[float, Option]

    def operations_share(self, plan: LayerPlan, length: int) -> float:
        """Operations of a form at a sequence length, over the dense layer's."""
        return attention_operations(plan, self.shape, length) / attention_operations(None, self.shape, length)


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
    sites = attention_sites(model)
    statistics: Mapping[str, LayerStatistics] | None
    if calibration is None or isinstance(calibration, Mapping):
        statistics = calibration
    else:
        modules: dict[str, nn.Module] = {key: site.module for key, site in sites.items()}
        statistics = collect_statistics(model, modules, calibration, progress=progress)
    config = CollabConfig(damping=damping)
    found = []
    for key, site in Steps(sites.items(), title="Computing spectra", unit="layer", progress=progress):
        with torch.no_grad():
            found.append(_inspect_layer(site, None if statistics is None else statistics[key], config))
    return Inspection(
        name or type(model).__name__, found, sum(parameter.numel() for parameter in model.parameters())
    )


def _inspect_layer(
    site: AttentionSite, statistics: LayerStatistics | None, config: CollabConfig
) -> LayerInspection:
    scores = score_tensor(site, config)
    seen = seen_scores(scores, statistics, config.damping)
    options = [option for option in all_options(seen, config, site.shape) if option.plan is not None]
    dense = site.shape.dense_parameters
    curves: dict[str, list[tuple[float, float]]] = {}
    for option in sorted(options, key=lambda o: (o.parameters, o.error)):
        points = curves.setdefault(kind(option), [])
        if not points or option.error < points[-1][1]:
            points.append((option.parameters / dense, option.error))
    offers = {}
    for share in SHARES:
        fitting = [option for option in options if option.parameters <= share * dense]
        if fitting:
            offers[share] = min(fitting, key=lambda o: o.error)
    spectra = None if statistics is None else _spectra(seen)
    return LayerInspection(site.name, site.shape, _spectra(scores), spectra, curves, offers)


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
        "offers": [_offer_to_dict(layer, share, option) for share, option in layer.offers.items()],
    }


def _offer_to_dict(layer: LayerInspection, share: float, option: Option) -> dict[str, Any]:
    costly_from = break_even_length(option.plan, layer.shape)
    return {
        "share": share,
        "plan": option.plan.to_dict(),
        "relative_error": option.error,
        "parameters": option.parameters,
        "flops_share": {str(n): layer.operations_share(option.plan, n) for n in LENGTHS},
        "break_even_length": None if math.isinf(costly_from) else costly_from,
    }
