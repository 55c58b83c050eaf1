"""The options of a whole attention layer: heads, width of their values, form of their queries and keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError
from ..host.sites import AttentionSite
from ..modeling.plan import LayerPlan
from ..modeling.plans import QUERY_KEY as LAYERS
from ..modeling.shapes import AttentionShape
from ..modeling.shrinking import HeadsPlan, ValuePlan
from ..parts.part import Option
from ..parts.query_key.costs import attention_operations
from ..parts.registry import HEADS, QUERY_KEY, VALUES
from .curves import Curve

# Forms of query and key that go into the product of options, spread evenly over the logarithm of their sizes.
_QUERY_KEY_FORMS = 12


@dataclass(frozen=True)
class AttentionForm:
    """What a whole attention layer becomes; None for what stays as it is.

    Attributes:
        heads: the heads that stay.
        values: the width of their values.
        query_key: the form of their queries and keys.
    """

    heads: HeadsPlan | None = None
    values: ValuePlan | None = None
    query_key: LayerPlan | None = None

    # Where config.json keeps the three.
    sections: ClassVar[tuple[str, str, str]] = (HeadsPlan.section, ValuePlan.section, LAYERS)

    def shape(self, dense: AttentionShape) -> AttentionShape:
        """Sizes of the layer once heads are gone."""
        return dense if self.heads is None else with_heads(dense, len(self.heads.kept))

    def check(self, site: AttentionSite) -> None:
        """Refuse what the layer can't become.

        Args:
            site: the dense layer.

        Raises:
            RankError: sizes that it can't have.
            ConfigError: a part of it that can't be made smaller.
        """
        dense, where = site.shape, site.name
        for part, plan in ((HEADS, self.heads), (VALUES, self.values), (QUERY_KEY, self.query_key)):
            reason = None if plan is None else site.family.refusal(site.module, part.name)
            if reason is not None:
                raise ConfigError(f"{part.name} can't be made smaller: {reason} ({where})")
        if self.heads is not None:
            self.heads.check(dense.num_heads, where, dense.sharing)
        if self.values is not None:
            self.values.check(dense.head_dim, where)
        if self.query_key is not None:
            self.query_key.check(self.shape(dense), where)

    def operations(self, dense: AttentionShape, length: int) -> int:
        """Floating-point operations of the layer for one sequence, two for each multiply-add."""
        shape = self.shape(dense)
        return attention_operations(self.query_key, shape, length) + VALUES.operations(
            self.values, shape, length
        )

    def parameters(self, dense: AttentionShape) -> int:
        """Trainable numbers of the layer, the output's bias aside."""
        shape = self.shape(dense)
        return QUERY_KEY.parameters(self.query_key, shape) + VALUES.parameters(self.values, shape)


def with_heads(shape: AttentionShape, heads: int) -> AttentionShape:
    """Sizes of an attention layer that has fewer heads."""
    return replace(
        shape,
        num_heads=heads,
        biases=shape.biases * heads // shape.num_heads,
        key_value_heads=shape.key_value_heads * heads // shape.num_heads,
    )


def attention_options(
    shape: AttentionShape, heads: Curve | None, values: Curve | None, query_key: Curve | None, length: int
) -> list[Option]:
    """Every combination that no other one beats in operations, parameters and loss.

    Losses of the three are added, as they are measured one at a time; a form of queries and keys is scaled to
    the heads that stay.

    Args:
        shape: sizes of the dense layer.
        heads: options for the heads with their losses; None where heads stay.
        values: the same for the width of values.
        query_key: the same for queries and keys.
        length: tokens of the sequence that operations are counted for.

    Returns:
        Options whose plan is an `AttentionForm`, the dense one among them.
    """
    found = []
    for heads_plan, heads_loss in _with_losses(heads):
        kept = shape if heads_plan is None else with_heads(shape, len(heads_plan.kept))
        for values_plan, values_loss in _with_losses(values):
            for plan, loss in _spread(query_key):
                scaled = None if plan is None else scale_to_heads(plan, shape, kept)
                form = AttentionForm(heads_plan, values_plan, scaled)
                if plan is not None and scaled is None:
                    continue
                total = heads_loss + values_loss + loss
                parameters, operations = form.parameters(shape), form.operations(shape, length)
                found.append(Option(form, parameters, 0.0, operations, total))
    return undominated(found)


def scale_to_heads(plan: LayerPlan, dense: AttentionShape, kept: AttentionShape) -> LayerPlan | None:
    """A form for all heads as one for those that stay.

    Args:
        plan: a form for all heads.
        dense: sizes with all heads.
        kept: sizes with those that stay.

    Returns:
        The form; None where nothing of it is left to choose.
    """
    if kept.num_heads == dense.num_heads:
        return plan
    if plan.form.container == "cp":  # ranks of all heads together
        rank = max(plan.score_width, plan.query_rank * kept.num_heads // dense.num_heads)
        scaled = replace(plan, query_rank=rank, key_rank=rank)
    else:
        most = min(kept.full_rank, kept.query_size, kept.key_size)
        query, key = min(plan.query_rank, most), min(plan.key_rank, most)
        scaled = replace(plan, query_rank=query, key_rank=key, score_width=min(plan.score_width, key))
    return scaled if scaled.num_parameters(kept) < kept.dense_parameters else None


def undominated(options: list[Option]) -> list[Option]:
    """Options that no other one equals or beats in operations, parameters and loss.

    Args:
        options: with operations and losses.

    Returns:
        Some of them, by rising loss.
    """
    kept: list[Option] = []
    sizes = np.empty((0, 2))
    for option in sorted(options, key=lambda o: (o.loss, o.operations, o.parameters)):
        size = np.array([[option.operations, option.parameters]], dtype=float)
        if not (sizes <= size).all(axis=1).any():
            kept.append(option)
            sizes = np.concatenate([sizes, size])
    return kept


def _with_losses(curve: Curve | None) -> Iterator[tuple[Any, float]]:
    if curve is None:
        yield None, 0.0
        return
    for option, loss in zip(curve.options, curve.losses_alone(), strict=True):
        yield option.plan, float(loss)


def _spread(curve: Curve | None) -> list[tuple[LayerPlan | None, float]]:
    """The best form at each of a few sizes, and the dense one."""
    pairs = list(_with_losses(curve))
    if curve is None:
        return pairs
    sizes = np.array([option.parameters for option in curve.options], dtype=float)
    found: dict[LayerPlan | None, float] = {None: 0.0}
    for most in np.geomspace(sizes.min(), sizes.max(), _QUERY_KEY_FORMS):
        fitting = [pair for pair, size in zip(pairs, sizes, strict=True) if size <= most * (1 + 1e-9)]
        plan, loss = min(fitting, key=lambda pair: pair[1])
        found.setdefault(plan, loss)
    return list(found.items())
