"""The commands that `faults.py` kills, and the tiny models that they read."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import string
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub or torch: no network, one thread, no cache of the user's.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "COLLAB_HF_CACHE" not in os.environ:
    os.environ["COLLAB_HF_CACHE"] = tempfile.mkdtemp(prefix="collab-hf-faults-")
    atexit.register(shutil.rmtree, os.environ["COLLAB_HF_CACHE"], ignore_errors=True)
# Where the stand-in for the Hub will listen; huggingface_hub reads the address once, when imported.
with socket.socket() as _free:
    _free.bind(("127.0.0.1", 0))
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{_free.getsockname()[1]}"
os.environ["HF_HUB_DISABLE_XET"] = "1"

import torch
from transformers import BertConfig, BertModel, BertTokenizer

from collab_hf import cli, load_model

_SENTENCES = (
    "a cat sat on the mat",
    "dogs bark",
    "the sun is up",
    "rain",
    "who wrote this",
    "it is cold today",
)
_FAST = ("--calibration", "none", "--reconstruct-steps", "0")


@dataclass(frozen=True)
class Command:
    """One command that writes.

    Attributes:
        words: its arguments, for a directory with inputs and an output.
        output: the output's name.
        on_hub: whether the output is the repository me/model on the Hub.
    """

    words: Callable[[Path, Path], list[str]]
    output: str = "out"
    on_hub: bool = False

    def make_old(self, inputs: Path, output: Path, *, old: bool) -> None:
        """Leave an older output in the place, or nothing.

        Args:
            inputs: the models.
            output: the place.
            old: whether there is to be one.
        """
        for left in output.parent.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if old and self.output.endswith(".onnx"):
            output.write_bytes(b"an older graph")
        elif old:
            shutil.copytree(inputs / "older", output)


COMMANDS = {
    "compress": Command(
        lambda inputs, out: [
            "compress",
            str(inputs / "dense"),
            "-o",
            str(out),
            "--method",
            "tucker",
            "--rank",
            "6",
            *_FAST,
        ]
    ),
    "heal": Command(
        lambda inputs, out: [
            *("heal", str(inputs / "small"), "-o", str(out), "--teacher", str(inputs / "dense")),
            *("--data", str(inputs / "text.txt"), "--steps", "8", "--checkpoint-every", "2"),
        ]
    ),
    "heads prune": Command(
        lambda inputs, out: [
            *("heads", "prune", str(inputs / "dense"), "-o", str(out), "--share", "0.34"),
            *("--calibration", str(inputs / "text.txt"), "--examples", "8", "--shipped-share", "0"),
        ]
    ),
    "export --dense": Command(
        lambda inputs, out: ["export", str(inputs / "small"), "--dense", str(out), "--nearest"]
    ),
    "export --onnx": Command(
        lambda inputs, out: ["export", str(inputs / "small"), "--onnx", str(out)], "model.onnx"
    ),
    "push": Command(lambda inputs, _: ["push", str(inputs / "small"), "me/model"], on_hub=True),
}


def make_models(directory: Path) -> Path:
    """Write what the commands read: a tiny BERT with a tokenizer, compressed ones, and a text.

    Args:
        directory: to make.

    Returns:
        The directory.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    config = BertConfig(
        hidden_size=24,
        num_attention_heads=3,
        num_hidden_layers=2,
        intermediate_size=48,
        vocab_size=len(words),
        max_position_embeddings=40,
    )
    BertModel(config).save_pretrained(directory / "dense")
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=38)
    tokenizer.save_pretrained(directory / "dense")
    (directory / "text.txt").write_text("".join(f"{line}\n" for line in _SENTENCES), encoding="utf-8")
    for name, rank in (("small", "8"), ("older", "4")):
        words = ["compress", str(directory / "dense"), "-o", str(directory / name), "--method", "tucker"]
        with redirect_stdout(sys.stderr):  # stdout is for the table
            code = cli.run([*words, "--rank", rank, *_FAST, "--quiet"])
        if code != 0:
            raise RuntimeError("the tiny model was not compressed")
    return directory


def tree(path: Path) -> dict[str, bytes]:
    """Every file under a path, by its relative name.

    Args:
        path: a directory or a file.

    Returns:
        The bytes; a file's own name is empty.
    """
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path)) if file != path else "": file.read_bytes() for file in files}


def is_complete(command: Command, output: Path) -> bool:
    """Whether an output loads and has all that belongs to it.

    Args:
        command: that wrote it.
        output: a checkpoint or a graph.

    Returns:
        False for a part of one.
    """
    if command.output.endswith(".onnx"):
        import onnxruntime

        try:
            return bool(onnxruntime.InferenceSession(output.read_bytes()).get_outputs())
        except Exception:  # noqa: BLE001 - onnxruntime raises its own, by the dozen
            return False
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    if not names <= set(tree(output)):
        return False
    for file in output.glob("*.json"):
        json.loads(file.read_text(encoding="utf-8"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = load_model(output)
    found = model(input_ids=torch.arange(5, 15).view(1, 10)).last_hidden_state
    return bool(torch.isfinite(found).all())
