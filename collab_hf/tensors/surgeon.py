"""Which input columns of a linear layer can go, and what the others must become: the optimal brain surgeon.

The layer is y = W z + b with z ~ (mu, C): the output projection of a feed-forward block (a column is a
neuron), or that of attention (head_dim neighbouring columns are a head). Dropping columns R and keeping K,
the bias takes up the mean and the kept weights W' take up what z_K says about z_R. Throughout, H = C + d I
with d = damping * mean(diag C), and the ridge d pulls towards W, not towards zero:

    W' = argmin tr((W' - W) H (W' - W)^T) = W_K + W_R C_RK (C_KK + d I)^-1

so that directions which the data doesn't show keep their trained weights, and dropping nothing changes
nothing. All is float64; the caller casts back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DecompositionError, RankError
from .elimination import Columns, output_variance, weight_change
from .moments import Moments

# Least damping, relative to the mean variance. With fewer samples than columns the covariance is singular;
# its rounding errors reach about size * eps of the largest eigenvalue (size * mean at most), far below this.
_LEAST_DAMPING = 1e-9


@dataclass(frozen=True, eq=False)
class RemovalPath:
    """The order in which columns go, and what each width costs.

    Attributes:
        order: columns in the order they go, or groups of neighbouring columns by their number; shape
            (removed,), int64. Those that never go are not in it.
        errors: expected squared output error of the refitted layer after 0, 1, ... removals, relative to the
            variance of the dense output, with rows weighted; shape (removed + 1,), float64, first 0. It is 1
            where no column is left.
        width: number of columns of the dense layer.
        group: neighbouring columns that go together.
    """

    order: Tensor
    errors: Tensor
    width: int
    group: int = 1

    def kept(self, width: int) -> Tensor:
        """The columns that are left at a width.

        Args:
            width: number of columns left, a multiple of group.

        Returns:
            Their indices, ascending, (width,), int64.

        Raises:
            RankError: a width that the path doesn't pass.
        """
        gone = self.order[: self._removed(width)]
        left = torch.ones(self.width // self.group, dtype=torch.bool, device=gone.device)
        left[gone] = False
        return left.repeat_interleave(self.group).nonzero().flatten()

    def error(self, width: int) -> float:
        """The relative expected squared output error at a width.

        Args:
            width: number of columns left, a multiple of group.

        Returns:
            The error, 0 for the full width.

        Raises:
            RankError: a width that the path doesn't pass.
        """
        return float(self.errors[self._removed(width)])

    def _removed(self, width: int) -> int:
        """How many removals lead to a width."""
        least = self.width - len(self.order) * self.group
        if not least <= width <= self.width or width % self.group:
            raise RankError(
                f"width must be a multiple of {self.group} between {least} and {self.width}, got {width}"
            )
        return (self.width - width) // self.group


def removal_path(
    moments: Moments,
    weight: Tensor,
    *,
    group: int = 1,
    block: int = 16,
    damping: float = 1e-4,
    output_weights: Tensor | None = None,
    keep: int = 0,
) -> RemovalPath:
    """Remove columns of a linear layer, each time those that cost least once the others are refitted.

    Removing columns S costs tr(W_S ([H^-1]_SS)^-1 W_S^T); then W and H^-1 are downdated. Single columns are
    chosen one after another among the cheapest, and downdate the matrices in blocks; groups go one at a time.

    Args:
        moments: mean and covariance of the layer's input, (width,) and (width, width).
        weight: W of shape (out, width), any floating dtype.
        group: neighbouring columns that go together: 1 for neurons, head_dim for heads.
        block: columns that go between two downdates, >= 1, with group 1; 1 looks at every column each time.
        damping: d relative to the mean variance (dimensionless); at least 1e-9 is used.
        output_weights: how much each output counts, s of shape (out,): errors are ||s * (y - y')||^2. The
            gain of a LayerNorm that reads the output, for one. None counts all alike.
        keep: columns that stay at least, a multiple of group.

    Returns:
        The path from the full width to keep; deterministic, ties go to the lower position.

    Raises:
        DecompositionError: shapes that don't fit together, values that are not finite, or a covariance that
            is not positive semi-definite.
        RankError: group, block or keep outside of what the layer allows.

    Source:
        Hassibi & Stork 1993, "Second order derivatives for network pruning: Optimal brain surgeon"; groups as
        in Kwon et al. 2022, arXiv:2204.09656; Frantar & Alistarh 2022, arXiv:2208.11580.
    """
    weight = checked_weight(moments, weight)
    width = weight.shape[1]
    if group < 1 or width % group:
        raise RankError(f"group must divide the {width} columns, got {group}")
    if block < 1:
        raise RankError(f"block must be at least 1, got {block}")
    if not 0 <= keep <= width or keep % group:
        raise RankError(f"keep must be a multiple of {group} between 0 and {width}, got {keep}")
    weight = checked_output_weights(weight, output_weights)
    left = Columns(moments.covariance, weight, ridge(moments, damping))
    order, errors = [torch.empty(0).to(left.names)], [torch.zeros(1).to(weight)]
    while len(left.names) > keep:
        left.renew_if_worn()
        if group == 1:
            chosen = left.cheapest(min(block, len(left.names) - keep))
        else:
            chosen = left.cheapest_group(group)
        order.append(left.names[chosen[::group]] // group)
        errors.append(left.remove(chosen)[group - 1 :: group])
    total = output_variance(moments.covariance, weight)
    relative = torch.cat(errors).clamp_min(0) / total if total > 0 else torch.cat(errors) * 0
    return RemovalPath(torch.cat(order), relative, width, group)


def refit(
    moments: Moments, weight: Tensor, bias: Tensor | None, kept: Tensor, *, damping: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """The output projection over the columns that are left: ridge least squares, and the mean in the bias.

    Args:
        moments: mean and covariance of the layer's input, (width,) and (width, width).
        weight: W of shape (out, width), any floating dtype.
        bias: b of shape (out,); None counts as zeros.
        kept: indices of the columns that stay, (kept,), integers without repetition, in any order.
        damping: d relative to the mean variance (dimensionless); at least 1e-9 is used. Unlike a plain ridge,
            it pulls towards the dense weights.

    Returns:
        W' (out, kept), its columns in the order of kept, and b' (out,), both float64. With every column kept
        they are the dense ones, bit by bit.

    Raises:
        DecompositionError: shapes that don't fit together, values that are not finite, indices out of range
            or repeated, or a covariance that is not positive semi-definite.
    """
    weight = checked_weight(moments, weight)
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight)
    if bias.shape != weight.shape[:1] or not bool(torch.isfinite(bias).all()):
        raise DecompositionError(
            f"bias must be finite and of shape {(len(weight),)}, got shape {tuple(bias.shape)}"
        )
    kept, gone = _split(kept, weight)
    if len(gone) == 0:
        return weight[:, kept], bias
    change = weight_change(moments.covariance, weight, kept, gone, ridge(moments, damping))
    shift = weight[:, gone] @ moments.mean[gone] - change @ moments.mean[kept]
    return weight[:, kept] + change, bias + shift


def path_error(
    moments: Moments,
    weight: Tensor,
    kept: Tensor,
    *,
    damping: float = 1e-4,
    output_weights: Tensor | None = None,
) -> float:
    """Expected squared output error after `refit`, relative to the variance of the dense output.

    Args:
        moments: mean and covariance of the layer's input, (width,) and (width, width).
        weight: W of shape (out, width), any floating dtype.
        kept: indices of the columns that stay, as for `refit`.
        damping: as for `refit`.
        output_weights: how much each output counts, s of shape (out,); None counts all alike.

    Returns:
        The error: 0 with every column kept, 1 with none; 0 where the dense output doesn't vary.

    Raises:
        DecompositionError: as `refit`, or output weights that don't fit.
    """
    weight = checked_weight(moments, weight)
    weighted = checked_output_weights(weight, output_weights)
    kept, gone = _split(kept, weight)
    drift = weighted.clone()
    drift[:, kept] = -weight_change(moments.covariance, weighted, kept, gone, ridge(moments, damping))
    total = output_variance(moments.covariance, weighted)
    return output_variance(moments.covariance, drift) / total if total > 0 else 0.0


def checked_weight(moments: Moments, weight: Tensor) -> Tensor:
    """The weights (out, width) of a layer with this input, in float64 beside its moments.

    Args:
        moments: mean and covariance of the input.
        weight: what should be a matrix (out, width).

    Returns:
        The same numbers, detached, float64, on the moments' device.


    Raises:
        DecompositionError: another shape than (out, width), or values that are not finite.
    """
    if weight.dim() != 2 or weight.shape[1] != moments.hidden_size:
        raise DecompositionError(
            f"weight must have shape (out, {moments.hidden_size}) to fit its moments, "
            f"got {tuple(weight.shape)}"
        )
    for name, values in (("weight", weight), ("mean", moments.mean), ("covariance", moments.covariance)):
        if not bool(torch.isfinite(values).all()):
            raise DecompositionError(f"{name} must be finite, got inf or nan; check the checkpoint's dtype")
    return weight.detach().to(moments.covariance)


def ridge(moments: Moments, damping: float) -> float:
    """What is added to each variance: d = damping * mean(diag C), or 1 where nothing varies.

    Args:
        moments: mean and covariance of the layer's input.
        damping: relative to the mean variance; at least 1e-9 is used.

    Returns:
        d in the units of the covariance.

    Raises:
        DecompositionError: damping that is negative or not finite.
    """
    if not 0 <= damping < float("inf"):
        raise DecompositionError(f"damping must be finite and at least 0, got {damping}")
    variance = float(moments.covariance.diagonal().mean())
    return max(damping, _LEAST_DAMPING) * variance if variance > 0 else 1.0


def checked_output_weights(weight: Tensor, output_weights: Tensor | None) -> Tensor:
    """The rows of W times how much they count."""
    if output_weights is None:
        return weight
    if output_weights.shape != weight.shape[:1] or not bool(torch.isfinite(output_weights).all()):
        raise DecompositionError(
            f"output_weights must be finite and of shape {(len(weight),)}, "
            f"got shape {tuple(output_weights.shape)}"
        )
    return weight * output_weights.detach().to(weight).unsqueeze(1)


def _split(kept: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The kept columns and the others, or a DecompositionError where kept is no set of columns."""
    width = weight.shape[1]
    if kept.dim() != 1 or kept.is_floating_point() or kept.dtype == torch.bool:
        raise DecompositionError(
            f"kept must be a vector of column indices, got {kept.dtype} of shape {tuple(kept.shape)}"
        )
    kept = kept.to(weight.device, torch.long)
    if len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < width:
        raise DecompositionError(
            f"kept columns must lie between 0 and {width - 1}, got {int(kept.min())} to {int(kept.max())}"
        )
    gone = torch.ones(width, dtype=torch.bool, device=weight.device)
    gone[kept] = False
    if int(gone.sum()) + len(kept) != width:
        raise DecompositionError("kept columns must not repeat")
    return kept, gone.nonzero().flatten()
