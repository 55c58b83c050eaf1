from itertools import pairwise

import pytest
import tensorly
import torch
from tensor_cases import random_scores, relative_error
from tensorly.decomposition import parafac

from collab_hf.modeling.plan import LayerPlan
from collab_hf.tensors import ScoreTensor, decompose
from collab_hf.tensors.cp import decompose_cp, initial_factors, sweep
from collab_hf.tensors.sparse_cp import decompose_sparse_cp, select
from collab_hf.tensors.svd import decompose_svd

# Errors come out of a difference of squares: the root of float64's 2e-16.
ERROR_TOLERANCE = 1e-7


def expand(solution):
    return torch.einsum(
        "ir,hr,jr->hij", solution.shared_query, solution.mixing["weight"], solution.shared_key
    )


def dense_weights(solution, rank):
    index, weight = solution.mixing["index"], solution.mixing["weight"]
    return torch.zeros(len(index), rank, dtype=weight.dtype).scatter(1, index, weight)


def objective(scores, query, weights, key, bias):
    """The dense tensor's squared error, that of the content bias included, for autograd."""
    error = scores.to_dense() - torch.einsum("ir,hr,jr->hij", query, weights, key)
    return error.square().sum() + (scores.content_bias() - bias @ key.T).square().sum()


def gradient_norm(scores, query, weights, key, bias, support=None):
    """Largest derivative by any factor, relative to ||T||^2 over the factor's own norm."""
    parts = [part.clone().requires_grad_() for part in (query, weights, key, bias)]
    gradients = torch.autograd.grad(objective(scores, *parts), parts)
    mask = 1.0 if support is None else torch.zeros_like(weights).scatter(1, support, 1.0)
    masks = (1.0, mask, 1.0, mask)
    scaled = (
        float((g * m).norm() * p.detach().norm()) for g, m, p in zip(gradients, masks, parts, strict=True)
    )
    return max(scaled) / float(scores.squared_norm)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", [3, 10, 17])
