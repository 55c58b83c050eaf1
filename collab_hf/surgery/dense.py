"""Undo a compression: back to the host's own classes, which load anywhere without collab_hf."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..errors import FamilyError
from ..host.adoption import disown_
from ..modeling.attention import CollabAttention
from ..modeling.families import relative_name
from ..parts.embeddings.dense import dense_embeddings_
from ..parts.query_key.dense_heads import dense_factors, install_dense_


def to_dense_(model: PreTrainedModel, *, nearest: bool = False) -> PreTrainedModel:
    """Give a compressed model's attention the host's dense form again, in place.

    Each head's scores become those of ordinary per-head projections W_Q^h = A P_h and W_K^h = B Q_h, padded
    with zeros up to head_dim, with the content bias as the query's bias; the factors of `copy` come back bit
    for bit. An exact content bias takes one spare dimension (query bias 1, key row l_h). Where there is none,
    it is folded if it lies in the head's key space, which it does for `copy`. The outputs then equal the
    compressed model's up to rounding, and the parameter count is the original's again.

    Args:
        model: a compressed model; hooks, device, dtype, training mode and requires_grad stay.
        nearest: where head_dim dimensions can't hold a head's scores (a score width above head_dim, mostly),
            take the nearest ones that they can hold, by truncated SVD of the weights, instead of refusing.

    Returns:
        The same model, now an instance of the host's own class with its own config.

    Raises:
        FamilyError: the model is not compressed.
        RankError: a head's scores do not fit into head_dim dimensions, and nearest is False; the model is
            left as it was.
    """
    layers = {relative_name(model, n): m for n, m in model.named_modules() if isinstance(m, CollabAttention)}
    sections = {name for module in model.modules() for name in getattr(module, "collab_plans", {})}
    if others := sorted(sections - {"embeddings"}):
        raise FamilyError(
            f"{' and '.join(others)} of this model are smaller than its own class can hold, so it has "
            "no dense form; export it as ONNX instead"
        )
    if not layers and not sections:
        raise FamilyError(f"{type(model).__name__} has no compressed attention layer")
    dense = {name: dense_factors(module, name, nearest) for name, module in layers.items()}
    for name, module in layers.items():
        install_dense_(module, dense[name])
    dense_embeddings_(model)
    for inner in [m for m in model.modules() if isinstance(m, PreTrainedModel)]:
        disown_(inner)
    return model
