"""Write a model as ONNX, dense or compressed, and check the file in ONNX Runtime against torch."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ..errors import ExportError
from ..host.inputs import Inputs, evaluating, example_inputs
from ..progress import stage
from .atomic import scratch_beside

# Largest difference of an output, relative to the largest value of it, that float32 is allowed; seen: 2e-6.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class OnnxExport:
    """A file that was written and checked.

    Attributes:
        file: where it is.
        inputs: names of the graph's inputs, dynamic in batch (and length, for text).
        outputs: names of its outputs.
        file_size: bytes.
        difference: largest difference to torch, relative to the largest value, on inputs of another shape
            than the one that was traced.
        int8: whether the weights of linear layers are 8-bit integers.
    """

    file: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    file_size: int
    difference: float
    int8: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            **asdict(self),
            "file": str(self.file),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
        }


class _Plain(nn.Module):
    """Positional tensors in, a tuple of tensors out, as a graph has them."""

    def __init__(self, model: PreTrainedModel, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        result = self.model(**dict(zip(self.inputs, values, strict=True)), return_dict=True)
        return tuple(result[name] for name in self.outputs)


def export_onnx(model: PreTrainedModel, file: Path, *, int8: bool = False) -> OnnxExport:
    """Write a model as an ONNX graph with dynamic batch (and length, for text), and check it.

    Args:
        model: text or image model in float32 on the CPU; left as it is.
        file: where to write, whole or not at all; an existing file is replaced.
        int8: store the weights of linear layers as 8-bit integers and compute with them (dynamic
            quantisation of ONNX Runtime); the difference is then reported, not bounded.

    Returns:
        What was written and how far it is from torch.

    Raises:
        ExportError: packages are missing, the model takes other inputs than text or images, or the graph's
            outputs are not torch's.
    """
    _check_packages()
    stage("Tracing the graph")
    inputs = example_inputs(model, batch=2, length=16)
    outputs = _output_names(model, inputs)
    names = tuple(inputs)
    _made(file.parent)
    with scratch_beside(file) as scratch:
        graph = scratch / "model.onnx"
        _trace(model, inputs, outputs, graph)
        stage("Comparing the graph with torch")
        other = example_inputs(model, batch=3, length=29)
        difference = _difference(model, other, outputs, graph)
        if difference > TOLERANCE:
            raise ExportError(
                f"the graph's outputs differ from torch's by {difference:.1e}, more than {TOLERANCE:.0e}"
            )
        if int8:
            graph = _quantise(graph)
            difference = _difference(model, other, outputs, graph)
        size = graph.stat().st_size
        graph.replace(file)
    return OnnxExport(file, names, outputs, size, difference, int8)


def _check_packages() -> None:
    missing = [
        name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ExportError(f"ONNX export needs {', '.join(missing)}; run: pip install {' '.join(missing)}")


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot write into {folder}: {error.strerror}") from error
    return folder


def _output_names(model: PreTrainedModel, inputs: Inputs) -> tuple[str, ...]:
    with evaluating(model), torch.no_grad():
        result: ModelOutput = model(**inputs, return_dict=True)
    names = tuple(name for name, value in result.items() if isinstance(value, Tensor))
    if not names:
        raise ExportError(f"{type(model).__name__} gives no tensors, only {', '.join(result)}")
    return names


def _trace(model: PreTrainedModel, inputs: Inputs, outputs: tuple[str, ...], file: Path) -> None:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    text = "input_ids" in inputs
    shapes = tuple({0: batch, 1: length} if text else {0: batch} for _ in inputs)
    plain = _Plain(model, tuple(inputs), outputs)
    plain.train(model.training)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it says which libraries are not installed
    with evaluating(model), warnings.catch_warnings(), torch.no_grad():
        # The exporter speaks of its own parts; what matters is checked below.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                plain.eval(),
                tuple(inputs.values()),
                str(file),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=(shapes,),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().partition("\n")[0]
            raise ExportError(f"{type(model).__name__} can't be traced: {reason}") from error


def _difference(model: PreTrainedModel, inputs: Inputs, outputs: tuple[str, ...], file: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(list(outputs), {name: value.numpy() for name, value in inputs.items()})
    with evaluating(model), torch.no_grad():
        expected = model(**inputs, return_dict=True)
    worst = 0.0
    for name, array in zip(outputs, found, strict=True):
        reference = expected[name]
        if tuple(array.shape) != tuple(reference.shape):
            raise ExportError(
                f"the graph's output {name} has shape {array.shape}, not {tuple(reference.shape)}"
            )
        worst = max(worst, ((torch.from_numpy(array) - reference).abs().max() / reference.abs().max()).item())
    return worst


def _quantise(file: Path) -> Path:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(file))
    # Shapes in between, as the exporter noted them, contradict onnx's own inference in places.
    del model.graph.value_info[:]
    onnx.save(model, str(file))
    smaller = file.with_name("int8.onnx")
    # A scale for each output channel: on all-MiniLM-L6-v2 at a quarter, embeddings keep a cosine of .993 to
    # the graph's in float32, .964 with one scale a matrix, and the file grows by 0.4 %.
    quantize_dynamic(str(file), str(smaller), per_channel=True, weight_type=QuantType.QInt8)
    return smaller
