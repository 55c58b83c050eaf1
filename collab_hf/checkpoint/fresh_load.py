"""Load a checkpoint in a process of its own and write what it answers; run by path, not imported.

    python -P fresh_load.py package|code|stock DIR INPUTS OUTPUTS DEVICE

`package` imports collab_hf; `code` behaves as if it were not installed and lets the code in DIR run; `stock`
lets no code but transformers' run. INPUTS
holds tensors named `<batch>.<input>`, OUTPUTS gets the model's first output of every batch.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def main(route: str, directory: str, inputs: str, outputs: str, device: str) -> None:
    """Load, run and write.

    Args:
        route: `package`, `code` or `stock`.
        directory: the checkpoint.
        inputs: a safetensors file.
        outputs: the safetensors file to write.
        device: where the model runs.
    """
    if route == "package":
        import collab_hf  # noqa: F401
    else:
        sys.modules["collab_hf"] = None  # type: ignore[assignment]  # as if it were not installed
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    trusted = {"trust_remote_code": route == "code"}
    config = transformers.AutoConfig.from_pretrained(directory, **trusted)
    eager = {"attn_implementation": "eager"} if getattr(config, "output_attentions", False) else {}
    auto = auto_class(config)
    if auto is transformers.AutoBackbone:  # its own from_pretrained asks the Hub, for a directory too
        auto = type(auto.from_config(config, **trusted))
        trusted = {}
    model = auto.from_pretrained(directory, **trusted, **eager)
    save_file(run_batches(model.to(device), load_file(inputs)), outputs)


def auto_class(config: Any) -> Any:
    """The Auto class of the task head that a compressed checkpoint was saved with.

    Args:
        config: of the checkpoint.

    Returns:
        A class of transformers.
    """
    import transformers

    saved = (config.architectures or [""])[0]
    references = getattr(config, "auto_map", None) or {}
    if not references and hasattr(transformers, saved):
        return getattr(transformers, saved)  # of the host's own class
    names = [name for name, reference in references.items() if reference.rpartition(".")[2] == saved]
    return next((getattr(transformers, n) for n in names if hasattr(transformers, n)), transformers.AutoModel)


def run_batches(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's first output of every batch.

    Args:
        model: a model in eval mode.
        tensors: inputs by `<batch>.<name>`.

    Returns:
        Outputs in float32 on the CPU, by `<batch>`.
    """
    batches: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        batches.setdefault(number, {})[name] = (
            tensor.to(model.device, model.dtype) if tensor.is_floating_point() else tensor.to(model.device)
        )
    with torch.inference_mode():
        return {
            number: _first(model(**batch)).float().cpu().contiguous() for number, batch in batches.items()
        }


def _first(output: Any) -> torch.Tensor:
    """The first output; a backbone's is a tuple of feature maps, of which the last one saw most layers."""
    first: torch.Tensor = output[0][-1] if isinstance(output[0], tuple) else output[0]
    return first


if __name__ == "__main__":
    main(*sys.argv[1:])
