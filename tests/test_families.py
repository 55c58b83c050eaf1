"""Every family by one set of tests: exact at full rank, trained, saved, loaded, generating, refused."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import CASES, build
from random_models import PLANS, make_collab_
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from collab_hf import CollabConfig, compress_
from collab_hf.modeling.attention import CollabAttention
from collab_hf.modeling.families import all_attention_layers
from collab_hf.parts.query_key.graft import factor_parameters

# float32 through two layers: a few units in the last place of outputs of the order of ten.
EXACT = 1e-5
BACKENDS = ("sdpa", "eager")
# Hosts that have no sdpa attention, or say that they have none.
EAGER_ONLY = frozenset(
    {
        "gpt_neo",
        "layoutlmv3",
        "markuplm",
        "megatron-bert",
        "mpnet",
        "rembert",
        "speech_to_text",
        "splinter",
        "xglm",
    }
)
GENERATING = [name for name, case in CASES.items() if case.generates]
HALF = CollabConfig(method="tucker", rank=12, score_width=8)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_decoder.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
]


def tensors(found: Any) -> list[Tensor]:
    """All tensors of a model's output, in order."""
    if isinstance(found, Tensor):
        return [found] if found.numel() and found.is_floating_point() else []
    if isinstance(found, str | Cache) or not isinstance(found, Iterable):
        return []  # a cache holds shared keys
    inside = found.values() if hasattr(found, "values") else found
    return [tensor for value in inside for tensor in tensors(value)]


def run(model: PreTrainedModel, name: str, **more: Any) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return tensors(model(**CASES[name].inputs(), **more))


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest, relative to the largest number of all."""
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    assert theirs
    size = max(t.abs().max().item() for t in theirs)
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)) / size


def converted(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, CollabAttention)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_copy_equals_dense(name: str, backend: str) -> None:
    """Also the attention maps where the backend gives them, in number and shape."""
    if backend == "sdpa" and name in EAGER_ONLY:
        pytest.skip("the host has no sdpa attention")
    more = {"output_attentions": True} if backend == "eager" else {}
    dense, model = build(name, backend), build(name, backend)
    assert len(list(all_attention_layers(dense))) == CASES[name].modules
    compress_(model, CollabConfig(method="copy", content_bias="exact" if backend == "eager" else "folded"))
    want = run(dense, name, **more)
    assert difference(run(model, name, **more), want) < EXACT
    for module in converted(model):
        with torch.no_grad():
            key = module.collab_family.projection(module, "key").weight
            key.copy_(key.roll(1, 0))  # other scores, and with them other outputs
    assert difference(run(model, name, **more), want) > 100 * EXACT


@pytest.mark.parametrize("name", CASES)
def test_half_the_rank_trains_saves_and_loads(name: str, tmp_path: Path) -> None:
    model = build(name)
    compress_(model, HALF)
    want = run(model, name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert len(converted(again)) == len(converted(model)) == CASES[name].modules
    assert all(torch.equal(a, b) for a, b in zip(run(again, name), want, strict=True))
    again.zero_grad()
    loss = torch.stack([t.pow(2).sum() for t in tensors(again(**CASES[name].inputs())) if t.requires_grad])
    loss.sum().backward()
    for module in converted(again):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in factor_parameters(module))


WAYS: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "dynamic": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
}


def generate(model: PreTrainedModel, name: str, **way: Any) -> tuple[Tensor, Tensor]:
    inputs = CASES[name].inputs()
    inputs.pop("decoder_input_ids", None)
    if "attention_mask" in inputs and not model.config.is_encoder_decoder:
        inputs = {key: value.flip(1) for key, value in inputs.items()}  # padded on the left
    made = model.generate(
        **inputs,
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
        num_beams=1,
        output_scores=True,
        return_dict_in_generate=True,
        **way,
    )
    return made.sequences, torch.stack(made.scores)


@pytest.mark.parametrize("name", GENERATING)
def test_generates_as_dense_with_every_cache(name: str) -> None:
    dense, model = build(name), build(name)
    compress_(model, CollabConfig(method="copy"))
    low = make_collab_(build(name), PLANS["tucker"])
    first = generate(low, name, use_cache=False)
    for title, way in WAYS.items():
        if title == "static" and not getattr(dense, "_can_compile_fullgraph", True):
            continue  # the host has no static cache
        want, got = generate(dense, name, **way), generate(model, name, **way)
        assert torch.equal(got[0], want[0])
        finite = want[1].isfinite()
        assert (got[1] - want[1])[finite].abs().max() < EXACT * want[1][finite].abs().max(), title
        again = generate(low, name, **way)
        assert torch.equal(again[0], first[0])
        assert not torch.equal(again[1], want[1])


def test_the_table_is_whole() -> None:
    """Each field of a case is used, and no case stands twice."""
    assert {field.name for field in dataclasses.fields(next(iter(CASES.values())))} >= {"modules", "inputs"}
    assert len(CASES) >= 40
