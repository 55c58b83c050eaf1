"""Token embeddings as one of the parts that surgery can make smaller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...config import CollabConfig
from ...errors import ConfigError
from ...modeling.embeddings import EmbeddingPlan, tied_modules
from ...modeling.families import relative_name
from ...modeling.plans import shrink_
from ...tensors.embedding import low_rank_embedding, low_rank_errors
from ..part import Option, Part
from .site import EmbeddingShape, EmbeddingSite, LowRankTable, embedding_sites


class Embeddings(Part):
    """The table of token embeddings as a narrow table and a map, the tied output head with it.

    Attributes:
        name: as `--parts` and config.json name it.
        size_name: what reports call `size`.
    """

    name = "embeddings"
    size_name = "rank"
    place = "token embeddings"
    done = "Token embeddings are a narrow table and a map to the model's width."

    def sites(self, model: nn.Module) -> dict[str, EmbeddingSite]:
        """The token embedding of a model by its name; none where inputs are no tokens."""
        return embedding_sites(model)

    def size(self, plan: EmbeddingPlan | None, shape: EmbeddingShape) -> int:
        """Columns of the table."""
        return shape.hidden_size if plan is None else plan.rank

    def parameters(self, plan: EmbeddingPlan | None, shape: EmbeddingShape) -> int:
        """Numbers of table and map; a tied head has none of its own."""
        if plan is None:
            return shape.vocab_size * shape.hidden_size
        return plan.rank * (shape.vocab_size + shape.hidden_size)

    def operations(self, plan: EmbeddingPlan | None, shape: EmbeddingShape, length: int) -> int:
        """Floating-point operations for one sequence: the map, since looking up takes none.

        An output head, tied or not, is outside of the body and not counted.

        Args:
            plan: the form, or None for dense.
            shape: sizes of the dense embedding.
            length: tokens in the sequence.

        Returns:
            Their number, two for each multiply-add.
        """
        return 0 if plan is None else 2 * plan.rank * shape.hidden_size * length

    def check(self, plan: EmbeddingPlan, shape: EmbeddingShape, where: str) -> None:
        """Refuse a rank that the embedding can't have."""
        shape.check(plan.rank, where)

    def trial(
        self, site: EmbeddingSite, config: CollabConfig, statistics: Tensor | None = None
    ) -> EmbeddingTrial:
        """What each rank costs, and the means to solve it.

        Args:
            site: a dense token embedding.
            config: not read.
            statistics: how often each token occurred (`token_counts`), (vocab_size,); None to let all count
                the same.

        Returns:
            The trial.
        """
        counts = torch.zeros(site.shape.vocab_size) if statistics is None else statistics
        return EmbeddingTrial(site, counts)

    @contextmanager
    def replaced(
        self, sites: Mapping[str, EmbeddingSite], solutions: Mapping[str, LowRankTable]
    ) -> Iterator[None]:
        """Let dense sites compute what solutions give inside the with block; nothing is converted.

        Args:
            sites: of the model.
            solutions: for some of them.

        Yields:
            Nothing.
        """
        kept = {name: sites[name].module.weight.data for name in solutions}
        try:
            for name, solution in solutions.items():
                # Whatever is tied holds the same parameter and sees the change.
                sites[name].module.weight.data = (solution.table @ solution.up.T).to(kept[name])
            yield
        finally:
            for name, table in kept.items():
                sites[name].module.weight.data = table

    @torch.no_grad()
    def install_(self, site: EmbeddingSite, solution: LowRankTable) -> None:
        """Put a narrow table and its map into a model, and into every module tied to its embedding.

        Args:
            site: one of `sites`.
            solution: its table and map.

        Raises:
            ConfigError: a weight that class and config declare as tied is another one than the embedding's.
        """
        module: Any = site.module
        if any(tied.weight is not module.weight for tied in tied_modules(site.model, module)):
            raise ConfigError(
                f"config.json ties the output head to the token embedding, but their weights differ; set "
                f"tie_word_embeddings to false first ({site.name})"
            )
        shrink_(module, site.model, solution.plan, site.name)
        module.weight.copy_(solution.table)
        module.up.copy_(solution.up)

    def converted(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """The embedding that this part has made smaller, by name; modules tied to it are not named."""
        for name, module in model.named_modules():
            if self.name in getattr(module, "collab_plans", {}):
                yield relative_name(model, name), module

    def trained(self, module: nn.Module) -> Iterable[nn.Parameter]:
        """What recovery trains of such a module: table and map."""
        return module.parameters()


@dataclass(frozen=True, eq=False)
class EmbeddingTrial:
    """A token embedding with its tokens' counts.

    Attributes:
        site: the embedding.
        counts: how often each token occurred, (vocab_size,).
    """

    site: EmbeddingSite
    counts: Tensor

    @cached_property
    def errors(self) -> Tensor:
        """Relative error (root of the mean square) of every rank from 0, (hidden_size + 1,)."""
        return low_rank_errors(self.site.module.weight, self.counts).sqrt()

    @property
    def options(self) -> tuple[Option, ...]:
        """Every rank of the ladder with its exact error, and the dense table."""
        shape, part = self.site.shape, Embeddings()
        plans = [EmbeddingPlan(rank) for rank in shape.ladder()]
        return (
            *(Option(p, part.parameters(p, shape), float(self.errors[p.rank])) for p in plans),
            Option(None, part.parameters(None, shape), 0.0),
        )

    def solve(self, plan: EmbeddingPlan) -> LowRankTable:
        """The best table of a rank.

        Args:
            plan: the rank, below the embedding's width.

        Returns:
            Table and map, float64.

        Raises:
            RankError: a rank that makes nothing smaller.
            DecompositionError: weights or counts that can't be used.
        """
        self.site.shape.check(plan.rank, self.site.name)
        table, up = low_rank_embedding(self.site.module.weight, self.counts, plan.rank)
        return LowRankTable(plan, table, up, float(self.errors[plan.rank]))
