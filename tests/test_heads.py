"""Importance, orders, curves and ablation of heads."""

import json
import math

import numpy as np
import pytest
import torch
from random_models import PLANS, image_inputs, make_collab_, outputs, text_inputs
from scipy.stats import spearmanr
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertLMHeadModel,
    Trainer,
    TrainingArguments,
)

from collab_hf import CollabConfig, compress_, heads
from collab_hf.errors import CalibrationError, ConfigError, DataError, FamilyError, RankError
from collab_hf.host.inputs import views
from collab_hf.measure.answers import mean_metric, rank_metric
from collab_hf.parts.heads.orders import LossPath, merge_paths
from collab_hf.parts.registry import HEADS
from collab_hf.planning import Divergence
from collab_hf.planning.head_orders import kept_solutions

FIRST, SECOND = (f"encoder.layer.{layer}.attention.self" for layer in range(2))


@pytest.fixture
def batches():
    return [text_inputs(batch=8, length=12) for _ in range(4)]


@pytest.fixture
def decoder(tiny_bert):
    """A BERT decoder that also attends an encoder's states."""
    return tiny_bert(BertLMHeadModel, is_decoder=True, add_cross_attention=True).double()


# Gates


@pytest.mark.parametrize("form", ["copy", "tucker", "cp-sparse", "tucker-tied"])
def test_gates_work_on_compressed_models(form, tiny_bert):
    model, inputs = make_collab_(tiny_bert(), PLANS[form]), text_inputs()
    whole = outputs(model, inputs)
    with heads.gated(model, {FIRST: torch.ones(3), SECOND: torch.ones(3)}):
        assert torch.equal(outputs(model, inputs), whole)
    with heads.gated(model, heads.without(model, [(FIRST, 1)])):
        off = outputs(model, inputs)
    weight = model.get_submodule("encoder.layer.0.attention.output.dense").weight
    with torch.no_grad():
        weight[:, 8:16] = 0
    torch.testing.assert_close(outputs(model, inputs), off, rtol=0, atol=1e-6)
    assert (off - whole).abs().max() > 1e-2


def test_cross_attention_has_gates_and_can_lose_heads(decoder):
    sites = heads.head_sites(decoder)
    crossing = {name for name in sites if "crossattention" in name}
    assert heads.head_counts(sites, ("cross",)) == dict.fromkeys(crossing, 3)
    inputs = {**text_inputs(), "encoder_hidden_states": torch.randn(2, 5, 24).double()}
    whole = outputs(decoder, inputs)
    off = [(name, 0) for name in sites]
    with heads.gated(decoder, heads.without(decoder, off)):
        expected = outputs(decoder, inputs)
    solutions = kept_solutions(HEADS.sites(decoder), dict.fromkeys(sites, (1, 2)), None)
    with HEADS.replaced(HEADS.sites(decoder), solutions):
        found = outputs(decoder, inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)  # float64
    assert torch.equal(outputs(decoder, inputs), whole)  # `replaced` gave everything back
    assert (whole - expected).abs().max() > 1e-3


def test_wrong_gates_are_refused(tiny_bert):
    model = tiny_bert()
    for gates, message in (
        ({"encoder.layer.9": torch.ones(3)}, "gates name encoder.layer.9, which is no attention layer here"),
        ({FIRST: torch.ones(4)}, r"gates must have 3 numbers in their last dimension, got shape \(4,\)"),
    ):
        with pytest.raises(RankError, match=message), heads.gated(model, gates):
            pass
    with pytest.raises(RankError, match=f"the model has no head 3 in {FIRST}"):
        heads.without(model, [(FIRST, 3)])
    with pytest.raises(FamilyError, match="has no attention layer"):
        heads.head_sites(torch.nn.Linear(2, 2))


# Importance


