"""`SharedFactors`: the frozen result of a decomposition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..modeling.mixing_base import Mixing
from ..modeling.plan import LayerPlan


@dataclass(frozen=True, eq=False)
class SharedFactors:
    """One layer's query and key in shared form: T_h ~ A P_h Q_h^T B^T.

    Attributes:
        plan: the form and its ranks.
        shared_query: A of shape (query_size, query_rank).
        shared_key: B of shape (key_size, key_rank); A itself where they are tied.
        mixing: P_h and Q_h, and the folded content bias where there is one.
        content_bias: l_h of shape (num_heads, key_size), added to the unscaled scores; None where folded.
        relative_error: ||T - T^||_F / ||T||_F in the metric minimised (weights, or data).
    """

    plan: LayerPlan
    shared_query: Tensor
    shared_key: Tensor
    mixing: Mixing
    content_bias: Tensor | None
    relative_error: float

    def expand(self) -> Tensor:
        """The approximation T^ of shape (num_heads, query_size, key_size), for tests and small layers."""
        with torch.no_grad():
            left = self.shared_query @ self.mixing.query_maps().to(self.shared_query)
            right = self.shared_key @ self.mixing.key_maps().to(self.shared_key)
            return left @ right.transpose(1, 2)

    def expand_content_bias(self) -> Tensor:
        """The content bias of shape (num_heads, key_size), whether exact or folded."""
        if self.content_bias is not None:
            return self.content_bias
        with torch.no_grad():
            right = self.shared_key @ self.mixing.key_maps().to(self.shared_key)
            bias = self.mixing.bias
            if bias is None:
                return right.new_zeros(right.shape[:2])
            return torch.einsum("hjw,hw->hj", right, bias)

    @property
    def num_parameters(self) -> int:
        """Trainable numbers of the layer's query and key: projections, mixing and content bias."""
        tensors = [self.shared_query, *self.mixing.parameters()]
        if not self.plan.tied:
            tensors.append(self.shared_key)
        if self.content_bias is not None:
            tensors.append(self.content_bias)
        return sum(t.numel() for t in tensors)

    def to_tensorly(self) -> Any:
        """The approximation as one of tensorly's containers, modes (query, head, key).

        Returns:
            A `TuckerTensor` for tucker, whose head factor is that of `head_rank`, or the identity without one
            or with key groups; else a `CPTensor`. Arrays are of tensorly's current backend; the content bias
            is not part of it.
        """
        import tensorly
        from tensorly.cp_tensor import CPTensor
        from tensorly.tucker_tensor import TuckerTensor

        def array(tensor: Tensor) -> Any:
            return tensorly.tensor(tensor.detach().cpu().numpy())

        query, key = array(self.shared_query), array(self.shared_key)
        with torch.no_grad():
            maps = [m.to(self.shared_query) for m in (self.mixing.query_maps(), self.mixing.key_maps())]
            cores = maps[0] @ maps[1].mT  # (num_heads, query_rank, key_rank)
        if self.plan.form.container == "cp":
            weights = cores.diagonal(dim1=1, dim2=2)
            return CPTensor((None, [query, array(weights), key]))
        head = getattr(self.mixing, "head", None)
        if head is None or self.plan.key_groups > 1:  # blocks of different groups are not of low head rank
            head = torch.eye(len(cores)).to(cores)
        else:
            cores = torch.linalg.lstsq(head.detach(), cores.flatten(1)).solution.view(-1, *cores.shape[1:])
        return TuckerTensor((array(cores.transpose(0, 1)), [query, array(head), key]))
