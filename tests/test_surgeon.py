"""Properties of the optimal brain surgeon, against Hassibi's closed form."""

import numpy as np
import pytest
import torch
from linear_cases import OUT, ROUNDING, WIDTH, layer, measured
from tensor_cases import random_moments, random_samples

from collab_hf.errors import DecompositionError, RankError
from collab_hf.tensors import Moments, elimination
from collab_hf.tensors.surgeon import path_error, refit, removal_path

# What the default damping itself may cost where the data allow no loss at all.
DAMPED = 1e-6
# What dropping one column more than that costs at least.
A_LOSS = 1e-4


def with_columns(rows: torch.Tensor, others: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """Rows whose columns `others` are linear combinations of the ones before them."""
    rows = rows.clone()
    rows[:, others] = rows[:, : len(mix)] @ mix
    return rows


def test_neurons_one_by_one_are_those_of_hassibi() -> None:
    """Least w_j^2 / [H^-1]_jj goes, the rest moves by -w_j / [H^-1]_jj H^-1 e_j, with H inverted afresh."""
    moments, (weight, bias) = random_moments(WIDTH), layer()
    path = removal_path(moments, weight, block=1)
    covariance = moments.covariance.numpy()
    H = covariance + 1e-4 * covariance.diagonal().mean() * np.eye(WIDTH)
    W, left = weight.numpy().copy(), list(range(WIDTH))
    for column in path.order[:-1].tolist():
        inverse = np.linalg.inv(H[np.ix_(left, left)])
        saliency = (W[:, left] ** 2).sum(0) / inverse.diagonal()
        gone = int(saliency.argmin())
        assert left[gone] == column
        W[:, left] -= np.outer(W[:, column], inverse[gone] / inverse[gone, gone])
        left.remove(column)
        error = weight.numpy() - np.where(np.isin(np.arange(WIDTH), left), W, 0)
        wanted = np.einsum("oi,ij,oj->", error, covariance, error)
        wanted /= np.einsum("oi,ij,oj->", weight.numpy(), covariance, weight.numpy())
        assert path.error(len(left)) == pytest.approx(wanted, rel=1e-8)
        if len(left) == WIDTH // 2:
            found = refit(moments, weight, bias, path.kept(len(left)))[0]
            assert torch.allclose(found, torch.from_numpy(W[:, left]), atol=ROUNDING)


def test_groups_go_by_what_they_cost_together() -> None:
    """Least tr(W_S ([H^-1]_SS)^-1 W_S^T), with H inverted afresh; sums over single columns say otherwise."""
    group = 6
    moments, (weight, _) = random_moments(WIDTH), layer()
    H = moments.covariance + 1e-4 * moments.covariance.diagonal().mean() * torch.eye(WIDTH)
    left, single = list(range(WIDTH // group)), []
    for chosen in removal_path(moments, weight, group=group).order.tolist():
        columns = torch.tensor([head * group + i for head in left for i in range(group)])
        gone = torch.tensor([i for i in range(WIDTH) if i not in columns], dtype=torch.long)
        inverse = torch.linalg.inv(H[columns][:, columns])
        W = weight[:, columns] + weight[:, gone] @ H[gone][:, columns] @ inverse
        parts = [slice(i * group, (i + 1) * group) for i in range(len(left))]
        costs = [float((W[:, S] @ torch.linalg.inv(inverse[S, S]) * W[:, S]).sum()) for S in parts]
        assert left[costs.index(min(costs))] == chosen
        sums = [float((W[:, S].square().sum(0) / inverse.diagonal()[S]).sum()) for S in parts]
        single.append(left[sums.index(min(sums))] == chosen)
        left.remove(chosen)
    assert not all(single)


@pytest.mark.parametrize("group", [1, 6])
@pytest.mark.parametrize("output_weights", [None, torch.linspace(0.1, 3, OUT)])
def test_error_along_the_path_is_the_error_after_refitting(group, output_weights) -> None:
    """At every width, and as measured on the data."""
    rows, (weight, bias) = random_samples(WIDTH), layer()
    moments = Moments.from_samples(rows)
    path = removal_path(moments, weight, group=group, output_weights=output_weights)
    assert sorted(path.order.tolist()) == list(range(WIDTH // group))
    for width in range(0, WIDTH, group):
        kept = path.kept(width)
        assert len(kept) == width
        wanted = path_error(moments, weight, kept, output_weights=output_weights)
        assert path.error(width) == pytest.approx(wanted, rel=1e-6)
        found = measured(rows, weight, bias, kept, *refit(moments, weight, bias, kept), output_weights)
        assert path.error(width) == pytest.approx(found, rel=1e-6)
    assert path.error(WIDTH) == 0
    assert path.error(0) == pytest.approx(1)
    assert bool((path.errors.diff() > 0).all())


def test_output_weights_change_what_goes() -> None:
    """An output that counts for nothing is no reason to keep the neurons that write to it alone."""
    weight = torch.zeros(2, WIDTH, dtype=torch.float64)
    weight[0, ::2], weight[1, 1::2] = 1, 2
    moments = Moments(torch.zeros(WIDTH).double(), torch.eye(WIDTH).double(), 1000)
    first = removal_path(moments, weight).order[: WIDTH // 2]
    assert bool((first % 2 == 0).all())
    weighted = removal_path(moments, weight, output_weights=torch.tensor([1.0, 0.0]))
    assert bool((weighted.order[: WIDTH // 2] % 2 == 1).all())
    assert weighted.error(WIDTH // 2) == 0


@pytest.mark.parametrize("block", [1, 16])
def test_neurons_that_nothing_reads_go_first_at_no_loss(block) -> None:
    moments, (weight, _) = random_moments(WIDTH), layer()
    dead = torch.tensor([3, 17, 18, 30, 47])
    weight[:, dead] = 0
    path = removal_path(moments, weight, block=block)
    assert sorted(path.order[:5].tolist()) == dead.tolist()
    assert path.error(WIDTH - 5) == 0
    assert path.error(WIDTH - 6) > A_LOSS


@pytest.mark.parametrize("block", [1, 16])
def test_neurons_that_repeat_others_go_first_at_no_loss(block, monkeypatch) -> None:
    """Of a neuron and its double one goes, never both: they look equally free until the other is gone."""
    rows = random_samples(WIDTH, 400)
    rows[:, 40:] = rows[:, :8] * torch.linspace(0.5, 2, 8)
    moments, weight = Moments.from_samples(rows), layer()[0]
    path = removal_path(moments, weight, block=block)
    assert sorted((path.order[:8] % 40).tolist()) == list(range(8))
    assert path.error(WIDTH - 8) < DAMPED
    assert path.error(WIDTH - 9) > A_LOSS
    monkeypatch.setattr(elimination, "_POOL", 1)  # the cheapest 16 of before the block, both of each pair
    naive = removal_path(moments, weight, block=block)
    assert block == 1 or naive.error(WIDTH - 16) > 2 * path.error(WIDTH - 16)


def test_linear_combinations_go_first_at_no_loss() -> None:
    mix = torch.randn(6, 5, dtype=torch.float64)
    rows = with_columns(random_samples(WIDTH, 400), torch.arange(20, 25), mix)
    path = removal_path(Moments.from_samples(rows), layer()[0])
    assert set(path.order[:5].tolist()) <= {*range(6), *range(20, 25)}
    assert path.error(WIDTH - 5) < DAMPED
    assert path.error(WIDTH - 6) > A_LOSS


def test_heads_that_add_nothing_go_first_at_no_loss() -> None:
    """One that nothing reads, and one that is another's double in another basis."""
    group = 6
    rows, (weight, _) = random_samples(WIDTH, 400), layer()
    weight[:, 12:18] = 0
    rows[:, 30:36] = rows[:, 6:12] @ torch.randn(group, group, dtype=torch.float64)
    path = removal_path(Moments.from_samples(rows), weight, group=group)
    assert path.order[0] == 2
    assert int(path.order[1]) in (1, 5)
    assert path.error(WIDTH - group) == 0
    assert path.error(WIDTH - 2 * group) < DAMPED
    assert path.error(WIDTH - 3 * group) > A_LOSS
    heads = path.kept(WIDTH - 2 * group).view(-1, group) // group
    assert heads.tolist() == [[head] * group for head in range(8) if head not in path.order[:2]]


@pytest.mark.parametrize("width", [12, 24, 36])
def test_the_surgeon_beats_magnitude_and_chance(width) -> None:
    """On correlated data of unequal scale, every set refitted alike."""
    rows, (weight, _) = random_samples(WIDTH, 400) * torch.logspace(-0.5, 0.5, WIDTH), layer()
    moments = Moments.from_samples(rows)
    error = removal_path(moments, weight).error(width)
    magnitude = weight.norm(dim=0).argsort(descending=True)[:width]
    energy = (weight.norm(dim=0).square() * moments.covariance.diagonal()).argsort(descending=True)[:width]
    assert error < 0.5 * path_error(moments, weight, magnitude)
    assert error < path_error(moments, weight, energy)
    for _ in range(5):
        assert error < 0.5 * path_error(moments, weight, torch.randperm(WIDTH)[:width])


def test_a_pool_of_all_columns_makes_blocks_exact() -> None:
    """Four candidates for each of a block of 12 are all 48, so nothing is overlooked."""
    moments, weight = random_moments(WIDTH), layer()[0]
    exact, blocks = (removal_path(moments, weight, block=block) for block in (1, 12))
    assert torch.equal(blocks.order, exact.order)
    assert torch.allclose(blocks.errors, exact.errors, rtol=1e-9)


def test_blocks_cost_next_to_nothing() -> None:
    """Choosing within a pool is as good as among all, to a twentieth of the error."""
    moments, weight = random_moments(200, 600), layer(200)[0]
    exact, blocks = (removal_path(moments, weight, block=block) for block in (1, 16))
    for width in (50, 100, 150):
        assert blocks.error(width) < 1.05 * exact.error(width)
    assert not torch.equal(exact.order, blocks.order)  # there was something to lose


@pytest.mark.parametrize("group", [1, 6])
def test_fewer_samples_than_columns_are_enough(group) -> None:
    """Errors keep their digits though H^-1 spans ten decades; what is below DAMPED counts as nothing."""
    moments, weight = random_moments(WIDTH, 10), layer()[0]
    path = removal_path(moments, weight, group=group, damping=0)
    for width in range(0, WIDTH, group):
        wanted = path_error(moments, weight, path.kept(width), damping=0)
        assert path.error(width) == pytest.approx(wanted, rel=1e-6, abs=1e-6 * DAMPED)


def test_downdates_are_what_starting_afresh_gives() -> None:
    """And a diagonal that rounding made negative is a reason to start afresh."""
    moments, weight = random_moments(WIDTH), layer()[0]
    left = elimination.Columns(moments.covariance, weight, 1e-4)
    for _ in range(2):
        left.remove(left.cheapest(10))
    wanted = [left.inverse.clone(), left.weight.clone(), torch.tensor(left.error)]
    left.inverse[3, 3] *= -1
    left.weight += 1
    left.renew_if_worn()
    for found, value in zip([left.inverse, left.weight, torch.tensor(left.error)], wanted, strict=True):
        assert torch.allclose(found, value, rtol=1e-9, atol=ROUNDING)
    left.weight += 1
    left.renew_if_worn()  # nothing is worn now, so nothing is repaired
    assert torch.allclose(left.weight, wanted[1] + 1, rtol=1e-9)


def test_as_many_neurons_as_samples_lose_nothing() -> None:
    """10 centred rows span 9 dimensions, and 9 neurons can carry them."""
    path = removal_path(random_moments(WIDTH, 10), layer()[0], damping=0)
    assert path.error(9) < DAMPED
    assert path.error(8) > A_LOSS


def test_an_input_that_never_varies_costs_nothing() -> None:
    """The bias takes all of it; magnitudes alone say what goes first."""
    moments, (weight, bias) = Moments.from_samples(torch.ones(5, WIDTH)), layer()
    path = removal_path(moments, weight)
    assert path.errors.tolist() == [0] * (WIDTH + 1)
    assert torch.equal(path.order, weight.square().sum(0).argsort())
    new, new_bias = refit(moments, weight, bias, path.kept(0))
    assert new.shape == (OUT, 0)
    assert torch.allclose(new_bias, weight.sum(1) + bias, atol=ROUNDING)


@pytest.mark.parametrize("group", [1, 6])
def test_the_path_ends_where_asked_and_repeats(group) -> None:
    moments, weight = random_moments(WIDTH), layer()[0]
    whole, again = (removal_path(moments, weight, group=group) for _ in range(2))
    short = removal_path(moments, weight, group=group, keep=18)
    assert torch.equal(whole.order, again.order)
    assert torch.equal(whole.errors, again.errors)
    assert len(short.order) == (WIDTH - 18) // group
    assert torch.equal(short.kept(18), whole.kept(18)) or group == 1  # a shorter last block draws from fewer
    assert short.error(18) == pytest.approx(whole.error(18), rel=0.01)
    with pytest.raises(RankError, match=f"multiple of {group} between 18 and 48, got 12"):
        short.kept(12)


def test_a_width_between_groups_is_refused() -> None:
    path = removal_path(random_moments(WIDTH), layer()[0], group=6)
    with pytest.raises(RankError, match="multiple of 6 between 0 and 48, got 20"):
        path.error(20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 5}, "group must divide the 48 columns, got 5"),
        ({"group": 0}, "group must divide"),
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"group": 6, "keep": 10}, "keep must be a multiple of 6 between 0 and 48, got 10"),
        ({"keep": 49}, "keep must be a multiple of 1"),
    ],
)
def test_sizes_outside_of_the_layer_are_refused(options, message) -> None:
    with pytest.raises(RankError, match=message):
        removal_path(random_moments(WIDTH), layer()[0], **options)


def test_unusable_numbers_are_refused() -> None:
    moments, (weight, bias) = random_moments(WIDTH), layer()
    kept = torch.arange(10)
    broken = weight.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(DecompositionError, match="weight must be finite"):
        removal_path(moments, broken)
    with pytest.raises(DecompositionError, match=r"shape \(out, 48\) to fit its moments, got \(20, 47\)"):
        refit(moments, weight[:, 1:], bias, kept)
    with pytest.raises(DecompositionError, match=r"bias must be finite and of shape \(20,\)"):
        refit(moments, weight, bias * float("inf"), kept)
    with pytest.raises(
        DecompositionError, match=r"output_weights must be .* shape \(20,\), got shape \(3,\)"
    ):
        removal_path(moments, weight, output_weights=torch.ones(3))
    with pytest.raises(DecompositionError, match="damping must be finite and at least 0, got -1"):
        path_error(moments, weight, kept, damping=-1)
    with pytest.raises(DecompositionError, match="covariance must be finite"):
        path_error(Moments(moments.mean, moments.covariance * float("nan"), 9), weight, kept)
    with pytest.raises(DecompositionError, match="positive semi-definite"):
        removal_path(Moments(moments.mean, moments.covariance - 0.1 * torch.eye(WIDTH), 9), weight)
