from dataclasses import replace
from itertools import pairwise

import pytest
import tensorly
import torch
from tensor_cases import random_scores, relative_error
from tensorly.decomposition import partial_tucker

from collab_hf.modeling.plan import LayerPlan
from collab_hf.tensors import ScoreTensor, decompose
from collab_hf.tensors.grouped_tucker import decompose_grouped_tucker
from collab_hf.tensors.key_groups import cluster_heads, reassign
from collab_hf.tensors.tucker import TuckerRanks, decompose_tucker

# Errors come out of a difference of squares: the root of float64's 2e-16.
ERROR_TOLERANCE = 1e-7
PLAIN, NARROWED = TuckerRanks(10, 7, 7), TuckerRanks(12, 10, 4)
TIED, TIED_WHOLE = TuckerRanks(10, 10, 4, tied=True), TuckerRanks(6, 6, 6, tied=True)


def maps(mixing):
    """P_h Q_h^T of a solution without key groups, (H, query_rank, key_rank)."""
    if "core" in mixing:
        return mixing["core"][0].mT @ mixing["core"][1]
    return mixing["query_core"].mT @ mixing.get("key_core", torch.eye(mixing["query_core"].shape[1]).double())


def expand(solution):
    """T^ of a solution without key groups."""
    return solution.shared_query @ maps(solution.mixing) @ solution.shared_key.T


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "ranks", [PLAIN, NARROWED, TIED, TIED_WHOLE, TuckerRanks(3, 3, 3), TuckerRanks(20, 20, 5)]
)
def test_error_never_rises(ranks, bias):
    errors = decompose_tucker(random_scores(bias=bias), ranks, tol=0).errors
    assert all(later <= earlier for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("ranks", [PLAIN, NARROWED, TIED, TIED_WHOLE, TuckerRanks(20, 20, 10)])
def test_reports_the_error_of_what_it_returns(ranks):
    scores = random_scores(bias=False)
    solution = decompose_tucker(scores, ranks)
    assert solution.errors[-1] == pytest.approx(relative_error(scores, expand(solution)), abs=ERROR_TOLERANCE)


def test_is_tensorlys_fixed_point():
    scores = random_scores(bias=False)
    dense = tensorly.tensor(scores.to_dense().transpose(0, 1).numpy())
    (core, factors), _ = partial_tucker(dense, [10, 7], modes=[0, 2], n_iter_max=500, tol=1e-12)
    expected = torch.as_tensor(tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 2])).transpose(0, 1)
    found = expand(decompose_tucker(scores, PLAIN, max_sweeps=500, tol=1e-12))
    # Both stop where the error's last digits stand still, so the factors agree to about their root.
    assert torch.allclose(found, expected, atol=1e-4)
    assert relative_error(scores, found) <= relative_error(scores, expected) + ERROR_TOLERANCE


@pytest.mark.parametrize("ranks", [PLAIN, NARROWED, TIED, TuckerRanks(5, 20, 20)])
def test_svd_lower_bound_is_never_beaten(ranks):
    """No subspace holds more of an unfolding than its leading singular vectors; no slice is exempt."""
    scores = random_scores(bias=False)
    dense = scores.to_dense()
    error = decompose_tucker(scores, ranks, max_sweeps=200, tol=0).errors[-1]
    cases = (
        (dense.transpose(0, 1).flatten(1), ranks.query),
        (dense.permute(2, 0, 1).flatten(1), ranks.key),
        (dense, ranks.score),
    )
    for matrices, rank in cases:
        values = torch.linalg.svdvals(matrices)
        assert error >= float(values[..., rank:].norm() / values.norm()) - ERROR_TOLERANCE


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "ranks",
    [
        TuckerRanks(24, 24, 24),
        TuckerRanks(24, 24, 6),
        TuckerRanks(24, 24, 24, tied=True),
        TuckerRanks(24, 24, 6, tied=True),
    ],
)
def test_full_rank_is_exact(ranks, bias):
    solution = decompose_tucker(random_scores(bias=bias), ranks)
    assert torch.allclose(expand(solution), random_scores().to_dense(), atol=1e-10)
    assert solution.errors[-1] < ERROR_TOLERANCE
    assert decompose_tucker(random_scores(), TuckerRanks(24, 24, 5)).errors[-1] > 1e-3


def test_core_slices_have_the_score_width_as_rank():
    solution = decompose_tucker(random_scores(bias=False), NARROWED)
    ranks = torch.linalg.matrix_rank(maps(solution.mixing))
    assert ranks.tolist() == [4, 4, 4, 4]


