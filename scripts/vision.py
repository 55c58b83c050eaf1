"""Images from scratch: concatenated against collaborative attention at equal key dimensions.

At size `paper` it is ImageNet with DeiT-B, at size `small` a small ViT on CIFAR-10. Files are .npz with
`images` (uint8) and `labels`; without them the data come from the Hub.

Example:
    python scripts/vision.py -o vision --size small --train train.npz --dev dev.npz

Source:
    Cordonnier et al. 2020, arXiv:2006.16362, section 4; Touvron et al. 2021, arXiv:2012.12877, for DeiT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from datasets import Array3D, Dataset, Features, Value, load_dataset
from torch import Tensor
from transformers import AutoModelForImageClassification, ViTConfig

from collab_hf import collaborative
from experiments import Case, Experiment, Settings, accuracy, command, key_dimension_cases, train_and_evaluate

_ZERO_TO_ONE = 255  # of a pixel


class PictureCollator:
    """Makes batches of pictures of one size, flipped and shifted by chance where they are trained on.

    Args:
        size: side of the pictures.
        columns: of the picture and of the label.
    """

    def __init__(self, size: int, columns: tuple[str, str]) -> None:
        self._size, self._columns = size, columns

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pixels from -1 to 1, and labels."""
        picture, label = self._columns
        pixels = torch.stack([self._pixels(row[picture]) for row in rows])
        if rows[0].get("trained"):
            pixels = _varied(pixels)
        return {"pixel_values": pixels, "labels": torch.tensor([row[label] for row in rows])}

    def _pixels(self, picture: Any) -> Tensor:
        if not isinstance(picture, np.ndarray | list):
            picture = picture.convert("RGB").resize((self._size, self._size))
        # (height, width, 3) -> (3, height, width)
        return torch.from_numpy(np.array(picture, np.uint8)).permute(2, 0, 1) / _ZERO_TO_ONE * 2 - 1


def _varied(pixels: Tensor) -> Tensor:
    """Half of the pictures mirrored, all shifted by up to an eighth of their side."""
    size = pixels.shape[-1]
    most = size // 8
    mirrored = torch.where(torch.rand(len(pixels), 1, 1, 1) < 0.5, pixels.flip(-1), pixels)
    padded = F.pad(mirrored, (most,) * 4)
    top, left = torch.randint(0, 2 * most + 1, (2, len(pixels))).tolist()
    return torch.stack([p[:, y : y + size, x : x + size] for p, y, x in zip(padded, top, left, strict=True)])


def load_data(data: Settings) -> tuple[Dataset, Dataset]:
    """Pictures to train and to evaluate on.

    Args:
        data: `train` and `dev`, .npz files; or `name`, `dev_split`, `picture` and `label` of the Hub's.

    Returns:
        Both, the first marked as `trained`.
    """
    if data.get("train"):
        train, dev = (_from_file(Path(data[split])) for split in ("train", "dev"))
    else:
        train, dev = (load_dataset(data["name"], split=split) for split in ("train", data["dev_split"]))
    if count := data.get("max_train"):
        train = train.select(range(min(count, len(train))))
    return train.add_column("trained", [True] * len(train)), dev


def _from_file(path: Path) -> Dataset:
    with np.load(path) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    features = Features({"img": Array3D(images.shape[1:], "uint8"), "label": Value("int64")})
    return Dataset.from_dict({"img": images, "label": labels}, features).with_format("numpy")


def measure(settings: Settings, case: Case, seed: int, directory: Path) -> dict[str, float]:
    """Train one model and evaluate it."""
    config = collaborative(ViTConfig(**settings["model"]), **case.options)
    columns = settings["data"].get("picture", "img"), settings["data"].get("label", "label")
    return train_and_evaluate(
        AutoModelForImageClassification.from_config(config),
        load_data(settings["data"]),
        {"remove_unused_columns": False, **settings["training"]},
        seed,
        directory,
        data_collator=PictureCollator(config.image_size, columns),
        compute_metrics=accuracy,
    )


def cases(settings: Settings) -> list[Case]:
    """Concatenated and collaborative at every key dimension."""
    return key_dimension_cases(settings, settings["model"]["num_attention_heads"])


main = command(Experiment("vision", "key dimension", cases, measure))

if __name__ == "__main__":
    typer.run(main)
