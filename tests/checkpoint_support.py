"""Change what lies in a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def configure(directory: Path, **changes: Any) -> Path:
    """Change entries of config.json."""
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Change the weights."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory
