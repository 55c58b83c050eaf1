"""All parts under one budget: targets are met, models reload, plans in recipes give the same again."""

import copy
import json
from typing import Any

import pytest
import torch
from cli_support import CommandLine
from conftest import TINY, build_tiny
from family_models import ALL, build
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    Dinov2Model,
    ViTModel,
)

from collab_hf import CollabConfig, compress_
from collab_hf.errors import CalibrationError, ConfigError
from collab_hf.host.blocks import blocks
from collab_hf.host.rollback import undone
from collab_hf.parts.registry import FEED_FORWARDS, HEADS, QUERY_KEY, VALUES
from collab_hf.planning import Divergence, cache
from collab_hf.planning.measured import measure_parts
from collab_hf.planning.whole import choose_whole, dense_sizes, given_plan
from collab_hf.recovery.blocks import reconstruct_blocks_
from collab_hf.surgery import speed, whole

PARTS = ["query_key", "heads", "value_output", "feed_forward", "embeddings"]


@pytest.fixture
def texts() -> list[dict[str, torch.Tensor]]:
    ones = torch.ones(8, 12, dtype=torch.long)
    return [{"input_ids": torch.randint(50, (8, 12)), "attention_mask": ones} for _ in range(4)]


@pytest.fixture
def images() -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": torch.randn(8, 3, 16, 16)} for _ in range(4)]


