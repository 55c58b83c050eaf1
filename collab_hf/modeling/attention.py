"""Collaborative attention in the host's place: a subclass of the host's own attention class.

Shapes: B batch, T queries, S keys, H num_heads, R rank, W score width, V width of one head's values.
This file ships with saved checkpoints: it imports torch and transformers alone.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .by_hand import by_hand
from .errors import ConfigError
from .families_row import Family
from .host_internals import attention_backend
from .kernels import (
    attend_,
    even_slices,
    prefers_pieces,
    product_dtype,
    samples_at_once,
    wide_attention,
)
from .layer_cache import LayerCache
from .masks import add_to_mask, four_dimensional, part_of
from .mixing_base import Mixing
from .plan import LayerPlan
from .position_bias import BIASES, merged


class CollabAttention(nn.Module):
    """Mixed in before the host's attention class, so that isinstance, hooks and recorders keep working.

    Attributes:
        collab_family: attribute names of the host.
        collab_host: the host's class.
        collab_arguments: names of its forward's arguments, in order.
        collab_has_backends: whether it looks up an attention backend at every call.
        collab_plan: the layer's form.
        collab_biases: whether the host's query and key projections have biases.
        mixing: per-head maps between the shared projections.
    """

    collab_family: Family
    collab_host: type[nn.Module]
    collab_arguments: tuple[str, ...]
    collab_has_backends: bool
    collab_plan: LayerPlan
    collab_biases: tuple[bool, bool]
    mixing: Mixing
    config: Any

    def collab_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Attention with the host's arguments and results."""
        family = self.collab_family
        given = {**dict(zip(self.collab_arguments, args, strict=False)), **kwargs}
        hidden_states = given.pop(self.collab_arguments[0])
        source = None if family.source is None else given.pop(family.source, None)
        values = None if family.value_source is None else given.pop(family.value_source, None)
        mask = given.pop(family.mask, None)
        if family.source_mask is not None:
            other = given.pop(family.source_mask, None)
            mask = mask if source is None else other
        cache = self._cache(given.pop(family.cache, None), source is not None)
        past = cache.length() if cache is not None and family.bias == "buckets" else 0
        query = family.projection(self, "query")(hidden_states)
        if cache is not None and cache.is_filled:
            key, value = cache.read()
        else:
            key, value = self._keys_and_values(hidden_states if source is None else source, query, values)
            if cache is not None:
                key, value = cache.update(key, value)
        added = None
        if family.bias is not None:
            added = BIASES[family.bias](self, given, query.shape[1], key.shape[1], past)
        output, weights = self._attend(
            hidden_states, query, key, value, mask, added, cache is not None, **given
        )
        if family.results == "output":
            return output
        if family.results == "t5":
            return output, added, weights
        if family.results == "listed" and weights is None:
            return (output,)
        return output, weights

    def _keys_and_values(self, source: Tensor, query: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
        """What a decoder caches: (B, S, key_rank + H where the bias is exact) and (B, S, H * V)."""
        family, plan = self.collab_family, self.collab_plan
        if family.lacks_key(self):
            key = query
        else:
            key = family.projection(self, "key")(source)
            key = torch.cat([query, key], -1) if plan.tied else key
        return key, family.projection(self, "value")(source if values is None else values)

    def _cache(self, cache: Any, crosses: bool) -> LayerCache | None:
        if cache is None:
            return None
        return LayerCache(cache, getattr(self, self.collab_family.layer_index), crosses)

    def _attend(
        self,
        source: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        added: Tensor | None,
        cached: bool,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        plan, mixing, length = self.collab_plan, self.mixing, source.shape[1]
        heads, bias = mixing.num_heads, None
        backend = self._backend(kwargs)
        causal = self._is_causal(backend, kwargs)
        if backend == "sdpa" and mask is None and causal and length > 1 and key.shape[1] > length:
            # Prefill of a static cache: the host reads the first keys alone, one per query.
            key, value = key[:, :length], value[:, :length]
            added = None if added is None else added[..., :length]
        if added is not None:
            mask = merged(added, mask, length, causal)
        batch, keys, _ = value.shape
        value = value.view(batch, keys, heads, -1).transpose(1, 2)  # (B, S, H*V) -> (B, H, S, V)
        if plan.content_bias == "exact":
            # (B, S, H) -> (B, H, 1, S)
            key, bias = key[..., : plan.key_rank], key[..., plan.key_rank :].transpose(1, 2).unsqueeze(2)
        weights = None
        if cached and length == 1 and backend == "sdpa" and mixing.derives_keys:
            query, key = mixing("latent_queries", query), key.unsqueeze(1)
            output = self._wide(query, key, value, bias, mask, False)
        elif backend == "sdpa" and prefers_pieces(
            query, keys, plan.score_width, value.shape[-1], self._dropout()
        ):
            output = self._in_pieces(query, key, value, bias, mask, causal)
        elif plan.score_width > value.shape[-1] and backend != "eager":
            self._check_backend(f"a score width of {plan.score_width} > {value.shape[-1]}")
            query, key = mixing("queries", query, plan.score_width), mixing("keys", key, plan.score_width)
            output = self._wide(query, key, value, bias, mask, causal)
        else:
            # Kernels want queries, keys and values of one width; eager takes any.
            width = plan.score_width if backend == "eager" else value.shape[-1]
            query, key, mask = self._per_head(query, key, bias, mask, width, causal)
            sizes = {"dropout": self._dropout(), "scaling": self._scaling()}
            key = key.expand(-1, heads, -1, -1)
            output, weights = self._interface(backend)(self, query, key, value, mask, **sizes, **kwargs)
        return self._finish(output.reshape(*source.shape[:-1], -1), source), weights

    def _in_pieces(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        causal: bool,
    ) -> Tensor:
        """Attention of (B, T, H, V) from shared queries and keys, a few samples at a time."""
        batch, length, _ = query.shape
        mixing, width, scaling = self.mixing, self.collab_plan.score_width, self._scaling()
        heads = mixing.num_heads
        output = value.new_empty(batch, length, heads, value.shape[-1])
        dtype = product_dtype(value.dtype, batch * key.shape[1])
        # The content bias is part of the scores, so it is scaled with them.
        mask, bias = four_dimensional(mask), None if bias is None else bias * scaling

        def fill_(
            output: Tensor,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            mask: Tensor | None,
            bias: Tensor | None,
        ) -> None:
            query, key = mixing("queries_and_keys", query, key, dtype)
            attend_(output, query, key, value.to(dtype), scaling, mask=mask, bias=bias, causal=causal)

        most = samples_at_once(length * heads * width * dtype.itemsize)
        if batch <= most:
            fill_(output, query, key, value, mask, bias)
            return output
        for few in even_slices(batch, most):
            parts = output[few], query[few], key[few], value[few]
            fill_(*parts, part_of(mask, few), part_of(bias, few))
        return output

    def _wide(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        causal: bool,
    ) -> Tensor:
        scaling = self._scaling()
        # The content bias is part of the scores, so it is scaled with them.
        bias = None if bias is None else bias * scaling
        return wide_attention(
            query, key, value, mask, scaling, bias=bias, dropout=self._dropout(), causal=causal
        )

    def _per_head(
        self, query: Tensor, key: Tensor, bias: Tensor | None, mask: Tensor | None, width: int, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries and keys of the width, and the mask; it holds the content bias where keys have no room."""
        if bias is not None and self.collab_plan.score_width < width:
            return *self._carry_bias(query, key, bias, width), mask
        length = query.shape[1]
        query, key = self.mixing("queries", query, width), self.mixing("keys", key, width)
        if bias is not None:
            self._check_backend(f"an exact content bias with a score width of {width}")
            mask = add_to_mask(bias * self._scaling(), mask, length, causal)
        return query, key, mask

    def _carry_bias(self, query: Tensor, key: Tensor, bias: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Queries and keys of (B, H, ., width) whose first spare dimension is 1 times the content bias.

        So a mask stays as small as it was, and boolean.
        """
        narrow, heads = self.collab_plan.score_width, self.mixing.num_heads
        query, key = self.mixing("queries", query, narrow), self.mixing("keys", key, narrow)
        query = F.pad(query, (0, 1), value=1.0)
        key = torch.cat([key.expand(-1, heads, -1, -1), bias.transpose(2, 3)], -1)
        spare = (0, width - narrow - 1)
        return F.pad(query, spare), F.pad(key, spare)

    def _backend(self, given: dict[str, Any]) -> str | None:
        """The attention backend that is set; of a host that has none, eager where it must give weights."""
        if self.collab_has_backends:
            backend: str | None = attention_backend(self.config)
            return backend
        asked = given.get("output_attentions", "output_attentions" not in self.collab_arguments)
        return "eager" if asked else "sdpa"

    def _check_backend(self, what: str) -> None:
        backend = attention_backend(self.config) if self.collab_has_backends else None
        if backend not in ("eager", "sdpa", None):
            raise ConfigError(f"attention backend {backend!r} can't serve {what}; use eager or sdpa")

    def _scaling(self) -> float:
        return self.collab_family.scale(self)

    def _dropout(self) -> float:
        dropout = getattr(self, self.collab_family.dropout) if self.training else 0.0
        return float(dropout.p if isinstance(dropout, nn.Dropout) else dropout)

    def _is_causal(self, backend: str | None, given: dict[str, Any]) -> bool:
        if not self.collab_has_backends or backend == "eager":
            return False  # the mask says it
        is_causal = given.get("is_causal")
        # Backends take a host that does not say it for causal.
        return bool(getattr(self, "is_causal", True) if is_causal is None else is_causal)

    def _interface(self, backend: str | None) -> Any:
        host = sys.modules[self.collab_host.__module__]
        if backend is None or not self.collab_has_backends:
            return by_hand
        own = getattr(host, "eager_attention_forward", by_hand)
        return ALL_ATTENTION_FUNCTIONS.get_interface(backend, own)

    def _finish(self, output: Tensor, source: Tensor) -> Tensor:
        family = self.collab_family
        host: Any = self
        if family.ending != "none":
            output = getattr(self, family.output)(output)
        if family.ending == "dropout":
            output = host.resid_dropout(output)
        if family.ending == "albert":
            output = host.LayerNorm(source + host.output_dropout(output))
        return output