def test_the_absolute_value_is_taken_where_it_is_asked_for(tiny_bert, batches):
    """Each example's importance is that of a batch of its own; tokens' shares can only add up to more."""
    model = tiny_bert(BertForSequenceClassification).double()
    batch = {**batches[0], "labels": torch.arange(8) % 3}
    found = {
        per: torch.cat([*heads.score_heads(model, [batch], per=per, normalize=False).importance.values()])
        for per in ("token", "example", "batch")
    }
    alone = [{name: values[i : i + 1] for name, values in batch.items()} for i in range(8)]
    one_by_one = heads.score_heads(model, alone, per="batch", normalize=False).importance
    torch.testing.assert_close(found["example"], torch.cat([*one_by_one.values()]))
    assert bool((found["token"] >= found["example"]).all())
    assert bool((found["example"] >= found["batch"]).all())
    assert not torch.allclose(found["example"], found["batch"])


@pytest.mark.parametrize("kind", ["text", "image"])
def test_without_labels_it_is_the_root_of_the_divergence(kind, tiny_bert, tiny_vit):
    """The size of the output's slope in a gate, by differences, against the mean over many samples."""
    model, batch = (
        (tiny_bert().double(), text_inputs()) if kind == "text" else (tiny_vit().double(), image_inputs())
    )
    count = 400
    loss = heads.sampled_loss(0)
    many = heads.score_heads(
        model,
        [batch] * count,
        loss=lambda m, x, number: loss(m, x, number),
        per="batch",
        normalize=False,
    ).importance
    step = 1e-4
    mask = batch.get("attention_mask")
    # Of one batch, |v . J| has the mean sqrt(2 / pi) |J|; sizes are over the batch's two examples.
    whole = views(outputs(model, batch), mask)
    for name, values in many.items():
        for head, value in enumerate(values):
            ends = []
            for sign in (1, -1):
                gate = torch.ones(3, dtype=torch.float64)
                gate[head] += sign * step
                with heads.gated(model, {name: gate}):
                    ends.append(views(outputs(model, batch), mask))
            slope = sum(
                float(((a - b) / (2 * step)).square().sum() / w.square().sum() / 3)
                for a, b, w in zip(*ends, whole, strict=True)
            )
            # `batch` sums over the two examples, whose noise is independent; per example it divides by both.
            expected = math.sqrt(2 / math.pi) * math.sqrt(slope * 2) / 2
            # The mean of 400 absolute normals is known to 4 %, one standard error; 4 of them here.
            assert float(value) == pytest.approx(expected, rel=0.16)


def test_importance_without_labels_predicts_what_ablation_measures(tiny_bert, batches):
    model = tiny_bert(num_attention_heads=6, num_hidden_layers=3)
    scores = torch.cat([*heads.score_heads(model, batches * 8, normalize=False).importance.values()])
    divergence, measured = Divergence(model, batches), []
    for name, site in heads.head_sites(model).items():
        for head in range(site.num_heads):
            with heads.gated(model, heads.without(model, [(name, head)])):
                measured.append(divergence.measure())
    assert spearmanr(scores, measured).statistic > 0.8
    shuffled = scores[torch.randperm(len(scores))]
    assert spearmanr(shuffled, measured).statistic < 0.6  # negative control


def test_layers_are_normalised(tiny_bert, batches):
    raw = heads.score_heads(tiny_bert(), batches, normalize=False)
    scaled = heads.score_heads(tiny_bert(), batches)
    for name, values in scaled.importance.items():
        assert float(values.norm()) == pytest.approx(1)
        torch.testing.assert_close(values, raw.importance[name] / raw.importance[name].norm())
    assert scaled.examples == 32
    assert not scaled.labelled