def hidden(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.base_model(**batch)[0]


@pytest.mark.parametrize("family", ["bert", "masked", "classifier", "albert", "vit", "dinov2"])
def test_half_the_operations_in_every_family(
    family, tiny_bert, tiny_vit, tiny_dinov2, texts, images, tmp_path
):
    model = {
        "bert": lambda: tiny_bert(BertModel),
        "masked": lambda: tiny_bert(BertForMaskedLM),
        "classifier": lambda: tiny_bert(BertForSequenceClassification),
        "albert": lambda: build_tiny(AlbertModel, AlbertConfig(**TINY, vocab_size=50, embedding_size=16)),
        "vit": lambda: tiny_vit(ViTModel),
        "dinov2": lambda: tiny_dinov2(Dinov2Model),
    }[family]()
    batches = images if family in ("vit", "dinov2") else texts
    before = hidden(model, batches[0])
    report = compress_(model, CollabConfig(flops=0.5, length=12), batches)
    assert report.whole.operations_after <= 0.5 * report.whole.operations_before
    assert report.parameters_after < report.parameters_before
    after = hidden(model, batches[0])
    assert 0 < (after - before).norm() / before.norm() < 1  # changed, and still of use
    model.save_pretrained(tmp_path / "saved")
    reloaded = type(model).from_pretrained(tmp_path / "saved")
    assert torch.equal(hidden(reloaded, batches[0]), after)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["collab"]["format"] == 2


def test_parameters_and_size(tiny_bert, texts, tmp_path):
    model = tiny_bert()
    total = sum(p.numel() for p in model.parameters())
    compress_(model, CollabConfig(params=0.8), texts)
    assert sum(p.numel() for p in model.parameters()) <= 0.8 * total
    other = tiny_bert()
    compress_(other, CollabConfig(size=f"{int(0.8 * 4 * total)}B"), texts)
    other.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size <= 0.8 * 4 * total + 8000  # the header's names
    report = compress_(tiny_bert(), CollabConfig(params=0.93, parts=["embeddings"]), texts)
    assert set(report.whole.plans) == {"embeddings"}
    with pytest.raises(
        ConfigError, match=r"no choice of forms is that small: at least 0\.\d+ of the layers'"
    ):
        compress_(tiny_bert(), CollabConfig(params=0.01), texts)


def test_a_recipe_gives_the_same_bytes(tiny_bert, texts):
    first, second = tiny_bert(), tiny_bert()
    report = compress_(first, CollabConfig(flops=0.6, length=12), texts)
    again = CollabConfig.from_dict(report.config.to_dict())
    assert again.plans
    assert again.flops is None
    compress_(second, again, texts)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_everything_kept_changes_no_bit(tiny_bert, texts):
    model = tiny_bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compress_(model, CollabConfig(flops=1.0, length=12, reconstruct_steps=0), texts)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_model_stays_as_it_was_when_the_last_step_fails(tiny_bert, texts, monkeypatch):
    model = tiny_bert()
    cls, before = type(model), {name: value.clone() for name, value in model.state_dict().items()}

    def fail(*_: Any) -> float:
        raise RuntimeError("the last step")

    monkeypatch.setattr(whole.Divergence, "between", fail)
    with pytest.raises(RuntimeError, match="the last step"):
        compress_(model, CollabConfig(flops=0.5, length=12), texts)
    assert type(model) is cls
    assert not hasattr(model.config, "collab")
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_second_budget_measures_nothing_again(tiny_bert, texts, monkeypatch, tmp_path):
    monkeypatch.setenv("COLLAB_HF_CACHE", str(tmp_path / "cache"))
    model = tiny_bert(BertModel)
    first = measure_parts(model, PARTS, CollabConfig(), texts, texts)
    with monkeypatch.context() as patched:
        patched.setattr(Divergence, "measure", lambda self: pytest.fail("measured again"))
        second = measure_parts(model, PARTS, CollabConfig(), texts, texts)
    for part, curves in first.curves.items():
        for name, curve in curves.items():
            again = second.curves[part][name]
            assert (again.options, again.knots) == (curve.options, curve.knots)
            assert again.losses_alone() == pytest.approx(curve.losses_alone(), rel=1e-12)
    with torch.no_grad():  # negative control: other weights are another model
        model.encoder.layer[0].output.dense.weight.mul_(1.1)
    other = measure_parts(model, PARTS, CollabConfig(), texts, texts)
    assert other.curves["feed_forward"] != first.curves["feed_forward"]


def test_weights_are_hashed_once_for_all_parts(tiny_bert, texts, monkeypatch, tmp_path):
    monkeypatch.setenv("COLLAB_HF_CACHE", str(tmp_path / "cache"))
    model, hashed = tiny_bert(BertModel), []
    add = cache._add_tensor
    monkeypatch.setattr(cache, "_add_tensor", lambda d, name, t: hashed.append(name) or add(d, name, t))
    measured = measure_parts(model, PARTS, CollabConfig(), texts, texts)
    assert [name for name in hashed if name not in texts[0]] == list(model.state_dict())
    # And every part has an entry of its own.
    assert len(list((tmp_path / "cache" / "plans").iterdir())) == len(measured.curves) == len(PARTS)


def test_the_joint_plan_is_no_worse_than_any_part_alone(tiny_bert, texts):
    measured = measure_parts(tiny_bert(), PARTS, CollabConfig(), texts, texts)
    dense, _ = dense_sizes(measured, 12)
    for share in (0.9, 0.8, 0.7):
        joint = choose_whole(measured, 12, operations=share * dense)
        assert joint.operations <= share * dense
        for part in PARTS:
            try:
                alone = choose_whole(measured.only([part]), 12, operations=share * dense)
            except ConfigError:
                continue
            assert joint.predicted_loss <= alone.predicted_loss + 1e-12


@pytest.mark.parametrize("overhead", [0.0, 0.2])
def test_speed_is_looked_for_by_timing(overhead, tiny_bert, texts, monkeypatch):
    """Time that is a share of the operations, and some that is always there."""
    model = tiny_bert()
    measured = measure_parts(model, PARTS, CollabConfig(), texts, texts)
    dense, _ = dense_sizes(measured, 12)
    timed: list[Any] = []
    monkeypatch.setattr(speed, "sized", lambda _, plans: timed.append(plans) or plans)

    def speedup(_: Any, plans: Any, __: Any) -> float:
        operations = given_plan(measured, plans, 12).operations
        return 1 / (overhead + (1 - overhead) * operations / dense)

    monkeypatch.setattr(speed, "speedup", speedup)
    found = speed.at_speed(model, measured, CollabConfig(speedup=1.25, length=12), 12)
    assert 1.25 <= found.speedup <= 1.25 * 1.06  # the options of so small a model are coarse
    assert len(timed) <= 7
    assert speed.at_speed(model, measured, CollabConfig(speedup=50.0, length=12), 12) is None


class TestParts:
    def test_replaced_is_what_is_installed(self, tiny_bert, texts):
        """A width of values that hosts can't hold is measured padded with zeros."""
        model = tiny_bert()
        measured = measure_parts(model, [], CollabConfig(), texts, texts)
        for part, sites, moments in (
            (FEED_FORWARDS, measured.alone["feed_forward"], measured.statistics["feed_forward"]),
            (HEADS, measured.attention, measured.outputs),
            (VALUES, measured.attention, measured.outputs),
        ):
            name, site = next(iter(sites.items()))
            trial = part.trial(site, CollabConfig(), moments[name])
            option = next(o for o in trial.options if o.plan is not None)
            before = hidden(model, texts[0])
            with part.replaced(sites, {name: trial.solve(option.plan)}):
                inside = hidden(model, texts[0])
            assert torch.equal(hidden(model, texts[0]), before)
            assert not torch.allclose(inside, before)
            with undone(model):
                part.install_(site, trial.solve(option.plan))
                if part is VALUES:
                    copied = QUERY_KEY.candidates(CollabConfig(method="copy"), site.shape, name)
                    QUERY_KEY.install_(site, QUERY_KEY.solve(site, CollabConfig(method="copy"), copied, None))
                assert torch.allclose(hidden(model, texts[0]), inside, atol=1e-5)  # float32, two layers

    def test_dead_neurons_and_heads_go_first_at_no_loss(self, tiny_bert, texts):
        model = tiny_bert()
        layer = model.encoder.layer[0]
        with torch.no_grad():
            layer.output.dense.weight[:, ::2] = 0
            layer.attention.output.dense.weight[:, 8:16] = 0
        measured = measure_parts(model, [], CollabConfig(), texts, texts)
        name, site = next(iter(measured.alone["feed_forward"].items()))
        trial = FEED_FORWARDS.trial(site, CollabConfig(), measured.statistics["feed_forward"][name])
        assert trial.path.error(24) == pytest.approx(0, abs=1e-9)
        assert trial.path.error(16) > 1e-4  # negative control: a live neuron costs
        assert all(int(k) % 2 for k in trial.path.kept(24))
        name, attention = next(iter(measured.attention.items()))
        heads = HEADS.trial(attention, CollabConfig(), measured.outputs[name])
        assert heads.options[-2].plan.kept == (0, 2)
        assert heads.options[-2].error == pytest.approx(0, abs=1e-9)
        assert heads.options[-3].error > 1e-4  # negative control: a live head costs

    def test_heads_that_a_layer_does_not_have(self, tiny_bert, texts):
        plans = {"heads": {"encoder.layer.0.attention.self": {"kept": [0, 7]}}}
        with pytest.raises(ConfigError, match=r"heads must be rising numbers from 0 to 2"):
            compress_(tiny_bert(), CollabConfig(plans=plans), texts)


class TestBlocks:
    def test_each_block_gains_and_the_teacher_stays(self, tiny_bert, texts):
        teacher = tiny_bert()
        student = copy.deepcopy(teacher)
        with torch.no_grad():
            for layer in student.encoder.layer:
                layer.output.dense.weight.mul_(0.5)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        theirs = {name: [block] for name, block in blocks(teacher).items()}
        runs = []
        teacher.register_forward_pre_hook(lambda *_: runs.append(1))
        reports = reconstruct_blocks_(student, teacher, blocks(student), theirs, texts, steps=40)
        assert len(runs) == len(texts)  # once for all blocks
        assert [report.name for report in reports] == ["encoder.layer.0", "encoder.layer.1"]
        assert all(report.error_after < report.error_before for report in reports)
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        error = (hidden(student, texts[0]) - hidden(teacher, texts[0])).norm() / hidden(
            teacher, texts[0]
        ).norm()
        assert error < 0.5

    @pytest.mark.parametrize(("name", "starts"), [("bert", 1), ("bart", 2), ("clip", 2)])
    def test_where_a_chain_of_blocks_starts_the_student_runs(self, name, starts):
        """A decoder, or another tower, doesn't read the block that is named before its first one."""
        teacher, student, data = build(name), build(name), [ALL[name].inputs() for _ in range(2)]
        runs = {"teacher": 0, "student": 0}

        def count(who):
            runs[who] += 1

        teacher.register_forward_pre_hook(lambda *_: count("teacher"))
        student.register_forward_pre_hook(lambda *_: count("student"))
        theirs = {name: [block] for name, block in blocks(teacher).items()}
        reports = reconstruct_blocks_(student, teacher, blocks(student, theirs), theirs, data, steps=1)
        assert len(reports) == len(theirs) > starts
        assert runs == {"teacher": len(data), "student": starts * len(data)}

    def test_blocks_of_a_model_with_a_head(self, tiny_bert):
        assert list(blocks(tiny_bert(BertForMaskedLM))) == ["encoder.layer.0", "encoder.layer.1"]


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"flops": 0}, "flops must be above 0 and at most 1, got 0"),
            ({"flops": float("nan")}, "flops must be above 0"),
            ({"speedup": 1}, "speedup must be above 1"),
            ({"params": True}, "params must be above 0"),
            ({"size": "big"}, "size must be a number with KB, MB or GB, such as 30MB, got 'big'"),
            (
                {"plans": {"feed_forward": {}}, "flops": 0.5},
                "plans fixes the forms already, got flops beside",
            ),
            ({"plans": {"feed_forward": {}}, "budget": 0.5}, "plans fixes the forms already, got budget"),
            ({"flops": 0.5, "params": 0.5}, "give one of speedup, flops, params, size alone"),
            ({"flops": 0.5, "budget": 0.5}, "give one of"),
            ({"flops": 0.5, "method": "cp"}, "flops belongs to method auto"),
            ({"flops": 0.5, "parts": ["heads", "tails"]}, "parts must be some of query_key, heads"),
            ({"flops": 0.5, "parts": ["vocabulary"]}, "the part vocabulary needs vocabulary_from"),
            ({"flops": 0.5, "length": 0}, "length must be a whole number of at least 1, got 0"),
        ],
    )
    def test_out_of_range(self, settings, message):
        with pytest.raises(ConfigError, match=message):
            CollabConfig(**settings)

    def test_data_is_needed(self, tiny_bert):
        with pytest.raises(CalibrationError, match="needs batches of model inputs, got none"):
            compress_(tiny_bert(), CollabConfig(flops=0.5), None)


def test_command_line(collab_hf: CommandLine, model, text, tmp_path):
    out = tmp_path / "out"
    arguments = ["--flops", "0.6", "--length", "12", "--calibration", text, "--heal-steps", "4", "--json"]
    arguments += ["--calibration-examples", "16"]
    answer = json.loads(collab_hf("compress", model, "-o", out, *arguments).out)
    assert answer["whole"]["operations_after"] <= 0.6 * answer["whole"]["operations_before"]
    assert answer["recovery"]["steps"] == 4
    assert collab_hf("verify", out).code == 0
    recipe = out / "collab_recipe.yaml"
    again = tmp_path / "again"
    done = collab_hf(
        "compress", model, "-o", again, "--config", recipe, "--calibration", text, "--heal-steps", "4"
    )
    assert done.code == 0, done.err
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    AutoModel.from_pretrained(out)
