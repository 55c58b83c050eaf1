"""Reports tell every module's sizes before and after, as tables, HTML, a picture and JSON."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_support import SENTENCES, VOCABULARY, CommandLine, save_with_tokenizer, write_lines
from torch.nn.utils import prune
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)

from collab_hf import CollabConfig, compress_, compress_checkpoint
from collab_hf.files import RECIPE_FILE, REPORT_FILE
from collab_hf.hub.card import make_card
from collab_hf.layout import changed_repr
from collab_hf.measure.bench import Case, forward_call
from collab_hf.measure.inspection import inspect_model
from collab_hf.modeling.errors import ConfigError
from collab_hf.recipe import Recipe
from collab_hf.recovery import LossWeights, RecoveryConfig
from collab_hf.surgery import speed
from collab_hf.surgery.report import CompressionReport

LENGTH = 12
BART_SIZES = {"layers": 1, "attention_heads": 3, "ffn_dim": 48}


@pytest.fixture
def texts() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.randint(50, (8, LENGTH))} for _ in range(4)]


def ended() -> list[dict[str, torch.Tensor]]:
    """Texts whose last token, and no other, is the end token of `tiny_bart`."""
    return [
        {"input_ids": torch.cat([torch.randint(3, 50, (4, LENGTH - 1)), torch.full((4, 1), 2)], 1)}
        for _ in range(4)
    ]


@pytest.fixture
def tiny_bart() -> BartForSequenceClassification:
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in BART_SIZES.items()}
    config = BartConfig(vocab_size=50, d_model=24, max_position_embeddings=64, eos_token_id=2, **sizes)
    return BartForSequenceClassification(config).eval()


@pytest.fixture
def whole(tiny_bert: Callable[..., Any], texts: Any) -> tuple[Any, CompressionReport]:
    """A model with every part smaller, and the report on it."""
    model = tiny_bert()
    name = "encoder.layer.0"
    plans = {
        "heads": {f"{name}.attention.self": {"kept": [0, 2]}},
        "value_output": {f"{name}.attention.self": {"width": 6}},
        "layers": {
            f"{name}.attention.self": {"method": "svd", "query_rank": 6, "key_rank": 6, "score_width": 3}
        },
        "feed_forward": {name: {"width": 32}},
        "embeddings": {"embeddings.word_embeddings": {"rank": 5}},
    }
    return model, compress_(model, CollabConfig(plans=plans, length=LENGTH), texts)


class TestSites:
    def test_sizes_of_all_parts(self, whole: Any) -> None:
        _, report = whole
        sizes = {site.name: dict(site.sizes) for site in report.sites}
        assert sizes == {
            "encoder.layer.0.attention.self": {
                "heads": (3, 2),
                "score width": (8, 3),
                "value width": (8, 6),
            },
            "encoder.layer.1.attention.self": {
                "heads": (3, 3),
                "score width": (8, 8),
                "value width": (8, 8),
            },
            "encoder.layer.0": {"neurons": (48, 32)},
            "encoder.layer.1": {"neurons": (48, 48)},
            "embeddings.word_embeddings": {"rank": (24, 5)},
        }
        assert [site.changed for site in report.sites] == [True, False, True, False, True]

    def test_parameters_are_the_models(self, whole: Any) -> None:
        """What sites lose is what the model loses, to the last number."""
        model, report = whole
        lost = sum(before - after for before, after in (site.parameters for site in report.sites))
        assert lost == report.parameters_before - report.parameters_after
        assert report.parameters_after == sum(p.numel() for p in model.parameters())

    def test_values_alone(self, tiny_bert: Callable[..., Any], texts: Any) -> None:
        """Our attention takes the host's place for them, and has no bias of the keys."""
        plans = {"value_output": {"encoder.layer.0.attention.self": {"width": 6}}}
        report = compress_(tiny_bert(), CollabConfig(plans=plans, length=LENGTH), texts)
        lost = sum(before - after for before, after in (site.parameters for site in report.sites))
        assert lost == report.parameters_before - report.parameters_after
        assert "copy 24" in str(report)

    def test_feed_forwards_that_are_not_plain(self, tiny_bert: Callable[..., Any]) -> None:
        """Queries and keys have nothing to do with them."""
        model = tiny_bert()
        layer = next(m for name, m in model.named_modules() if name.endswith("layer.0.intermediate.dense"))
        prune.l1_unstructured(layer, "weight", amount=0.5)
        report = compress_(model, CollabConfig(method="svd", rank=6), None)
        assert [site.kind for site in report.sites] == ["attention"] * 2
        assert report.parameters_after < report.parameters_before

    def test_operations_add_up(self, whole: Any) -> None:
        _, report = whole
        assert report.operations == (report.whole.operations_before, report.whole.operations_after)
        assert 0 < report.operations[1] < report.operations[0]

    def test_queries_and_keys_alone(self, tiny_bert: Callable[..., Any], texts: Any) -> None:
        report = compress_(tiny_bert(), CollabConfig(budget=0.5), texts)
        first = report.sites[0]
        assert first.sizes["heads"] == (3, 3)
        assert first.sizes["score width"][1] < 8
        assert first.loss > 0
        assert [site.kind for site in report.sites] == ["attention"] * 2 + ["feed_forward"] * 2
        lost = sum(before - after for before, after in (site.parameters for site in report.sites))
        assert lost == report.parameters_before - report.parameters_after


