"""Every family with the tools around transformers: torch.export, which ONNX exporters build on, and PEFT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import ALL, CASES, build
from test_families import EXACT, HALF, difference, run, tensors
from torch import nn
from transformers import PreTrainedModel

from collab_hf import CollabConfig, compress_
from collab_hf.modeling.attention import CollabAttention


def smaller(name: str) -> PreTrainedModel:
    """A model with half of its queries and keys, or where these stay with fewer neurons."""
    model = build(name)
    if name in CASES:
        compress_(model, HALF)
    else:
        settings = CollabConfig(flops=0.8, length=7, parts=("feed_forward",), reconstruct_steps=0)
        compress_(model, settings, [ALL[name].inputs() for _ in range(4)])
    return model


def adapted(model: PreTrainedModel) -> list[str]:
    """The linear layers of the modules that surgery made smaller, where an adapter on each is LoRA's rule.

    Others hold weights that hosts read without calling them, such as those of position biases.
    """
    return [
        f"{name}.{inner}"
        for name, module in model.named_modules()
        if isinstance(module, CollabAttention) or getattr(module, "collab_plans", None)
        for inner, linear in module.named_modules()
        if inner and isinstance(linear, nn.Linear)
    ]


def exported(model: PreTrainedModel, name: str) -> Any:
    inputs = ALL[name].inputs()
    # torch.export has no form for some of the hosts' caches.
    if model.can_generate() or getattr(model.config, "use_cache", False):
        inputs["use_cache"] = False
    with torch.no_grad():
        return tensors(torch.export.export(model, (), inputs, strict=False).module()(**inputs))


@pytest.mark.parametrize("name", ALL)
def test_exports_as_the_original_does(name: str) -> None:
    model = smaller(name)
    assert difference(exported(model, name), run(model, name)) < EXACT


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # which PEFT asks for
@pytest.mark.parametrize("name", ALL)
def test_lora_trains_merges_and_reloads(name: str, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = smaller(name)
    base.save_pretrained(tmp_path / "base")
    before = run(base, name)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=adapted(base), init_lora_weights=False))
    trained = run(model.eval(), name)
    assert difference(trained, before) > 1e-4
    model.save_pretrained(tmp_path / "adapter")
    again = type(base).from_pretrained(tmp_path / "base")
    reloaded = PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    # The same numbers; deberta-v2 sums them in another order where they lie elsewhere in memory.
    assert difference(run(reloaded, name), trained) < EXACT
    assert difference(run(reloaded.merge_and_unload(), name), trained) < EXACT
