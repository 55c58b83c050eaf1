from dataclasses import replace

import pytest
import torch
from tensor_cases import PLANS, random_moments, random_samples, random_scores

from collab_hf.errors import DecompositionError
from collab_hf.tensors import Moments, decompose
from collab_hf.tensors.whitening import Metric

# Solving with a factor of condition 1e3 loses that much of float64's 1e-16.
ROUNDING = 1e-12


def scores_of_tokens(tensor, content_bias, rows):
    """What the softmax sees of every pair of rows: (heads, rows, rows) without their row constants."""
    values = torch.einsum("xi,hij,yj->hxy", rows, tensor, rows) + (content_bias @ rows.T).unsqueeze(1)
    return values - values.mean(-1, keepdim=True)


def test_factor_squares_to_the_damped_covariance():
    moments, weights = random_moments(), random_scores().query
    factor = Metric.from_moments(moments, 0.01, weights).factor
    damped = moments.covariance.clone()
    damped.diagonal().add_(0.01 * moments.covariance.diagonal().mean())
    assert torch.allclose(factor @ factor.T, damped, rtol=0, atol=ROUNDING * float(damped.norm()))


def test_unwhitening_undoes_whitening():
    metric = Metric.from_moments(random_moments(), 1e-3, random_scores().query)
    shared = torch.randn(24, 5, dtype=torch.float64)
    assert torch.allclose(metric.unwhiten(metric.whiten(shared)), shared, atol=ROUNDING)
    assert not torch.allclose(metric.whiten(shared), shared)  # there was something to undo


@pytest.mark.parametrize("content_bias", ["exact", "folded"])
@pytest.mark.parametrize("name", PLANS)
def test_relative_error_is_the_score_error_measured_on_the_data(name, content_bias):
    """To 1e-6 relative: the covariance of these very tokens, with the least damping (1e-9) alone."""
    rows, scores = random_samples(), random_scores()
    plan = replace(PLANS[name], content_bias=content_bias)
    moments = Moments.from_samples(rows)
    factors = decompose(scores, plan, query_moments=moments, damping=0.0)
    zero = torch.zeros_like(scores.content_bias())
    # Centred queries have no content bias: the norm that errors are relative to is that of T alone.
    whole = scores_of_tokens(scores.to_dense(), zero, rows - moments.mean)
    error = scores_of_tokens(scores.to_dense(), scores.content_bias(), rows) - scores_of_tokens(
        factors.expand(), factors.expand_content_bias(), rows
    )
    measured = float(error.norm() / whole.norm())
    assert factors.relative_error == pytest.approx(measured, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", sorted(PLANS.keys() - {"copy"}))
def test_data_aware_scores_are_closer_than_those_from_weights(name):
    rows, scores = random_samples(), random_scores()
    wanted = scores_of_tokens(scores.to_dense(), scores.content_bias(), rows)

    def measured(moments):
        factors = decompose(scores, PLANS[name], query_moments=moments)
        found = scores_of_tokens(factors.expand(), factors.expand_content_bias(), rows)
        return float((found - wanted).norm() / wanted.norm())

    assert measured(Moments.from_samples(rows)) < 0.95 * measured(None)


def test_an_average_query_token_keeps_its_scores_exactly():
    """The mean is absorbed: mean^T T + l is reproduced whatever the rank."""
    scores, moments = random_scores(), random_moments()
    for name in ("cp", "sparse cp", "svd", "narrowed tucker", "key groups"):
        factors = decompose(scores, PLANS[name], query_moments=moments)
        found = torch.einsum("i,hij->hj", moments.mean, factors.expand()) + factors.content_bias
        wanted = torch.einsum("i,hij->hj", moments.mean, scores.to_dense()) + scores.content_bias()
        assert torch.allclose(found, wanted, atol=1e-10 * float(wanted.norm()))
        assert not torch.allclose(factors.content_bias, scores.content_bias())  # it had to change


@pytest.mark.parametrize("count", [1, 2, 10])
def test_fewer_samples_than_dimensions_are_enough(count):
    """No direction is lost, though some have no variance: full rank is still exact in the weights."""
    scores, moments = random_scores(), random_moments(count=count)
    factors = decompose(scores, PLANS["copy"], query_moments=moments, damping=0.0)
    assert torch.allclose(factors.expand(), scores.to_dense(), atol=1e-9)
    factors = decompose(scores, PLANS["cp"], query_moments=moments)
    assert torch.isfinite(factors.expand()).all()
    assert factors.relative_error < 1


def test_a_covariance_of_zero_says_nothing():
    moments = Moments(torch.ones(24, dtype=torch.float64), torch.zeros(24, 24, dtype=torch.float64), 5)
    assert Metric.from_moments(moments, 1e-3, random_scores().query).factor is None


def test_impossible_moments_are_refused():
    weights, size = random_scores().query, 24
    with pytest.raises(DecompositionError, match="input size 24, got 7"):
        Metric.from_moments(random_moments(size=7), 1e-3, weights)
    indefinite = torch.eye(size, dtype=torch.float64)
    indefinite[0, 0] = -1
    with pytest.raises(DecompositionError, match="positive semi-definite"):
        Metric.from_moments(Moments(torch.zeros(size, dtype=torch.float64), indefinite, 5), 1e-3, weights)
