import pytest
import torch

from collab_hf.tensors.linalg import better_subspace, leading_directions, top_eigenvectors

# Rounding of float64 products of size 40.
TOLERANCE = 1e-10


def random_root(size=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return factor @ torch.diag(0.8 ** (torch.arange(size, dtype=torch.float64) / 2))


def random_basis(size=40, count=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))[0]


def held(gram, basis):
    return float((basis.T @ gram @ basis).trace())


def test_a_step_never_holds_less_and_steps_lead_to_the_eigenvectors():
    root, basis = random_root(), random_basis()
    gram = root @ root.T
    most, before = held(gram, top_eigenvectors(gram, 5)), held(gram, basis)
    assert before < 0.9 * most  # the start is not there already
    for _ in range(40):
        basis = better_subspace(root, basis)
        assert torch.allclose(basis.T @ basis, torch.eye(5, dtype=torch.float64), atol=TOLERANCE)
        after = held(gram, basis)
        assert before * (1 - TOLERANCE) <= after <= most * (1 + TOLERANCE)
        before = after
    assert before == pytest.approx(most, rel=1e-6)  # the fifth and sixth eigenvalue are close


def test_eigenvectors_stay():
    root = random_root()
    basis = top_eigenvectors(root @ root.T, 5)
    assert torch.allclose(better_subspace(root, basis), basis, atol=1e-7)


def test_a_singular_gram_gives_an_orthonormal_basis():
    gram = torch.diag(torch.tensor([2.0, 1.0] + [0.0] * 8, dtype=torch.float64))
    basis = better_subspace(gram.sqrt(), random_basis(10, 4))
    assert torch.allclose(basis.T @ basis, torch.eye(4, dtype=torch.float64), atol=TOLERANCE)
    assert held(gram, basis) == pytest.approx(3.0)


@pytest.mark.parametrize("columns", [40, 12, 3])
def test_leading_directions_are_those_of_the_gram_matrix(columns):
    root = random_root()[:, :columns]
    found, expected = leading_directions(root, 5), top_eigenvectors(root @ root.T, 5)
    kept = min(5, columns)  # of what has no weight, any direction is as good
    assert torch.allclose(found.T @ found, torch.eye(5, dtype=torch.float64), atol=TOLERANCE)
    assert torch.allclose(found[:, :kept], expected[:, :kept], atol=1e-7)
