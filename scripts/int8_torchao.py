"""Quantise a compressed checkpoint to 8-bit weights with torchao, save it, and measure what is left.

The linear layers get 8-bit weights and 8-bit activations, quantised as they come. Prints one JSON object,
which `collab-hf push --export` puts into the card. Needs torchao, and loads again where that is installed.

Example:
    python scripts/int8_torchao.py minilm-quarter --against minilm -o minilm-quarter-int8
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import AutoConfig, TorchAoConfig

from collab_hf import load_model
from collab_hf.calibration.examples import load_batches
from collab_hf.checkpoint.fresh_load import auto_class
from collab_hf.checkpoint.load import load_processor
from collab_hf.measure.evaluation import measure_agreement


def quantised(directory: Path) -> Any:
    """A checkpoint with the linear layers in int8.

    Args:
        directory: a compressed checkpoint.

    Returns:
        The model, with its task head.
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    config = AutoConfig.from_pretrained(directory)
    settings = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    return auto_class(config).from_pretrained(directory, quantization_config=settings)


def megabytes(directory: Path) -> float:
    """Size of a checkpoint's weights in MB."""
    return round(sum(file.stat().st_size for file in directory.glob("*.safetensors")) / 1e6, 1)


def main(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A compressed checkpoint.")],
    against: Annotated[Path, typer.Option(metavar="DIR", help="The original, to compare with.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to save the result.")],
    data: Annotated[str, typer.Option(metavar="FILE", help="Text one a line.")] = "default",
    max_examples: Annotated[int, typer.Option(metavar="N", help="Texts at most.")] = 1000,
) -> None:
    """Quantise, save and measure."""
    model, processor = quantised(directory), load_processor(directory)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    batches = load_batches(data, processor, config=model.config, max_examples=max_examples)
    original = load_model(against)
    found = {
        "format": "int8 weights and activations (torchao)",
        "megabytes_original": megabytes(against),
        "megabytes_compressed": megabytes(directory),
        "megabytes": megabytes(output),
        "cosine_compressed": measure_agreement(load_model(directory), original, batches).mean_cosine,
        "cosine": measure_agreement(load_model(output), original, batches).mean_cosine,
        "texts": len(batches.texts),
    }
    typer.echo(json.dumps(found))


if __name__ == "__main__":
    typer.run(main)
