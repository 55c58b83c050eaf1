"""Compressed models with random factors: what tests of everything after the decomposition need."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from collab_hf.host.adoption import adopt_
from collab_hf.modeling.attention import CollabAttention
from collab_hf.modeling.families import attention_layers
from collab_hf.modeling.mixing import SelectionMixing
from collab_hf.modeling.plan import LayerPlan
from collab_hf.modeling.plans import QUERY_KEY, apply_plans_
from collab_hf.parts.query_key.graft import factor_parameters

# Forms of the tiny models' layers (3 heads of 8, hidden size 24).
PLANS = {
    "copy": LayerPlan("copy", 24, 24, 8, content_bias="folded"),
    "copy-exact": LayerPlan("copy", 24, 24, 8, content_bias="exact"),
    "tucker": LayerPlan("tucker", 12, 8, 8, content_bias="folded"),
    "tucker-narrow": LayerPlan("tucker", 12, 12, 4, content_bias="exact"),
    "tucker-groups": LayerPlan("tucker", 10, 8, 4, key_groups=2, content_bias="folded"),
    "tucker-head-rank": LayerPlan("tucker", 12, 8, 8, head_rank=2, content_bias="folded"),
    "tucker-tied": LayerPlan("tucker", 12, 12, 4, tied=True, content_bias="folded"),
    "tucker-tied-exact": LayerPlan("tucker", 12, 12, 4, tied=True, content_bias="exact"),
    "cp": LayerPlan("cp", 16, 16, 16, content_bias="exact"),
    "cp-sparse": LayerPlan("cp", 16, 16, 4, content_bias="folded"),
    "svd": LayerPlan("svd", 12, 12, 4, content_bias="exact"),
}


def make_collab_(model: PreTrainedModel, plan: LayerPlan) -> PreTrainedModel:
    """Give every attention layer random factors of one form, in place; scores stay of the order of one."""
    plans = {QUERY_KEY: {name: plan for name, _, _ in attention_layers(model)}}
    apply_plans_(model, plans)
    for module in model.modules():
        if isinstance(module, CollabAttention):
            _fill_(module)
    adopt_(model, plans)
    return model


def _fill_(module: Any) -> None:
    for parameter in factor_parameters(module):
        nn.init.normal_(parameter, std=0.3)
    for parameter in module.mixing.parameters():
        nn.init.normal_(parameter, std=0.5)
    if isinstance(module.mixing, SelectionMixing):
        rank = module.mixing.query_rank
        chosen = [torch.randperm(rank)[: module.mixing.score_width] for _ in range(module.mixing.num_heads)]
        module.mixing.index.copy_(torch.stack(chosen))
    if isinstance(getattr(module.mixing, "group", None), torch.Tensor):
        module.mixing.group.copy_(torch.arange(module.mixing.num_heads) % module.mixing.key_groups)


def text_inputs(batch: int = 2, length: int = 7, vocabulary: int = 50) -> dict[str, torch.Tensor]:
    """Random token ids, the last sequence padded."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length - 2 :] = 0
    return {"input_ids": torch.randint(0, vocabulary, (batch, length)), "attention_mask": mask}


def image_inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    """Random pixels of the tiny image models' size."""
    return {"pixel_values": torch.randn(batch, 3, 16, 16)}


def outputs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's first output."""
    with torch.no_grad():
        return model(**inputs)[0]
