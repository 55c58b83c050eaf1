"""How each form is asked for: the ranks that settings give, the ladder of sizes, and the way back.

A new decomposition gets a class here and a row in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from ...config import CollabConfig
from ...modeling.errors import RankError
from ...modeling.forms import FORMS, Form
from ...modeling.plan import LayerPlan
from ...modeling.shapes import AttentionShape, ContentBias
from ...tensors import ScoreTensor
from .spectra import svd_spectrum, tied_spectrum, tucker_spectrum

# Kernels work in blocks of 8 numbers; smaller ranks are rare enough to be taken as they come.
_RANK_STEP = 8

Ladder = list[LayerPlan]
Spectrum = Iterator[tuple[LayerPlan, float]]


class Method:
    """One form, from settings to plans and back.

    Attributes:
        name: the form's method.
        swept: whether sweeps of the solver lower the error further than truncation does.
        done: what it did to `{layers}`, as a sentence of a card.
    """

    name: ClassVar[str]
    swept: ClassVar[bool] = True
    done: ClassVar[str] = (
        "The query and key projections of {layers} share one smaller basis each: the scores of head h are "
        "`x A G_h B^T y^T`, with `A` and `B` common to all heads of the layer."
    )

    @property
    def form(self) -> Form:
        """What travels with a checkpoint."""
        return FORMS[self.name]

    def given(self, config: CollabConfig, shape: AttentionShape) -> LayerPlan:
        """The plan that explicit ranks name."""
        query_rank, key_rank = config.query_rank or config.rank, config.key_rank or config.rank
        if query_rank is None or key_rank is None:
            raise RankError("give rank, or query_rank and key_rank")
        width = self.given_width(config, shape, key_rank)
        return self.plan(config, shape, query_rank, key_rank * config.key_groups, width)

    def given_width(self, config: CollabConfig, shape: AttentionShape, key_rank: int) -> int:
        """The score width where settings name ranks."""
        raise NotImplementedError

    def ladders(self, config: CollabConfig, shape: AttentionShape) -> list[Ladder]:
        """Families of plans that differ in rank alone, for a budget to choose from."""
        raise NotImplementedError

    def spectrum(self, scores: ScoreTensor, bias: ContentBias, *, cross: bool) -> Spectrum:
        """Plans on a grid of ranks with their squared errors by truncation; none where there is no cheap way.

        Args:
            scores: the layer's scores as the softmax sees them.
            bias: what becomes of the content bias.
            cross: whether queries and keys come from different sequences.

        Returns:
            Plans and errors in no particular order.
        """
        return iter(())

    def settings(self, plan: LayerPlan) -> dict[str, Any]:
        """The ranks of a plan as fields of `CollabConfig`."""
        return {"rank": plan.query_rank}

    def plan(
        self, config: CollabConfig, shape: AttentionShape, query_rank: int, key_rank: int, width: int
    ) -> LayerPlan:
        """A plan with the content bias that settings ask for."""
        bias: ContentBias = config.content_bias if config.content_bias != "auto" else self.bias(width, shape)
        shared = config.key_groups, config.head_rank, config.tied
        return LayerPlan(self.name, query_rank, key_rank, width, *shared, bias)

    def bias(self, width: int, shape: AttentionShape) -> ContentBias:
        """What `auto` makes of the content bias: folded where the score fits the head."""
        return "folded" if width <= shape.head_dim else "exact"

    def _plans(
        self,
        config: CollabConfig,
        shape: AttentionShape,
        ranks: Iterable[int],
        key_rank: int | None,
        width: int | None,
    ) -> Ladder:
        made = []
        for rank in ranks:
            keys = rank if key_rank is None else key_rank
            made.append(self.plan(config, shape, rank, keys, keys if width is None else width))
        return made


class CopyMethod(Method):
    """The dense layer itself."""

    name = "copy"
    swept = False
    done = "In {layers} queries and keys kept what they had, in another form (copy)."

    def given(self, config: CollabConfig, shape: AttentionShape) -> LayerPlan:  # noqa: D102
        return self.plan(config, shape, shape.full_rank, shape.full_rank, shape.head_dim)

    def ladders(self, config: CollabConfig, shape: AttentionShape) -> list[Ladder]:  # noqa: D102
        return [[self.given(config, shape)]]

    def settings(self, plan: LayerPlan) -> dict[str, Any]:  # noqa: D102
        return {}


class SvdMethod(Method):
    """Each head on its own."""

    name = "svd"
    swept = False
    done = (
        "In {layers} every head has a smaller query and key of its own (svd): its scores are "
        "`x A_h B_h^T y^T`."
    )

    def given_width(self, config: CollabConfig, shape: AttentionShape, key_rank: int) -> int:  # noqa: D102
        return min(key_rank, shape.head_dim)

    def ladders(self, config: CollabConfig, shape: AttentionShape) -> list[Ladder]:  # noqa: D102
        # The width is a cap here: each head gets the rank that its singular values earn, head_dim at most.
        return [self._plans(config, shape, ranks(shape.head_dim, shape.full_rank), None, shape.head_dim)]

    def spectrum(self, scores: ScoreTensor, bias: ContentBias, *, cross: bool) -> Spectrum:  # noqa: D102
        return svd_spectrum(scores, bias)


class CpMethod(Method):
    """A vector of weights for each head."""

    name = "cp"

    def given_width(self, config: CollabConfig, shape: AttentionShape, key_rank: int) -> int:  # noqa: D102
        return config.dims_per_head or key_rank

    def ladders(self, config: CollabConfig, shape: AttentionShape) -> list[Ladder]:  # noqa: D102
        least = config.dims_per_head or 1
        return [self._plans(config, shape, ranks(least, shape.full_rank), None, config.dims_per_head)]

    def settings(self, plan: LayerPlan) -> dict[str, Any]:  # noqa: D102
        sparse = plan.score_width != plan.query_rank
        return {"rank": plan.query_rank} | ({"dims_per_head": plan.score_width} if sparse else {})

    def bias(self, width: int, shape: AttentionShape) -> ContentBias:  # noqa: D102
        # A few shared dimensions carry little of the content bias, and keys narrower than a head have room
        # for it: sparse cp at a quarter of MiniLM reaches a cosine of .983 so, and of .976 if it is folded.
        return "exact" if width < shape.head_dim else super().bias(width, shape)


class TuckerMethod(Method):
    """A core for each head."""

    name = "tucker"

    def given_width(self, config: CollabConfig, shape: AttentionShape, key_rank: int) -> int:  # noqa: D102
        # A head's own core slice is never of higher rank than its score matrix: this narrowing loses nothing.
        whole = config.key_groups > 1 or config.head_rank
        return config.score_width or (key_rank if whole else min(key_rank, shape.head_dim))

    def ladders(self, config: CollabConfig, shape: AttentionShape) -> list[Ladder]:  # noqa: D102
        head_dim = shape.head_dim
        most = min(shape.query_size, shape.key_size, shape.full_rank)
        widths = sorted({max(1, head_dim * quarters // 4) for quarters in (1, 2, 3, 4)})
        if config.score_width is not None:
            widths = [config.score_width]
        read_whole = config.key_groups > 1 or config.head_rank is not None
        narrowed = (
            []
            if read_whole
            else [self._plans(config, shape, ranks(width + 1, most), None, width) for width in widths]
        )
        if config.tied:
            whole = ranks(1, min(most, head_dim))
            return [
                *([] if config.score_width else [self._plans(config, shape, whole, None, None)]),
                *narrowed,
            ]
        wide = [
            self._plans(config, shape, ranks(1, most), width * config.key_groups, width) for width in widths
        ]
        return wide + narrowed

    def spectrum(self, scores: ScoreTensor, bias: ContentBias, *, cross: bool) -> Spectrum:  # noqa: D102
        yield from tucker_spectrum(scores, bias)
        if not cross and scores.shape.query_size == scores.shape.key_size:
            yield from tied_spectrum(scores, bias)

    def settings(self, plan: LayerPlan) -> dict[str, Any]:  # noqa: D102
        values: dict[str, Any] = {
            "query_rank": plan.query_rank,
            "key_rank": plan.group_rank,
            "score_width": plan.score_width,
        }
        values |= {"key_groups": plan.key_groups} if plan.key_groups > 1 else {}
        values |= {"head_rank": plan.head_rank} if plan.head_rank else {}
        return values | ({"tied": True} if plan.tied else {})


def ranks(least: int, most: int) -> list[int]:
    """Multiples of 8 from `least` to `most`, small ranks as they come, and `most` itself.

    Args:
        least: smallest rank.
        most: largest rank that the layer allows.

    Returns:
        Ranks in rising order.
    """
    return [
        rank
        for rank in range(least, most + 1)
        if rank % _RANK_STEP == 0 or rank < 2 * _RANK_STEP or rank == most
    ]


METHODS: dict[str, Method] = {m.name: m for m in (SvdMethod(), TuckerMethod(), CpMethod(), CopyMethod())}
