"""Peak memory and time of compressing a checkpoint larger than memory should be.

Makes a BERT of random weights in shards, compresses it by a child process, and removes both again. Memory is
the child's anonymous memory: pages that files back (the checkpoint's, and those of the new weights) can be
dropped by the system at any time.

Example:
    python scripts/bench_streaming.py --gigabytes 8 -- --method tucker --budget 0.25
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import init_empty_weights
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

_VOCABULARY = 30522
_POLL_SECONDS = 0.05


def make_checkpoint(directory: Path, gigabytes: float, hidden: int, shard: str, seed: int = 0) -> int:
    """Write a sharded BERT in float32, one shard in memory at a time.

    Weights are Gaussian with input directions that fall off as (1 + i)^-1/2, so that there is something to
    share.

    Args:
        directory: an empty directory.
        gigabytes: size of the weights at least, in 10^9 bytes.
        hidden: hidden size, a multiple of 64.
        shard: size of a shard, such as 1GB.
        seed: of the weights.

    Returns:
        Number of layers.
    """
    config = BertConfig(hidden_size=hidden, num_attention_heads=hidden // 64, intermediate_size=4 * hidden)
    config.num_hidden_layers = 1
    with init_empty_weights():
        one = BertModel(config)
        sizes = [sum(p.numel() for p in part.parameters()) for part in (one, one.encoder)]
        config.num_hidden_layers = layers = max(
            1, round((gigabytes * 1e9 / 4 - sizes[0] + sizes[1]) / sizes[1])
        )
        model = BertModel(config)
    config.architectures = ["BertModel"]
    config.save_pretrained(directory)
    state: dict[str, torch.Tensor] = dict(model.named_parameters())
    split = split_torch_state_dict_into_shards(state, max_shard_size=shard)
    generator = torch.Generator().manual_seed(seed)
    for file, names in split.filename_to_tensors.items():
        tensors = {name: _weights(name, state[name].shape, generator) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return layers


def _weights(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if name.endswith("LayerNorm.weight"):
        return torch.ones(shape)
    scale = 0.2 * torch.arange(1, shape[-1] + 1).pow(-0.5)
    return torch.randn(shape, generator=generator).mul_(scale if len(shape) > 1 else 0.02)


def run(command: list[str]) -> dict[str, Any]:
    """Run a command to its end and watch its anonymous memory.

    Args:
        command: the program and its arguments.

    Returns:
        Exit status, seconds of wall-clock time, peak of RssAnon in GB, and what it printed.
    """
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        child = subprocess.Popen(command, stdout=out)
        while child.poll() is None:
            peak = max(peak, _anonymous(child.pid))
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - started
        out.seek(0)
        printed = out.read()
    return {"exit": child.returncode, "seconds": seconds, "peak_anonymous_gb": peak / 1e9, "printed": printed}


def _anonymous(process: int) -> int:
    """Bytes of anonymous memory that a process has in RAM; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(found[0]) * 1024 if found else 0


def main(
    options: Annotated[list[str] | None, typer.Argument(help="Options of `compress`, after --.")] = None,
    gigabytes: Annotated[float, typer.Option(help="Size of the checkpoint's weights.")] = 8.0,
    hidden: Annotated[int, typer.Option(help="Hidden size, a multiple of 64.")] = 2048,
    shard: Annotated[str, typer.Option(help="Size of a shard.")] = "1GB",
    directory: Annotated[Path | None, typer.Option(help="Where to work; by default a temporary one.")] = None,
) -> None:
    """Make a checkpoint, compress it, and print what that took as JSON."""
    asked = options or ["--method", "tucker", "--budget", "0.25"]
    with tempfile.TemporaryDirectory(dir=directory) as name:
        model, output = Path(name) / "model", Path(name) / "output"
        model.mkdir()
        layers = make_checkpoint(model, gigabytes, hidden, shard)
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        start = [sys.executable, "-m", "collab_hf", "compress", str(model), "-o", str(output)]
        done = run([*start, "--calibration", "none", "--json", *asked])
        printed = done.pop("printed")
        report = json.loads(printed) if done["exit"] == 0 else {}
    kept = ("qk_parameters_before", "qk_parameters_after", "mean_relative_error", "file_size")
    found = {"options": asked, "layers": layers, "hidden": hidden, "gigabytes": size / 1e9, **done}
    print(json.dumps({**found, **{key: report.get(key) for key in kept}}, indent=2))


if __name__ == "__main__":
    typer.run(main)
