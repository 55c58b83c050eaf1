"""A compressed checkpoint takes over what is known to belong to its original, and nothing else."""

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import VOCABULARY, CommandLine
from random_models import PLANS, make_collab_
from transformers import AutoImageProcessor, AutoTokenizer, BertModel, ViTModel

from collab_hf import load_model
from collab_hf.checkpoint.save import new_directory, save_checkpoint
from collab_hf.files import WEIGHT_FILES, belongings, checkpoint_files, matches, module_folders

KNOWN = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "preprocessor_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "additional_chat_templates/short.jinja",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "2_Dense/pytorch_model.bin",
    "README.md",
    "LICENSE",
    "license.txt",
)
OTHERS = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.gguf",
    "tf_model.h5",
    "flax_model.msgpack",
    "rust_model.ot",
    "model.tflite",
    "model_quantized.onnx",
    "onnx/model.onnx",
    "onnx/config.json",
    "openvino/openvino_model.bin",
    "coreml/model.mlpackage/weights.bin",
    "2_Dense/onnx/model.onnx",
    "3_Unlisted/config.json",
    "checkpoint-500/model.safetensors",
    "an-earlier-output/config.json",
    "an-earlier-output/tokenizer.json",
    "runs/events.out",
    "train.py",
    "optimizer.pt",
    ".git/config",
    ".hidden",
    "1_Pooling/.hidden.json",
)
MODULES = [
    {"path": ""},
    {"path": "1_Pooling"},
    {"path": "2_Dense"},
    {"path": "../elsewhere"},
    {"path": "/etc"},
]


@pytest.fixture
def original(tmp_path: Path) -> Path:
    directory = tmp_path / "original"
    for name in (*KNOWN, *OTHERS):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    (directory / "modules.json").write_text(json.dumps(MODULES))
    return directory


def test_what_is_known_is_taken_over_and_nothing_else(original: Path) -> None:
    assert set(belongings(original)) == set(KNOWN)


def test_the_same_list_says_what_is_published(original: Path) -> None:
    (original / "config.json").write_text("{}")
    (original / "collab_report.json").write_text("{}")
    published = set(checkpoint_files(original)) - set(KNOWN)
    assert published == {"config.json", "collab_report.json", "model.safetensors", "train.py"}
    top = {name for name in checkpoint_files(original) if "/" not in name and matches(name, WEIGHT_FILES)}
    assert top == {"model.safetensors"}


@pytest.fixture
def odd(original: Path, tmp_path: Path) -> Iterator[Path]:
    """The same with links, a pipe and a socket under known names."""
    (tmp_path / "secret").write_text("not yours")
    (original / "dict.txt").symlink_to(tmp_path / "secret")
    (original / "normalizer.json").symlink_to(original / "nowhere")
    (original / "vocab.json").symlink_to(original / "vocab.json")
    (original / "vocab.bpe").symlink_to(original / "vocab.txt")
    (original / "1_Pooling" / "loop").symlink_to(original)
    os.mkfifo(original / "bpe.codes")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(original)  # a socket's path must be short
        server.bind("added_tokens.json")
        os.chdir(here)
        yield original


def test_odd_files_are_left_and_named(odd: Path) -> None:
    with pytest.warns(UserWarning, match="is left out: it is") as warned:
        found = belongings(odd)
    assert set(found) == {*KNOWN, "vocab.bpe"}  # a link inside of the directory is as good as a file
    messages = sorted(str(warning.message).partition(" (")[0] for warning in warned)
    assert messages == [
        "added_tokens.json is left out: it is no plain file",
        "bpe.codes is left out: it is no plain file",
        "dict.txt is left out: it is a link out of the directory",
        "normalizer.json is left out: it is a link to nothing",
        "vocab.json is left out: it is a link to nothing",
    ]


@pytest.mark.parametrize(
    "text",
    ["", "[", "null", "{}", '[1, {"path": 3}, {"path": null}]', '[{"path": "a/../../b"}]', "[" * 99999],
)
def test_malformed_modules_name_no_folders(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    assert module_folders(tmp_path) == ()


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_rights_are_those_of_any_new_file(tiny_bert: Any, original: Path, tmp_path: Path) -> None:
    """An original that is read-only, and open to all, gives an output that is the user's alone."""
    for path in original.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    original.chmod(0o555)
    model = make_collab_(tiny_bert(BertModel), PLANS["cp"])
    (original / "tokenizer_config.json").chmod(0o644)
    (original / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (original / "preprocessor_config.json").chmod(0o644)
    (original / "preprocessor_config.json").write_text('{"processor_class": "X"}')
    with new_directory(tmp_path / "out") as new:
        save_checkpoint(model, new, original=original)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    folders = {p for p in (tmp_path / "out").rglob("*") if p.is_dir()} | {tmp_path / "out"}
    assert modes == {0o600}
    assert {stat.S_IMODE(p.stat().st_mode) for p in folders} == {0o700}
    assert not {"onnx", "an-earlier-output", "model.gguf"} & {p.name for p in (tmp_path / "out").iterdir()}
    for path in [original, *original.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


def test_reports_come_along_from_compressed_to_compressed_alone(tiny_bert: Any, tmp_path: Path) -> None:
    dense, small = tiny_bert(BertModel), make_collab_(tiny_bert(BertModel), PLANS["cp"])
    for name, model in (("dense", dense), ("small", small)):
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "collab_recovery.json").write_text("{}")
    for source, model, comes in (("small", small, True), ("small", dense, False), ("dense", small, False)):
        with new_directory(tmp_path / "out", overwrite=True) as new:
            save_checkpoint(model, new, original=tmp_path / source)
        assert (tmp_path / "out" / "collab_recovery.json").exists() is comes


def test_a_vocabulary_alone_is_enough(tiny_bert: Any, tmp_path: Path, collab_hf: CommandLine) -> None:
    """The tokenizer's class follows from the model type, and a compressed model has another one."""
    tiny_bert(vocab_size=len(VOCABULARY)).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    expected = AutoTokenizer.from_pretrained(tmp_path / "model")("a cat sat")["input_ids"]
    out = tmp_path / "out"
    assert collab_hf("compress", tmp_path / "model", "-o", out, "--method", "copy").code == 0
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == "BertTokenizer"
    assert AutoTokenizer.from_pretrained(out)("a cat sat")["input_ids"] == expected
    assert (out / "vocab.txt").read_text() == (tmp_path / "model" / "vocab.txt").read_text()


def test_an_image_processor_that_names_no_class_gets_one(tiny_vit: Any, tmp_path: Path) -> None:
    model = tiny_vit(ViTModel)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"size": {"height": 16, "width": 16}}')
    make_collab_(model, PLANS["cp"])
    with new_directory(tmp_path / "out") as new:
        save_checkpoint(model, new, original=tmp_path / "model")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert dict(processor.size) == {"height": 16, "width": 16}
    assert type(load_model(tmp_path / "out")).__name__ == "CollabViTModel"
