"""Properties of narrowed values: exact where nothing is lost, and bounded by Eckart and Young."""

import pytest
import torch
from tensor_cases import random_samples

from collab_hf.errors import DecompositionError, RankError
from collab_hf.tensors import Moments
from collab_hf.tensors.value_output import narrow_values, narrowing_errors

HEADS, HEAD_DIM, HIDDEN, OUT = 3, 8, 24, 20
# Whitening a head by its covariance, of condition 1e4, and solving with that of all heads.
ROUNDING = 1e-9
# The default damping of 1e-4 changes weights by 1e-4 and an error, which is least there, by its square.
DAMPED = 1e-6


class Layer:
    """Random projections, and the head outputs z of random rows (where each attends to itself)."""

    def __init__(self, heads: int = HEADS) -> None:
        size = heads * HEAD_DIM
        self.heads = heads
        self.value_weight, self.value_bias = torch.randn(size, HIDDEN).double(), torch.randn(size).double()
        self.output_weight, self.output_bias = torch.randn(OUT, size).double(), torch.randn(OUT).double()
        self.rows = random_samples(HIDDEN, 400)

    @property
    def values(self) -> torch.Tensor:
        return self.rows @ self.value_weight.T + self.value_bias

    @property
    def moments(self) -> Moments:
        return Moments.from_samples(self.values)

    def narrow(self, width: int, **options):
        return narrow_values(
            self.moments,
            self.value_weight,
            self.value_bias,
            self.output_weight,
            self.output_bias,
            self.heads,
            width,
            **options,
        )

    def measured(self, narrowed, output_weights=None) -> float:
        """Relative squared error of the outputs of these very rows."""
        scale = torch.ones(OUT) if output_weights is None else output_weights
        dense = (self.values @ self.output_weight.T + self.output_bias) * scale
        values = self.rows @ narrowed.value_weight.T + narrowed.value_bias
        error = dense - (values @ narrowed.output_weight.T + narrowed.output_bias) * scale
        return float(error.square().sum() / (dense - dense.mean(0)).square().sum())

    def bounds(self, width: int) -> tuple[float, float]:
        """Least error of any rank heads * width, and the error of the best answer of each head by itself."""
        values = self.values - self.values.mean(0)
        outputs = values @ self.output_weight.T
        least = torch.linalg.svdvals(outputs)[self.heads * width :].square().sum()
        alone = torch.zeros_like(outputs)
        for head in range(self.heads):
            columns = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            u, s, vh = torch.linalg.svd(
                values[:, columns] @ self.output_weight[:, columns].T, full_matrices=False
            )
            alone += u[:, :width] * s[:width] @ vh[:width]
        total = outputs.square().sum()
        return float(least / total), float((outputs - alone).square().sum() / total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_width_changes_no_bit(dtype) -> None:
    layer = Layer()
    moments = layer.moments
    for name in ("value_weight", "value_bias", "output_weight", "output_bias"):
        setattr(layer, name, getattr(layer, name).to(dtype))
    given = (layer.value_weight, layer.value_bias, layer.output_weight, layer.output_bias)
    found = narrow_values(moments, *given, HEADS, HEAD_DIM)
    kept = (found.value_weight, found.value_bias, found.output_weight, found.output_bias)
    assert all(torch.equal(new.to(dtype), old) for new, old in zip(kept, given, strict=True))
    assert found.error == 0
    narrower = narrow_values(moments, *given, HEADS, HEAD_DIM - 1)
    assert narrower.value_weight.shape == (HEADS * (HEAD_DIM - 1), HIDDEN)
    assert narrower.error > 1e-5


@pytest.mark.parametrize("width", range(1, HEAD_DIM))
def test_error_is_what_the_data_measure_and_within_its_bounds(width) -> None:
    layer = Layer()
    found = layer.narrow(width)
    least, alone = layer.bounds(width)
    assert found.error == pytest.approx(layer.measured(found), rel=1e-9)
    assert least <= found.error < alone  # heads that are refitted together make up for each other
    again = layer.narrow(width)
    assert torch.equal(again.value_weight, found.value_weight)
    assert torch.equal(again.output_weight, found.output_weight)


@pytest.mark.parametrize("width", range(1, HEAD_DIM))
def test_one_head_reaches_the_least_error_there_is(width) -> None:
    layer = Layer(heads=1)
    least, _ = layer.bounds(width)
    assert layer.narrow(width).error == pytest.approx(least, rel=DAMPED)


def test_error_falls_with_width_as_announced() -> None:
    layer = Layer()
    widths = range(1, HEAD_DIM + 1)
    errors = narrowing_errors(layer.moments, layer.output_weight, HEADS, widths)
    assert errors == pytest.approx([layer.narrow(width).error for width in widths], rel=ROUNDING)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] == 0


