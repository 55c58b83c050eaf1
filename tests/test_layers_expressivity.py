"""Theorem 1 of arXiv:2002.07028, its failure below, and the rank of logits."""

import pytest
import torch

from collab_hf.errors import DecompositionError, RankError
from collab_hf.layers import CollaborativeAttention
from collab_hf.tensors.expressivity import (
    attention_rank,
    centred_log,
    head_attention,
    least_log_error,
    logit_rank,
    representing_weights,
)

COUNT, SIZE = 8, 12


def problem(seed=0, count=COUNT):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(SIZE, count, generator=generator, dtype=torch.float64)
    logits = 2 * torch.randn(count, count, generator=generator, dtype=torch.float64)
    return inputs, logits.softmax(0)


@pytest.mark.parametrize("head_size", [COUNT - 1, COUNT, COUNT + 5])
@pytest.mark.parametrize("seed", range(5))
def test_a_head_as_large_as_the_input_is_long_attends_as_it_is_told(seed, head_size):
    """Theorem 1 within 1e-8; n - 1 is enough, as softmax ignores one direction."""
    inputs, attention = problem(seed)
    query, key = representing_weights(inputs, attention, head_size)
    assert query.shape == key.shape == (head_size, SIZE)
    assert (head_attention(inputs, query, key) - attention).abs().max() < 1e-8
    assert attention_rank(attention) == COUNT - 1


@pytest.mark.parametrize("head_size", [1, 3, COUNT - 2])
def test_a_smaller_head_cannot(head_size):
    """The constructed weights reach the bound, which random restarts of gradient descent do not pass."""
    inputs, attention = problem()
    bound = least_log_error(attention, head_size)
    query, key = representing_weights(inputs, attention, head_size)
    reached = centred_log(attention) - centred_log(head_attention(inputs, query, key))
    assert float(reached.norm()) == pytest.approx(bound, rel=1e-8)
    assert bound > 0.1
    assert (head_attention(inputs, query, key) - attention).abs().max() > 1e-3
    for seed in range(3):
        torch.manual_seed(seed)
        weights = [torch.randn_like(query).requires_grad_() for _ in range(2)]
        optimizer = torch.optim.Adam(weights, lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            missed = centred_log(attention) - centred_log(head_attention(inputs, *weights))
            missed.norm().backward()
            optimizer.step()
        assert float(missed.detach().norm()) > bound


def test_the_bound_falls_to_nothing_at_the_rank():
    _, attention = problem()
    bounds = [least_log_error(attention, size) for size in range(COUNT + 1)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] == pytest.approx(float(centred_log(attention).norm()))
    assert bounds[COUNT - 2] > 0.1
    assert bounds[COUNT - 1] < 1e-10


def test_attention_of_low_rank_needs_a_small_head_only():
    """Uniform attention needs none at all, and one of a head of 2 needs 2."""
    inputs, _ = problem()
    assert attention_rank(torch.full((COUNT, COUNT), 1 / COUNT)) == 0
    weights = torch.randn(2, 2, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    attention = head_attention(inputs, *weights)
    assert attention_rank(attention) == 2
    assert least_log_error(attention, 2) < 1e-9
    again = head_attention(inputs, *representing_weights(inputs, attention, 2))
    assert torch.allclose(again, attention, atol=1e-8)


@pytest.mark.parametrize("head_dim", [4, 8, 32])
def test_logits_of_a_layer_have_the_rank_of_its_heads(head_dim):
    """hidden_size / num_heads is a bottleneck, which a head_dim of one's own lifts."""
    torch.manual_seed(0)
    layer = CollaborativeAttention(16, 4, head_dim=head_dim, dtype=torch.float64, bias=False)
    hidden = torch.randn(2, 12, 16, dtype=torch.float64)
    _, weights = layer(hidden, need_weights=True)
    ranks = logit_rank(weights.log())
    assert ranks.shape == (2, 4)
    assert (ranks == min(head_dim, 12 - 1)).all()


def test_rank_ignores_what_softmax_ignores():
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    logits = logits[:, :2] @ logits[:2]
    assert logit_rank(logits) == 2
    assert logit_rank(logits + torch.arange(5.0).unsqueeze(1)) == 2
    assert logit_rank(logits + torch.arange(5.0).unsqueeze(1) * torch.arange(6.0)) == 3
    assert logit_rank(torch.full((3, 4), 0.1)) == 0


def test_refusals():
    inputs, attention = problem()
    with pytest.raises(RankError, match="head_size must be at least 1, got 0"):
        representing_weights(inputs, attention, 0)
    with pytest.raises(DecompositionError, match=r"inputs must have shape \(hidden_size, 8\)"):
        representing_weights(inputs.T, attention, COUNT)
    with pytest.raises(DecompositionError, match="full column rank 8"):
        representing_weights(inputs[:5], attention, COUNT)
    with pytest.raises(DecompositionError, match="must add up to 1"):
        representing_weights(inputs, attention.T, COUNT)
    with pytest.raises(DecompositionError, match="must be a square matrix"):
        attention_rank(attention[:3])
    with pytest.raises(DecompositionError, match="leave masked keys out"):
        logit_rank(torch.tensor([[0.0, -torch.inf]]))
