"""Rows of a model that belong to tokens: of its embedding, of its output head and of the head's bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import FamilyError
from ...modeling.embeddings import token_embeddings


class TokenRows:
    """Every tensor of a model that has a row, or a number, for each token.

    Args:
        model: a transformers model.

    Raises:
        FamilyError: its inputs are no tokens, or it has vocabularies of several kinds.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.embedding: Any = next(iter(token_embeddings(model).values()), None)
        if self.embedding is None:
            raise FamilyError(f"{type(model).__name__} has no token embedding whose rows could be dropped")
        self.size: int = self.embedding.num_embeddings
        head: Any = model.get_output_embeddings()
        owners = [m for m in model.modules() if getattr(m, "weight", None) is self.embedding.weight]
        if head is not None and head not in owners:
            owners += [m for m in model.modules() if getattr(m, "weight", None) is head.weight]
        self.owners: list[Any] = owners
        self._check(head)

    def _check(self, head: Any) -> None:
        for inner in self.model.modules():
            for table in token_embeddings(inner).values():
                if table not in self.owners:
                    raise FamilyError(
                        f"{type(self.model).__name__} has several token embeddings (one of its own in "
                        f"{type(inner).__name__}), so that their rows can't be dropped"
                    )
        if head is not None and len(head.weight) != self.size:
            raise FamilyError(
                f"the output head of {type(self.model).__name__} has {len(head.weight)} rows and the token "
                f"embedding {self.size}, so that their rows can't be dropped"
            )

    @property
    def least_kept(self) -> int:
        """Ids below this one can't change.

        RoBERTa and its kin count positions from the id of the padding token, which so has to keep it.
        """
        padding = self.embedding.padding_idx
        others = (m for m in self.model.modules() if m not in self.owners)
        if padding is None or not any(getattr(m, "padding_idx", None) == padding for m in others):
            return 0
        return int(padding) + 1

    def keep_(self, new_ids: Mapping[int, int]) -> None:
        """Drop the other rows, in place; modules stay objects, and what is tied stays tied.

        Args:
            new_ids: the new id of every id that stays, in the order of the old ones.
        """
        rows = torch.tensor(list(new_ids), device=self.embedding.weight.device)
        new: dict[int, Tensor] = {}
        for module, name, tensor, dim in self._tensors():
            if id(tensor) not in new:
                picked = tensor.detach().index_select(dim, rows.to(tensor.device))
                parameter = isinstance(tensor, nn.Parameter)
                new[id(tensor)] = nn.Parameter(picked, tensor.requires_grad) if parameter else picked
            setattr(module, name, new[id(tensor)])
        for module in self.owners:
            if isinstance(module, nn.Embedding):
                module.num_embeddings = len(new_ids)
                if module.padding_idx is not None:
                    module.padding_idx = new_ids[module.padding_idx]
            else:
                module.out_features = len(new_ids)
        for inner in self.model.modules():
            if getattr(inner, "vocab_size", None) == self.size:
                vars(inner)["vocab_size"] = len(new_ids)

    def _tensors(self) -> Sequence[tuple[Any, str, Tensor, int]]:
        """Modules, names of their tensors, the tensors, and the dimension that tokens have in them."""
        found = [(m, "weight", m.weight, 0) for m in self.owners]
        # A bias is the head's own, or its parent's under any of the names that hosts have for it.
        parents = [m for m in self.model.modules() if any(child in self.owners for child in m.children())]
        for module in {id(m): m for m in [*self.owners, *parents]}.values():
            for name in ("bias", "final_logits_bias"):
                bias = getattr(module, name, None)
                if isinstance(bias, Tensor) and bias.shape[-1] == self.size:
                    found.append((module, name, bias, bias.dim() - 1))
        return found
