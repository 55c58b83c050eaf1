"""LoRA beside trainable factors: both learn, and the merged checkpoint loads like any other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from cli_support import VOCABULARY, save_with_tokenizer
from safetensors.torch import load_file
from test_run_glue import table_for
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification
from typer.testing import CliRunner

import train_lora
from collab_hf import CollabConfig, compress_

APP = typer.Typer()
APP.command()(train_lora.main)


def _run(model: Path, tmp_path: Path) -> Any:
    train = table_for("sst2", tmp_path / "train.tsv")
    options = ["--task", "sst2", "--train", train, "--dev", train, "--epochs", 2, "-o", tmp_path / "out"]
    return CliRunner().invoke(APP, [str(a) for a in (model, *options)])


# Trainer of transformers 5.23 pins memory by default, which torch says is of no use on a CPU.
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
# PEFT 0.21 asks transformers for a name that 5.23 deprecates.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_factors_and_lora_train_together(tiny_bert, tmp_path) -> None:
    model = tiny_bert(BertForSequenceClassification, vocab_size=len(VOCABULARY), num_labels=2)
    compress_(model, CollabConfig(method="cp", rank=6))
    directory = save_with_tokenizer(model, tmp_path / "small")
    result = _run(directory, tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert 0 < found["trained_parameters"] < found["parameters"]
    before = load_file(directory / "model.safetensors")
    after = load_file(tmp_path / "out" / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    for part in ("self.query.weight", "self.mixing.weight", "self.value.weight", "intermediate.dense.weight"):
        assert any(part in name for name in changed), part
    assert not any("embeddings" in name or "LayerNorm" in name for name in changed)
    adapter = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert any("mixing" in name for name in adapter)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "merged")
    assert type(merged).__name__ == "CollabBertForSequenceClassification"


def test_a_dense_model_is_refused(tiny_bert, tmp_path) -> None:
    model = tiny_bert(BertForSequenceClassification, vocab_size=len(VOCABULARY), num_labels=2)
    result = _run(save_with_tokenizer(model, tmp_path / "dense"), tmp_path)
    assert result.exit_code == 2
    assert "no compressed layer" in result.stderr
