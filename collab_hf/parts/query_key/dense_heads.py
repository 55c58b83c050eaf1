"""Shared factors as the projections of dense heads."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...host.sites import AttentionSite, AttentionSites
from ...modeling.attention import CollabAttention
from ...modeling.conversion import put_together_
from ...modeling.errors import RankError
from ...tensors.factors import SharedFactors
from .graft import key_rows


@contextmanager
def replaced(sites: AttentionSites, factors: Mapping[str, SharedFactors]) -> Iterator[None]:
    """Let dense layers compute the scores of shared factors inside the with block.

    A head whose scores are no wider than head_dim is a dense head with weights A P_h and B Q_h, so the host
    serves as it is and nothing is converted.

    Args:
        sites: dense attention modules by name.
        factors: shared factors for some of them, with scores no wider than a head and a folded content bias.

    Yields:
        Nothing.
    """
    with ExitStack() as stack, torch.no_grad():
        for name, result in factors.items():
            stack.enter_context(_replaced_layer(sites[name], result))
        yield


@contextmanager
def _replaced_layer(site: AttentionSite, factors: SharedFactors) -> Iterator[None]:
    head_dim = site.shape.head_dim

    def dense(shared: Tensor, maps: Tensor) -> Tensor:
        # (D, R) (H, R, w) -> (H * d, D), zeros beyond the score width
        weight = torch.nn.functional.pad((shared @ maps.to(shared)).mT, (0, 0, 0, head_dim - maps.shape[2]))
        return weight.flatten(0, 1)

    mixing = factors.mixing
    bias: Tensor | None = mixing.bias
    if bias is not None:
        bias = torch.nn.functional.pad(bias, (0, head_dim - bias.shape[1])).flatten()
    queries = dense(factors.shared_query, mixing.query_maps())
    keys = dense(factors.shared_key, mixing.key_maps())
    restore = site.family.swap_heads_(site.module, queries, bias, keys)
    try:
        yield
    finally:
        restore()


# Relative size of what head_dim dimensions can't hold, up to which a form counts as exact: float32
# weights carry 1e-7, and a sum over a few hundred of them 1e-6.
_EXACT = 1e-5


@dataclass(frozen=True)
class DenseHeads:
    """Dense factors of all heads: (num_heads, size, head_dim), and the query bias (num_heads, head_dim)."""

    query: Tensor
    key: Tensor
    bias: Tensor


def dense_factors(module: CollabAttention, name: str, nearest: bool) -> DenseHeads:
    """Per-head factors of head_dim columns, in float64 unless nothing has to be computed."""
    family, plan, mixing = module.collab_family, module.collab_plan, module.mixing
    head_dim = family.width(module)
    with torch.no_grad():
        # (R, D)^T P_h: a selection or identity keeps every bit, also in float64 and back
        shared_query = family.projection(module, "query").weight.double().T
        rows = key_rows(module).double()
        query = shared_query @ mixing.query_maps().double().to(rows.device)
        key = rows[: plan.key_rank].T @ mixing.key_maps().double().to(rows.device)
        bias = query.new_zeros(len(query), query.shape[2])
        if mixing.bias is not None:
            bias = mixing.bias.double()
        content = rows[plan.key_rank :] if plan.content_bias == "exact" else None
        spare = head_dim - query.shape[2]
        if content is not None and spare <= 0:
            folded, residual = _fold(key, content)
            if residual <= _EXACT:
                bias, content = bias + folded, None
        if content is not None:
            query, key, bias = _append_bias(query, key, bias, content)
        if query.shape[2] > head_dim:
            query, key, bias, lost = _truncate(query, key, bias, head_dim)
            if lost > _EXACT and not nearest:
                needed = plan.score_width + (content is not None)
                raise RankError(
                    f"the scores of a head need {needed} dimensions, more than its {head_dim} ({name}); "
                    f"compress with folded content bias and a score width of at most {head_dim}, or pass "
                    "nearest=True"
                )
        if bias.any() and not (module.collab_biases[0] or hasattr(module.config, "qkv_bias")):
            if not nearest:
                raise RankError(
                    f"{module.collab_host.__name__} has no query bias that could hold the content bias "
                    f"({name}); pass nearest=True to leave it out"
                )
            bias = torch.zeros_like(bias)
        missing = head_dim - query.shape[2]
        pad = torch.nn.functional.pad
        return DenseHeads(pad(query, (0, missing)), pad(key, (0, missing)), pad(bias, (0, missing)))


def _fold(key: Tensor, content: Tensor) -> tuple[Tensor, float]:
    """The query bias nearest to a content bias, and the relative size of what it misses."""
    # (H, D, W) x = (H, D, 1)
    target = content.unsqueeze(-1)
    solution = torch.linalg.pinv(key) @ target
    missed = (key @ solution - target).norm() / target.norm().clamp_min(torch.finfo(target.dtype).tiny)
    return solution.squeeze(-1), missed.item()


def _append_bias(query: Tensor, key: Tensor, bias: Tensor, content: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One more dimension, where the query is 1 whatever the token and the key is the content bias."""
    pad = torch.nn.functional.pad
    key = torch.cat([key, content.unsqueeze(-1)], dim=2)
    return pad(query, (0, 1)), key, pad(bias, (0, 1), value=1.0)


def _truncate(query: Tensor, key: Tensor, bias: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """The best factors of a given width, and the relative size of what they lose."""
    # The bias is the query of one more input that is always 1.
    left_q, left_r = torch.linalg.qr(torch.cat([query, bias.unsqueeze(1)], dim=1))
    right_q, right_r = torch.linalg.qr(key)
    u, s, vh = torch.linalg.svd(left_r @ right_r.transpose(1, 2))
    lost = s[:, width:].norm() / s.norm().clamp_min(torch.finfo(s.dtype).tiny)
    root = s[:, None, :width].sqrt()
    left = left_q @ u[:, :, :width] * root
    return left[:, :-1], right_q @ vh.transpose(1, 2)[:, :, :width] * root, left[:, -1], lost.item()


def install_dense_(module: CollabAttention, dense: DenseHeads) -> None:
    """Put the factors into the host's own projections and class."""
    family = module.collab_family
    query = family.projection(module, "query")
    if family.lacks_key(module):
        setattr(module, family.key, copy.deepcopy(query))
    key = family.projection(module, "key")
    of_query, of_key = module.collab_biases
    gains_bias = not of_query and bool(dense.bias.any())
    for linear, weight, bias, has_bias in (
        (query, dense.query, dense.bias, of_query or gains_bias),
        (key, dense.key, torch.zeros_like(dense.bias), of_key or gains_bias),
    ):
        old = linear.weight
        # (H, D, d) -> (H*d, D)
        weight = weight.transpose(1, 2).flatten(0, 1).to(old.dtype)
        linear.weight = nn.Parameter(weight.contiguous(), requires_grad=old.requires_grad)
        if has_bias:
            linear.bias = nn.Parameter(bias.flatten().to(old.dtype), requires_grad=old.requires_grad)
        linear.out_features = len(weight)
    if gains_bias:
        _add_value_bias_(module)
    del module.mixing, module.collab_plan, module.collab_biases
    module.__class__ = type(module).__bases__[1]
    put_together_(module)


def _add_value_bias_(module: CollabAttention) -> None:
    """Hosts have biases for query, key and value together or for none; a compression can add the query's."""
    value = module.collab_family.projection(module, "value")
    if "bias" not in dict(value.named_parameters()):
        bias = value.weight.new_zeros(value.out_features)
        value.bias = nn.Parameter(bias, requires_grad=value.weight.requires_grad)
        module.config.qkv_bias = True
