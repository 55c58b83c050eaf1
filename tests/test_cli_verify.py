"""`collab-hf verify` prints what `collab_hf.verification` finds."""

from pathlib import Path
from typing import Any

import pytest
from cli_support import SENTENCES, VOCABULARY, CommandLine, save_with_tokenizer, write_lines
from transformers import BertForMaskedLM, BertModel

from collab_hf.checkpoint import verification


@pytest.fixture
def collab_hf(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Without the fresh processes, which tests/test_verification.py starts."""
    monkeypatch.setattr(verification, "_check_fresh", lambda *arguments: None)
    return CommandLine(capsys)


@pytest.fixture
def model(tiny_bert: Any, tmp_path: Path) -> Path:
    return save_with_tokenizer(tiny_bert(BertForMaskedLM, vocab_size=len(VOCABULARY)), tmp_path / "model")


def test_copies_equal_their_original(collab_hf: CommandLine, model: Path, tmp_path: Path) -> None:
    assert collab_hf("compress", model, "-o", tmp_path / "copy", "--method", "copy").code == 0
    text = write_lines(tmp_path / "text.txt", SENTENCES)
    result = collab_hf("verify", tmp_path / "copy", "--against", model, "--data", text, "--json")
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
    assert "is whole: " in text
    assert f"outputs against {model}: max difference" in text
    assert "outputs against" not in collab_hf("verify", tmp_path / "small").out


def test_what_is_not_whole_is_refused(
    collab_hf: CommandLine, model: Path, tiny_bert: Any, tmp_path: Path
) -> None:
    assert "is not compressed" in collab_hf("verify", model).complaint
    assert "is not a directory" in collab_hf("verify", tmp_path / "absent").complaint
    assert "is not a directory" in collab_hf("verify", model, "--against", "/absent/model").complaint
    tiny_bert(BertModel, vocab_size=len(VOCABULARY)).save_pretrained(tmp_path / "bare")
    assert "has no tokenizer" in collab_hf("verify", tmp_path / "bare").complaint