def test_starts_at_the_svd_and_never_rises(rank, bias):
    scores = random_scores(bias=bias)
    errors = decompose_cp(scores, rank, tol=0).errors
    assert errors[0] == pytest.approx(decompose_svd(scores, rank, 6).errors[0], abs=ERROR_TOLERANCE)
    assert all(later <= earlier for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("rank", [3, 10, 17])
def test_a_plain_sweep_lowers_the_error(rank):
    """Without the guard that the extrapolated sweeps have."""
    scores = random_scores()
    factors, squared_error = initial_factors(scores, rank)
    for _ in range(30):
        factors, new = sweep(scores, factors)
        assert new <= squared_error * (1 + 1e-12)
        squared_error = new


def test_reports_the_error_of_what_it_returns():
    scores = random_scores(bias=False)
    solution = decompose_cp(scores, 10)
    assert solution.errors[-1] == pytest.approx(relative_error(scores, expand(solution)), abs=ERROR_TOLERANCE)


@pytest.mark.parametrize("rank", [2, 10, 20])
def test_svd_lower_bound_is_never_beaten(rank):
    """Each unfolding of a rank-R tensor is a matrix of rank R at most."""
    scores = random_scores(bias=False)
    dense = scores.to_dense()
    error = decompose_cp(scores, rank, max_sweeps=300, tol=0).errors[-1]
    for unfolding in (dense.transpose(0, 1).flatten(1), dense.permute(2, 0, 1).flatten(1)):
        values = torch.linalg.svdvals(unfolding)
        assert error >= float(values[rank:].norm() / values.norm()) - ERROR_TOLERANCE


def test_one_sweep_is_tensorlys():
    scores = random_scores(bias=False)
    factors, _ = initial_factors(scores, 10)
    start = [tensorly.tensor(f.numpy()) for f in (factors.query, factors.key, factors.weights)]
    dense = tensorly.tensor(scores.to_dense().permute(1, 2, 0).numpy())  # its sweeps go mode by mode
    theirs = parafac(dense, 10, n_iter_max=1, init=(None, start), tol=0)
    new, _ = sweep(scores, factors)
    mine = torch.einsum("ir,hr,jr->ijh", new.query, new.weights, new.key)
    expected = torch.as_tensor(tensorly.cp_to_tensor(theirs))
    assert torch.allclose(mine, expected, atol=1e-8)  # the proximal term is 4e-11 of the normal equations


@pytest.mark.parametrize("rank", [5, 12])
def test_is_at_least_as_good_as_tensorly(rank):
    scores = random_scores(bias=False)
    mine = decompose(scores, LayerPlan("cp", rank, rank, rank))
    theirs = decompose(scores, LayerPlan("cp", rank, rank, rank), solver="tensorly.parafac", seed=0)
    assert mine.relative_error <= theirs.relative_error + 1e-3
    assert mine.relative_error < 0.999 * decompose_svd(scores, rank, 6).errors[0]


@pytest.mark.parametrize("bias", [False, True])
def test_full_rank_is_exact(bias):
    scores = random_scores(bias=bias)
    solution = decompose_cp(scores, 24)
    assert torch.allclose(expand(solution), scores.to_dense(), atol=1e-12)
    assert solution.errors[-1] < ERROR_TOLERANCE
    assert decompose_cp(scores, 23).errors[-1] > 1e-3


@pytest.mark.parametrize("bias", [False, True])
def test_gradient_vanishes_at_the_fixed_point(bias):
    scores = random_scores(bias=bias)
    start, _ = initial_factors(scores, 6)
    end = decompose_cp(scores, 6, max_sweeps=3000, tol=0)
    c = torch.zeros(4, 6, dtype=torch.float64) if end.bias is None else end.bias
    found = gradient_norm(scores, end.shared_query, end.mixing["weight"], end.shared_key, c)
    # tol=0 stops where a sweep changes no digit of the error: at a gradient of about eps's root.
    assert found < 1e-5
    assert gradient_norm(scores, start.query, start.weights, start.key, start.bias) > 1e-2


@pytest.mark.parametrize("dims", [None, 4])
def test_scale_does_not_matter(dims):
    scores = random_scores()
    scaled = ScoreTensor(scores.query * 1e4, scores.key * 1e-1, scores.query_bias * 1e4)
    solve = decompose_cp if dims is None else lambda s, rank: decompose_sparse_cp(s, rank, dims)
    first, second = solve(scores, 8), solve(scaled, 8)
    assert second.errors[-1] == pytest.approx(first.errors[-1], rel=1e-6)


@pytest.mark.parametrize("dims", [None, 4])
def test_order_of_heads_does_not_matter(dims):
    scores, order = random_scores(), torch.tensor([2, 0, 3, 1])
    shuffled = ScoreTensor(scores.query[order], scores.key[order], scores.query_bias[order])
    plan = LayerPlan("cp", 8, 8, dims or 8)
    first, second = decompose(scores, plan), decompose(shuffled, plan)
    # 1e-6: components come in another order, so that rounding differs along some hundred sweeps.
    assert torch.allclose(second.expand(), first.expand()[order], atol=1e-6)
    assert not torch.allclose(second.expand(), first.expand(), atol=1e-2)


def test_rank_deficient_heads_are_well_behaved():
    scores = random_scores()
    query, key = scores.query.clone(), scores.key.clone()
    query[1], key[1] = query[0], key[0]  # twins
    query[2] = 0  # a head that looks nowhere
    query[3, :, 3:] = 0
    twins = ScoreTensor(query, key, scores.query_bias)
    for rank in (6, 9, 20):
        solution = decompose_cp(twins, rank)
        assert torch.isfinite(expand(solution)).all()
        assert solution.errors[-1] <= solution.errors[0]
    exact = decompose_cp(twins.without_bias(), 15)  # the ranks of the slices: 6, 6, 0 and 3
    assert exact.errors[-1] < ERROR_TOLERANCE
    nothing = ScoreTensor(torch.zeros_like(query), key)
    assert torch.equal(expand(decompose_cp(nothing, 5)), torch.zeros(4, 24, 24, dtype=torch.float64))


@pytest.mark.parametrize(("rank", "dims"), [(12, 4), (10, 1), (8, 8), (24, 6), (3, 2)])
def test_each_head_uses_exactly_k_dimensions(rank, dims):
    solution = decompose_sparse_cp(random_scores(), rank, dims)
    index = solution.mixing["index"]
    assert index.shape == solution.mixing["weight"].shape == solution.bias.shape == (4, dims)
    assert (index[:, 1:] > index[:, :-1]).all()
    assert index.min() >= 0
    assert index.max() < rank


@pytest.mark.parametrize(("rank", "dims"), [(12, 4), (14, 5), (10, 6)])
def test_every_shared_dimension_stays_in_use(rank, dims):
    index = decompose_sparse_cp(random_scores(), rank, dims).mixing["index"]
    assert len(index.unique()) == rank


def test_selection_spares_the_only_user_of_a_dimension():
    """Head 0 values dimension 2 least, but no other head has it."""
    factors, _ = initial_factors(random_scores(bias=False), 4)
    orthonormal = torch.eye(24, 4, dtype=torch.float64)
    weights = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 0.0, 1.0]], dtype=torch.float64)
    factors = factors._replace(query=orthonormal, key=orthonormal, weights=weights, bias=weights * 0)
    support = torch.tensor([[0, 1, 2], [0, 1, 3]])
    assert select(factors, support, 2).tolist() == [[0, 2], [1, 3]] or select(
        factors, support, 2
    ).tolist() == [[1, 2], [0, 3]]


def test_sparse_mixing_lies_between_dense_mixing_and_the_svd():
    scores = random_scores(heads=6)
    dense = decompose_cp(scores, 12, max_sweeps=300, tol=1e-6).errors[-1]
    sparse = decompose_sparse_cp(scores, 12, 6, max_sweeps=300, tol=1e-6).errors[-1]
    assert dense < sparse < decompose_svd(scores, 12, 6).errors[0]


def test_sparse_error_is_monotone_and_that_of_the_result():
    scores = random_scores(bias=False)
    solution = decompose_sparse_cp(scores, 12, 4)
    assert all(later <= earlier for earlier, later in pairwise(solution.errors))
    approximation = torch.einsum(
        "ir,hr,jr->hij", solution.shared_query, dense_weights(solution, 12), solution.shared_key
    )
    assert solution.errors[-1] == pytest.approx(relative_error(scores, approximation), abs=ERROR_TOLERANCE)


def test_gradient_vanishes_on_the_support():
    scores = random_scores(bias=False)
    end = decompose_sparse_cp(scores, 6, 3, max_sweeps=3000, tol=0)
    weights = dense_weights(end, 6)
    parts = scores, end.shared_query, weights, end.shared_key, torch.zeros_like(weights)
    assert gradient_norm(*parts, support=end.mixing["index"]) < 1e-5
    assert gradient_norm(*parts) > 1e-3  # off the support it need not


def test_all_dimensions_for_every_head_is_dense_mixing():
    scores = random_scores()
    sparse = decompose_sparse_cp(scores, 6, 6, max_sweeps=2000, tol=1e-9)
    dense = decompose_cp(scores, 6, max_sweeps=2000, tol=1e-9)
    assert sparse.errors[-1] == pytest.approx(dense.errors[-1], rel=1e-4)