class TestTied:
    """One subspace for queries and keys."""

    @staticmethod
    def planted(query_directions, key_directions):
        """Scores that read some directions of an orthonormal basis of 24, as queries and as keys."""
        generator = torch.Generator().manual_seed(3)
        basis = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64))[0]

        def factors(directions):
            size = len(directions)
            return basis[:, directions] @ torch.randn(4, size, 6, generator=generator, dtype=torch.float64)

        return ScoreTensor(factors(query_directions), factors(key_directions))

    def test_common_directions_are_paid_for_once(self):
        scores = self.planted(range(8), range(8))
        assert decompose_tucker(scores, TuckerRanks(8, 8, 6, tied=True)).errors[-1] < ERROR_TOLERANCE
        assert decompose_tucker(scores, TuckerRanks(7, 7, 6, tied=True)).errors[-1] > 1e-2

    def test_subspaces_apart_need_both(self):
        scores = self.planted(range(8), range(8, 14))
        assert decompose_tucker(scores, TuckerRanks(14, 14, 6, tied=True)).errors[-1] < ERROR_TOLERANCE
        assert decompose_tucker(scores, TuckerRanks(13, 13, 6, tied=True)).errors[-1] > 1e-2

    @pytest.mark.parametrize("ranks", [TIED, TIED_WHOLE])
    def test_is_between_separate_subspaces_of_that_rank_and_of_half(self, ranks):
        scores = random_scores()
        error = decompose_tucker(scores, ranks, tol=1e-9).errors[-1]
        separate = replace(ranks, tied=False)
        assert error >= decompose_tucker(scores, separate, tol=1e-9).errors[-1]
        # One subspace that holds both halves is a tied one, though not where the alternation need end.
        half = replace(separate, query=ranks.query // 2, key=ranks.key // 2)
        assert error <= decompose_tucker(scores, half, tol=1e-9).errors[-1]

    def test_starts_with_the_best_subspace_of_both_unfoldings(self):
        scores = random_scores(bias=False)
        dense = scores.to_dense()
        both = torch.cat([dense.transpose(0, 1).flatten(1), dense.permute(2, 0, 1).flatten(1)], dim=1)
        expected = torch.linalg.svd(both)[0][:, :10]
        found = decompose_tucker(scores, TIED, max_sweeps=0)
        assert torch.equal(found.shared_query, found.shared_key)
        found = found.shared_query
        assert torch.allclose(found @ found.T, expected @ expected.T, atol=1e-8)

    def test_gradient_vanishes_at_the_fixed_point(self):
        scores = random_scores(bias=False)
        solution = decompose_tucker(scores, TIED, max_sweeps=500, tol=1e-12)
        basis = solution.shared_query.clone().requires_grad_()
        loss = (scores.to_dense() - basis @ maps(solution.mixing) @ basis.T).square().sum()
        (gradient,) = torch.autograd.grad(loss, basis)
        # Steps are kept while the error falls, which it does by the square of the gradient.
        assert gradient.norm() < 1e-3 * float(scores.squared_norm)


def test_score_width_of_head_dim_loses_nothing():
    scores = random_scores()
    plain = decompose_tucker(scores, TuckerRanks(12, 10, 10), tol=1e-9).errors[-1]
    at_head_dim = decompose_tucker(scores, TuckerRanks(12, 10, 6), tol=1e-9).errors[-1]
    # The query bias is a seventh row, so a slice of the folded tensor still has rank head_dim.
    assert at_head_dim == pytest.approx(plain, rel=1e-6)
    assert decompose_tucker(scores, TuckerRanks(12, 10, 5), tol=1e-9).errors[-1] > plain + 1e-3


@pytest.mark.parametrize("ranks", [PLAIN, NARROWED])
def test_gradient_vanishes_at_the_fixed_point(ranks):
    scores = random_scores()

    def gradient(solution):
        names = list(solution.mixing)
        parts = [solution.shared_query, solution.shared_key, solution.bias, *solution.mixing.values()]
        parts = [part.clone().requires_grad_() for part in parts]
        query, key, bias = parts[:3]
        mixing = dict(zip(names, parts[3:], strict=True))
        right = key if "key_core" not in mixing else key @ mixing["key_core"].mT
        error = scores.to_dense() - query @ mixing["query_core"].mT @ right.mT
        bias_error = scores.content_bias() - (right @ bias.unsqueeze(2)).squeeze(2)
        loss = error.square().sum() + bias_error.square().sum()
        gradients = torch.autograd.grad(loss, parts)
        scaled = (float(g.norm() * p.detach().norm()) for g, p in zip(gradients, parts, strict=True))
        return max(scaled) / float(scores.squared_norm)

    # tol=0 stops where a sweep changes no digit of the error: at a gradient of about eps's root.
    assert gradient(decompose_tucker(scores, ranks, max_sweeps=2000, tol=0)) < 1e-5
    assert gradient(decompose_tucker(scores, ranks, max_sweeps=0)) > 1e-3


@pytest.mark.parametrize("plan", [LayerPlan("tucker", 10, 7, 7), LayerPlan("tucker", 12, 10, 4)])
def test_scale_and_order_of_heads_do_not_matter(plan):
    scores, order = random_scores(), torch.tensor([2, 0, 3, 1])
    first = decompose(scores, plan)
    scaled = decompose(ScoreTensor(scores.query * 1e4, scores.key * 1e-1, scores.query_bias * 1e4), plan)
    assert torch.allclose(scaled.expand() / 1e3, first.expand(), atol=1e-8)
    shuffled = ScoreTensor(scores.query[order], scores.key[order], scores.query_bias[order])
    assert torch.allclose(decompose(shuffled, plan).expand(), first.expand()[order], atol=1e-8)


def planted_groups():
    """Heads 0, 2, 3 and heads 1, 4, 5 have keys in two subspaces of width 4."""
    scores = random_scores(heads=6, bias=False)
    members = torch.tensor([0, 1, 0, 0, 1, 1])
    bases = torch.linalg.qr(torch.randn(2, 24, 4, dtype=torch.float64))[0]
    key = bases[members] @ torch.randn(6, 4, 6, dtype=torch.float64)
    return ScoreTensor(scores.query, key), members


def test_heads_are_clustered_by_the_keys_they_need():
    scores, members = planted_groups()
    assert cluster_heads(scores, 2, 4, seed=0).tolist() == members.tolist()
    solution = decompose_grouped_tucker(scores, 24, 4, 2, None)
    assert solution.errors[-1] < ERROR_TOLERANCE
    assert solution.mixing["group"].tolist() == members.tolist()
    assert decompose_grouped_tucker(scores, 24, 4, 1, None).errors[-1] > 0.1  # one group can't hold them


def test_more_groups_never_hurt():
    scores = random_scores(heads=6)
    errors = [decompose_grouped_tucker(scores, 12, 4, groups, None).errors[-1] for groups in (1, 2, 3, 6)]
    assert errors == sorted(errors, reverse=True)


def test_no_group_is_left_empty():
    energy = torch.tensor([[9.0, 1.0], [9.0, 1.0], [9.0, 1.0]])
    assert reassign(energy, torch.tensor([0, 0, 1])).tolist() == [0, 0, 1]
    assert reassign(energy, torch.tensor([0, 1, 1])).tolist() == [0, 0, 1]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("groups", "head_rank"), [(1, None), (2, None), (4, None), (1, 2), (2, 2), (2, 4)])
