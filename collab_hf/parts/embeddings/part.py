"""Token embeddings as one of the parts that surgery can make smaller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...config import CollabConfig
from ...errors import ConfigError
from ...modeling.embeddings import EmbeddingPlan, LowRankEmbedding, tied_modules
from ...modeling.families import relative_name
from ...modeling.plans import shrink_
from ...tensors.embedding import low_rank_embedding, low_rank_errors
from ..part import Option, Part
from .site import EmbeddingShape, EmbeddingSite, LowRankTable, embedding_sites


class Embeddings(Part):
    """The table of token embeddings as a narrow table and a map, the tied output head with it.

    Statistics of a site are the counts of its tokens (`token_counts`); without any all count the same.
    """

    name = "embeddings"

    def sites(self, model: nn.Module) -> Mapping[str, EmbeddingSite]:  # noqa: D102
        return embedding_sites(model)

    def parameters(self, plan: EmbeddingPlan | None, shape: EmbeddingShape) -> int:  # noqa: D102
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

    def candidates(  # noqa: D102
        self, config: CollabConfig, shape: EmbeddingShape, name: str
    ) -> list[EmbeddingPlan]:
        if config.rank is not None:
            shape.check(config.rank, name)
            return [EmbeddingPlan(config.rank)]
        most = self.parameters(None, shape)
        if config.budget is not None:
            most = int(config.budget * most)
        plans = [EmbeddingPlan(rank) for rank in shape.ladder()]
        fitting = [plan for plan in plans if self.parameters(plan, shape) <= most]
        if not fitting:
            raise ConfigError(
                f"a budget of {config.budget} is below the smallest form, rank {shape.ladder()[0]} ({name})"
            )
        return fitting

    def settings(self, plan: EmbeddingPlan | None) -> Mapping[str, Any] | Literal["dense"]:  # noqa: D102
        return "dense" if plan is None else {"rank": plan.rank}

    def solve(  # noqa: D102
        self,
        site: EmbeddingSite,
        config: CollabConfig,
        plans: Sequence[EmbeddingPlan],
        statistics: Tensor | None,
    ) -> LowRankTable:
        widest = max(plans, key=lambda plan: plan.rank)
        return self.trial(site, config, statistics).solution(widest.rank)

    def trial(  # noqa: D102
        self, site: EmbeddingSite, config: CollabConfig, statistics: Tensor | None
    ) -> EmbeddingTrial:
        counts = torch.zeros(site.shape.vocab_size) if statistics is None else statistics
        return EmbeddingTrial(site, counts)

    @contextmanager
    def replaced(  # noqa: D102
        self, sites: Mapping[str, EmbeddingSite], solutions: Mapping[str, LowRankTable]
    ) -> Iterator[None]:
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

    def read(self, module: nn.Module, solution: LowRankTable) -> LowRankTable:  # noqa: D102
        trained: Any = module
        return LowRankTable(
            solution.plan, trained.weight.detach(), trained.up.detach(), solution.relative_error
        )

    def converted(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:  # noqa: D102
        for name, module in model.named_modules():
            # Copies that hold the same table, such as a decoder's, were not resized by a plan of their own.
            if isinstance(module, LowRankEmbedding) and getattr(module, "collab_resized", False):
                yield relative_name(model, name), module

    def trained(self, module: nn.Module) -> Iterable[nn.Parameter]:  # noqa: D102
        embedding: Any = module
        return [embedding.weight, embedding.up]


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
        """The dense table, and every rank of the ladder with its exact error."""
        shape, part = self.site.shape, Embeddings()
        plans = [EmbeddingPlan(rank) for rank in shape.ladder()]
        return (
            Option(None, part.parameters(None, shape), 0.0),
            *(Option(p, part.parameters(p, shape), float(self.errors[p.rank])) for p in plans),
        )

    def solution(self, rank: int) -> LowRankTable:
        """The best table of a rank.

        Args:
            rank: its width, below the embedding's.

        Returns:
            Table and map, float64.

        Raises:
            RankError: a rank that makes nothing smaller.
            DecompositionError: weights or counts that can't be used.
        """
        self.site.shape.check(rank, self.site.name)
        table, up = low_rank_embedding(self.site.module.weight, self.counts, rank)
        return LowRankTable(EmbeddingPlan(rank), table, up, float(self.errors[rank]))

    def solve(self, option: Option) -> LowRankTable:
        """The final solution; there is none quicker."""
        if option.plan is None:
            raise ConfigError(f"a dense form has no factors ({self.site.name})")
        return self.solution(option.plan.rank)

    def solved_options(self, solved: Sequence[tuple[float, Option, float]]) -> tuple[Option, ...]:
        """The same options: their errors were exact from the start."""
        return self.options
