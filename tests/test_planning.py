"""Plans: targets are met, losses are measured, layers are left as they were, and curves are cached."""

import copy
import math
import weakref
from dataclasses import replace

import pytest
import torch
from conftest import REPOSITORY
from transformers import BertForSequenceClassification

from collab_hf import CollabConfig, collect_statistics, compress_
from collab_hf.calibration.held_out import split_batches
from collab_hf.host.sites import attention_sites
from collab_hf.modeling.errors import ConfigError
from collab_hf.modeling.plan import LayerPlan
from collab_hf.modeling.shapes import AttentionShape
from collab_hf.parts.part import Option
from collab_hf.parts.query_key.candidates import layer_settings, score_tensor
from collab_hf.parts.query_key.costs import attention_operations, break_even_length
from collab_hf.parts.query_key.dense_heads import replaced
from collab_hf.parts.query_key.options import all_options, kind, layer_options
from collab_hf.parts.query_key.spectra import rank_grid, seen_scores
from collab_hf.parts.registry import PARTS
from collab_hf.planning import Divergence, cache, plan_model
from collab_hf.planning.curves import Curve, measured_curves, predicted_curves
from collab_hf.recipe import Recipe
from collab_hf.surgery.preview import preview
from collab_hf.tensors import decompose

# float64 sums in another order.
ROUNDING = 1e-9
# float32 forward passes of two layers.
SINGLE = 1e-4


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAB_HF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def batches():
    return [
        {"input_ids": torch.randint(50, (8, 12)), "attention_mask": torch.ones(8, 12, dtype=torch.long)}
        for _ in range(6)
    ]


PART = PARTS["query_key"]


def modules_of(sites):
    return {name: site.module for name, site in sites.items()}


@pytest.fixture
def seen(tiny_bert, batches):
    """First layer of a tiny model: module scores and the moments of its input."""
    model = tiny_bert()
    name, site = next(iter(attention_sites(model).items()))
    statistics = collect_statistics(model, {name: site.module}, batches)[name]
    return score_tensor(site, CollabConfig()), statistics


class TestSpectra:
    def test_truncation_errors_are_those_of_the_solvers_before_they_iterate(self, seen):
        scores, statistics = seen
        forms = all_options(seen_scores(scores, statistics, 1e-3), CollabConfig(), scores.shape)
        checked = set()
        for form in forms[1::37]:
            factors = decompose(scores, form.plan, query_moments=statistics.query, max_sweeps=0)
            assert factors.relative_error == pytest.approx(form.error, abs=ROUNDING)
            checked.add(form.plan.method)
        assert checked == {"svd", "tucker"}

    def test_without_data_they_are_errors_of_the_weights(self, seen):
        scores, statistics = seen
        form = all_options(seen_scores(scores, None, 1e-3), CollabConfig(), scores.shape)[10]
        blind = decompose(scores, form.plan, max_sweeps=0).relative_error
        assert blind == pytest.approx(form.error, abs=ROUNDING)
        aware = decompose(scores, form.plan, query_moments=statistics.query, max_sweeps=0).relative_error
        assert abs(aware - form.error) > 1e-3  # negative control: the metric matters

    def test_forms_are_undominated_and_never_wider_than_a_head(self, seen):
        scores, statistics = seen
        forms = layer_options(seen_scores(scores, statistics, 1e-3), CollabConfig(), scores.shape)
        (dense,) = [f for f in forms if f.plan is None]
        assert dense.error == 0
        kinds = [kind(f) for f in forms if f is not dense]
        assert len(set(kinds)) == 4
        for name in set(kinds):
            same = [f for f in forms if kind(f) == name]
            assert [f.parameters for f in same] == sorted(f.parameters for f in same)
        assert all(f.plan.score_width <= scores.shape.head_dim for f in forms if f is not dense)

    def test_cross_attention_is_not_tied(self, seen):
        scores, statistics = seen
        scores = seen_scores(scores, statistics, 1e-3)
        assert any(f.plan and f.plan.tied for f in layer_options(scores, CollabConfig(), scores.shape))
        assert not any(
            f.plan and f.plan.tied
            for f in layer_options(scores, CollabConfig(), replace(scores.shape, cross=True))
        )

    def test_only_self_attention_is_offered_tied_forms(self, tiny_bert):
        sites = attention_sites(tiny_bert(is_decoder=True, add_cross_attention=True))
        curves = predicted_curves(PART, sites, dict.fromkeys(sites, CollabConfig()), None)
        tied = {curve.name: any(f.plan and f.plan.tied for f in curve.options) for curve in curves}
        assert tied == {name: "crossattention" not in name for name in sites}
        assert len(set(tied.values())) == 2

    def test_measured_forms_have_the_errors_that_sweeps_reach(self, tiny_bert, batches):
        model = tiny_bert()
        sites = attention_sites(model)
        settings = dict.fromkeys(sites, CollabConfig(reconstruct_steps=0))
        statistics = collect_statistics(model, modules_of(sites), batches)
        truncated = predicted_curves(PART, sites, settings, statistics)
        solved = measured_curves(model, PART, sites, settings, statistics, batches, batches)
        lower = 0
        for before, after in zip(truncated, solved, strict=True):
            errors = {form.plan: form.error for form in before.options}
            for form in after.options:
                if kind(form) in ("svd", "dense"):  # truncation is the best that there is
                    assert form.error == errors[form.plan]
                else:
                    assert form.error <= errors[form.plan]
                    lower += form.error < 0.999 * errors[form.plan]
        assert lower > 0

    def test_large_layers_get_multiples_of_eight(self):
        assert all(rank % 8 == 0 for rank in rank_grid(768))
        assert rank_grid(6) == [1, 2, 3, 4, 5, 6]


