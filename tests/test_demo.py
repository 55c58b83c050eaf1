"""The demo's tables hold what the commands answered."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_support import SENTENCES, VOCABULARY, CommandLine, save_with_tokenizer, write_lines
from transformers import BertModel

import demo


def test_two_tables(
    tiny_bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, on a tiny model: the real one takes minutes."""
    save_with_tokenizer(tiny_bert(BertModel, vocab_size=len(VOCABULARY)), tmp_path / "minilm")
    command = CommandLine(capsys)
    monkeypatch.setattr(demo, "collab_hf", lambda *arguments: command(*arguments, "--json").values)
    monkeypatch.setattr(demo, "EXAMPLES", 16)
    monkeypatch.setattr(demo, "LENGTH", 16)
    monkeypatch.setattr(demo, "OPERATIONS", 0.8)
    pairs = [f"{a}\t{b}\t{n}" for n, (a, b) in enumerate(zip(SENTENCES, SENTENCES[::-1], strict=True))]
    stsb = write_lines(tmp_path / "pairs.tsv", ["sentence1\tsentence2\tscore", *pairs])
    demo.main(tmp_path, stsb)
    first, title, second = capsys.readouterr().out.split("\n\n")
    assert title == "The whole model, 80% of the operations of its layers:"
    whole_header, whole = (re.split(r" {2,}", line.strip()) for line in second.splitlines())
    assert whole_header == [*demo.WHOLE_HEADER, "Spearman"]
    assert len(whole) == len(whole_header)
    header, *rows = (re.split(r" {2,}", line) for line in first.splitlines())
    assert int(whole[0].replace(",", "")) < int(rows[0][2].replace(",", ""))
    assert header == [*demo.HEADER, "Spearman"]
    assert [row[0].split(" ")[0] for row in rows] == ["original", "half", "quarter"]
    assert {len(row) for row in rows} == {7}
    kept = [float(re.search(r"\((.*)%\)", row[1])[1]) for row in rows[1:]]
    assert all(share <= budget for share, budget in zip(kept, [50, 25], strict=True))


def test_a_command_that_fails_ends_the_demo(tmp_path: Path) -> None:
    with pytest.raises(typer.Exit) as stopped:
        demo.collab_hf("verify", tmp_path / "absent")
    assert stopped.value.exit_code == 2
