"""Properties of refitted output projections, against numpy's least squares."""

import numpy as np
import pytest
import torch
from linear_cases import ROUNDING, WIDTH, layer, measured
from tensor_cases import random_moments, random_samples

from collab_hf.errors import DecompositionError
from collab_hf.tensors import Moments
from collab_hf.tensors.surgeon import path_error, refit


def test_refit_is_the_ridge_solution() -> None:
    """Against numpy's least squares on the samples, with one row sqrt(d) (W' - W) per kept column."""
    rows, (weight, bias) = random_samples(WIDTH), layer()
    moments, kept, damping = Moments.from_samples(rows), torch.arange(0, WIDTH, 3), 0.01
    found, found_bias = refit(moments, weight, bias, kept, damping=damping)
    centred = (rows - rows.mean(0)) / len(rows) ** 0.5
    ridge = (damping * moments.covariance.diagonal().mean()).sqrt()
    matrix = torch.cat([centred[:, kept], ridge * torch.eye(len(kept), dtype=torch.float64)])
    target = torch.cat([centred @ weight.T, ridge * weight[:, kept].T])
    wanted = np.linalg.lstsq(matrix.numpy(), target.numpy(), rcond=None)[0].T
    assert torch.allclose(found, torch.from_numpy(wanted), atol=ROUNDING)
    outputs = rows @ weight.T + bias
    assert torch.allclose((rows[:, kept] @ found.T + found_bias).mean(0), outputs.mean(0), atol=ROUNDING)
    assert not torch.allclose(found, weight[:, kept], atol=0.01)  # the others did leave something behind


def test_refit_is_better_than_any_change_of_it() -> None:
    """First-order optimality on the data themselves, with next to no damping."""
    rows, (weight, bias) = random_samples(WIDTH), layer()
    kept = torch.arange(0, WIDTH, 2)
    new, new_bias = refit(Moments.from_samples(rows), weight, bias, kept, damping=0)
    best = measured(rows, weight, bias, kept, new, new_bias)
    for _ in range(5):
        other = new + 0.01 * torch.randn_like(new)
        assert measured(rows, weight, bias, kept, other, new_bias) > best
    assert measured(rows, weight, bias, kept, new, new_bias + 0.01) > best
    assert measured(rows, weight, bias, kept, weight[:, kept], bias) > 1.1 * best  # what cutting alone gives


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_kept_changes_no_bit(dtype) -> None:
    weight, bias = (values.to(dtype) for values in layer())
    weight[0, 0] = bias[0] = -0.0  # whose sign any addition would lose
    moments, kept = random_moments(WIDTH), torch.arange(WIDTH)
    found, found_bias = refit(moments, weight, bias, kept)
    assert torch.equal(found.to(dtype), weight)
    assert torch.equal(found_bias.to(dtype), bias)
    assert bool(found[0, 0].signbit())
    assert bool(found_bias[0].signbit())
    assert path_error(moments, weight, kept) == 0
    assert not torch.equal(refit(moments, weight, bias, kept[:-1])[0].to(dtype), weight[:, :-1])


def test_kept_columns_come_in_the_order_asked_for() -> None:
    moments, (weight, bias) = random_moments(WIDTH), layer()
    kept = torch.randperm(WIDTH)[:10]
    found, found_bias = refit(moments, weight, bias, kept)
    wanted, wanted_bias = refit(moments, weight, bias, kept.sort().values)
    assert torch.allclose(found, wanted[:, kept.argsort().argsort()], atol=ROUNDING)
    assert torch.allclose(found_bias, wanted_bias, atol=ROUNDING)


def test_no_bias_counts_as_zeros() -> None:
    moments, (weight, bias) = random_moments(WIDTH), layer()
    kept = torch.arange(10)
    with_bias, without = (refit(moments, weight, given, kept)[1] for given in (bias, None))
    assert torch.allclose(with_bias, without + bias, atol=ROUNDING)
    assert float(without.norm()) > 0.1  # the mean of what is gone


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (torch.tensor([0, 48]), "between 0 and 47, got 0 to 48"),
        (torch.tensor([-1, 2]), "between 0 and 47, got -1 to 2"),
        (torch.tensor([2, 2]), "must not repeat"),
        (torch.ones(WIDTH, dtype=torch.bool), "vector of column indices, got torch.bool"),
        (torch.zeros(2), "vector of column indices, got torch.float32"),
    ],
)
def test_kept_must_be_a_set_of_columns(kept, message) -> None:
    with pytest.raises(DecompositionError, match=message):
        refit(random_moments(WIDTH), *layer(), kept)
