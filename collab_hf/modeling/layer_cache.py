"""One layer's part of a decoder's cache.

This file ships with saved checkpoints: it imports torch alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .errors import ConfigError


class LayerCache:
    """Shared keys and values of earlier tokens: (B, S, key width) and (B, S, H * V).

    Args:
        cache: transformers' cache of all layers, of self-attention or of an encoder and a decoder.
        layer: the layer's number in it.
        crosses: whether the keys come from another sequence, whose keys do not grow.
    """

    def __init__(self, cache: Any, layer: int | None, crosses: bool) -> None:
        self._whole, self._layer = cache, layer
        self._keeps = crosses and hasattr(cache, "cross_attention_cache")
        name = "cross_attention_cache" if crosses else "self_attention_cache"
        self._cache = getattr(cache, name, cache)

    @property
    def is_filled(self) -> bool:
        """Whether the other sequence's keys are there from an earlier call."""
        return self._keeps and bool(self._whole.is_updated.get(self._layer))

    def length(self) -> Any:
        """Tokens that are cached; of a static cache a tensor, which later updates leave alone."""
        length = self._whole.get_seq_length(self._layer)
        return length.clone() if isinstance(length, Tensor) else length

    def _layer_is_there(self) -> bool:
        layer = self._layer
        return (
            layer is not None
            and len(self._cache.layers) > layer
            and hasattr(self._cache.layers[layer], "keys")
        )

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values that are cached."""
        layer = self._cache.layers[self._layer]
        return layer.keys.squeeze(1), layer.values.squeeze(1)

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values; gives all of them.

        Args:
            key: of new tokens, (B, T, key width).
            value: of new tokens, (B, T, H * V).

        Returns:
            Those of all tokens.

        Raises:
            ConfigError: the cache holds keys of separate heads, such as PEFT's prefix tuning puts there.
        """
        held = self._cache.layers[self._layer].keys if self._layer_is_there() else None
        if held is not None and held.dim() == 4 and (held.shape[1], held.shape[3]) != (1, key.shape[2]):
            raise ConfigError(
                "keys in the cache were made for separate heads, and this layer's heads share theirs; prefix "
                "tuning needs the original model, LoRA and prompt tuning work with this one"
            )
        # One "head" for both, as a static cache sizes keys and values by one number of heads.
        key, value = self._cache.update(key.unsqueeze(1), value.unsqueeze(1), self._layer)
        if self._keeps:
            self._whole.is_updated[self._layer] = True
        return key.squeeze(1), value.squeeze(1)
