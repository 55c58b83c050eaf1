"""The token embedding of a model, with what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...errors import FamilyError
from ...host.plain import check_plain
from ...modeling.embeddings import EmbeddingPlan, LowRankEmbedding, token_embeddings
from ...modeling.errors import RankError


@dataclass(frozen=True)
class EmbeddingShape:
    """Sizes of a dense token embedding.

    Args:
        vocab_size: its rows.
        hidden_size: its columns; ALBERT's, which are fewer than the model's, are meant too.
    """

    vocab_size: int
    hidden_size: int

    @property
    def largest_rank(self) -> int:
        """The largest rank whose table and map hold fewer numbers than the dense table; 0 for none."""
        dense = self.vocab_size * self.hidden_size
        return min(self.hidden_size - 1, (dense - 1) // (self.vocab_size + self.hidden_size))

    def ladder(self) -> list[int]:
        """Ranks worth a thought: about 24 of them, multiples of a power of two, 32 at most.

        Matrix products work in blocks of such sizes, and the error between two neighbours hardly differs.
        """
        step = 1
        while step < 32 and step * 48 <= self.hidden_size:
            step *= 2
        return list(range(step, self.largest_rank + 1, step))

    def check(self, rank: Any, where: str) -> None:
        """Refuse a rank that makes nothing smaller.

        Args:
            rank: what was asked for.
            where: the embedding's name, for the message.

        Raises:
            RankError: it is no integer from 1 to `largest_rank`.
        """
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= self.largest_rank:
            raise RankError(
                f"embedding rank must be between 1 and {self.largest_rank}, "
                f"since dense it is {self.vocab_size} x {self.hidden_size}, got {rank} ({where})"
            )


@dataclass(frozen=True, eq=False)
class EmbeddingSite:
    """A dense token embedding.

    Attributes:
        name: its name relative to the base model, the same for every task head.
        module: the embedding.
        model: the whole model, whose output head may be tied to it.
        shape: its sizes.
    """

    name: str
    module: nn.Embedding
    model: nn.Module
    shape: EmbeddingShape


@dataclass(frozen=True, eq=False)
class LowRankTable:
    """What takes the place of a dense table: table @ up^T.

    Attributes:
        plan: its rank.
        table: (vocab_size, rank).
        up: (hidden_size, rank).
        relative_error: root of E ||e_v - e^_v||^2 / E ||e_v||^2 over tokens v (dimensionless).
    """

    plan: EmbeddingPlan
    table: Tensor
    up: Tensor
    relative_error: float


def embedding_sites(model: nn.Module) -> dict[str, EmbeddingSite]:
    """The token embedding that can be made smaller; position embeddings are never meant.

    Args:
        model: a transformers model.

    Returns:
        The site by name; empty where inputs are no tokens, or where no rank would make the table smaller.

    Raises:
        FamilyError: the embedding is of low rank already, or not plain.
    """
    found = {}
    for name, module in token_embeddings(model).items():
        if isinstance(module, LowRankEmbedding):
            raise FamilyError(f"the token embedding is of low rank already; start from the original ({name})")
        check_plain(module, f"the token embedding {name}")
        shape = EmbeddingShape(module.num_embeddings, module.embedding_dim)
        if shape.largest_rank:
            found[name] = EmbeddingSite(name, module, model, shape)
    return found
