"""`--parts vocabulary`: alone, under a target, in a recipe, and what is refused before any work."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import SENTENCES, CommandLine, write_lines
from conftest import TINY, build_tiny
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)
from vocabulary_cases import HOSTS

from collab_hf import CollabConfig, compress_, compress_checkpoint
from collab_hf.checkpoint import verification
from collab_hf.errors import CollabError, ConfigError
from collab_hf.surgery import pipeline

CORPUS = ["ab cab", "bad a.", "ecad bb", "cab ab"]


def saved(kind: str, tiny_bert: Any, directory: Path) -> Path:
    """A tiny checkpoint whose tokenizer is of one kind, of the class that transformers has for it."""
    tokenizer = HOSTS[{"wordpiece": "bert", "bpe": "roberta", "unigram": "xlm_roberta"}[kind]]()
    own = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if kind == "wordpiece":
        model = tiny_bert(BertForMaskedLM, **own)
    elif kind == "bpe":
        model = build_tiny(RobertaForMaskedLM, RobertaConfig(**{**TINY, **own}))
    else:
        model = build_tiny(XLMRobertaForMaskedLM, XLMRobertaConfig(**{**TINY, **own}))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def last_states(directory: Path, texts: list[str]) -> torch.Tensor:
    batch = AutoTokenizer.from_pretrained(directory)(texts, padding=True, return_tensors="pt")
    model = AutoModelForMaskedLM.from_pretrained(directory)
    with torch.no_grad():
        return model(**batch, output_hidden_states=True).hidden_states[-1]


@pytest.fixture
def model(tiny_bert: Any, tmp_path: Path) -> Path:
    return saved("wordpiece", tiny_bert, tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "text.txt", CORPUS)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fresh processes, which take seconds to start; tests/test_portable.py starts some."""
    monkeypatch.setattr(verification, "check_fresh", lambda *arguments, **settings: None)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_alone(kind: str, tiny_bert: Any, tmp_path: Path) -> None:
    model, out = saved(kind, tiny_bert, tmp_path / "model"), tmp_path / "out"
    config = CollabConfig(parts=("vocabulary",), vocabulary_from=str(write_lines(tmp_path / "f.txt", CORPUS)))
    done = compress_checkpoint(model, out, config)
    report = done.report
    assert report.portable
    assert report.vocabulary.rows_after < report.vocabulary.rows_before
    assert report.parameters_after == report.vocabulary.parameters_after < report.parameters_before
    assert torch.equal(last_states(out, CORPUS), last_states(model, CORPUS))
    written = json.loads((out / "config.json").read_text())
    assert written["vocab_size"] == report.vocabulary.rows_after == len(AutoTokenizer.from_pretrained(out))
    assert "collab" not in written
    assert "auto_map" not in written
    assert not list(out.glob("*.py"))
    other = ["dab bad cab", "e"]  # negative control: what the corpus lacks may be read otherwise
    assert last_states(out, other).shape[0] == 2


