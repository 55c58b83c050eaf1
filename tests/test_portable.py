"""`--portable`: a checkpoint of the host's own class comes out, at sizes that its config says."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import CommandLine
from conftest import TINY, build_tiny
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    BartConfig,
    BartModel,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ViTForImageClassification,
)

from collab_hf import CollabConfig, RecoveryConfig, compress_, recover_
from collab_hf.errors import ConfigError, FamilyError
from collab_hf.host.stock import StockSizes
from collab_hf.planning.stock import StockPlan, measure_stock
from collab_hf.surgery import speed
from collab_hf.surgery.stock import teacher_blocks

FOUR = {"num_hidden_layers": 4}
# `python -c` with this, the host's class, a checkpoint, inputs and outputs.
FRESH = """
import sys, torch
sys.modules["collab_hf"] = None
import transformers
from safetensors.torch import load_file, save_file
model, info = getattr(transformers, sys.argv[1]).from_pretrained(sys.argv[2], output_loading_info=True)
assert not any(info.values()), info
with torch.no_grad():
    save_file({"output": model(**load_file(sys.argv[3]))[0]}, sys.argv[4])
"""


@pytest.fixture
def texts() -> list[dict[str, torch.Tensor]]:
    ones = torch.ones(8, 12, dtype=torch.long)
    return [{"input_ids": torch.randint(50, (8, 12)), "attention_mask": ones} for _ in range(4)]


@pytest.fixture
def images() -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": torch.randn(8, 3, 16, 16)} for _ in range(4)]


def distilbert() -> Any:
    config = DistilBertConfig(dim=24, n_heads=3, n_layers=4, hidden_dim=48, vocab_size=50)
    return build_tiny(DistilBertModel, config)


def first(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch)[0]


@pytest.mark.parametrize("family", ["bert", "vit", "distilbert", "dinov2"])
def test_the_host_reads_it(
    family: str, tiny_bert: Any, tiny_vit: Any, tiny_dinov2: Any, texts: Any, images: Any, tmp_path: Path
) -> None:
    model = {
        "bert": lambda: tiny_bert(BertForSequenceClassification, **FOUR),
        "vit": lambda: tiny_vit(ViTForImageClassification, **FOUR),
        "distilbert": distilbert,
        "dinov2": lambda: tiny_dinov2(**FOUR),
    }[family]()
    batches = texts if family in ("bert", "distilbert") else images
    host, total = type(model), sum(p.numel() for p in model.parameters())
    report = compress_(model, CollabConfig(flops=0.6, length=12, portable=True), batches)
    whole = report.whole
    assert report.portable
    assert whole.operations_after <= 0.6 * whole.operations_before
    assert report.parameters_after == sum(p.numel() for p in model.parameters()) < total
    assert type(model) is host
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not {"collab", "auto_map"} & set(config)
    reloaded, info = host.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(first(reloaded, batches[0]), first(model, batches[0]))


def test_a_process_without_collab_hf_gives_the_same(tiny_bert: Any, texts: Any, tmp_path: Path) -> None:
    model = tiny_bert(**FOUR)
    compress_(model, CollabConfig(flops=0.4, length=12, portable=True), texts)
    model.save_pretrained(tmp_path)
    save_file(texts[0], tmp_path / "inputs")
    arguments = ["BertModel", tmp_path, tmp_path / "inputs", tmp_path / "outputs"]
    subprocess.run([sys.executable, "-P", "-c", FRESH, *map(str, arguments)], check=True)
    assert torch.equal(load_file(tmp_path / "outputs")["output"], first(model, texts[0]))


def test_layers_that_do_nothing_go_first(tiny_bert: Any, texts: Any) -> None:
    """Planted: two layers whose outputs add nothing to what they read."""
    model = tiny_bert(**FOUR)
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.attention.output.LayerNorm.eps = layer.output.LayerNorm.eps = 0.0
        for number in (1, 2):
            for dense in (model.encoder.layer[number].attention.output, model.encoder.layer[number].output):
                dense.dense.weight.zero_()
                dense.dense.bias.zero_()
    before = first(model, texts[0])
    settings = {"parts": ("blocks",), "portable": True, "reconstruct_steps": 0, "length": 12}
    report = compress_(model, CollabConfig(flops=0.5, **settings), texts)
    assert report.whole.plans["blocks"]["encoder.layer"].kept == (0, 3)
    assert report.measured_loss < 1e-10  # a LayerNorm of what is normalised already
    assert torch.allclose(first(model, texts[0]), before, atol=1e-4)
    other = tiny_bert(**FOUR)  # negative control
    assert compress_(other, CollabConfig(flops=0.5, **settings), texts).measured_loss > 1e-7


def test_one_width_for_all(tiny_bert: Any, texts: Any) -> None:
    model = tiny_bert()
    config = CollabConfig(flops=0.8, length=12, portable=True, parts=("feed_forward",))
    plans = compress_(model, config, texts).whole.plans
    assert set(plans) == {"feed_forward"}
    (width,) = {plan.width for plan in plans["feed_forward"].values()}
    assert model.config.intermediate_size == width < TINY["intermediate_size"]
    assert model.config.num_hidden_layers == 2
    assert not any(hasattr(module, "collab_plans") for module in model.modules())


def test_everything_kept_changes_no_bit(tiny_bert: Any, texts: Any) -> None:
    model = tiny_bert()
    before = copy.deepcopy(model.state_dict())
    report = compress_(model, CollabConfig(flops=1.0, length=12, portable=True), texts)
    assert report.whole.plans == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_model_stays_as_it_was_when_the_last_step_fails(
    tiny_bert: Any, texts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_bert(**FOUR)
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    monkeypatch.setattr("collab_hf.surgery.stock.Divergence.between", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compress_(model, CollabConfig(flops=0.4, length=12, portable=True), texts)
    assert model.config.to_dict() == config
    assert set(model.state_dict()) == set(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_speed_is_looked_for_by_timing(tiny_bert: Any, texts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_bert(**FOUR)
    dense = sum(p.numel() for p in model.encoder.parameters())

    def faster(_: Any, other: Any, __: Any) -> float:
        return dense / sum(p.numel() for p in other.encoder.parameters())

    for module in ("stock", "speed"):
        monkeypatch.setattr(f"collab_hf.surgery.{module}.speedup", faster)
    assert speed.look_for_speed(lambda share: share, lambda plan: 1 / plan, 2.0)[1] >= 2
    config = CollabConfig(speedup=1.5, length=12, portable=True)
    whole = compress_(model, config, texts).whole
    assert whole.predicted_speedup >= 1.5
    assert whole.measured_speedup == pytest.approx(whole.predicted_speedup)


class TestTeacher:
    def test_a_block_stands_for_those_dropped_after_it(self, tiny_bert: Any, texts: Any) -> None:
        config = CollabConfig(flops=0.5, portable=True)
        measured = measure_stock(tiny_bert(**FOUR), config, texts, texts, 12, curves=False)
        assert teacher_blocks(measured, StockPlan((0, 3), 48, 0, 0)) == (2, 3)
        assert teacher_blocks(measured, StockPlan((1, 2), 48, 0, 0)) == (1, 3)
        assert teacher_blocks(measured, StockPlan((0, 1, 2, 3), 48, 0, 0)) == ()

    def test_recovery_goes_by_it(self, tiny_bert: Any, texts: Any) -> None:
        student = tiny_bert(**FOUR)
        teacher = copy.deepcopy(student)
        whole = compress_(student, CollabConfig(flops=0.5, length=12, portable=True), texts).whole
        assert len(whole.teacher_blocks) == student.config.num_hidden_layers < 4
        settings = RecoveryConfig(steps=20, trainable="blocks", teacher_blocks=whole.teacher_blocks)
        report = recover_(student, teacher, texts, settings)
        assert report.loss_after < report.loss_before
        with pytest.raises(ConfigError, match="attention weights can't be compared"):
            RecoveryConfig(teacher_blocks=(1,), weights=settings.weights.__class__(attention=1.0))


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, "portable needs a target for the whole model: give one of speedup, flops"),
            ({"budget": 0.5}, "portable needs a target"),
            (
                {"flops": 0.5, "parts": ["heads"]},
                "blocks, feed_forward, vocabulary smaller, got the part heads",
            ),
        ],
    )
    def test_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            CollabConfig(portable=True, **settings)

    def test_blocks_belong_to_it(self) -> None:
        with pytest.raises(ConfigError, match="the part blocks belongs to portable"):
            CollabConfig(flops=0.5, parts=("blocks",))

    @pytest.mark.parametrize("family", ["bart", "albert", "dinov2"])
    def test_what_a_config_cannot_say(self, family: str, tiny_dinov2: Any, texts: Any, images: Any) -> None:
        sizes = {"d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 50}
        heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 3}
        make: dict[str, Callable[[], Any]] = {
            "bart": lambda: build_tiny(BartModel, BartConfig(**sizes, **heads)),
            "albert": lambda: build_tiny(AlbertModel, AlbertConfig(**TINY, vocab_size=50, embedding_size=16)),
            "dinov2": tiny_dinov2,
        }
        model = make[family]()
        known = StockSizes.of(model)
        asked = {"bart": None, "albert": ("blocks",), "dinov2": ("feed_forward",)}[family]
        config = CollabConfig(flops=0.8, portable=True, parts=asked, length=12)
        with pytest.raises(FamilyError, match=f"because the config of {family} can't say so"):
            compress_(model, config, images if family == "dinov2" else texts)
        assert (known.stack is None, known.width_entry is None) == {
            "bart": (True, True),
            "albert": (True, False),
            "dinov2": (False, True),
        }[family]

    def test_the_least_that_can_be_met(self, tiny_bert: Any, texts: Any) -> None:
        with pytest.raises(
            ConfigError, match=r"no choice of layers and widths is that small: at least 0\.\d+"
        ):
            compress_(tiny_bert(), CollabConfig(flops=0.01, portable=True), texts)


def test_command_line(collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    asked = ["--portable", "--flops", "0.5", "--length", "12", "--calibration", text]
    planned = collab_hf("compress", model, "--dry-run", *asked, "--json").values
    answer = collab_hf("compress", model, "-o", out, *asked, "--heal-steps", "4", "--json").values
    assert planned["whole"]["plans"] == answer["whole"]["plans"]
    assert planned["parameters_after"] == answer["parameters_after"]
    assert answer["portable"]
    assert answer["recovery"]["steps"] == 4
    assert answer["recovery"]["config"]["teacher_blocks"] == answer["whole"]["teacher_blocks"]
    found = collab_hf("verify", out, "--against", model)
    assert f"{out} is complete: an ordinary checkpoint of" in found.out
    card = (out / "README.md").read_text()
    assert "a checkpoint of the original's own class, BertModel" in card
    assert "trust_remote_code" not in card
    recipe = (out / "collab_recipe.yaml").read_text()
    assert "portable: true" in recipe
    done = collab_hf(
        *("compress", model, "-o", again, "--config", out / "collab_recipe.yaml"),
        *("--calibration", text, "--heal-steps", "4"),
    )
    assert done.code == 0, done.err
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert type(AutoModel.from_pretrained(out)) is BertModel
    healed = tmp_path / "healed"
    heal = ["--teacher", model, "--data", text, "--steps", "2", "--trainable", "blocks"]
    assert collab_hf("heal", out, "-o", healed, *heal).code == 0
    assert json.loads((healed / "collab_report.json").read_text())["portable"]
    assert collab_hf("compress", model, "-o", tmp_path / "no", "--portable").complaint.startswith(
        "portable needs a target"
    )