class TestDivergence:
    def test_replaced_layer_scores_like_the_converted_one(self, tiny_bert, batches):
        model = tiny_bert()
        sites = attention_sites(model)
        statistics = collect_statistics(model, modules_of(sites), batches)
        plan = LayerPlan("tucker", 9, 5, 5, content_bias="folded")
        factors = {
            name: decompose(score_tensor(site, CollabConfig()), plan, query_moments=statistics[name].query)
            for name, site in sites.items()
        }
        divergence = Divergence(model, batches)
        with replaced(sites, factors):
            inside = divergence.measure()
        assert divergence.measure() == 0  # and the layers are as they were
        settings = dict.fromkeys(sites, layer_settings(plan))
        compress_(model, CollabConfig(layers=settings), statistics)
        assert inside == pytest.approx(divergence.measure(), rel=SINGLE)
        assert inside > 1e-3

    def test_between_two_models_is_the_same_and_keeps_no_outputs(self, tiny_bert, batches):
        model = tiny_bert()
        original, divergence = copy.deepcopy(model), Divergence(model, batches)
        with torch.no_grad():
            model.encoder.layer[0].output.dense.weight.mul_(1.1)
        outputs: list[weakref.ref[torch.Tensor]] = []
        alive = []

        def see(_module, _inputs, output):
            outputs.append(weakref.ref(output if isinstance(output, torch.Tensor) else output[0]))
            alive.append(sum(found() is not None for found in outputs))

        for block in original.encoder.layer:
            block.register_forward_hook(see)
        assert Divergence.between(model, original, batches) == divergence.measure() > 0
        assert len(alive) == 2 * len(batches) > 4
        assert max(alive) <= 3  # of the running block, of the one before, and of the batch before
        keeper = Divergence(original, batches)  # negative control: what is to be replayed is kept
        assert alive[-1] >= 2 * len(batches)
        assert keeper.measure() == 0

    def test_layers_come_back_after_an_error(self, tiny_bert):
        model = tiny_bert()
        sites = attention_sites(model)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        plan = LayerPlan("svd", 6, 6, 4, content_bias="folded")
        factors = {n: decompose(score_tensor(site, CollabConfig()), plan) for n, site in sites.items()}
        with pytest.raises(RuntimeError), replaced(sites, factors):
            raise RuntimeError
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_every_fourth_example_is_held_out(self, batches):
        kept, held = split_batches(batches)
        assert sum(len(b["input_ids"]) for b in held) == 12
        assert sum(len(b["input_ids"]) for b in kept) == 36
        rows = {tuple(r.tolist()) for b in kept for r in b["input_ids"]}
        assert not rows & {tuple(r.tolist()) for b in held for r in b["input_ids"]}

    def test_too_few_examples_serve_for_both(self, batches):
        few = [{"input_ids": batches[0]["input_ids"][:3]}]
        assert split_batches(few) == (few, few)


class TestCurves:
    def test_losses_are_a_power_of_the_error(self):
        """Fitted to the knots in logarithms; the square where their noise has the loss fall."""
        plan = LayerPlan("svd", 6, 6, 4, content_bias="folded")
        errors = [0.0, 0.1, 0.2, 0.4]
        options = tuple(Option(None if e == 0 else plan, 100, e) for e in errors)
        shape = AttentionShape(24, 24, 3, 8)
        rising = Curve("layer", shape, 384, options, ((0.1, 0.001), (0.4, 0.064)), interaction=2.0)
        assert rising.losses_alone() == pytest.approx([0, 0.001, 0.008, 0.064])
        assert rising.losses() == pytest.approx([0, 0.002, 0.016, 0.128])
        falling = Curve("layer", shape, 384, options, ((0.1, 0.08), (0.4, 0.02)))
        assert falling.losses_alone() == pytest.approx([0, 0.01, 0.04, 0.16])