class TestShown:
    def test_text(self, whole: Any) -> None:
        _, report = whole
        text = str(report)
        assert re.search(r"layer\.0\.attention\.self +3 -> 2 +8 -> 3 +8 -> 6  svd 6 ", text)
        assert re.search(r"layer\.0 +48 -> 32 +66\.7%", text)
        assert re.search(r"word_embeddings +24 -> 5 ", text)
        kept = report.parameters_after / report.parameters_before
        assert f"{report.parameters_after:,} parameters ({kept:.1%})" in text
        share = report.operations[1] / report.operations[0]
        assert f"operations of the layers at length {LENGTH}: {share:.1%} of the original's" in text
        fast = report.whole.measured_speedup
        assert f"speed: {fast:.2f} times that of the original on this machine, at length 12" in text
        assert "predicted" not in text  # nothing was: the forms were given

    def test_html(self, whole: Any) -> None:
        _, report = whole
        html = report._repr_html_()
        assert html.count("<tr>") == 1 + len(report.sites) + 1
        assert "heads 3 → 2, score width 8 → 3, value width 8 → 6" in html
        widths = [float(width) for width in re.findall(r"width:(\d+)px", html)]
        before, after = widths[-2:]
        assert after / before == pytest.approx(report.parameters_after / report.parameters_before, abs=0.01)
        assert "<script" not in html

    def test_names_are_escaped(self, whole: Any) -> None:
        _, report = whole
        odd = replace(report, sites=(replace(report.sites[0], name="<b>"),))
        assert "&lt;b&gt;" in odd._repr_html_()
        assert "<b>" not in odd._repr_html_()

    def test_picture(self, whole: Any, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        _, report = whole
        figure = report.plot(tmp_path / "report.png")
        (axes,) = figure.axes
        assert [bar.get_width() for bar in axes.containers[1]] == [s.parameters[1] for s in report.sites]
        assert (tmp_path / "report.png").stat().st_size > 0
        with pytest.raises(ConfigError, match=r"a plot is a \.png file, got 'report\.txt'"):
            report.plot(tmp_path / "report.txt")

    def test_json(self, whole: Any) -> None:
        _, report = whole
        values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert values["sites"][0]["sizes"]["heads"] == [3, 2]
        assert values["operations_after"] == report.operations[1]

    def test_card(self, whole: Any, tmp_path: Path) -> None:
        model, report = whole
        model.save_pretrained(tmp_path)
        (tmp_path / REPORT_FILE).write_text(json.dumps(report.to_dict()))
        text = str(make_card(tmp_path))
        assert "| encoder.layer.0.attention.self | 3 → 2 | 8 → 3 | 8 → 6 |" in text
        assert "| encoder.layer.0 | 48 → 32 |" in text
        assert f"| operations of the layers, {LENGTH} tokens |" in text
        assert f"| speed on the machine that made it | 1 | {report.whole.measured_speedup:.2f} | |" in text
        assert "Token embeddings are a narrow table" in text
        assert "Relative error" not in text  # those of the scores were not measured


class TestSpeed:
    def test_the_mode_of_the_model_stays(self, tiny_bert: Callable[..., Any], texts: Any) -> None:
        model = tiny_bert().train()
        report = compress_(model, CollabConfig(flops=0.6, length=LENGTH), texts)
        assert report.whole.measured_speedup > 0
        assert model.training

    def test_texts_that_are_too_long_for_the_model(self, tiny_bert: Callable[..., Any], texts: Any) -> None:
        model = tiny_bert(BertModel, max_position_embeddings=32)
        assert compress_(model, CollabConfig(params=0.8), texts).whole.measured_speedup is None

    def test_models_that_refuse_random_texts(self, tiny_bart: Any) -> None:
        """Sentences without an end token."""
        report = compress_(tiny_bart, CollabConfig(flops=0.8, length=LENGTH, reconstruct_steps=0), ended())
        assert report.whole.measured_speedup is None
        assert report.parameters_after < report.parameters_before

    def test_it_is_of_the_second_model(
        self, tiny_bert: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deep, shallow = tiny_bert(num_hidden_layers=4), tiny_bert(num_hidden_layers=1)
        monkeypatch.setattr(
            speed, "forward_call", lambda m, _: lambda: time.sleep(0.01 * m.config.num_hidden_layers)
        )
        config = CollabConfig(flops=0.5, length=LENGTH)
        assert speed.reported_speedup(deep, shallow, config) > 1.5
        assert speed.reported_speedup(shallow, deep, config) < 1 / 1.5

    def test_passes_that_take_long(
        self, tiny_bert: Callable[..., Any], texts: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(speed, "_MOST_SECONDS", 0.0)
        config = CollabConfig(flops=0.8, length=LENGTH, reconstruct_steps=0)
        assert compress_(tiny_bert(), config, texts).whole.measured_speedup is None

    def test_files_stay_the_same(
        self, tiny_bert: Callable[..., Any], texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A speed that nobody asked for is told, not kept: it differs from run to run."""
        found = []
        for number in (1.5, 2.5):
            monkeypatch.setattr(speed, "speedup", lambda *_, number=number: number)
            (tmp_path / str(number)).mkdir()
            out = tmp_path / str(number) / "made"
            torch.manual_seed(0)
            config = CollabConfig(flops=0.6, length=LENGTH)
            done = compress_checkpoint(tiny_bert(), out, config, calibration=texts, recover=False)
            assert done.report.whole.measured_speedup == number
            assert done.to_dict()["whole"]["measured_speedup"] == number
            found.append({file.name: file.read_bytes() for file in out.iterdir()})
        assert {REPORT_FILE, "README.md", "model.safetensors"} <= set(found[0])
        assert found[0] == found[1]

    def test_a_speed_that_was_asked_for_is_kept(self, whole: Any) -> None:
        _, report = whole
        assert report.repeatable.whole.measured_speedup is None
        planned = replace(report, whole=replace(report.whole, predicted_speedup=2.1))
        assert planned.repeatable == planned
        # A recipe of such a plan is not timed: it gives the same files on every run.
        again = replace(report, target={"speedup": 2.0})
        assert again.repeatable.whole.measured_speedup is None

    def test_models_with_a_decoder(self) -> None:
        config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        logits = forward_call(T5ForConditionalGeneration(config).eval(), Case(2, 6))().logits
        assert logits.shape == (2, 6, 50)


class TestTarget:
    def test_command(self, tiny_bert: Callable[..., Any], collab_hf: CommandLine, tmp_path: Path) -> None:
        """The recipe and the report keep it, and the recipe still runs."""
        model = save_with_tokenizer(tiny_bert(vocab_size=len(VOCABULARY)), tmp_path / "bert")
        data = write_lines(tmp_path / "text.txt", SENTENCES * 2)
        made = collab_hf("compress", model, "-o", tmp_path / "a", "--budget", 0.5, "--calibration", data)
        assert "asked for: budget 0.5" in made.out
        recipe = tmp_path / "a" / RECIPE_FILE
        assert yaml.safe_load(recipe.read_text())["target"] == {"budget": 0.5}
        assert json.loads((tmp_path / "a" / REPORT_FILE).read_text())["target"] == {"budget": 0.5}
        again = collab_hf("compress", model, "-o", tmp_path / "b", "--config", recipe, "--calibration", data)
        assert again.code == 0, again.err
        assert "warning" not in again.err
        assert "asked for: budget 0.5" in again.out
        for name in ("model.safetensors", RECIPE_FILE):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert json.loads((tmp_path / "b" / REPORT_FILE).read_text())["target"] == {"budget": 0.5}

    @pytest.mark.parametrize(
        "target", [{"flops": 0.6}, {"size": "40kB"}, {"params": 0.7, "portable": True}], ids=str
    )
    def test_a_recipe_of_the_whole_model_keeps_it(
        self, target: dict[str, Any], tiny_bert: Callable[..., Any], texts: Any, tmp_path: Path
    ) -> None:
        made = []
        asked = {name: value for name, value in target.items() if name != "portable"}
        for name, config in (("a", CollabConfig(**target, length=LENGTH)), ("b", None)):
            torch.manual_seed(0)
            recipe = config or Recipe.from_dict(Recipe.read(tmp_path / "a" / RECIPE_FILE)).config
            assert bool(recipe.plans) == (config is None)
            done = compress_checkpoint(tiny_bert(), tmp_path / name, recipe, calibration=texts, recover=False)
            made.append((tmp_path / name / RECIPE_FILE).read_bytes())
            assert done.report.target == done.report.config.target == asked
            assert json.loads((tmp_path / name / REPORT_FILE).read_text())["target"] == asked
        assert made[0] == made[1]

    def test_a_goal_beside_planned_forms_is_not_what_they_were_planned_for(self) -> None:
        written: dict[str, Any] = {"target": {"budget": 0.5}, "budget": 0.3}
        assert CollabConfig(**written, layers={"*": "dense"}).asked_for == {"budget": 0.5}
        assert CollabConfig(**written).asked_for == {"budget": 0.3}  # the forms were taken out of the recipe
        assert CollabConfig(budget=0.3, layers={"*.0.*": "dense"}).asked_for == {"budget": 0.3}

    def test_none_was_asked_for(self, tiny_bert: Callable[..., Any]) -> None:
        report = compress_(tiny_bert(), CollabConfig(method="svd", rank=6))
        assert report.target == {}
        assert "asked for" not in str(report)


def test_inspect_and_compress_count_alike(tiny_bert: Callable[..., Any]) -> None:
    """Biases of queries and keys are counted by both."""
    found = inspect_model(tiny_bert())
    report = compress_(tiny_bert(), CollabConfig(method="svd", rank=6))
    assert found.qk_parameters == report.qk_parameters_before == 2 * 2 * (24 * 24 + 24)
    assert found.parameters == report.parameters_before


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (CollabConfig(), "CollabConfig()"),
        (CollabConfig(budget=0.25, seed=3), "CollabConfig(budget=0.25, seed=3)"),
        (RecoveryConfig(minutes=2.5), "RecoveryConfig(minutes=2.5)"),
        (
            RecoveryConfig(weights=LossWeights(logits=0.0)),
            "RecoveryConfig(weights=LossWeights(logits=0.0))",
        ),
    ],
)
def test_settings_show_what_differs(settings: Any, text: str) -> None:
    assert repr(settings) == changed_repr(settings) == text
    names = {type(s).__name__: type(s) for s in (CollabConfig(), RecoveryConfig(), LossWeights())}
    assert eval(text, names) == settings
