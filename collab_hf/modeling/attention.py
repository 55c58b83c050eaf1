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

from .errors import ConfigError
from .families import Family
from .host_internals import attention_backend
from .kernels import attend_, even_slices, prefers_pieces, product_dtype, samples_at_once, wide_attention
from .masks import add_to_mask, four_dimensional, part_of
from .mixing_base import Mixing
from .plan import LayerPlan


class CollabAttention(nn.Module):
    """Mixed in before the host's attention class, so that isinstance, hooks and recorders keep working.

    Attributes:
        collab_family: attribute names of the host.
        collab_host: the host's class.
        collab_plan: the layer's form.
        mixing: per-head maps between the shared projections.
    """

    collab_family: Family
    collab_host: type[nn.Module]
    collab_plan: LayerPlan
    mixing: Mixing
    config: Any
    layer_idx: int | None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Self-attention with the host's arguments and results."""
        cache = getattr(past_key_values, "self_attention_cache", past_key_values)
        query = self.collab_family.projection(self, "query")(hidden_states)
        key, value = self._keys_and_values(hidden_states, query)
        if cache is not None:
            key, value = self._update(cache, key, value)
        return self._attend(hidden_states, query, key, value, attention_mask, cache is not None, **kwargs)

    def _keys_and_values(self, source: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """What a decoder caches: (B, S, key_rank + H where the bias is exact) and (B, S, H * V)."""
        family, plan = self.collab_family, self.collab_plan
        if family.lacks_key(self):
            key = query
        else:
            key = family.projection(self, "key")(source)
            key = torch.cat([query, key], -1) if plan.tied else key
        return key, family.projection(self, "value")(source)

    def _update(self, cache: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        # One "head" for both, as a static cache sizes keys and values by one number of heads.
        key, value = cache.update(key.unsqueeze(1), value.unsqueeze(1), self.layer_idx)
        return key.squeeze(1), value.squeeze(1)

    def _attend(
        self,
        source: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        cached: bool,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        plan, mixing, length = self.collab_plan, self.mixing, source.shape[1]
        heads, bias = mixing.num_heads, None
        backend, causal = attention_backend(self.config), self._is_causal(kwargs)
        if backend == "sdpa" and mask is None and causal and length > 1 and key.shape[1] > length:
            # Prefill of a static cache: the host reads the first keys alone, one per query.
            key, value = key[:, :length], value[:, :length]
        batch, keys, _ = value.shape
        value = value.view(batch, keys, heads, -1).transpose(1, 2)  # (B, S, H*V) -> (B, H, S, V)
        if plan.content_bias == "exact":
            # (B, S, H) -> (B, H, 1, S)
            key, bias = key[..., : plan.key_rank], key[..., plan.key_rank :].transpose(1, 2).unsqueeze(2)
        weights = None
        if cached and length == 1 and backend == "sdpa" and mixing.derives_keys:
            query, key = mixing.latent_queries(query), key.unsqueeze(1)
            output = self._wide(query, key, value, bias, mask, False)
        elif backend == "sdpa" and prefers_pieces(
            query, keys, plan.score_width, value.shape[-1], self._dropout()
        ):
            output = self._in_pieces(query, key, value, bias, mask, causal)
        elif plan.score_width > value.shape[-1] and backend != "eager":
            self._check_backend(f"a score width of {plan.score_width} > {value.shape[-1]}")
            query, key = mixing.queries(query, plan.score_width), mixing.keys(key, plan.score_width)
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
            query, key = mixing.queries_and_keys(query, key, dtype)
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
        query, key = self.mixing.queries(query, width), self.mixing.keys(key, width)
        if bias is not None:
            self._check_backend(f"an exact content bias with a score width of {width}")
            mask = add_to_mask(bias * self._scaling(), mask, length, causal)
        return query, key, mask

    def _carry_bias(self, query: Tensor, key: Tensor, bias: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Queries and keys of (B, H, ., width) whose first spare dimension is 1 times the content bias.

        So a mask stays as small as it was, and boolean.
        """
        narrow, heads = self.collab_plan.score_width, self.mixing.num_heads
        query, key = self.mixing.queries(query, narrow), self.mixing.keys(key, narrow)
        query = F.pad(query, (0, 1), value=1.0)
        key = torch.cat([key.expand(-1, heads, -1, -1), bias.transpose(2, 3)], -1)
        spare = (0, width - narrow - 1)
        return F.pad(query, spare), F.pad(key, spare)

    def _check_backend(self, what: str) -> None:
        backend = attention_backend(self.config)
        if backend not in ("eager", "sdpa", None):
            raise ConfigError(f"attention backend {backend!r} can't serve {what}; use eager or sdpa")

    def _scaling(self) -> float:
        return float(getattr(self, self.collab_family.head_dim) ** -0.5)

    def _dropout(self) -> float:
        dropout = getattr(self, self.collab_family.dropout) if self.training else 0.0
        return float(dropout.p if isinstance(dropout, nn.Dropout) else dropout)

    def _is_causal(self, kwargs: dict[str, Any]) -> bool:
        given = kwargs.get("is_causal")
        return bool(getattr(self, "is_causal", False) if given is None else given)

    def _interface(self, backend: str) -> Any:
        host = sys.modules[self.collab_host.__module__]
        return ALL_ATTENTION_FUNCTIONS.get_interface(backend, host.eager_attention_forward)

    def _finish(self, output: Tensor, source: Tensor) -> Tensor:
        family = self.collab_family
        if family.ending != "none":
            output = getattr(self, family.output)(output)
        if family.ending == "albert":
            host: Any = self
            output = host.LayerNorm(source + host.output_dropout(output))
        return output


class CollabCrossAttention(CollabAttention):
    """The same with keys and values from another sequence."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Cross-attention with the host's arguments and results."""
        query = self.collab_family.projection(self, "query")(hidden_states)
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            layer = past_key_values.cross_attention_cache.layers[self.layer_idx]
            key, value = layer.keys.squeeze(1), layer.values.squeeze(1)
        else:
            key, value = self._keys_and_values(encoder_hidden_states, query)  # type: ignore[arg-type]
            if past_key_values is not None:
                key, value = self._update(past_key_values.cross_attention_cache, key, value)
                past_key_values.is_updated[self.layer_idx] = True
        cached = past_key_values is not None
        return self._attend(hidden_states, query, key, value, attention_mask, cached, **kwargs)
