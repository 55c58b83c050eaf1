"""`collab-hf verify` prints what `collab_hf.verification` finds."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from cli_support import SENTENCES, VOCABULARY, CommandLine, save_with_tokenizer, write_lines
from random_models import PLANS, make_collab_
from transformers import BertForMaskedLM

from collab_hf.checkpoint import verification
from collab_hf.cli.closeness import closeness


@pytest.fixture
def collab_hf(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Without the fresh processes, which tests/test_verification.py starts."""
    monkeypatch.setattr(verification, "check_fresh", lambda *arguments, **settings: None)
    return CommandLine(capsys)


@pytest.fixture
def model(tiny_bert: Any, tmp_path: Path) -> Path:
    return save_with_tokenizer(tiny_bert(BertForMaskedLM, vocab_size=len(VOCABULARY)), tmp_path / "model")


def test_copies_equal_their_original(collab_hf: CommandLine, model: Path, tmp_path: Path) -> None:
    assert collab_hf("compress", model, "-o", tmp_path / "copy", "--method", "copy").code == 0
    text = write_lines(tmp_path / "text.txt", SENTENCES)
    result = collab_hf("verify", tmp_path / "copy", "--against", model, "--data", text, "--json", "--quiet")
    assert result.err == ""
    assert result.values["layers"] == 2
    # Outputs are of the order of one; float32 sums in another order differ by less than this.
    assert result.values["difference"]["maximum"] < 1e-5


def test_a_difference_is_shown(collab_hf: CommandLine, model: Path, tmp_path: Path) -> None:
    """Negative control of the above."""
    options = ["--method", "cp", "--rank", 4, "--calibration", "none"]
    assert collab_hf("compress", model, "-o", tmp_path / "small", *options).code == 0
    values = collab_hf("verify", tmp_path / "small", "--against", model, "--json").values
    assert values["difference"]["maximum"] > 1e-2
    text = collab_hf("verify", tmp_path / "small", "--against", model).out
    assert "is complete: " in text
    assert f"outputs against {model}: max difference" in text
    cosine = values["difference"]["cosine"]
    assert values["difference"]["relative"] ** 2 / 2 == pytest.approx(1 - cosine, rel=0.5)
    assert f"cosine {cosine:.4f}: {closeness(cosine)}" in text
    assert "outputs against" not in collab_hf("verify", tmp_path / "small").out


def test_what_is_not_whole_is_refused(
    collab_hf: CommandLine, model: Path, tiny_bert: Any, tmp_path: Path
) -> None:
    assert "is not compressed" in collab_hf("verify", model).complaint
    assert "is not a directory" in collab_hf("verify", tmp_path / "absent").complaint
    assert "is not a directory" in collab_hf("verify", model, "--against", "/absent/model").complaint
    make_collab_(tiny_bert(), PLANS["tucker"]).save_pretrained(tmp_path / "bare")
    text = write_lines(tmp_path / "text.txt", SENTENCES)
    assert "has no tokenizer" in collab_hf("verify", tmp_path / "bare", "--data", text).complaint


def test_a_name_that_is_no_directory_is_not_looked_up(
    collab_hf: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("collab_hf.checkpoint.load.find_on_hub", lambda *_: pytest.fail("asked the Hub"))
    assert collab_hf("verify", "./nope").complaint == "nope is not a directory"


def test_without_a_tokenizer_the_inputs_are_random(
    collab_hf: CommandLine, tiny_bert: Any, tiny_vit: Any, tmp_path: Path
) -> None:
    make_collab_(tiny_bert(), PLANS["tucker"]).save_pretrained(tmp_path / "text")
    make_collab_(tiny_vit(), PLANS["cp-sparse"]).save_pretrained(tmp_path / "images")
    for name in ("text", "images"):
        result = collab_hf("verify", tmp_path / name, "--against", tmp_path / name, "--json")
        assert result.values["difference"]["maximum"] == 0


@pytest.mark.parametrize(
    "head",
    [
        *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
        *("ForMultipleChoice", "ForNextSentencePrediction", "ForPreTraining", "LMHeadModel"),
    ],
)
def test_every_head_verifies(collab_hf: CommandLine, tiny_bert: Any, tmp_path: Path, head: str) -> None:
    settings = {"num_labels": 2, "is_decoder": head == "LMHeadModel", "vocab_size": len(VOCABULARY)}
    model = make_collab_(tiny_bert(getattr(transformers, f"Bert{head}"), **settings), PLANS["tucker"])
    directory = save_with_tokenizer(model, tmp_path / "model")
    assert collab_hf("verify", directory, "--max-examples", 3, "--json").values["layers"] == 2