def test_scoring_goes_on_where_it_was_cut_off(tiny_bert, batches, tmp_path):
    model, state = tiny_bert(), tmp_path / "state.json"
    whole = heads.score_heads(model, batches)

    def cut_off():
        yield from batches[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heads.score_heads(model, cut_off(), state=state)
    assert json.loads(state.read_text())["batches"] == 2
    seen = [{"input_ids": None}, {"input_ids": None}]  # what was seen is not looked at again
    resumed = heads.score_heads(model, [*seen, *batches[2:]], state=state)
    for name, values in whole.importance.items():
        assert torch.equal(resumed.importance[name], values)
    with pytest.raises(ConfigError, match="is the state of another model or of other settings"):
        heads.score_heads(model, batches, per="token", state=state)
    state.write_text("{")
    with pytest.raises(ConfigError, match="can't be read as a state of scoring"):
        heads.score_heads(model, batches, state=state)


def test_scoring_leaves_the_model_as_it_was(tiny_bert, batches):
    model = tiny_bert().train()
    model.requires_grad_(False)
    found = heads.score_heads(model, batches)
    assert model.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert all(bool((values > 0).all()) for values in found.importance.values())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_head_that_is_off_is_worth_nothing(tiny_bert, batches):
    model = tiny_bert()
    found = heads.score_heads(model, batches, gates=heads.without(model, [(FIRST, 2)])).importance
    assert float(found[FIRST][2]) == 0
    assert bool((found[FIRST][:2] > 0).all())


def test_unusable_batches_are_named(tiny_bert, batches):
    model = tiny_bert()
    for given, message in (
        ([], "heads can't be scored without any batch"),
        ([{"labels": torch.tensor([1])}], "refused batch 1 with the inputs labels"),
    ):
        with pytest.raises(CalibrationError, match=message):
            heads.score_heads(model, given)
    with pytest.raises(CalibrationError, match="BertModel gave no loss on batch 1"):
        heads.score_heads(model, batches, loss=heads.labelled_loss)
    with pytest.raises(ConfigError, match="per must be token, example or batch, got 'word'"):
        heads.score_heads(model, batches, per="word")


# Orders


def test_orders_by_numbers():
    scores = {"a": [0.3, 0.1], "b": [0.1, 0.2]}
    assert heads.order_by(scores) == [("a", 1), ("b", 0), ("b", 1), ("a", 0)]
    assert heads.order_by(scores, reverse=True) == [("a", 0), ("b", 1), ("a", 1), ("b", 0)]
    counts = {"a": 2, "b": 2}
    assert sorted(heads.random_order(counts, 1)) == sorted(heads.order_by(scores))
    assert heads.random_order(counts, 1) == heads.random_order(counts, 1)
    assert len({tuple(heads.random_order({"a": 4, "b": 4}, seed)) for seed in range(5)}) == 5


def test_paths_merge_by_what_the_next_head_costs():
    paths = {"a": LossPath([1, 0], [0, 1, 5]), "b": LossPath([0, 1, 2], [0, 2, 4.5, 6])}
    assert merge_paths(paths) == [("a", 1), ("b", 0), ("b", 1), ("b", 2), ("a", 0)]


def test_layers_keep_what_they_must():
    order, counts = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)], {"a": 3, "b": 2}
    assert heads.first_to_go(order, 3, counts) == [("a", 0), ("a", 1), ("b", 0)]
    assert heads.first_to_go(order, 1, counts, at_least=2) == [("a", 0)]
    assert heads.heads_left(counts, [("a", 1)]) == {"a": (0, 2)}
    with pytest.raises(RankError, match="4 of 5 heads can't go: with at least 1 left in every layer, 3 can"):
        heads.first_to_go(order, 4, counts)
    with pytest.raises(RankError, match="every layer keeps at least 1 head, got 0"):
        heads.first_to_go(order, 1, counts, at_least=0)
    with pytest.raises(RankError, match="the order names 1 heads that can go, 2 were asked for"):
        heads.first_to_go(order[:1], 2, counts)
    with pytest.raises(RankError, match="the model has no head 3 in a"):
        heads.heads_left(counts, [("a", 3)])


def useless_heads_(model):
    """One head of each layer does nothing, and another one copies its neighbour."""
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.attention.output.dense.weight[:, :4] *= 1e-3
            attention = layer.attention.self
            for projection in (attention.query, attention.key, attention.value):
                projection.weight[8:12] = projection.weight[4:8]
                projection.bias[8:12] = projection.bias[4:8]
    return model


