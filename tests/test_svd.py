import pytest
import torch
from tensor_cases import random_scores, relative_error

from collab_hf.modeling.errors import RankError
from collab_hf.modeling.plan import LayerPlan
from collab_hf.tensors.problem import decompose
from collab_hf.tensors.svd import allot_ranks, decompose_svd, truncated_components

# Errors come out of a difference of squares: the root of float64's 2e-16.
ERROR_TOLERANCE = 1e-7


def test_error_is_what_the_singular_values_leave():
    """Eckart & Young, head by head, with the ranks that leave least."""
    scores = random_scores(bias=False)
    values = torch.linalg.svdvals(scores.to_dense()).flatten().sort(descending=True).values
    for rank in (1, 5, 13, 24):
        solution = decompose_svd(scores, rank, 6)
        best = float(values[rank:].norm() / values.norm())
        assert solution.errors == [pytest.approx(best, abs=ERROR_TOLERANCE)]


@pytest.mark.parametrize("rank", [1, 7, 24])
def test_expands_to_the_reported_error(rank):
    scores = random_scores(bias=False)
    factors = decompose(scores, LayerPlan("svd", rank, rank, min(rank, 6)))
    assert factors.relative_error == pytest.approx(
        relative_error(scores, factors.expand()), abs=ERROR_TOLERANCE
    )


def test_full_rank_is_exact():
    scores = random_scores()
    factors = decompose(scores, LayerPlan("svd", 24, 24, 6, content_bias="folded"))
    assert torch.allclose(factors.expand(), scores.to_dense(), atol=1e-12)
    assert torch.allclose(factors.expand_content_bias(), scores.content_bias(), atol=1e-12)
    assert relative_error(scores, decompose(scores, LayerPlan("svd", 23, 23, 6)).expand()) > 1e-3


def test_ranks_go_where_the_singular_values_are():
    values = torch.tensor([[5.0, 4.0, 3.0], [2.0, 1.0, 0.5]])
    assert allot_ranks(values, 3, 3).tolist() == [3, 0]
    assert allot_ranks(values, 4, 3).tolist() == [3, 1]
    assert allot_ranks(values, 3, 2).tolist() == [2, 1]  # no head gets more than the cap


def test_equal_values_go_to_the_first_heads():
    assert allot_ranks(torch.ones(3, 2), 4, 2).tolist() == [2, 2, 0]


def test_cap_is_refused_where_it_leaves_too_little_room():
    with pytest.raises(RankError, match="rank must be at most 8 with 2 per head, got 9"):
        decompose_svd(random_scores(), 9, 2)


def test_score_width_is_that_of_the_widest_head():
    scores = random_scores()
    factors = decompose(scores, LayerPlan("svd", 6, 6, 6))
    index = factors.mixing.index
    assert index.shape[1] == factors.plan.score_width == int((index >= 0).sum(1).max()) < 6
    assert sorted(index[index >= 0].tolist()) == list(range(6))  # every column has one owner


def test_folded_bias_is_one_more_row_of_each_slice():
    scores = random_scores()
    parts = truncated_components(scores, 10, 6)
    rows = torch.cat([scores.to_dense(), scores.content_bias().unsqueeze(1)], dim=1)
    values = torch.linalg.svdvals(rows).flatten().sort(descending=True).values
    assert torch.allclose(parts.dropped, values[10:].square().sum())
