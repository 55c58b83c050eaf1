"""Where a checkpoint comes from, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..modeling.errors import CheckpointError, ConfigError
from ..progress import stage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Loading:
    """What the loading options of a command say.

    Attributes:
        dtype: dtype of the weights, or `auto`.
        device: as torch spells it, or `auto`: a GPU if there is one.
        revision: branch, tag or commit on the Hub.
        subfolder: folder of the checkpoint inside the repository or directory.
        token: access token for the Hub.
        trust_remote_code: whether code in the checkpoint may run.
        backbone: whether the model comes without its task head, and without weights that nothing reads.
        base_model: Hub id of the original, for the card, where a local copy is loaded.
    """

    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    subfolder: str = ""
    token: str | None = None
    trust_remote_code: bool = False
    backbone: bool = False
    base_model: str | None = None

    def model(self, name: str | Path) -> PreTrainedModel:
        """Load a model in eval mode.

        Args:
            name: Hub id or local directory; a Path is never looked up on the Hub.

        Returns:
            The model, on its device.

        Raises:
            CheckpointError: the checkpoint can't be loaded.
            ConfigError: there is no such device here.
        """
        from ..checkpoint.load import load_model

        stage(f"Loading {name}")
        device = find_device(self.device)
        return load_model(name, dtype=self.dtype, device=device, backbone=self.backbone, **self._where())

    def reference(self, name: str, model: PreTrainedModel, processor: Any) -> PreTrainedModel:
        """Load the original of a model, to compare them on the same inputs.

        Args:
            name: Hub id or local directory of the original.
            model: what was made of it.
            processor: the model's; where its vocabulary was trimmed, the original reads its token ids too.

        Returns:
            The original.

        Raises:
            CheckpointError: it can't be loaded.
            ConfigError: its tokenizer is not the one that was trimmed.
        """
        from ..parts.vocabulary import trim_like_

        original = self.model(name)
        rows, left = (getattr(m.config.get_text_config(), "vocab_size", None) for m in (original, model))
        if rows is not None and left is not None and left < rows:
            tokenizers = [getattr(p, "tokenizer", p) for p in (self.processor(name), processor)]
            trim_like_(original, *tokenizers)
        return original

    def processor(self, name: str) -> Any:
        """Load a model's tokenizer or image processor.

        Args:
            name: Hub id or local directory.

        Returns:
            The tokenizer or image processor.

        Raises:
            CheckpointError: the checkpoint has neither.
        """
        processor = self.find_processor(name)
        if processor is None:
            raise CheckpointError(
                f"{name} has no tokenizer or image processor to prepare data with; add its files"
            )
        return processor

    def find_processor(self, name: str) -> Any:
        """The model's tokenizer or image processor, or None where the checkpoint has neither."""
        from ..checkpoint.load import load_processor

        return load_processor(name, **self._where())

    def files(self, name: str) -> Path:
        """A local directory with what belongs to a checkpoint besides its weights.

        Args:
            name: Hub id or local directory.

        Returns:
            The directory, in the cache where name is a Hub id.

        Raises:
            HubError: the Hub can't be reached, or has no such repository.
        """
        from .fetch import fetch_files

        return fetch_files(name, revision=self.revision, subfolder=self.subfolder, token=self.token)

    def source(self, name: str) -> dict[str, Any]:
        """Where a checkpoint comes from, without any local path: what a report says of it."""
        from ..recipe import public_name

        given = {"revision": self.revision, "subfolder": self.subfolder, "dtype": self.dtype}
        chosen = {key: value for key, value in given.items() if value not in (None, "", "auto")}
        return {"model": public_name(name), "model_is_local": Path(name).exists(), **chosen}

    def _where(self) -> dict[str, Any]:
        return {
            "revision": self.revision,
            "subfolder": self.subfolder,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }


def find_device(name: str) -> torch.device:
    """The device that a name stands for.

    Args:
        name: as torch spells it, or `auto`.

    Returns:
        The device.

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(f"device {name!r} can't be used: {reason}") from error
    return device