def test_what_does_nothing_goes_first_and_what_others_hold_goes_next(tiny_bert, batches):
    """Importance sees the first kind alone: a copied head moves the output like any other."""
    model = useless_heads_(tiny_bert(num_attention_heads=6))
    order = heads.pruning_order(model, batches)
    for layer in (FIRST, SECOND):
        first = {head for name, head in order[:4] if name == layer}
        assert first in ({0, 1}, {0, 2})
    importance = heads.pruning_order(model, batches, by="importance")
    assert set(importance[:2]) == {(FIRST, 0), (SECOND, 0)}
    assert not {head for _, head in importance[2:4]} <= {1, 2}
    assert heads.pruning_order(model, batches, by="reverse") == importance[::-1]

    def measure(model):
        return divergence.measure()

    divergence = Divergence(model, batches)
    refitted = heads.pruning_curve(model, order, [0, 4 / 12], measure, batches=batches)
    plain = heads.pruning_curve(model, order, [0, 4 / 12], measure)
    assert refitted[0] == pytest.approx(0, abs=1e-9)
    assert refitted[1] < 1e-3
    assert plain[1] > 30 * refitted[1]  # negative control: the copies must take over


def test_the_oracle_goes_by_what_was_measured(tiny_bert, batches):
    model = useless_heads_(tiny_bert(num_attention_heads=6))
    order = heads.pruning_order(model, batches, by="oracle")
    assert set(order[:2]) == {(FIRST, 0), (SECOND, 0)}
    assert len(order) == 12


@pytest.mark.parametrize("by", ["compensated", "importance", "oracle"])
def test_steps_look_at_what_is_left(by, tiny_bert, batches):
    """A head and its copy are worth nothing beside each other, but the last of the two is worth much."""
    model = useless_heads_(tiny_bert(num_attention_heads=6))
    plans = heads.pruning_plan(model, batches, 0.5, by=by, steps=3)
    assert sum(6 - len(plan.kept) for plan in plans.values()) == 6
    assert all(0 not in plan.kept for plan in plans.values())
    if by == "compensated":
        assert all({1, 2} & set(plan.kept) for plan in plans.values())
    again = heads.pruning_plan(model, batches, 0.5, by=by, steps=3)
    assert again == plans


def test_kinds_of_attention_go_apart(decoder):
    data = [{**text_inputs(8), "encoder_hidden_states": torch.randn(8, 5, 24).double()} for _ in range(2)]
    plans = heads.pruning_plan(decoder, data, 0.5, by="importance", attention=("cross",))
    assert plans
    assert all("crossattention" in name for name in plans)
    with pytest.raises(ConfigError, match="no layer is vision attention"):
        heads.pruning_plan(decoder, data, 0.5, attention=("vision",))


