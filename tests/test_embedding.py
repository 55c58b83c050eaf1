"""Properties of low-rank embeddings, against the singular value decomposition of the weighted table."""

import pytest
import torch

from collab_hf.errors import DecompositionError, RankError
from collab_hf.tensors import embedding
from collab_hf.tensors.embedding import low_rank_embedding, low_rank_errors, token_weights

VOCABULARY, HIDDEN = 300, 24
# Eigenvalues of a Gram matrix are exact to eps of the largest, so to 1e-12 for a condition of 1e4.
ROUNDING = 1e-12


def table() -> torch.Tensor:
    mixed = torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64) @ torch.randn(HIDDEN, HIDDEN).double()
    return mixed + torch.randn(HIDDEN)


def zipf() -> torch.Tensor:
    """Counts that fall with rank, the last third of them zero."""
    counts = (1000 / (1 + torch.arange(VOCABULARY))).round()
    counts[200:] = 0
    return counts


def weighted_error(weight, small, up, weights) -> float:
    lost = (weight - small @ up.T).square().sum(1)
    return float((lost * weights).sum() / (weight.square().sum(1) * weights).sum())


def test_full_rank_is_exact() -> None:
    weight = table()
    small, up = low_rank_embedding(weight, zipf(), HIDDEN)
    assert torch.allclose(small @ up.T, weight, atol=ROUNDING * float(weight.norm()))
    assert not torch.allclose(small[:, :-1] @ up[:, :-1].T, weight, atol=1e-3)


@pytest.mark.parametrize("rank", [1, 8, 16, 23])
def test_it_is_the_best_of_its_rank(rank) -> None:
    """As good as the truncated decomposition of diag(sqrt(p)) E, and as announced."""
    weight, counts = table(), zipf()
    small, up = low_rank_embedding(weight, counts, rank)
    assert small.shape == (VOCABULARY, rank)
    assert torch.allclose(up.T @ up, torch.eye(rank, dtype=torch.float64), atol=ROUNDING)
    weights = token_weights(counts)
    values = torch.linalg.svdvals(weights.sqrt().unsqueeze(1) * weight).square()
    wanted = float(values[rank:].sum() / values.sum())
    assert weighted_error(weight, small, up, weights) == pytest.approx(wanted, rel=1e-9)
    assert float(low_rank_errors(weight, counts)[rank]) == pytest.approx(wanted, rel=1e-9)


def test_errors_of_every_rank() -> None:
    errors = low_rank_errors(table(), zipf())
    assert len(errors) == HIDDEN + 1
    assert errors[0] == 1
    assert errors[-1] == 0
    assert bool((errors.diff() < 0).all())
    assert low_rank_errors(torch.zeros(5, 3), torch.ones(5)).tolist() == [0] * 4


def test_lower_ranks_are_prefixes_and_repeat() -> None:
    weight, counts = table(), zipf()
    small, up = low_rank_embedding(weight, counts, 12)
    again, up_again = low_rank_embedding(weight, counts, 12)
    assert torch.equal(small, again)
    assert torch.equal(up, up_again)
    lower, up_lower = low_rank_embedding(weight, counts, 5)
    assert torch.allclose(small[:, :5], lower, atol=1e-9)
    assert torch.equal(up[:, :5], up_lower)


def test_weighting_serves_frequent_tokens() -> None:
    """A table of equal weights is worse on the tokens of the text, and better on the others."""
    weight, counts = table(), zipf()
    weighted, plain = (low_rank_embedding(weight, given, 8) for given in (counts, torch.ones(VOCABULARY)))
    frequent, never = counts / counts.sum(), (counts == 0).double()
    assert weighted_error(weight, *weighted, frequent) < 0.9 * weighted_error(weight, *plain, frequent)
    assert weighted_error(weight, *weighted, never) > weighted_error(weight, *plain, never)


def test_tokens_that_never_occur_share_the_mass_of_those_seen_once() -> None:
    counts = torch.tensor([6, 2, 1, 1, 0])
    weights = token_weights(counts)
    assert torch.allclose(weights * 12, torch.tensor([6.4, 2.4, 1.4, 1.4, 0.4]).double())
    assert torch.allclose(
        token_weights(torch.tensor([8, 2, 0, 0])) * 11, torch.tensor([8.25, 2.25, 0.25, 0.25]).double()
    )
    assert torch.allclose(token_weights(torch.zeros(4)), torch.full((4,), 0.25).double())


def test_rows_that_never_occur_are_not_forgotten() -> None:
    """Their own directions come after all others, but before directions that no row has."""
    weight = torch.zeros(6, 4)
    weight[:3, 0], weight[3:, 1] = 1, 1
    counts = torch.tensor([5, 3, 2, 0, 0, 0])
    _, up = low_rank_embedding(weight, counts, 2)
    assert torch.allclose(up, torch.eye(4, dtype=torch.float64)[:, :2])
    assert low_rank_errors(weight, counts)[2] == 0


def test_long_tables_go_in_pieces(monkeypatch) -> None:
    weight, counts = table(), zipf()
    small, up = low_rank_embedding(weight, counts, 8)
    monkeypatch.setattr(embedding, "_CHUNK_ROWS", 7)
    pieces, up_pieces = low_rank_embedding(weight, counts, 8)
    assert torch.allclose(small @ up.T, pieces @ up_pieces.T, atol=1e-9)


@pytest.mark.parametrize("rank", [0, HIDDEN + 1])
def test_ranks_outside_of_the_table_are_refused(rank) -> None:
    with pytest.raises(RankError, match=f"rank must be between 1 and hidden_size = 24, got {rank}"):
        low_rank_embedding(table(), zipf(), rank)


@pytest.mark.parametrize("broken", [0.5, -1.0, float("nan"), float("inf")])
def test_frequencies_must_be_counts(broken) -> None:
    counts = zipf()
    counts[3] = broken
    with pytest.raises(DecompositionError, match="whole numbers of at least 0"):
        low_rank_embedding(table(), counts, 8)


def test_unusable_tables_are_refused() -> None:
    weight = table()
    with pytest.raises(DecompositionError, match=r"got \(300, 24\) and \(299,\)"):
        low_rank_errors(weight, zipf()[1:])
    with pytest.raises(DecompositionError, match="embeddings and frequencies must have shapes"):
        low_rank_errors(weight[:0], zipf()[:0])
    weight[250, 3] = float("nan")  # in a row that never occurs
    with pytest.raises(DecompositionError, match="embeddings must be finite"):
        low_rank_embedding(weight, zipf(), 8)
