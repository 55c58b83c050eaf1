"""What `bench_speed.py` times: attention blocks and models of well-known shapes, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertSelfAttention

from collab_hf.modeling.attention import CollabAttention
from collab_hf.modeling.conversion import convert_
from collab_hf.modeling.families import attention_layers
from collab_hf.modeling.mixing import SelectionMixing
from collab_hf.modeling.plan import LayerPlan
from collab_hf.modeling.shapes import AttentionShape

LENGTHS = (16, 64, 128, 197, 256, 512, 1024)
BATCHES = (1, 8, 32)
DEFAULT = "tied tucker"
BUDGETS = {"half": 0.5, "quarter": 0.25, "eighth": 0.125}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model's attention, and the lengths it is known for."""

    name: str
    hidden_size: int
    num_heads: int
    lengths: tuple[int, ...]

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def attention(self) -> AttentionShape:
        """The same as the planner has it."""
        # One entry of bias per output of the query and key projections.
        return AttentionShape(
            self.hidden_size, self.hidden_size, self.num_heads, self.head_dim, 2 * self.hidden_size
        )


BERT_BASE = Shape("BERT-base", 768, 12, LENGTHS)
OTHER_SHAPES = (
    Shape("BERT-large", 1024, 16, (16, 128, 512)),
    Shape("ViT-B/16", 768, 12, (197,)),
    Shape("ViT-S/14", 384, 6, (257,)),
    Shape("MiniLM-L6", 384, 12, (16, 128, 256)),
)


def default_plan(shape: Shape, budget: float = 0.25) -> LayerPlan:
    """Tied tucker: half a head wide, folded bias."""
    return plans(shape, budget)[DEFAULT]


def plans(shape: Shape, budget: float) -> dict[str, LayerPlan]:
    """One plan of each method, as large as the budget allows."""
    heads, head_dim = shape.num_heads, shape.head_dim
    half = head_dim // 2
    forms: dict[str, Callable[[int], LayerPlan]] = {
        DEFAULT: lambda n: LayerPlan("tucker", 8 * n, 8 * n, half, tied=True, content_bias="folded"),
        "tucker, narrowed keys": lambda n: LayerPlan("tucker", 8 * n, 8 * n, half, content_bias="folded"),
        "tucker, one shared key": lambda n: LayerPlan(
            "tucker", 8 * n, head_dim, head_dim, content_bias="folded"
        ),
        "cp, sparse mixing": lambda n: LayerPlan("cp", 8 * n, 8 * n, half),
        "svd": lambda n: LayerPlan("svd", heads * n, heads * n, n, content_bias="folded"),
        "cp": lambda n: LayerPlan("cp", 8 * n, 8 * n, 8 * n),
    }
    allowed = int(budget * shape.attention.dense_parameters)

    def largest(form: Callable[[int], LayerPlan]) -> LayerPlan:
        size = 1
        while form(size).score_width > form(size).key_rank:  # no shared key is narrower than the score
            size += 1
        while form(size + 1).num_parameters(shape.attention) <= allowed:
            size += 1
        return form(size).check(shape.attention, shape.name)

    return {name: largest(form) for name, form in forms.items()}


def describe(plan: LayerPlan) -> str:
    """Ranks and score width, short."""
    return f"{plan.query_rank}x{plan.key_rank}, width {plan.score_width}"


class Block(nn.Module):
    """All projections and the attention core; no dropout, residual or norm."""

    def __init__(self, shape: Shape, plan: LayerPlan | None = None) -> None:
        super().__init__()
        self.attention: Any = BertSelfAttention(_config(shape), layer_idx=0)
        self.output = nn.Linear(shape.hidden_size, shape.hidden_size)
        if plan is not None:
            convert_(self.attention, plan)
            fill_(self.attention)

    def forward(self, states: Tensor) -> Tensor:
        """States of (batch, length, hidden_size), in and out."""
        mixed: Tensor = self.attention(states)[0]
        out: Tensor = self.output(mixed)
        return out


class CeilingBlock(Block):
    """The block without query and key projections at all: nothing that shrinks them can be faster."""

    def forward(self, states: Tensor) -> Tensor:
        """States of (batch, length, hidden_size), in and out."""
        value = self.attention.value(states).unflatten(-1, (self.attention.num_attention_heads, -1))
        value = value.transpose(1, 2)
        mixed = F.scaled_dot_product_attention(value, value, value)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out


def build_model(shape: Shape, num_layers: int, plan: LayerPlan | None = None) -> BertModel:
    """A BERT with random weights and room for every length."""
    config = _config(shape, num_hidden_layers=num_layers)
    model: BertModel = BertModel(config, add_pooling_layer=False)
    model.eval()
    if plan is not None:
        for _, module, _ in list(attention_layers(model)):
            convert_(module, plan)
            fill_(module)
    return model


def _config(shape: Shape, **settings: Any) -> BertConfig:
    config = BertConfig(
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        intermediate_size=4 * shape.hidden_size,
        max_position_embeddings=max(LENGTHS),
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
        **settings,
    )
    config._attn_implementation = "sdpa"
    return config


def fill_(module: Any) -> None:
    """Give a converted layer random factors; time does not depend on their values."""
    if not isinstance(module, CollabAttention):
        raise TypeError(f"not a collaborative layer: {type(module).__name__}")
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.05)
    mixing = module.mixing
    if isinstance(mixing, SelectionMixing):
        rank, width = mixing.query_rank, mixing.score_width
        picked = [torch.randperm(rank)[:width].sort().values for _ in range(mixing.num_heads)]
        mixing.index.copy_(torch.stack(picked))


def forward_and_backward(block: nn.Module, states: Tensor) -> Callable[[], None]:
    """A training step without the optimizer; gradients reach the input too."""
    states = states.clone().requires_grad_()

    def step() -> None:
        block.zero_grad()
        with torch.enable_grad():
            block(states).sum().backward()

    return step