class TestTargets:
    @pytest.mark.parametrize("budget", [0.5, 0.25, 0.125])
    def test_budget_is_kept(self, tiny_bert, batches, budget):
        report = compress_(tiny_bert(), CollabConfig(budget=budget), batches)
        assert report.qk_parameters_after <= budget * report.qk_parameters_before
        assert report.predicted_loss > 0
        assert report.measured_loss > 0

    def test_target_params(self, tiny_bert, batches):
        report = compress_(tiny_bert(), CollabConfig(target_params=700), batches)
        assert report.qk_parameters_after <= 700

    def test_target_flops(self, tiny_bert, batches):
        found = preview(tiny_bert(), CollabConfig(target_flops="16:0.4"), batches)
        assert found.operations_share(16) <= 0.4

    def test_max_loss_takes_the_smallest_that_keeps_it(self, tiny_bert, batches):
        loose = preview(tiny_bert(), CollabConfig(max_loss=0.2), batches)
        tight = preview(tiny_bert(), CollabConfig(max_loss=0.02), batches)
        assert loose.planned.predicted_loss <= 0.2
        assert tight.planned.predicted_loss <= 0.02
        assert loose.qk_parameters_after < tight.qk_parameters_after

    def test_nothing_asked_is_the_knee_within_bounds(self, tiny_bert, batches):
        found = preview(tiny_bert(), CollabConfig(), batches)
        assert 0.05 < found.qk_parameters_after / found.qk_parameters_before <= 0.5

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"budget": 0.001}, r"budget must be at least 0\.\d+, got 0.001"),
            ({"target_params": 3}, r"target_params must be at least \d+, got 3"),
            ({"target_flops": "16:0.01"}, r"target_flops must be at least 16:0\.\d+"),
            ({"target_flops": "long"}, "target_flops must be LENGTH:SHARE"),
        ],
    )
    def test_impossible_says_the_smallest_possible(self, tiny_bert, batches, settings, message):
        with pytest.raises(ConfigError, match=message):
            preview(tiny_bert(), CollabConfig(**settings), batches)

    def test_the_smallest_possible_is_possible(self, tiny_bert, batches):
        with pytest.raises(ConfigError) as error:
            preview(tiny_bert(), CollabConfig(budget=0.001), batches)
        least = float(str(error.value).split("at least ")[1].split(",")[0])
        preview(tiny_bert(), CollabConfig(budget=least), batches)
        with pytest.raises(ConfigError):
            preview(tiny_bert(), CollabConfig(budget=least - 0.001), batches)

    def test_goals_exclude_each_other(self):
        with pytest.raises(ConfigError, match="give one of"):
            CollabConfig(budget=0.5, max_loss=0.1)
        with pytest.raises(ConfigError, match="belongs to method auto"):
            CollabConfig(method="svd", max_loss=0.1)

    def test_overrides_are_left_alone(self, tiny_bert, batches):
        override = {"*.0.*": {"method": "svd", "rank": 6}}
        report = compress_(tiny_bert(), CollabConfig(budget=0.3, layers=override), batches)
        assert report.layers[0].method == "svd"
        assert report.layers[0].rank == 6

    def test_a_budget_beside_a_planned_recipe_is_warned_of(self, tiny_bert, batches):
        planned = compress_(tiny_bert(), CollabConfig(budget=0.5), batches).config
        for settings in ({"budget": 0.25}, {"target_params": 500}, {"max_loss": 0.1}):
            with pytest.warns(UserWarning, match=f"{next(iter(settings))} has no effect"):
                compress_(tiny_bert(), replace(planned, **settings), batches)

    def test_given_layers_count_towards_the_budget(self, tiny_bert, batches):
        dense = {"*.0.*": "dense"}
        report = compress_(tiny_bert(), CollabConfig(budget=0.7, layers=dense), batches)
        assert report.layers[0].method == "dense"
        assert report.qk_parameters_after <= 0.7 * report.qk_parameters_before
        with pytest.raises(ConfigError, match=r"at least 0\.5"):
            compress_(tiny_bert(), CollabConfig(budget=0.3, layers=dense), batches)

    def test_statistics_or_nothing_plan_by_error(self, tiny_bert, batches):
        model = tiny_bert()
        statistics = collect_statistics(model, modules_of(attention_sites(model)), batches)
        for data in (statistics, None):
            report = compress_(tiny_bert(), CollabConfig(budget=0.3), data)
            assert report.qk_parameters_after <= 0.3 * report.qk_parameters_before
            assert report.measured_loss is None


