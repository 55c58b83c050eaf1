"""Label-free recovery: a compressed model learns from the original on a few minutes of unlabelled data."""

from .config import LossWeights, RecoveryConfig, RecoveryReport
from .loop import recover_

__all__ = ["LossWeights", "RecoveryConfig", "RecoveryReport", "recover_"]
