import itertools
from dataclasses import replace

import pytest
import torch
from tensor_cases import PLANS, random_scores

from collab_hf.modeling.mixing import build_mixing
from collab_hf.tensors import decompose

BATCH, LENGTH = 2, 5


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("width", [None, 13])
@pytest.mark.parametrize("content_bias", ["exact", "folded"])
@pytest.mark.parametrize("name", PLANS)
def test_scores_are_those_of_the_expanded_factors(name, content_bias, width, gradients):
    """At the score's own width and padded to that of a kernel, with and without autograd."""
    factors = decompose(random_scores(), replace(PLANS[name], content_bias=content_bias))
    mixing, width = factors.mixing, width or factors.plan.score_width
    rows = torch.randn(BATCH, LENGTH, 24, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        queries = mixing.queries(rows @ factors.shared_query, width)
        keys = mixing.keys(rows @ factors.shared_key, width)
        scores = queries @ keys.mT
    assert queries.shape == (BATCH, 4, LENGTH, width)
    assert keys.shape[1] in (1, 4)
    expected = torch.einsum("bxi,hij,byj->bhxy", rows, factors.expand(), rows)
    if content_bias == "folded":
        bias = torch.einsum("hj,byj->bhy", factors.expand_content_bias(), rows)
        assert bias.abs().max() > 0.1
        expected = expected + bias.unsqueeze(2)
    assert torch.allclose(scores, expected, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("content_bias", ["exact", "folded"])
@pytest.mark.parametrize("name", PLANS)
@torch.no_grad()
def test_queries_and_keys_at_once_are_those_one_by_one(name, content_bias, dtype):
    """Whichever factor comes first; tied forms from one tensor or from two, as a cache gives them."""
    factors = decompose(random_scores(), replace(PLANS[name], content_bias=content_bias))
    mixing, plan = factors.mixing, factors.plan
    if mixing.bias is not None:
        mixing.bias.normal_()
    # Sums of ten numbers of the order of one, rounded to the dtype, and with a bias once more; in float64 the
    # products that are compared with round as much.
    tolerance = max(16 * torch.finfo(dtype).eps, 1e-13)
    for batch, length, shared in itertools.product((1, 2), (5, 17), (False, True)):
        query = torch.randn(batch, length, plan.query_rank).to(dtype)
        key = query if shared and plan.tied else torch.randn(batch, 7, plan.key_rank).to(dtype)
        mixing.to(dtype).double()  # the rounded factors, in products that round no more
        width = plan.score_width
        expected = mixing.queries(query.double(), width), mixing.keys(key.double(), width)
        mixing.to(dtype)
        for result in (dtype, torch.float64 if dtype == torch.float64 else torch.float32):
            for got, want in zip(mixing.queries_and_keys(query, key, result), expected, strict=True):
                assert got.dtype == result
                torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PLANS)
def test_latent_queries_meet_the_shared_key(name):
    factors = decompose(random_scores(), PLANS[name])
    rows = torch.randn(BATCH, LENGTH, 24, dtype=torch.float64)
    latent = factors.mixing.latent_queries(rows @ factors.shared_query)
    shared = (rows @ factors.shared_key).unsqueeze(1)
    expected = torch.einsum("bxi,hij,byj->bhxy", rows, factors.expand(), rows)
    assert torch.allclose(latent @ shared.mT, expected, atol=1e-10)


@pytest.mark.parametrize("name", PLANS)
def test_maps_have_the_plans_shapes(name):
    mixing = decompose(random_scores(), PLANS[name]).mixing
    assert mixing.query_maps().shape == (4, mixing.query_rank, mixing.score_width)
    assert mixing.key_maps().shape == (4, mixing.key_rank, mixing.score_width)


@pytest.mark.parametrize("name", PLANS)
def test_state_loads_strictly_and_counts(name):
    factors = decompose(random_scores(), PLANS[name])
    fresh = build_mixing(factors.plan, 4).double()
    fresh.load_state_dict(factors.mixing.state_dict())
    shared = torch.randn(1, LENGTH, factors.plan.query_rank, dtype=torch.float64)
    width = factors.plan.score_width
    assert torch.equal(fresh.queries(shared, width), factors.mixing.queries(shared, width))


def test_index_of_minus_one_reads_zero():
    factors = decompose(random_scores(), PLANS["svd"])
    mixing = factors.mixing
    assert (mixing.index == -1).any()
    keys = mixing.keys(torch.ones(1, 1, 10, dtype=torch.float64), factors.plan.score_width)
    assert torch.equal(keys[0, :, 0] == 0, mixing.index == -1)


@pytest.mark.parametrize("name", PLANS)
def test_mixing_builds_on_meta(name):
    with torch.device("meta"):
        mixing = build_mixing(PLANS[name], 4)
    assert all(p.is_meta for p in mixing.parameters())
