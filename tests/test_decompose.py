from dataclasses import replace

import pytest
import torch
from tensor_cases import PLANS, random_moments, random_scores, relative_error

from collab_hf import compress_
from collab_hf.errors import DecompositionError
from collab_hf.modeling.errors import ConfigError, RankError
from collab_hf.modeling.plan import LayerPlan
from collab_hf.tensors import Problem, ScoreTensor, decompose, solvers

BIASES = ["exact", "folded"]


def tensors(factors):
    found = {"query": factors.shared_query, "key": factors.shared_key, **factors.mixing.state_dict()}
    return found if factors.content_bias is None else {**found, "content_bias": factors.content_bias}


@pytest.mark.parametrize("content_bias", BIASES)
@pytest.mark.parametrize("name", PLANS)
def test_same_input_gives_the_same_bytes(name, content_bias):
    plan = replace(PLANS[name], content_bias=content_bias)
    first, second = (
        tensors(decompose(random_scores(), plan, query_moments=random_moments())) for _ in range(2)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert len(first) == len(second)


@pytest.mark.parametrize("name", PLANS)
def test_shapes_and_parameters_are_the_plans(name):
    for content_bias in BIASES:
        plan = replace(PLANS[name], content_bias=content_bias)
        factors = decompose(random_scores(), plan)
        assert factors.shared_query.shape == (24, plan.query_rank)
        assert factors.shared_key.shape == (24, plan.key_rank)
        assert (factors.content_bias is None) == (content_bias == "folded")
        assert (factors.mixing.bias is None) == (content_bias == "exact")
        assert factors.num_parameters == factors.plan.num_parameters(random_scores().shape)
        assert factors.plan == replace(plan, score_width=factors.plan.score_width)


@pytest.mark.parametrize("name", PLANS)
def test_weights_alone_give_the_error_of_the_weights(name):
    scores = random_scores()
    factors = decompose(scores, PLANS[name])
    # Errors come out of a difference of squares: the root of float64's 2e-16.
    assert factors.relative_error == pytest.approx(relative_error(scores, factors.expand()), abs=1e-7)
    assert torch.equal(factors.content_bias, scores.content_bias())


@pytest.mark.parametrize("content_bias", BIASES)
def test_copy_is_the_layer_itself(content_bias):
    scores = random_scores()
    plan = replace(PLANS["copy"], content_bias=content_bias)
    factors = decompose(scores, plan, query_moments=random_moments())
    assert torch.allclose(factors.expand(), scores.to_dense(), atol=1e-12)
    assert torch.allclose(factors.expand_content_bias(), scores.content_bias(), atol=1e-10)
    assert factors.relative_error == 0


@pytest.mark.parametrize("name", sorted(PLANS.keys() - {"copy"}))
def test_folding_the_content_bias_costs_little_and_is_counted(name):
    """The folded error has the bias in it, so at these ranks it lies above the exact one, not far."""
    scores, moments = random_scores(), random_moments()
    exact, folded = (
        decompose(scores, replace(PLANS[name], content_bias=b), query_moments=moments).relative_error
        for b in BIASES
    )
    assert exact - 1e-3 < folded < 1.15 * exact  # sparse supports differ, hence the small slack below


@pytest.mark.parametrize("name", [name for name, plan in PLANS.items() if not plan.tied])
def test_cross_attention_has_a_metric_for_each_side(name):
    scores = random_scores(key_size=17)
    plan = PLANS[name]
    query, key = random_moments(24), random_moments(17, seed=2)
    for content_bias in BIASES:
        factors = decompose(
            scores, replace(plan, content_bias=content_bias), query_moments=query, key_moments=key
        )
        assert factors.shared_key.shape[0] == 17
        assert torch.isfinite(factors.expand()).all()
    one_sided = decompose(scores, plan, query_moments=query)  # nothing is known of the keys
    assert torch.isfinite(one_sided.expand()).all()


def test_tied_projections_need_one_input():
    plan, moments = PLANS["tied"], random_moments()
    with pytest.raises(RankError, match="tied needs queries and keys from the same input"):
        decompose(random_scores(key_size=17), plan)
    with pytest.raises(DecompositionError, match="moments of one input"):
        decompose(random_scores(), plan, query_moments=moments, key_moments=random_moments(seed=2))
    factors = decompose(random_scores(), plan, query_moments=moments)
    assert factors.shared_key is factors.shared_query


@pytest.mark.parametrize("name", PLANS)
def test_layers_without_query_bias_fold_too(name):
    plan = replace(PLANS[name], content_bias="folded")
    scores = random_scores(bias=False)
    factors = decompose(scores, plan)
    assert torch.allclose(factors.expand_content_bias(), torch.zeros(4, 24, dtype=torch.float64), atol=1e-12)
    assert decompose(scores, plan, query_moments=random_moments()).mixing.bias.abs().max() > 0


@pytest.mark.parametrize("name", PLANS)
def test_float32_is_close_to_float64(name):
    scores, moments = random_scores(), random_moments()
    single = decompose(scores, PLANS[name], query_moments=moments, precision="float32")
    double = decompose(scores, PLANS[name], query_moments=moments)
    assert single.shared_query.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in single.mixing.parameters())
    # 1e-3: squares lose half of float32's seven digits, and the solvers may stop a sweep apart.
    assert single.relative_error == pytest.approx(double.relative_error, abs=2e-3)