@pytest.mark.parametrize("narrow", ["value_weight", "output_weight"])
def test_heads_of_low_rank_lose_nothing(narrow) -> None:
    """Values in 5 of 8 dimensions, or an output projection that reads 5 of them."""
    layer = Layer()
    for head in range(HEADS):
        columns = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        keep = torch.randn(HEAD_DIM, 5).double()
        keep = keep @ torch.linalg.pinv(keep)
        if narrow == "value_weight":
            layer.value_weight[columns] = keep @ layer.value_weight[columns]
        else:
            layer.output_weight[:, columns] = layer.output_weight[:, columns] @ keep
    assert layer.narrow(5).error < ROUNDING
    assert layer.measured(layer.narrow(5)) < ROUNDING
    assert layer.narrow(6).error < ROUNDING  # one direction more, without variance or without use
    assert layer.narrow(4).error > 1e-3


def test_a_dead_head_is_no_obstacle() -> None:
    layer = Layer()
    layer.output_weight[:, :HEAD_DIM] = 0
    layer.value_weight[HEAD_DIM : 2 * HEAD_DIM] = 0
    found = layer.narrow(4)
    assert bool(torch.isfinite(found.value_weight).all())
    assert bool(torch.isfinite(found.output_weight).all())
    assert found.error == pytest.approx(layer.measured(found), rel=1e-9)
    living = slice(2 * HEAD_DIM, None)
    alone = Moments.from_samples(layer.values[:, living])
    # what the unread head says about the living one is put to use
    assert found.error < narrowing_errors(alone, layer.output_weight[:, living], 1, [4])[0]


def test_what_matters_is_the_output_not_the_size_of_values() -> None:
    """A large direction that nothing reads goes before a small one that counts."""
    layer = Layer()
    layer.output_weight[:, ::HEAD_DIM] = 0
    layer.value_weight[::HEAD_DIM] *= 100
    assert layer.narrow(HEAD_DIM - 1).error < ROUNDING


def test_value_weights_keep_their_size() -> None:
    layer = Layer()
    layer.value_weight *= torch.logspace(-1, 1, HEADS * HEAD_DIM).double().unsqueeze(1)
    found = layer.narrow(4)
    sizes = found.value_weight.square().mean(1).sqrt()
    assert torch.allclose(sizes, layer.value_weight.square().mean().sqrt().expand_as(sizes), rtol=1e-12)


def test_output_weights_move_the_error_to_outputs_that_count_less() -> None:
    layer = Layer()
    weights = torch.cat([torch.ones(OUT // 2), torch.zeros(OUT // 2)]).double()
    plain, weighted = layer.narrow(3), layer.narrow(3, output_weights=weights)
    assert weighted.error == pytest.approx(layer.measured(weighted, weights), rel=1e-9)
    assert weighted.error < 0.9 * layer.measured(plain, weights)
    announced = narrowing_errors(layer.moments, layer.output_weight, HEADS, [3], output_weights=weights)
    assert announced == pytest.approx([weighted.error], rel=ROUNDING)


def test_missing_biases() -> None:
    layer = Layer()
    whole = layer.narrow(4)
    without = narrow_values(layer.moments, layer.value_weight, None, layer.output_weight, None, HEADS, 4)
    assert without.value_bias is None
    assert torch.allclose(without.output_bias + layer.output_bias, whole.output_bias, atol=ROUNDING)


@pytest.mark.parametrize("width", [0, HEAD_DIM + 1])
def test_widths_outside_of_the_head_are_refused(width) -> None:
    with pytest.raises(RankError, match=f"width must be between 1 and head_dim = 8, got {width}"):
        Layer().narrow(width)


def test_unusable_numbers_are_refused() -> None:
    layer = Layer()
    moments, value, output = layer.moments, layer.value_weight, layer.output_weight
    with pytest.raises(RankError, match="num_heads must divide the 24 columns, got 5"):
        narrowing_errors(moments, output, 5, [2])
    with pytest.raises(DecompositionError, match=r"shape \(24, hidden_size\), got shape \(23, 24\)"):
        narrow_values(moments, value[1:], None, output, None, HEADS, 4)
    with pytest.raises(DecompositionError, match=r"value_bias must be finite and of shape \(24,\)"):
        narrow_values(moments, value, torch.full((24,), float("nan")), output, None, HEADS, 4)
    with pytest.raises(DecompositionError, match="weight must be finite"):
        narrowing_errors(moments, output * float("nan"), HEADS, [4])
    with pytest.raises(DecompositionError, match=r"to fit its moments, got \(24, 20\)"):
        narrowing_errors(moments, output.T, HEADS, [4])
    covariance = moments.covariance - moments.covariance.diagonal().mean() / 2 * torch.eye(24)
    with pytest.raises(DecompositionError, match="positive semi-definite"):
        narrowing_errors(Moments(moments.mean, covariance, 9), output, HEADS, [4])
