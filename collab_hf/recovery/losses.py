"""The teacher's outputs as targets, and the loss against them.

Every term is a sum over the rows of a batch, divided by a constant of the teacher's for the whole batch. So
the gradients of the pieces that several processes hold add up to the gradient of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from .config import LossWeights
from .outputs import Outputs, Wanted, chosen, real_rows, run

# Sums a tensor over all processes, and joins its rows.
Sum = Callable[[Tensor], Tensor]
Join = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Targets:
    """What the teacher says about this process's rows of a batch.

    Attributes:
        outputs: hidden states and attention in bfloat16: their error is far above its rounding, and the
            cache holds twice as many.
        norms: squared norm of each layer's hidden states over the whole batch, at least a tiny number.
        examples: examples of the whole batch.
        queries: tokens of the whole batch whose attention counts.
        predictions: rows of logits of the whole batch.
        embeddings: those of the whole batch, (B, D); None where outputs have none.
        first: where this process's rows start in embeddings.
    """

    outputs: Outputs
    norms: Tensor
    examples: float
    queries: Tensor
    predictions: float
    embeddings: Tensor | None
    first: int

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        own = [*self.outputs.hidden, *self.outputs.attention, self.outputs.logits, self.embeddings]
        return sum(t.numel() * t.element_size() for t in own if t is not None)


def targets_of(
    teacher: PreTrainedModel,
    batch: Mapping[str, Any],
    wanted: Wanted,
    first: int,
    total: Sum,
    join: Join,
) -> Targets:
    """Run the teacher.

    Args:
        teacher: in eval mode.
        batch: this process's rows of a batch.
        wanted: which outputs.
        first: where the rows start in the whole batch.
        total: sums over processes.
        join: joins rows over processes.

    Returns:
        Its outputs, and the constants of the whole batch.
    """
    with torch.no_grad():
        found = chosen(run(teacher, batch, wanted), wanted.teacher_blocks)
        norms = [
            _masked(h.float(), m).square().sum()
            for h, m in zip(found.hidden, found.hidden_masks, strict=True)
        ]
        queries = [_rows_of_attention(a, m).shape[0] for a, m in _attention(found)]
        rows = 0 if found.logits is None else real_rows(found.logits, found.logits_mask).shape[0]
        device = next(teacher.parameters()).device
        examples = next(len(v) for v in batch.values() if isinstance(v, Tensor))
        counts = total(torch.tensor([examples, rows, *queries], dtype=torch.float64, device=device)).tolist()
        return Targets(
            outputs=replace(
                found,
                hidden=tuple(h.bfloat16() for h in found.hidden),
                attention=tuple(a.bfloat16() for a in found.attention),
            ),
            norms=total(torch.stack(norms)).clamp_min(torch.finfo(torch.float32).tiny)
            if norms
            else torch.ones(0),
            examples=counts[0],
            predictions=max(counts[1], 1.0),
            queries=torch.tensor(counts[2:], device=device).clamp_min(1),
            embeddings=None if found.embeddings is None else join(found.embeddings),
            first=first,
        )


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of one process's rows.

    Attributes:
        total: to take the gradient of; its sum over processes is the loss.
        terms: each weighted term by name.
        agreement: share of the batch that agrees with the teacher, this process's part of the mean.
    """

    total: Tensor
    terms: dict[str, Tensor]
    agreement: Tensor


