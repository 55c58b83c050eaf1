"""`KeyValueCache`: what a decoder keeps of the tokens before.

Shapes: B batch, S keys, T new tokens, H num_heads, V width of one head's values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import LayerError


class KeyValueCache:
    """Shared keys, one set for all heads, and values.

    Attributes:
        key: (B, S, key_rank), with an exact content bias (B, S, key_rank + H); None before the first call.
        value: (B, S, H * V), or None.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens kept."""
        return 0 if self.key is None else self.key.shape[1]

    def append_(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep more tokens.

        Args:
            key: (B, T, width), as the attribute.
            value: (B, T, H * V).

        Returns:
            Keys and values of all tokens so far.

        Raises:
            LayerError: another batch size or width than before.
        """
        if self.key is not None and self.value is not None:
            for name, old, new in (("key", self.key, key), ("value", self.value, value)):
                if old.shape[::2] != new.shape[::2]:
                    raise LayerError(
                        f"the cache holds a {name} of batch and width {tuple(old.shape[::2])}, got "
                        f"{tuple(new.shape[::2])}; begin a new sequence with a new cache"
                    )
            key, value = torch.cat([self.key, key], 1), torch.cat([self.value, value], 1)
        self.key, self.value = key, value
        return key, value

    def reorder_(self, index: Tensor) -> None:
        """Choose samples, as beam search does.

        Args:
            index: (new batch,) integers in [0, B).
        """
        if self.key is not None and self.value is not None:
            self.key, self.value = self.key.index_select(0, index), self.value.index_select(0, index)