def test_grouped_error_never_rises(groups, head_rank, bias):
    errors = decompose_grouped_tucker(random_scores(bias=bias), 10, 4, groups, head_rank, tol=0).errors
    assert all(later <= earlier for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0]


def test_one_group_is_plain_tucker():
    scores = random_scores()
    plain = decompose_tucker(scores, PLAIN, tol=1e-9)
    grouped = decompose_grouped_tucker(scores, 10, 7, 1, None, tol=1e-9)
    assert grouped.errors[-1] == pytest.approx(plain.errors[-1], rel=1e-9)
    full_head_rank = decompose_grouped_tucker(scores, 10, 7, 1, 4, tol=1e-9)
    assert full_head_rank.errors[-1] == pytest.approx(plain.errors[-1], rel=1e-9)


@pytest.mark.parametrize("head_rank", [1, 2, 3])
def test_head_rank_is_tensorlys_tucker(head_rank):
    scores = random_scores(bias=False)
    plan = LayerPlan("tucker", 10, 8, 8, head_rank=head_rank)
    mine = decompose(scores, plan, tol=1e-9, max_sweeps=500)
    theirs = decompose(scores, plan, solver="tensorly.tucker", tol=1e-9, max_sweeps=500)
    assert mine.relative_error == pytest.approx(theirs.relative_error, rel=1e-3)  # may be another optimum
    assert mine.relative_error == pytest.approx(relative_error(scores, mine.expand()), abs=ERROR_TOLERANCE)
