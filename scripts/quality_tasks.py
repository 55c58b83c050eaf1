"""What `bench_quality.py` measures a compressed encoder by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from collab_hf.calibration.examples import load_batches
from collab_hf.host.inputs import pool
from collab_hf.measure.tables import read_scores

# Side of the images that the probe sees, in pixels: 7 patches of 14, thrice the resolution of CIFAR-10.
_PROBE_SIZE = 98

# ImageNet's mean and deviation by channel, as DINOv2's own processor has them.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Task(Protocol):
    """A set of figures on one original."""

    @property
    def description(self) -> str:
        """What the figures are measured on."""

    def evaluate(self, model: Any) -> dict[str, float]:
        """Figures by name."""


class Sentences:
    """Spearman correlation with human scores, and cosine with the original's embeddings.

    Args:
        original: the dense model.
        tokenizer: its tokenizer.
        path: tab-separated pairs with scores.
    """

    def __init__(self, original: Any, tokenizer: Any, path: Path) -> None:
        self.pairs, self.scores = read_scores(path)
        self.texts = sorted({text for pair in self.pairs for text in pair}, key=len)
        batches = load_batches(
            self.texts, tokenizer, config=original.config, max_examples=len(self.texts), batch_size=64
        )
        # load_batches puts texts in an order of its own, which it keeps.
        self.texts, self.batches = list(batches.texts), list(batches)
        self.reference = self._embed(original)
        self.spearman = self._spearman(self.reference)
        self.description = f"{len(self.pairs)} pairs of {path.name}"

    @torch.inference_mode()
    def _embed(self, model: Any) -> Tensor:
        parts = [pool(model.base_model(**b).last_hidden_state, b["attention_mask"]) for b in self.batches]
        return torch.cat(parts)

    def _spearman(self, embeddings: Tensor) -> float:
        from scipy.stats import spearmanr

        row = {text: index for index, text in enumerate(self.texts)}
        first, second = (embeddings[[row[pair[side]] for pair in self.pairs]] for side in (0, 1))
        cosines = F.cosine_similarity(first, second).double().numpy()
        return float(spearmanr(cosines, self.scores).statistic)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Figures of a model.

        Args:
            model: the original or a compressed copy.

        Returns:
            spearman, its ratio to the original's, and the mean cosine of embeddings.
        """
        embeddings = self._embed(model)
        spearman = self._spearman(embeddings)
        cosine = F.cosine_similarity(embeddings, self.reference).mean().item()
        return {"spearman": spearman, "relative": spearman / self.spearman, "cosine": cosine}


class Photographs:
    """Cosine of the states with the original's on photographs, and a probe on CIFAR-10 features.

    Args:
        original: the dense model.
        processor: its image processor.
        pictures: photographs that calibration did not see.
        cifar: training and development set, .npz with images (n, 32, 32, 3) and labels.
        count: images of each set for the probe, at most; 0 for no probe.
        folds: of cross-validation over both sets, so that every image is tested once; 0 to train on the first
            and test on the second.
    """

    def __init__(
        self,
        original: Any,
        processor: Any,
        pictures: Sequence[Any],
        cifar: tuple[Path, Path],
        count: int,
        folds: int = 0,
    ) -> None:
        batches = load_batches(
            list(pictures), processor, config=original.config, batch_size=8, max_examples=len(pictures)
        )
        self.batches = [batch["pixel_values"] for batch in batches]
        self.reference = self._states(original)
        self.sets = [read_pictures(path, count) for path in cifar]
        self.folds = folds
        sizes = [len(labels) for _, labels in self.sets]
        self.description = f"{len(pictures)} photographs at {self.batches[0].shape[-1]} px"
        if sizes[0]:
            self.description += (
                f", probe on {sizes[0]} CIFAR-10 images at {_PROBE_SIZE} px, tested on {sizes[1]}"
            )

    @torch.inference_mode()
    def _states(self, model: Any) -> Tensor:
        return torch.cat([model.base_model(pixel_values=b).last_hidden_state for b in self.batches])

    @torch.inference_mode()
    def _features(self, model: Any, images: Tensor) -> np.ndarray[Any, Any]:
        parts = [model.base_model(pixel_values=b).last_hidden_state for b in images.split(64)]
        states = torch.cat([torch.cat([p[:, 0], p[:, 1:].mean(1)], dim=1) for p in parts])
        features: np.ndarray[Any, Any] = F.normalize(states).numpy()
        return features

    def evaluate(self, model: Any) -> dict[str, float]:
        """Figures of a model.

        Args:
            model: the original or a compressed copy.

        Returns:
            Mean cosine of CLS and of patch states, and accuracy of a probe trained on the model's features.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_predict

        cosine = F.cosine_similarity(self._states(model), self.reference, dim=-1)
        cosines = {"cls_cosine": cosine[:, 0].mean().item(), "patch_cosine": cosine[:, 1:].mean().item()}
        if not len(self.sets[0][1]):
            return cosines
        (train, wanted), (dev, truth) = [(self._features(model, x), y) for x, y in self.sets]
        scale, probe = train.std(0), LogisticRegression(C=0.01, max_iter=300)
        if self.folds:
            features, labels = np.concatenate([train, dev]) / scale, np.concatenate([wanted, truth])
            right = cross_val_predict(probe, features, labels, cv=self.folds) == labels
            return {**cosines, "probe": float(right.mean())}
        return {**cosines, "probe": float(probe.fit(train / scale, wanted).score(dev / scale, truth))}


def read_pictures(path: Path, count: int) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """Images as the model wants them, (n, 3, size, size), and labels.

    Args:
        path: .npz with images (n, 32, 32, 3) and labels.
        count: of images at most, spread over the file.

    Returns:
        Both.
    """
    with np.load(path) as file:
        # Spread over the file, which may be sorted by label.
        chosen = np.linspace(0, len(file["labels"]) - 1, min(count, len(file["labels"]))).round().astype(int)
        images, labels = file["images"][chosen], file["labels"][chosen]
    if not count:
        return torch.empty(0), labels
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    pixels = F.interpolate(pixels, size=(_PROBE_SIZE, _PROBE_SIZE), mode="bicubic", antialias=True)
    return (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1), labels
