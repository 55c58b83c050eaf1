"""The surgery on real checkpoints: exact at full rank, close at a quarter, trainable afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer

from collab_hf import CollabConfig, compress_, load_model
from collab_hf.modeling.attention import CollabAttention

# float32 hidden states of order one after up to 12 layers; the dense model itself moves by as much when its
# sums are taken in another order (eager against sdpa).
EXACT = 1e-5

TEXTS = {
    "minilm": [
        "A man is playing a flute.",
        "The stock market fell sharply on Tuesday, its worst day this year.",
    ],
    "rxn-bert": ["CCO.CC(=O)O>>CC(=O)OCC", "c1ccccc1Br.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1"],
    "rxn-bert-classifier": ["CCO.CC(=O)O>>CC(=O)OCC", "c1ccccc1Br.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1"],
    "rxn-albert": ["CCO.CC(=O)O>>CC(=O)OCC", "c1ccccc1Br.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1"],
    "antibody-bert": ["E V Q L V E S G G G L V Q P G G S L R L S C A A S", "D I Q M T Q S P S S L S A S V"],
}


def inputs(name: str, directory: Path) -> dict[str, Tensor]:
    if name == "dinov2-small":
        return {"pixel_values": torch.rand(2, 3, 98, 98) * 4 - 2}
    return dict(AutoTokenizer.from_pretrained(directory)(TEXTS[name], padding=True, return_tensors="pt"))


def last_states(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Last hidden states of the real tokens; at padding, ALBERT amplifies rounding to 1e-4 in 12 layers."""
    with torch.no_grad():
        states: Tensor = model(**batch, output_hidden_states=True).hidden_states[-1]
    return states[batch["attention_mask"].bool()] if "attention_mask" in batch else states


def without_content_bias_(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, CollabAttention):
            with torch.no_grad():
                module.collab_family.projection(module, "key").weight[module.collab_plan.key_rank :] = 0


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", ["minilm", "rxn-bert", "rxn-bert-classifier", "rxn-albert", "antibody-bert", "dinov2-small"]
)
def test_full_rank_equals_the_original(checkpoint: Callable[[str], Path], name: str, backend: str) -> None:
    directory = checkpoint(name)
    batch = inputs(name, directory)

    def load() -> Any:
        model = load_model(directory)
        model.set_attn_implementation(backend)
        return model

    expected = last_states(load(), batch)
    scale = expected.abs().max().clamp_min(1)
    copied = load()
    compress_(copied, CollabConfig(method="copy"), None)
    assert (last_states(copied, batch) - expected).abs().max() / scale < EXACT
    concatenated = load()
    attention = next(
        m for m in concatenated.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "config")
    )
    full = attention.num_attention_heads * getattr(
        attention, "attention_head_size", getattr(attention, "head_dim", 0)
    )
    compress_(concatenated, CollabConfig(method="cp", rank=full), None)
    assert (last_states(concatenated, batch) - expected).abs().max() / scale < EXACT
    without_content_bias_(concatenated)
    assert (last_states(concatenated, batch) - expected).abs().max() / scale > 100 * EXACT


def test_image_processor_goes_with_the_checkpoint(checkpoint: Callable[[str], Path]) -> None:
    assert AutoImageProcessor.from_pretrained(checkpoint("dinov2-small")).size is not None