@pytest.mark.parametrize("solver", ["tensorly.parafac", "tensorly.non_negative_parafac"])
def test_any_cp_solver_of_tensorly_serves(solver):
    for content_bias in BIASES:
        plan = replace(PLANS["cp"], content_bias=content_bias)
        theirs = decompose(random_scores(), plan, solver=solver, query_moments=random_moments())
        mine = decompose(random_scores(), plan, query_moments=random_moments())
        assert mine.relative_error - 1e-2 <= theirs.relative_error < 1


@pytest.mark.parametrize("solver", ["tensorly.tucker", "tensorly.partial_tucker"])
def test_any_tucker_solver_of_tensorly_serves(solver):
    for content_bias in BIASES:
        plan = replace(PLANS["tucker"], content_bias=content_bias)
        theirs = decompose(random_scores(), plan, solver=solver, query_moments=random_moments())
        mine = decompose(random_scores(), plan, query_moments=random_moments())
        assert theirs.relative_error >= mine.relative_error - 1e-4


@pytest.mark.parametrize(
    ("name", "solver", "message"),
    [
        ("cp", "parafac", "such as tensorly.parafac, got 'parafac'"),
        ("cp", "tensorly.no_such_thing", "got 'tensorly.no_such_thing'"),
        ("cp", "tensorly.tucker", "tensorly.tucker does not fit method cp"),
        ("tucker", "tensorly.parafac", "tensorly.parafac does not fit method tucker"),
        ("cp", "tensorly.randomised_parafac", "randomised_parafac failed: .*n_samples"),
        ("cp", "tensorly.tensor_train", "gives neither a CP nor a Tucker tensor"),
        ("sparse cp", "tensorly.parafac", "needs method cp without dims_per_head"),
        ("svd", "tensorly.parafac", "needs method cp"),
        ("key groups", "tensorly.tucker", "no key_groups"),
    ],
)
def test_solvers_that_do_not_fit_are_refused(name, solver, message):
    with pytest.raises(DecompositionError, match=message):
        decompose(random_scores(), PLANS[name], solver=solver)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (LayerPlan("cp", 25, 25, 25), "rank must be between 1 and 24, got 25"),
        (LayerPlan("cp", 0, 0, 0), "rank must be between 1 and 24, got 0"),
        (LayerPlan("cp", 10, 9, 9), "key_rank must equal query_rank for cp, got 9 and 10"),
        (LayerPlan("copy", 20, 20, 5), "must be 24 and 6 for copy"),
        (
            LayerPlan("tucker", 10, 8, 4, head_rank=2),
            "score_width must be key_rank / key_groups with head_rank",
        ),
        (LayerPlan("svd", 10, 10, 2), "at most 8 with 2 per head"),
        (LayerPlan("tucker", 10, 8, 4, tied=True), "key_rank must equal query_rank where they are tied"),
        (LayerPlan("svd", 10, 10, 4, tied=True), "tied belong to tucker"),
        (LayerPlan("tucker", 8, 8, 4, key_groups=2, tied=True), "tied belongs to tucker without key_groups"),
    ],
)
def test_ranks_out_of_range_are_refused(plan, message):
    with pytest.raises(RankError, match=message):
        decompose(random_scores(), plan)


def test_unknown_methods_are_refused():
    with pytest.raises(ConfigError, match="method must be one of cp, tucker, svd, copy, got 'qr'"):
        decompose(random_scores(), LayerPlan("qr", 4, 4, 4))


def test_the_input_is_left_alone():
    scores = random_scores()
    before = [t.clone() for t in (scores.query, scores.key, scores.query_bias)]
    decompose(scores, PLANS["copy"]).shared_query.zero_()
    for name in PLANS:
        decompose(scores, PLANS[name], query_moments=random_moments(), max_sweeps=2)
    after = (scores.query, scores.key, scores.query_bias)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_parameters_that_need_gradients_are_fine():
    """Weights of a model in training."""
    scores = random_scores()
    weights = ScoreTensor(*(t.requires_grad_() for t in (scores.query, scores.key, scores.query_bias)))
    for plan in PLANS.values():
        factors = decompose(weights, plan, query_moments=random_moments(), max_sweeps=2)
        assert not factors.shared_query.requires_grad


def test_forms_that_share_a_problem_get_what_each_gets_alone():
    scores, moments = random_scores(), random_moments()
    problem = Problem.prepare(scores, query_moments=moments)
    for plan in PLANS.values():
        for content_bias in ("exact", "folded"):
            plan = replace(plan, content_bias=content_bias)
            shared, alone = problem.solve(plan), decompose(scores, plan, query_moments=moments)
            assert torch.equal(shared.shared_key, alone.shared_key)
            assert shared.relative_error == alone.relative_error


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: replace(s, shared_key=s.shared_key * torch.nan), "numbers that are not finite"),
        (lambda s: replace(s, errors=[*s.errors, float("nan")]), "numbers that are not finite"),
        (lambda s: replace(s, errors=[0.5, 0.6]), "0.6, above the 0.5 of its start"),
    ],
)
def test_a_solver_that_goes_wrong_stops_the_run_and_names_the_layer(monkeypatch, tiny_bert, spoil, said):
    real = solvers.SOLVERS["tucker"]
    monkeypatch.setitem(solvers.SOLVERS, "tucker", lambda *given: spoil(real(*given)))
    settings = {"method": "tucker", "rank": 8, "layers": {"encoder.layer.0.*": "dense"}}
    with pytest.raises(DecompositionError, match=said) as error:
        compress_(tiny_bert(), settings, None)
    assert str(error.value).endswith("(encoder.layer.1.attention.self)")
