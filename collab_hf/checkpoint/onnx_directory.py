"""A directory with an ONNX graph, as optimum and sentence-transformers open it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from transformers import PreTrainedModel

from ..files import ONNX_GRAPH
from ..host.adoption import disown_config_
from .onnx import OnnxExport, export_onnx
from .save import save_belongings


def write_onnx_directory(
    model: PreTrainedModel, directory: Path, *, original: Path, int8: bool = False
) -> OnnxExport:
    """Write a model as ONNX graph, with its host's config and what prepares its inputs.

    Args:
        model: as for `export_onnx`.
        directory: an empty directory, such as `new_directory` gives; the graph is its `onnx/model.onnx`.
        original: the checkpoint whose tokenizer or image processor and modules of sentence-transformers are
            taken over.
        int8: as for `export_onnx`.

    Returns:
        What was written and how far it is from torch.

    Raises:
        ExportError: as for `export_onnx`.
    """
    done = export_onnx(model, directory / ONNX_GRAPH, int8=int8)
    save_belongings(directory, original=original)
    # Who runs the graph needs no class of ours; save_pretrained would ship code for it.
    config = copy.deepcopy(model.config)
    disown_config_(config)
    config.architectures = [type(model).__name__.removeprefix("Collab")]
    text = json.dumps(config.to_dict(), indent=2)
    (directory / "config.json").write_text(f"{text}\n", encoding="utf-8")
    return done