def test_settings_that_make_no_sense(tiny_bert, batches):
    model = tiny_bert()
    for settings, message in (
        ({"share": 1.0}, "share must be between 0 and 1"),
        ({"share": 0.5, "by": "magic"}, "by must be one of compensated, importance, random, reverse, oracle"),
        ({"share": 0.5, "steps": 0}, "steps must be a whole number of at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            heads.pruning_plan(model, batches, **settings)
    with pytest.raises(FamilyError, match="can't be taken out: its queries and keys are compressed"):
        heads.pruning_plan(make_collab_(model, PLANS["tucker"]), batches, 0.5, by="random")


# Ablation


def test_metrics_of_many_samples_equal_those_of_each():
    random = np.random.default_rng(0)
    answers, scores = random.normal(size=40).round(1), random.integers(0, 6, 40)  # with ties
    rows = random.integers(0, 40, (20, 40))
    expected = [spearmanr(answers[row], scores[row]).statistic for row in rows]
    np.testing.assert_allclose(rank_metric(scores.tolist())(answers, rows), expected, atol=1e-12)
    np.testing.assert_allclose(mean_metric(answers, rows), [answers[row].mean() for row in rows])


def test_effects_and_their_significance(tiny_bert, batches):
    model = useless_heads_(tiny_bert(num_attention_heads=6))
    with torch.no_grad():
        model.encoder.layer[0].attention.output.dense.weight[:, :4] = 0

    def answers(model):
        return torch.cat([outputs(model, batch)[:, 0, 0] for batch in batches]).double().numpy()

    whole = answers(model)
    base, found = heads.ablate_heads(model, answers, rank_metric(whole.tolist()))
    assert base == pytest.approx(1)
    effects = {(effect.layer, effect.head): effect for effect in found}
    assert effects[FIRST, 0].effect == 0
    assert effects[FIRST, 0].p_value == 1
    assert all(effects[FIRST, head].effect < 0 for head in range(3, 6))
    assert all(effects[FIRST, head].p_value < 0.01 for head in range(3, 6))
    with pytest.raises(DataError, match="at least two examples"):
        heads.ablate_heads(model, lambda model: np.ones(1), mean_metric)


def test_a_tolerance_is_no_loss(tiny_bert, batches):
    """All answers fall by .1: more than .05, not more than .2."""
    model, falls = tiny_bert(), iter([0.0, *[0.1] * 6] * 3)

    def answers(model):
        return np.linspace(0, 1, 50) - next(falls)

    for tolerance, least, most in ((0.0, 0, 0.01), (0.05, 0, 0.01), (0.2, 1, 1)):
        _, found = heads.ablate_heads(model, answers, mean_metric, tolerance=tolerance)
        assert all(least <= effect.p_value <= most for effect in found)


def test_all_but_one(tiny_bert, batches):
    model = tiny_bert()
    reference = outputs(model, batches[0])

    def answers(model):
        return -(outputs(model, batches[0]) - reference).flatten(1).norm(dim=1).double().numpy()

    _, alone = heads.ablate_heads(model, answers, mean_metric, all_but_one=True)
    for effect in alone:
        off = [(effect.layer, head) for head in range(3) if head != effect.head]
        with heads.gated(model, heads.without(model, off)):
            assert effect.metric == pytest.approx(answers(model).mean())
    assert heads.reducible_layers(alone) == {}
    fine = [heads.HeadEffect("a", 0, 0.5, -0.4, 0.001), heads.HeadEffect("a", 1, 0.9, -0.1, 0.3)]
    assert heads.reducible_layers(fine) == {"a": fine[1]}


def test_a_map_of_all_heads(tmp_path):
    pytest.importorskip("matplotlib")
    heads.heat_map({"a": [0.1, -0.2], "b": [0.0]}, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"a plot is a \.png file"):
        heads.heat_map({"a": [0.1]}, tmp_path / "map.svg")


# After pruning


class FirstTokenTells(Dataset):
    """Sentences of random tokens whose label is the class of the first one: attention must find it."""

    def __init__(self, count):
        self.ids = torch.randint(3, 50, (count, 8))
        self.ids[:, 0] %= 3

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index, 0].clone()}


def test_a_pruned_model_trains_and_loads(tiny_bert, batches, tmp_path):
    model = tiny_bert(BertForSequenceClassification)
    plans = {"heads": {FIRST: {"kept": [0, 2]}, SECOND: {"kept": [1]}}}
    compress_(model, CollabConfig(plans=plans, reconstruct_steps=0), batches)
    arguments = TrainingArguments(
        tmp_path / "run",
        max_steps=20,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        logging_steps=5,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, arguments, train_dataset=FirstTokenTells(320))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    trainer.save_model(str(tmp_path / "tuned"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned")
    assert torch.equal(outputs(loaded, batches[0]), outputs(model.eval(), batches[0]))
    assert [site.num_heads for site in heads.head_sites(loaded).values()] == [2, 1]
