"""Properties of the streamed moments, against torch.cov and numpy."""

import numpy as np
import pytest
import torch

from collab_hf.errors import CalibrationError
from collab_hf.tensors.moments import Moments, MomentsAccumulator

# Two orders of summation in float64 differ by a few units in the last place times the number of rows.
ROUNDING = 1e-12


def accumulate(*batches: torch.Tensor) -> MomentsAccumulator:
    accumulator = MomentsAccumulator()
    for batch in batches:
        accumulator.update(batch)
    return accumulator


def correlated(rows: int, columns: int = 7) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64) @ torch.randn(
        columns, columns, dtype=torch.float64
    )


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def test_batches_give_the_moments_of_all_rows_together() -> None:
    rows = correlated(500)
    moments = accumulate(*rows.split(37)).moments()
    assert moments.count == 500
    assert moments.hidden_size == 7
    assert relative(moments.mean, rows.mean(dim=0)) < ROUNDING
    assert relative(moments.covariance, torch.cov(rows.T, correction=0)) < ROUNDING


def test_one_batch_longer_than_a_chunk() -> None:
    rows = correlated(9001, 3)  # above two chunks of 4096
    expected = np.cov(rows.numpy(), rowvar=False, bias=True)
    assert relative(Moments.from_samples(rows).covariance, torch.from_numpy(expected)) < ROUNDING


def test_a_large_mean_does_not_cancel() -> None:
    rows = correlated(2000) * 1e-3 + 1e6  # 9 decimal digits between deviation and mean
    expected = torch.cov((rows - 1e6).T, correction=0)  # exact: the subtraction loses nothing
    naive = rows.T @ rows / len(rows) - torch.outer(rows.mean(dim=0), rows.mean(dim=0))
    # a mean of 1e6 is itself known to 1e-10 only, which is 1e-7 of the deviation
    assert relative(accumulate(*rows.split(50)).moments().covariance, expected) < 1e-7
    assert relative(naive, expected) > 1  # the textbook formula has no correct digit left


def test_ill_conditioned_data_keep_their_small_directions() -> None:
    deviations = torch.logspace(0, -5, 6, dtype=torch.float64)  # variances over ten decades
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    rows = (torch.randn(4000, 6, dtype=torch.float64) * deviations) @ basis.T + 3
    covariance = accumulate(*rows.split(128)).moments().covariance
    expected = torch.cov(((rows - 3) @ basis).T, correction=0)
    variances = (basis.T @ covariance @ basis).diagonal()
    torch.testing.assert_close(variances, expected.diagonal(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_rows_are_summed_in_float64(dtype: torch.dtype) -> None:
    rows = (correlated(300) + 20).to(dtype)
    expected = torch.cov(rows.double().T, correction=0)
    moments = accumulate(*rows.split(64)).moments()
    assert moments.covariance.dtype == torch.float64
    assert relative(moments.covariance, expected) < ROUNDING
    in_place = torch.cov(rows.float().T, correction=0).double()
    assert relative(in_place, expected) > 100 * ROUNDING  # float32 would not do


def test_merge_is_associative_and_commutative() -> None:
    a, b, c = correlated(11), correlated(200) + 5, correlated(3) - 40
    left, right, swapped = accumulate(a), accumulate(b), accumulate(c)
    left.merge(accumulate(b))
    left.merge(accumulate(c))
    right.merge(accumulate(c))
    right_first = accumulate(a)
    right_first.merge(right)
    swapped.merge(accumulate(b))
    swapped.merge(accumulate(a))
    for other in (right_first, swapped):
        assert relative(left.moments().mean, other.moments().mean) < ROUNDING
        assert relative(left.moments().covariance, other.moments().covariance) < ROUNDING
    assert relative(left.moments().covariance, torch.cov(torch.cat([a, b, c]).T, correction=0)) < ROUNDING


def test_merge_leaves_the_other_accumulator_alone() -> None:
    empty, full = MomentsAccumulator(), accumulate(correlated(20))
    before = full.moments()
    empty.merge(full)
    empty.update(correlated(20))
    empty.merge(MomentsAccumulator())  # adds nothing
    after = full.moments()
    assert (empty.count, full.count) == (40, 20)
    assert torch.equal(before.covariance, after.covariance)
    assert torch.equal(before.mean, after.mean)


def test_moments_do_not_change_with_later_updates() -> None:
    accumulator = accumulate(correlated(20))
    moments = accumulator.moments()
    mean, covariance = moments.mean.clone(), moments.covariance.clone()
    accumulator.update(correlated(20) + 1)
    assert torch.equal(moments.mean, mean)
    assert torch.equal(moments.covariance, covariance)
    assert not torch.equal(accumulator.moments().mean, mean)


def test_covariance_is_exactly_symmetric_and_semidefinite() -> None:
    covariance = accumulate(correlated(4, 40)).moments().covariance  # fewer rows than columns
    assert torch.equal(covariance, covariance.T)
    variances = torch.linalg.eigvalsh(covariance)
    assert variances.min() > -ROUNDING * variances.max()


def test_an_empty_batch_adds_nothing() -> None:
    rows = correlated(5)
    accumulator = accumulate(rows[:0], rows, rows[:0])
    assert accumulator.count == 5
    assert torch.equal(accumulator.moments().mean, accumulate(rows).moments().mean)


def test_rows_that_need_gradients_are_detached() -> None:
    assert not accumulate(correlated(5).requires_grad_()).moments().covariance.requires_grad


def test_to_its_own_device_is_itself() -> None:
    moments = Moments.from_samples(correlated(5))
    assert moments.to("cpu") is moments
    assert moments.to("meta").covariance.device.type == "meta"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    rows = correlated(5)
    rows[3, 2] = bad
    with pytest.raises(CalibrationError, match=r"must be finite, got inf or nan \(layer.3\)"):
        MomentsAccumulator("layer.3").update(rows)


def test_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"floating-point matrix .* got torch.int64 of shape \(2, 2\)"):
        MomentsAccumulator().update(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(CalibrationError, match=r"got torch.float64 of shape \(7,\)"):
        MomentsAccumulator().update(correlated(1)[0])
    with pytest.raises(CalibrationError, match="one hidden_size, got 7 after 3"):
        accumulate(correlated(5, 3), correlated(5, 7))
    with pytest.raises(CalibrationError, match=r"no activations were seen \(layer.0\)"):
        MomentsAccumulator("layer.0").moments()


def test_moments_check_their_tensors() -> None:
    mean, covariance = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    with pytest.raises(CalibrationError, match=r"shapes \(D,\) and \(D, D\), got \(3,\) and \(2, 2\)"):
        Moments(mean, covariance[:2, :2], 1)
    with pytest.raises(CalibrationError, match=r"must be float64, got torch.float64 and torch.float32"):
        Moments(mean, covariance.float(), 1)
    with pytest.raises(CalibrationError, match="at least 1 row, got 0"):
        Moments(mean, covariance, 0)