class TestReproduction:
    def test_resolved_settings_give_the_same_weights(self, tiny_bert, batches):
        first, second = tiny_bert(), tiny_bert()
        report = compress_(first, CollabConfig(budget=0.3), batches)
        again = CollabConfig.from_dict(report.config.to_dict())
        compress_(second, again, batches)
        other = second.state_dict()
        assert all(torch.equal(value, other[name]) for name, value in first.state_dict().items())

    def test_head_is_left_out_of_the_comparison(self, tiny_bert, batches):
        report = compress_(tiny_bert(BertForSequenceClassification), CollabConfig(budget=0.3), batches)
        assert report.measured_loss > 0


class TestCache:
    def plan(self, model, batches, budget=0.3):
        return plan_model(model, PART, attention_sites(model), CollabConfig(budget=budget), batches)

    def test_second_budget_measures_nothing(self, tiny_bert, batches, monkeypatch):
        model = tiny_bert()
        first = self.plan(model, batches)
        monkeypatch.setattr(Divergence, "__init__", lambda *_: pytest.fail("measured again"))
        assert self.plan(model, batches).to_dict() == first.to_dict()
        assert self.plan(model, batches, 0.5).predicted_loss < first.predicted_loss

    def test_other_weights_or_data_are_another_entry(self, tiny_bert, batches):
        model, settings = tiny_bert(), {"layer": CollabConfig()}
        fingerprint = cache.Fingerprint(model, batches)
        key = fingerprint.key(settings)
        assert key == fingerprint.key({"layer": CollabConfig(budget=0.5)})
        assert key != fingerprint.key({"layer": CollabConfig(damping=0.1)})
        assert key != cache.Fingerprint(model, batches[:-1]).key(settings)
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
        assert key != cache.Fingerprint(model, batches).key(settings)

    def test_damaged_entries_are_measured_again(self, tiny_bert, batches):
        model = tiny_bert()
        first = self.plan(model, batches)
        (entry,) = cache.directory().glob("*.safetensors")
        entry.write_bytes(entry.read_bytes()[:-100])
        assert self.plan(model, batches).to_dict() == first.to_dict()
        entry.write_text("not a file of tensors")
        assert self.plan(model, batches).to_dict() == first.to_dict()

    def test_unwritable_cache_is_no_error(self, tiny_bert, batches, monkeypatch, tmp_path):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("COLLAB_HF_CACHE", str(tmp_path / "file"))
        assert self.plan(tiny_bert(), batches).measured


class TestCosts:
    SHAPE = AttentionShape(64, 64, 4, 16)

    def test_dense_costs_what_copy_does(self):
        copy = LayerPlan("copy", 64, 64, 16, content_bias="folded")
        assert attention_operations(copy, self.SHAPE, 32) == attention_operations(None, self.SHAPE, 32)

    @pytest.mark.parametrize(
        ("plan", "mixing"),
        [
            (LayerPlan("cp", 10, 10, 10), 4 * 10),
            (LayerPlan("cp", 10, 10, 3), 4 * 3),
            (LayerPlan("svd", 10, 10, 6), 0),
            (LayerPlan("tucker", 10, 7, 7), 4 * 7 * 10),
            (LayerPlan("tucker", 10, 9, 4), 4 * 4 * (10 + 9)),
            (LayerPlan("tucker", 10, 8, 4, key_groups=2), 4 * 4 * 10),
        ],
    )
    def test_products_are_counted_by_form(self, plan, mixing):
        length, folded = 7, replace(plan, content_bias="folded")
        per_token = 64 * (plan.query_rank + plan.key_rank) + mixing
        expected = 2 * (length * per_token + 4 * plan.score_width * length**2)
        assert attention_operations(folded, self.SHAPE, length) == expected
        exact = replace(plan, content_bias="exact")
        assert attention_operations(exact, self.SHAPE, length) == expected + 2 * 64 * 4 * length

    def test_break_even_is_where_the_counts_meet(self):
        wide = LayerPlan("cp", 24, 24, 24, content_bias="folded")
        length = break_even_length(wide, self.SHAPE)
        below, above = math.floor(length), math.ceil(length + 1e-9)
        assert attention_operations(wide, self.SHAPE, below) <= attention_operations(None, self.SHAPE, below)
        assert attention_operations(wide, self.SHAPE, above) >= attention_operations(None, self.SHAPE, above)
        narrow = replace(wide, method="svd", score_width=8)
        assert break_even_length(narrow, self.SHAPE) == math.inf


@pytest.mark.parametrize(
    "recipe", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_recipes_can_be_read(recipe):
    Recipe.from_dict(Recipe.read(recipe))
