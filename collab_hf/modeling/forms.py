"""The forms that a layer's query and key may take: what each asks of its ranks, its size and its cost.

A form is named by `method` in config.json. This file ships with saved checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .errors import RankError

if TYPE_CHECKING:
    from .shapes import AttentionShape, Ranks


class Form:
    """One decomposition.

    Attributes:
        method: its name in config.json and in settings.
        settings: fields of `CollabConfig` that say its ranks.
        width_setting: what settings call the score width.
        exact: whether it equals the dense layer.
        container: what tensorly calls its tensor, `cp` or `tucker`.
    """

    method: ClassVar[str]
    settings: ClassVar[frozenset[str]] = frozenset({"rank"})
    width_setting: ClassVar[str] = "score_width"
    exact: ClassVar[bool] = False
    container: ClassVar[str] = "cp"

    def mixing(self, plan: Ranks) -> str:
        """Name of the class in mixing.py that reads per-head queries and keys from the shared ones."""
        raise NotImplementedError

    def check(self, plan: Ranks, shape: AttentionShape, at: str) -> None:
        """Refuse ranks that the layer can't have.

        Args:
            plan: the ranks.
            shape: sizes of the dense layer.
            at: the layer's name in brackets, for the message, or nothing.

        Raises:
            RankError: a rank is out of its range, or a pair of them does not fit together.
        """
        check_range("rank", plan.query_rank, shape.full_rank, at)
        if plan.key_rank != plan.query_rank:
            raise RankError(
                f"key_rank must equal query_rank for {self.method}, got {plan.key_rank} and "
                f"{plan.query_rank}{at}"
            )
        if plan.key_groups > 1 or plan.head_rank is not None or plan.tied:
            raise RankError(f"key_groups, head_rank and tied belong to tucker, got {self.method}{at}")
        check_range(self.width_setting, plan.score_width, plan.key_rank, at)

    def mixing_parameters(self, plan: Ranks, num_heads: int) -> int:
        """Trainable numbers of the mixing, content bias aside."""
        return 0

    def mixing_products(self, plan: Ranks, num_heads: int) -> int:
        """Multiply-adds per token from shared queries and keys to those of all heads."""
        return self.mixing_parameters(plan, num_heads)

    def kind(self, plan: Ranks) -> str:
        """The form with what sets it apart from others of its method, ranks aside."""
        return self.method

    def ranks(self, plan: Ranks) -> str:
        """The ranks as tables show them."""
        return str(plan.query_rank)

    def label(self, plan: Ranks) -> str:
        """Form and ranks in few characters."""
        return f"{self.method} {self.ranks(plan)}"


class Copy(Form):
    """Dense attention itself: every head owns its slice of both projections."""

    method = "copy"
    settings = frozenset()
    exact = True

    def mixing(self, plan: Ranks) -> str:  # noqa: D102
        return "CopyMixing"

    def check(self, plan: Ranks, shape: AttentionShape, at: str) -> None:  # noqa: D102
        super().check(plan, shape, at)
        if (plan.query_rank, plan.score_width) != (shape.full_rank, shape.head_dim):
            raise RankError(
                f"rank and score_width must be {shape.full_rank} and {shape.head_dim} for copy, "
                f"got {plan.query_rank} and {plan.score_width}{at}"
            )


class Svd(Form):
    """Each head truncated on its own: heads share nothing."""

    method = "svd"

    def mixing(self, plan: Ranks) -> str:  # noqa: D102
        return "SelectionMixing"


class Cp(Form):
    """One vector of weights for each head; with dims_per_head, most of them zero (sparse mixing)."""

    method = "cp"
    settings = frozenset({"rank", "dims_per_head"})
    width_setting = "dims_per_head"

    def mixing(self, plan: Ranks) -> str:  # noqa: D102
        return "DiagonalMixing" if plan.score_width == plan.query_rank else "WeightedSelectionMixing"

    def mixing_parameters(self, plan: Ranks, num_heads: int) -> int:  # noqa: D102
        return num_heads * plan.score_width


class Tucker(Form):
    """A dense core for each head, on a shared query and a shared key, or on one for both (tied)."""

    method = "tucker"
    settings = frozenset({"rank", "query_rank", "key_rank", "score_width", "key_groups", "head_rank", "tied"})
    container = "tucker"

    def mixing(self, plan: Ranks) -> str:  # noqa: D102
        return "TiedCoreMixing" if plan.tied and plan.narrows_keys else "CoreMixing"

    def check(self, plan: Ranks, shape: AttentionShape, at: str) -> None:  # noqa: D102
        check_range("query_rank", plan.query_rank, min(shape.full_rank, shape.query_size), at)
        check_range("key_rank", plan.key_rank, min(shape.full_rank, shape.key_size * plan.key_groups), at)
        check_range("key_groups", plan.key_groups, shape.num_heads, at)
        if plan.key_rank % plan.key_groups:
            raise RankError(
                f"key_rank must be a multiple of key_groups, got {plan.key_rank} and {plan.key_groups}{at}"
            )
        check_range("score_width", plan.score_width, plan.group_rank, at)
        whole = plan.score_width == plan.group_rank
        if plan.key_groups > 1 and not whole:
            raise RankError(
                f"score_width must be key_rank / key_groups = {plan.group_rank} where key_groups > 1, "
                f"got {plan.score_width}{at}"
            )
        if plan.head_rank is not None:
            check_range("head_rank", plan.head_rank, shape.num_heads, at)
            if not whole:
                raise RankError(
                    f"score_width must be key_rank / key_groups with head_rank, got {plan.score_width} and "
                    f"{plan.group_rank}{at}"
                )
        if plan.tied:
            _check_tied(plan, shape, at)

    def mixing_parameters(self, plan: Ranks, num_heads: int) -> int:  # noqa: D102
        cores = (plan.head_rank or num_heads) * plan.score_width * plan.query_rank
        return cores + num_heads * (plan.head_rank or 0) + self._key_cores(plan, num_heads)

    def mixing_products(self, plan: Ranks, num_heads: int) -> int:  # noqa: D102
        return num_heads * plan.score_width * plan.query_rank + self._key_cores(plan, num_heads)

    def _key_cores(self, plan: Ranks, num_heads: int) -> int:
        return num_heads * plan.score_width * plan.key_rank if plan.narrows_keys else 0

    def kind(self, plan: Ranks) -> str:  # noqa: D102
        if plan.tied:
            return "tied tucker"
        return "tucker, narrowed keys" if plan.narrows_keys else "tucker, one shared key"

    def ranks(self, plan: Ranks) -> str:  # noqa: D102
        return f"{plan.query_rank}x{plan.key_rank}"

    def label(self, plan: Ranks) -> str:  # noqa: D102
        return f"{plan.form_name} {self.ranks(plan)}/{plan.score_width}"


def _check_tied(plan: Ranks, shape: AttentionShape, at: str) -> None:
    if plan.key_groups > 1 or plan.head_rank is not None:
        raise RankError(f"tied belongs to tucker without key_groups and head_rank{at}")
    if shape.cross or shape.query_size != shape.key_size:
        raise RankError(f"tied needs queries and keys from the same input, not cross-attention{at}")
    if plan.key_rank != plan.query_rank:
        raise RankError(
            f"key_rank must equal query_rank where they are tied, got {plan.key_rank} and "
            f"{plan.query_rank}{at}"
        )


def check_range(name: str, value: int, most: int, at: str) -> None:
    """Refuse a number that is no integer from 1 to `most`.

    Args:
        name: of the setting, for the message.
        value: what was given.
        most: the largest value allowed.
        at: the layer's name in brackets, or nothing.

    Raises:
        RankError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise RankError(f"{name} must be between 1 and {most}, got {value!r}{at}")


FORMS: dict[str, Form] = {form.method: form for form in (Cp(), Tucker(), Svd(), Copy())}
