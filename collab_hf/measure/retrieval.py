"""How many of a text's nearest neighbours a compressed model keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..calibration.examples import ExampleBatches
from ..errors import DataError
from .evaluation import embeddings

# Neighbours that a search engine shows at once.
NEIGHBOURS = 10
# Rows of the table of cosines at a time: 1,000 rows of 100,000 examples take 400 MB.
_ROWS = 1000


@dataclass(frozen=True)
class Retrieval:
    """How far a model finds the same neighbours as a reference.

    Attributes:
        mean_overlap: mean over examples of the share of the reference's nearest neighbours that are among the
            model's, in [0, 1].
        min_overlap: the least of them.
        neighbours: how many are looked at.
        examples: number of texts or images.
    """

    mean_overlap: float
    min_overlap: float
    neighbours: int
    examples: int


def measure_retrieval(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    batches: ExampleBatches,
    *,
    neighbours: int = NEIGHBOURS,
    progress: bool = False,
) -> Retrieval:
    """Compare the nearest neighbours of every example among the others, by the cosine of embeddings.

    Args:
        model: the model in question, in eval mode.
        reference: the model that it should find the same as, in eval mode.
        batches: texts or images, as `load_batches` gives them.
        neighbours: how many are looked at, >= 1.
        progress: whether to draw a progress bar on stderr.

    Returns:
        The overlap.

    Raises:
        DataError: too few examples, or outputs that are not finite.
    """
    ours, theirs = (embeddings(one, batches, progress=progress) for one in (model, reference))
    if len(ours) <= neighbours + 1:
        raise DataError(
            f"retrieval of {neighbours} neighbours needs more than {neighbours + 1} examples, got {len(ours)}"
        )
    overlaps = torch.cat(
        [
            _shared(_nearest(ours, start, neighbours), _nearest(theirs, start, neighbours))
            for start in range(0, len(ours), _ROWS)
        ]
    )
    return Retrieval(overlaps.mean().item(), overlaps.min().item(), neighbours, len(ours))


def _nearest(rows: Tensor, start: int, neighbours: int) -> Tensor:
    """Numbers of the nearest other rows, (some rows, neighbours)."""
    unit = F.normalize(rows, dim=-1)
    cosines = unit[start : start + _ROWS] @ unit.T
    own = torch.arange(len(cosines))
    cosines[own, own + start] = -torch.inf
    return cosines.topk(neighbours).indices


def _shared(ours: Tensor, theirs: Tensor) -> Tensor:
    """Share of each row's entries that both have."""
    return (ours.unsqueeze(-1) == theirs.unsqueeze(-2)).any(-1).double().mean(-1)
