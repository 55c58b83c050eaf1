"""Heads as a part: whole heads go in the order of the optimal brain surgeon, the others take over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config import CollabConfig
from ...host.sites import AttentionSite, AttentionSites, attention_sites
from ...modeling.shapes import AttentionShape
from ...modeling.shrinking import HeadsPlan
from ...tensors.moments import Moments
from ...tensors.surgeon import RemovalPath, refit, removal_path
from ..part import Option
from ..shrunk import ShrinkingPart, Shrunk, factors_of, rows_of


class Heads(ShrinkingPart):
    """The heads of attention layers; where several share a key and a value, they go together."""

    name = "heads"
    size_name = "heads"
    place = "attention"
    done = (
        "In {layers} attention heads were left out and the output projection was refitted to those that stay."
    )

    def sites(self, model: Any) -> AttentionSites:
        """The attention layers of a model, by name."""
        return attention_sites(model, self.name)

    def output(self, site: AttentionSite) -> Any:
        """The projection that reads all heads."""
        return site.at(site.family.output)

    def size(self, plan: HeadsPlan | None, shape: AttentionShape) -> int:
        """Heads."""
        return shape.num_heads if plan is None else len(plan.kept)

    def parameters(self, plan: HeadsPlan | None, shape: AttentionShape) -> int:
        """Weights and biases of query, key, value and output, the output's bias aside."""
        width = (shape.num_heads if plan is None else len(plan.kept)) * shape.head_dim
        return width * (2 * shape.query_size + 1) + 2 * width // shape.sharing * (shape.key_size + 1)

    def operations(self, plan: HeadsPlan | None, shape: AttentionShape, length: int) -> int:
        """Floating-point operations of the whole attention for one sequence, two for each multiply-add."""
        width = (shape.num_heads if plan is None else len(plan.kept)) * shape.head_dim
        projected = 2 * width * shape.query_size + 2 * width // shape.sharing * shape.key_size
        return 2 * length * (projected + 2 * width * length)

    def trial(self, site: AttentionSite, config: CollabConfig, statistics: Moments) -> HeadTrial:
        """The order in which heads go, and what each number of heads costs.

        Args:
            site: a dense attention layer.
            config: not read.
            statistics: moments of what the output projection reads.

        Returns:
            The options, and the means to solve them.

        Raises:
            DecompositionError: weights or statistics that are not finite.
        """
        weight, _ = factors_of(self.output(site), site.name)
        shape = site.shape
        group = shape.head_dim * shape.sharing  # heads that share a key go together
        path = removal_path(statistics, weight, group=group, output_weights=site.gain(), keep=group)
        options = []
        for heads in range(shape.sharing, shape.num_heads + 1, shape.sharing):
            plan = None if heads == shape.num_heads else HeadsPlan(kept_heads(path, heads, shape.head_dim))
            options.append(Option(plan, self.parameters(plan, shape), path.error(heads * shape.head_dim)))
        return HeadTrial(site, statistics, path, tuple(options))

    def solution(
        self, site: AttentionSite, plan: HeadsPlan, moments: Moments | None, error: float = 0.0
    ) -> Shrunk:
        """Any choice of heads as weights to install.

        Args:
            site: a dense attention layer.
            plan: the heads that stay.
            moments: of what the output projection reads, to refit it to the heads that stay; None to leave
                their columns as they are, which equals gates of zero on the others.
            error: of the refitted projection, where it is known.

        Returns:
            Query, key, value and output.

        Raises:
            DecompositionError: weights or moments that are not finite.
        """
        row, columns = site.family, columns_of(plan, site.shape.head_dim)
        weight, bias = factors_of(site.at(row.output), site.name)
        shared = columns_of(shared_heads(plan, site.shape.sharing), site.shape.head_dim)
        weights: dict[str, tuple[Tensor, Tensor | None]] = {
            row.query: rows_of(site.at(row.query), columns),
            row.key: rows_of(site.at(row.key), shared),
            row.value: rows_of(site.at(row.value), shared),
        }
        if moments is None:
            weights[row.output] = weight[:, columns.to(weight.device)], None
        else:
            weights[row.output] = refit(moments, weight, bias, columns)
        return Shrunk(plan, weights, error)


@dataclass(frozen=True, eq=False)
class HeadTrial:
    """One attention layer with the order in which its heads go.

    Attributes:
        site: the layer.
        moments: of all heads' outputs side by side.
        path: the order.
        options: numbers of heads with their predicted errors, the dense one included.
    """

    site: AttentionSite
    moments: Moments
    path: RemovalPath
    options: tuple[Option, ...]

    def solve(self, plan: HeadsPlan) -> Shrunk:
        """The heads that stay, and the output projection refitted to them.

        Args:
            plan: one of the options.

        Returns:
            Query, key, value and output.
        """
        error = self.path.error(len(plan.kept) * self.site.shape.head_dim)
        return HEADS.solution(self.site, plan, self.moments, error)


HEADS = Heads()


def kept_heads(path: RemovalPath, heads: int, head_dim: int) -> tuple[int, ...]:
    """The heads that are left when so many are."""
    return tuple(int(column) // head_dim for column in path.kept(heads * head_dim)[::head_dim])


def shared_heads(plan: HeadsPlan, sharing: int) -> HeadsPlan:
    """The heads of keys and values that the kept heads share."""
    return HeadsPlan(tuple(head // sharing for head in plan.kept[::sharing]))


def columns_of(plan: HeadsPlan, head_dim: int) -> Tensor:
    """The dimensions of the kept heads among those of all heads side by side."""
    return (torch.tensor(plan.kept).unsqueeze(1) * head_dim + torch.arange(head_dim)).flatten()