def loss_of(
    student: PreTrainedModel,
    batch: Mapping[str, Any],
    targets: Targets,
    wanted: Wanted,
    weights: LossWeights,
    join: Join,
) -> Loss:
    """Run the student and compare it with the targets.

    Args:
        student: in eval mode.
        batch: this process's rows of a batch.
        targets: the teacher's for the same rows.
        wanted: which outputs.
        weights: of the terms.
        join: joins rows over processes, without gradients.

    Returns:
        The loss of these rows.
    """
    found, goal = run(student, batch, wanted), targets.outputs
    terms: dict[str, Tensor] = {}
    agreement = None
    if found.hidden:
        terms["hidden"] = weights.hidden * _hidden_error(found, targets)
        agreement = (targets.examples**-1) * len(found.hidden[0]) - terms["hidden"].detach() / weights.hidden
    if found.attention:
        terms["attention"] = weights.attention * _attention_divergence(found, targets)
    if found.embeddings is not None and goal.embeddings is not None:
        cosines = (found.embeddings * goal.embeddings).sum(-1)
        agreement = cosines.detach().sum() / targets.examples
        terms["embedding"] = weights.embedding * (1 - cosines).sum() / targets.examples
        if weights.similarity:
            terms["similarity"] = weights.similarity * _similarity_error(found.embeddings, targets, join)
    if found.logits is not None and goal.logits is not None:
        ours = real_rows(found.logits, found.logits_mask)
        theirs = real_rows(goal.logits, goal.logits_mask)
        divergence = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="sum", log_target=True)
        terms["logits"] = weights.logits * divergence / targets.predictions
        agreement = (ours.detach().argmax(-1) == theirs.argmax(-1)).sum() / targets.predictions
    total = torch.stack(list(terms.values())).sum()
    return Loss(
        total,
        {n: t.detach() for n, t in terms.items()},
        torch.zeros_like(total.detach()) if agreement is None else agreement,
    )


def _hidden_error(found: Outputs, targets: Targets) -> Tensor:
    """Relative squared error of the hidden states, mean over layers."""
    errors = [
        _masked(ours.float() - theirs, mask).square().sum()
        for ours, theirs, mask in zip(
            found.hidden, targets.outputs.hidden, targets.outputs.hidden_masks, strict=True
        )
    ]
    return (torch.stack(errors) / targets.norms).mean()


def _similarity_error(ours: Tensor, targets: Targets, join: Join) -> Tensor:
    """Mean squared error of the cosines of all pairs; this process's share of the sum.

    All rows take part on every process, but only its own carry a gradient.
    """
    theirs = targets.embeddings
    if theirs is None or len(theirs) < 2:
        return ours.sum() * 0
    everyone = join(ours.detach())
    first, last = targets.first, targets.first + len(ours)
    everyone = torch.cat([everyone[:first], ours, everyone[last:]])
    errors = (everyone @ everyone.T - theirs @ theirs.T).square()
    # The pairs among other rows are other processes' to count; the pairs between theirs and these count for
    # both in the gradient, and by half in the value.
    own = errors[first:last].sum()
    cross = own - errors[first:last, first:last].sum()
    value = own + cross - cross.detach()
    mean: Tensor = value / (len(theirs) * (len(theirs) - 1))
    return mean


def _attention(found: Outputs) -> list[tuple[Tensor, Tensor | None]]:
    return list(zip(found.attention, found.attention_masks, strict=True))


def _rows_of_attention(attention: Tensor, mask: Tensor | None) -> Tensor:
    """Weights of the real queries, (N, H, S)."""
    rows = real_rows(attention.transpose(1, 2).flatten(2), mask)
    return rows.reshape(len(rows), attention.shape[1], -1)


def _attention_divergence(found: Outputs, targets: Targets) -> Tensor:
    """KL(teacher || student) per query and head, mean over layers."""
    values = []
    for (ours, mask), (theirs, _), count in zip(
        _attention(found), _attention(targets.outputs), targets.queries, strict=True
    ):
        tiny = torch.finfo(torch.float32).tiny
        q = _rows_of_attention(ours.float(), mask).clamp_min(tiny)
        p = _rows_of_attention(theirs.float(), mask)
        values.append(F.kl_div(q.log(), p, reduction="sum") / (count * ours.shape[1]))
    return torch.stack(values).mean()


def _masked(states: Tensor, mask: Tensor | None) -> Tensor:
    return states if mask is None else states * mask.unsqueeze(-1).to(states.dtype)
