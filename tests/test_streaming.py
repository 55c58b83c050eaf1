import json
from pathlib import Path

import pytest
import torch
from family_models import build
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import bench_streaming
from collab_hf import CollabConfig, compress_, compress_checkpoint, load_model
from collab_hf.checkpoint import save
from collab_hf.checkpoint.streaming import Spill
from collab_hf.modeling.errors import CheckpointError


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in directory.glob("*.safetensors") for name, t in load_file(file).items()}


def file_behind(tensor: torch.Tensor) -> str:
    """The file that a tensor's memory is mapped from; empty for memory of the process's own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, _, end = line.split()[0].partition("-")
        if int(begin, 16) <= tensor.data_ptr() < int(end, 16):
            return " ".join(line.split()[5:])
    return ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what memory is mapped from")
def test_nothing_but_the_layer_at_work_is_in_memory(model, tmp_path, monkeypatch):
    seen = {}

    def keep(model, directory, **_):
        seen.update({name: file_behind(parameter) for name, parameter in model.named_parameters()})
        raise CheckpointError("seen enough")

    monkeypatch.setattr("collab_hf.surgery.work.save_checkpoint", keep)
    with pytest.raises(CheckpointError, match="seen enough"):
        compress_checkpoint(
            model, tmp_path / "out", CollabConfig(method="svd", budget=0.5), calibration="none"
        )
    assert seen
    assert all("/" in file for file in seen.values())
    assert any(file.endswith("model.safetensors") for file in seen.values())
    assert any(file.endswith("(deleted)") for file in seen.values())
    assert "/" not in file_behind(torch.ones(1000))  # negative control


def test_spilled_weights_are_the_same_numbers_and_go_on_training(tmp_path):
    linear = nn.Linear(5, 3).to(torch.bfloat16)
    before = {name: p.detach().clone() for name, p in linear.named_parameters()}
    Spill(tmp_path / "to come").take_(linear.parameters())
    assert all(torch.equal(p, before[name]) for name, p in linear.named_parameters())
    with torch.no_grad():
        linear.weight.add_(1)
    assert torch.equal(linear.weight, before["weight"] + 1)
    assert not list(tmp_path.iterdir())  # the files have no name


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("collab_hf.checkpoint.streaming.tempfile.TemporaryFile", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        Spill(tmp_path / "to come").take_([nn.Parameter(torch.ones(2))])


@pytest.mark.parametrize("shard", ["5GB", "8KB"])
@pytest.mark.parametrize("kind", ["bert", "vit", "gpt2", "bart", "albert"])
def test_from_shards_on_the_disk_as_in_memory(kind, shard, tmp_path, monkeypatch):
    model = build(kind)
    model.save_pretrained(tmp_path / "model", max_shard_size=shard)
    config = CollabConfig(method="tucker", budget=0.5)
    monkeypatch.setattr(save, "SHARD_SIZE", shard)
    compress_checkpoint(tmp_path / "model", tmp_path / "disk", config, calibration="none")
    compress_(model, config)
    model.save_pretrained(tmp_path / "memory")
    found, expected = weights(tmp_path / "disk"), weights(tmp_path / "memory")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (tmp_path / "disk" / "model.safetensors.index.json").exists() == (shard == "8KB")
    load_model(tmp_path / "disk")


@pytest.mark.parametrize("damage", ["cut", "missing", "nan"])
def test_damaged_shards_are_one_sentence_and_leave_nothing(damage, model, tmp_path, collab_hf):
    load_model(model).save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    name = next(name for name in index if name.endswith("layer.1.attention.self.query.weight"))
    file = tmp_path / "shards" / index[name]
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        tensors = load_file(file)
        tensors[name].fill_(float("nan")) if damage == "nan" else tensors.pop(name)
        save_file(tensors, file, metadata={"format": "pt"})
    options = ("--method", "svd", "--budget", "0.5", "--calibration", "none")
    result = collab_hf("compress", tmp_path / "shards", "-o", tmp_path / "out", *options)
    assert {"cut": "corrupt or truncated", "missing": "lacks", "nan": "not finite"}[
        damage
    ] in result.complaint
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_the_benchmark_makes_shards_that_load(tmp_path):
    layers = bench_streaming.make_checkpoint(tmp_path, 0.008, 64, "4MB")
    loaded = load_model(tmp_path)
    assert loaded.config.num_hidden_layers == layers
    with safe_open(next(tmp_path.glob("*.safetensors")), "pt") as shard:
        assert shard.keys()
