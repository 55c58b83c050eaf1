import pytest
import tensorly
import torch
from tensor_cases import PLANS, random_moments, random_scores
from tensorly.tenalg import unfolding_dot_khatri_rao

from collab_hf.errors import DecompositionError
from collab_hf.tensors import ScoreTensor, decompose

# Two orders of summing some thousand float64 products differ by far less.
ROUNDING = 1e-12


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(params=["square", "cross"])
def scores(request):
    return random_scores(key_size=24 if request.param == "square" else 17)


def test_norm_and_content_bias_are_those_of_the_dense_tensor(scores):
    dense = scores.to_dense()
    assert torch.allclose(scores.squared_norm, dense.square().sum(), rtol=ROUNDING)
    expected = torch.stack([b @ k.T for b, k in zip(scores.query_bias, scores.key, strict=True)])
    assert torch.allclose(scores.content_bias(), expected, rtol=ROUNDING)


def test_content_bias_is_zero_without_a_query_bias(scores):
    assert torch.equal(scores.without_bias().content_bias(), torch.zeros_like(scores.content_bias()))


def test_mttkrp_is_tensorlys(scores):
    """The right-hand sides of an ALS sweep, for all three modes."""
    query, weights, key = normal(24, 5), normal(4, 5), normal(scores.shape.key_size, 5)
    dense = tensorly.tensor(scores.to_dense().transpose(0, 1).numpy())
    factors = (None, [tensorly.tensor(f.numpy()) for f in (query, weights, key)])
    expected = [torch.as_tensor(unfolding_dot_khatri_rao(dense, factors, mode)) for mode in range(3)]

    projected_query, projected_key = scores.project_query(query), scores.project_key(key)
    by_query = scores.combine_query(projected_key * weights.unsqueeze(1))
    by_head = (projected_query * projected_key).sum(1)
    by_key = scores.combine_key(projected_query * weights.unsqueeze(1))
    for mine, theirs in zip((by_query, by_head, by_key), expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=ROUNDING * float(theirs.norm()))


def test_grams_are_those_of_the_unfoldings(scores):
    dense = scores.to_dense()
    query_gram = scores.query_gram(scores.key.mT @ scores.key)
    key_gram = scores.key_gram(scores.query.mT @ scores.query)
    assert torch.allclose(query_gram, torch.einsum("hij,hkj->ik", dense, dense))
    assert torch.allclose(key_gram, torch.einsum("hij,hik->jk", dense, dense))


def test_absorbing_the_mean_changes_scores_by_values_of_the_query_token_alone(scores):
    mean, queries, keys = normal(24), normal(6, 24), normal(5, scores.shape.key_size)
    centred = scores.absorb_mean(mean)

    def softmax_input(tensor, rows):
        values = torch.einsum("xi,hij,yj->hxy", rows, tensor.to_dense(), keys)
        values = values + (tensor.content_bias() @ keys.T).unsqueeze(1)
        return values - values.mean(-1, keepdim=True)

    expected = softmax_input(scores, queries)
    assert torch.allclose(softmax_input(centred, queries - mean), expected)
    assert not torch.allclose(softmax_input(scores, queries - mean), expected)  # the mean does matter


def test_absorbing_a_mean_makes_a_bias_where_there_is_none():
    scores = random_scores(bias=False)
    mean = normal(24)
    expected = torch.einsum("i,hij->hj", mean, scores.to_dense())
    assert torch.allclose(scores.absorb_mean(mean).content_bias(), expected)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("content_bias", ["exact", "folded"])
def test_no_structured_solver_builds_the_dense_tensor(name, content_bias, monkeypatch):
    def refuse(self):
        raise MemoryError

    monkeypatch.setattr(ScoreTensor, "to_dense", refuse)
    plan = PLANS[name].__class__(**{**PLANS[name].to_dict(), "content_bias": content_bias})
    decompose(random_scores(), plan, query_moments=random_moments(), max_sweeps=2)
    with pytest.raises(MemoryError):  # the trap works: tensorly's solvers do build it
        decompose(random_scores(), PLANS["cp"], solver="tensorly.parafac")


def test_shapes_that_do_not_fit_are_refused():
    query, key = normal(4, 24, 6), normal(4, 24, 6)
    with pytest.raises(DecompositionError, match=r"must have shapes .* got \(4, 24, 6\), \(4, 24, 5\)"):
        ScoreTensor(query, key[..., :5])
    with pytest.raises(DecompositionError, match="must have shapes"):
        ScoreTensor(query, key, normal(4, 5))
    with pytest.raises(DecompositionError, match="one floating dtype"):
        ScoreTensor(query, key.float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["query", "key", "query_bias"])
def test_values_that_are_not_finite_are_refused(bad, part):
    parts = {"query": normal(4, 24, 6), "key": normal(4, 24, 6), "query_bias": normal(4, 6)}
    parts[part].view(-1)[3] = bad
    with pytest.raises(DecompositionError, match="must be finite, got inf or nan"):
        ScoreTensor(**parts)