def test_command(collab_hf: CommandLine, model: Path, tmp_path: Path) -> None:
    out, corpus = tmp_path / "out", write_lines(tmp_path / "corpus.txt", CORPUS)
    asked = ["--parts", "vocabulary", "--vocabulary-from", corpus]
    planned = collab_hf("compress", model, "--dry-run", *asked, "--json").values
    answer = collab_hf("compress", model, "-o", out, *asked, "--json").values
    assert planned["dry_run"]
    assert planned["vocabulary"] == answer["vocabulary"]
    assert answer["config"]["vocabulary_from"] == "corpus.txt"  # no path of this machine
    rows, before = answer["vocabulary"]["rows_after"], answer["vocabulary"]["rows_before"]
    assert rows < before
    card = (out / "README.md").read_text()
    assert f"{rows} of {before} rows of the vocabulary stay" in card
    assert "The tokenizer changed" in card
    assert "trust_remote_code" not in card
    assert "dense" not in card
    again = tmp_path / "again"
    recipe = out / "collab_recipe.yaml"
    done = collab_hf("compress", model, "-o", again, "--config", recipe, "--vocabulary-from", corpus)
    assert done.code == 0, done.err
    assert f"{rows} of {before} rows stay; the tokenizer changed" in done.out
    for name in ("model.safetensors", "tokenizer.json", "config.json", "collab_recipe.yaml"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.usefixtures("here")
def test_verify_and_evaluate(collab_hf: CommandLine, model: Path, tmp_path: Path) -> None:
    out, corpus = tmp_path / "out", write_lines(tmp_path / "corpus.txt", CORPUS)
    collab_hf("compress", model, "-o", out, "--parts", "vocabulary", "--vocabulary-from", corpus)
    found = collab_hf("verify", out, "--against", model, "--data", corpus, "--json")
    assert found.values["portable"]
    assert found.values["difference"]["maximum"] == 0
    against = ["--task", "agreement", "--against", model, "--data", corpus, "--json"]
    assert collab_hf("evaluate", out, *against).values["mean_cosine"] == pytest.approx(1)
    other = AutoModelForMaskedLM.from_pretrained(out)
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(torch.randn_like(other.get_input_embeddings().weight))
    other.save_pretrained(out)
    worse = collab_hf("evaluate", out, *against).values["mean_cosine"]
    assert worse < 0.99  # negative control


@pytest.mark.usefixtures("here")
def test_with_a_target(collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        *("--params", "0.8", "--parts", "feed_forward,vocabulary", "--vocabulary-from", text),
        *("--calibration", text, "--heal-steps", "3", "--json"),
    ]
    planned = collab_hf("compress", model, "--dry-run", *arguments[:-3], "--json").values
    answer = collab_hf("compress", model, "-o", out, *arguments).values
    assert answer["vocabulary"]["rows_after"] < answer["vocabulary"]["rows_before"]
    assert answer["parameters_before"] == answer["vocabulary"]["parameters_before"]
    assert answer["parameters_after"] <= 0.8 * answer["parameters_before"]
    assert set(answer["whole"]["plans"]) == {"feed_forward"}
    assert planned["whole"]["plans"] == answer["whole"]["plans"]
    assert planned["parameters_after"] == answer["parameters_after"]
    assert not answer["portable"]
    assert answer["recovery"]["steps"] == 3
    assert collab_hf("verify", out, "--against", model, "--data", text).code == 0
    again = tmp_path / "again"
    recipe = ["--config", out / "collab_recipe.yaml", "--vocabulary-from", text, "--calibration", text]
    collab_hf("compress", model, "-o", again, *recipe, "--heal-steps", "3")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_where_trimming_is_enough_nothing_else_changes(
    collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path
) -> None:
    arguments = ["--params", "0.999", "--parts", "embeddings,vocabulary", "--vocabulary-from", text]
    answer = collab_hf("compress", model, "-o", tmp_path / "out", *arguments, "--calibration", text, "--json")
    assert answer.values["portable"]
    assert "recovery" not in answer.values
    assert not hasattr(AutoConfig.from_pretrained(tmp_path / "out"), "collab")


def test_healing_goes_by_the_original_with_the_same_rows(
    collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path
) -> None:
    out, healed = tmp_path / "out", tmp_path / "healed"
    asked = ["--parts", "query_key,vocabulary", "--vocabulary-from", text, "--budget", "0.5"]
    collab_hf("compress", model, "-o", out, *asked, "--calibration", text)
    answer = collab_hf(
        "heal", out, "-o", healed, "--teacher", model, "--data", text, "--steps", "3", "--json"
    )
    assert answer.values["loss_after"] <= answer.values["loss_before"] < 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"parts": ["vocabulary"]}, "the part vocabulary needs vocabulary_from"),
            ({"vocabulary_from": "f"}, "belongs to the part vocabulary, got it with parts none"),
            ({"parts": ["heads"], "flops": 0.5, "vocabulary_from": "f"}, "got it with parts heads"),
            ({"parts": ["vocabulary"], "vocabulary_from": "f", "size": "30MB"}, "got size: add a part"),
            ({"parts": ["vocabulary"], "vocabulary_from": "f", "budget": 0.5}, "got budget: add a part"),
            ({"parts": ["heads", "vocabulary"], "vocabulary_from": "f"}, "need a target for the whole model"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            CollabConfig(**settings)

    def test_before_any_work(
        self, collab_hf: CommandLine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pipeline.Loading, "model", lambda *_: pytest.fail("the model was loaded"))
        asked = ["compress", model, "-o", tmp_path / "out", "--parts", "vocabulary"]
        empty = write_lines(tmp_path / "empty.txt", [])
        assert "holds no example" in collab_hf(*asked, "--vocabulary-from", empty).complaint
        assert "does not exist" in collab_hf(*asked, "--vocabulary-from", tmp_path / "absent.txt").complaint
        assert "needs vocabulary_from" in collab_hf(*asked).complaint
        recovered = collab_hf(*asked, "--vocabulary-from", "default", "--heal-steps", "4").complaint
        assert "recovery has nothing to train" in recovered
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("kind", ["slow", "unknown"])
    def test_tokenizers(self, kind: str, model: Path, tmp_path: Path) -> None:
        class Slow:
            is_fast = False

        tokenizer: Any = Slow()
        if kind == "unknown":
            spec = json.loads((model / "tokenizer.json").read_text())
            spec["model"] = {"type": "BPE", "dropout": 0.1, "vocab": {"a": 0}, "merges": []}
            spec |= {"added_tokens": [], "post_processor": None, "normalizer": None, "pre_tokenizer": None}
            (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
        config = CollabConfig(
            parts=("vocabulary",), vocabulary_from=str(write_lines(tmp_path / "f.txt", CORPUS))
        )
        with pytest.raises(
            CollabError, match="a fast one" if kind == "slow" else "BPE tokenizer with dropout"
        ):
            compress_checkpoint(model, tmp_path / "out", config, processor=tokenizer)

    def test_in_place_there_is_no_tokenizer(self, tiny_bert: Any) -> None:
        with pytest.raises(ConfigError, match="compress_ has no tokenizer to trim"):
            compress_(tiny_bert(), CollabConfig(parts=("vocabulary",), vocabulary_from="default"))


@pytest.mark.checkpoint
def test_real_checkpoint(checkpoint: Any, tmp_path: Path) -> None:
    """MiniLM trimmed to a few sentences reads them as before, in a process without collab_hf."""
    place, out = checkpoint("minilm"), tmp_path / "out"
    config = CollabConfig(
        parts=("vocabulary",), vocabulary_from=str(write_lines(tmp_path / "f.txt", SENTENCES))
    )
    report = compress_checkpoint(place, out, config).report
    assert report.vocabulary.rows_after < 1000
    script = (
        "import sys, torch; sys.modules['collab_hf'] = None\n"
        "from transformers import AutoModel, AutoTokenizer\n"
        f"texts = {SENTENCES!r}\n"
        "def states(place):\n"
        "    batch = AutoTokenizer.from_pretrained(place)(texts, padding=True, return_tensors='pt')\n"
        "    return AutoModel.from_pretrained(place)(**batch)[0]\n"
        f"print(float((states({str(out)!r}) - states({str(place)!r})).abs().max()))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(found.stdout.splitlines()[-1]) < 1e-6
