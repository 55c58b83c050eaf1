"""Every family by one set of tests: exact at full rank, trained, saved, loaded, generating, refused."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import ALL, CASES, REFUSED, build
from random_models import PLANS, make_collab_
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from collab_hf import CollabConfig, compress_
from collab_hf.errors import ConfigError, FamilyError
from collab_hf.modeling.attention import CollabAttention
from collab_hf.modeling.families import (
    Slot,
    all_attention_layers,
    feed_forward_layers,
    slot_of,
    submodule_at,
)
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
        "trocr",
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
        return tensors(model(**ALL[name].inputs(), **more))


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
    inputs = ALL[name].inputs()
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


ATTENTION = [name for name in ALL if name != "deberta"]  # whose one projection interleaves its heads


def outputs_without(model: PreTrainedModel, name: str, parameters: Iterable[Tensor | None]) -> list[Tensor]:
    """What the model gives with some numbers, views of its parameters, set to zero for the while."""
    found = [p for p in parameters if p is not None]
    with torch.no_grad():
        before = [p.clone() for p in found]
        for p in found:
            p.zero_()
        result = run(model, name)
        for p, old in zip(found, before, strict=True):
            p.copy_(old)
    return result


@pytest.mark.parametrize("name", ATTENTION)
def test_values_outputs_and_gains_are_where_the_rows_say(name: str) -> None:
    """Without a head's columns of the output, a model is what it is without the head's values."""
    model = build(name)
    around = {child: module for module in model.modules() for child in module.children()}
    want, sites = run(model, name), list(all_attention_layers(model))
    assert len(sites) == ALL[name].modules
    for title, module, row in sites:
        output = (
            slot_of(module, row.output)
            if ":" in row.output
            else Slot(submodule_at(module, around[module], row.output))
        )
        value, groups = row.slot(module, "value"), row.key_value_heads(module)
        heads, width = row.heads(module), row.width(module)
        assert output.weight.shape[1] == heads * width, title
        assert value.weight.shape[0] == groups * width, title
        columns = slice(width * heads // groups, 2 * width * heads // groups)  # of the second group's heads
        rows = slice(width, 2 * width)
        bias = None if value.bias is None else value.bias[rows]
        by_output = outputs_without(model, name, [output.weight[:, columns]])
        assert difference(by_output, outputs_without(model, name, [value.weight[rows], bias])) < EXACT, title
        if ".decoder" not in name and not row.cross:
            assert difference(by_output, want) > 1e-4, title
        if row.gain is not None:
            assert submodule_at(module, around[module], row.gain).shape == (output.weight.shape[0],)


@pytest.mark.parametrize("name", ALL)
def test_feed_forwards_are_where_the_rows_say(name: str) -> None:
    """Without some neurons' columns of the way back, a model is what it is without their way up."""
    model = build(name)
    around = {child: module for module in model.modules() for child in module.children()}
    want, sites = run(model, name), list(feed_forward_layers(model))
    assert sites
    few = slice(3, 20)
    for title, module, row in sites:
        up, down = slot_of(module, row.up), slot_of(module, row.down)
        assert up.weight.shape == down.weight.shape[::-1], title
        without = outputs_without(model, name, [down.weight[:, few]])
        bias = None if up.bias is None else up.bias[few]
        assert difference(without, outputs_without(model, name, [up.weight[few], bias])) < EXACT, title
        assert difference(without, want) > 1e-5, title
        if row.gate is not None:
            gate = slot_of(module, row.gate)
            assert gate.weight.shape == up.weight.shape
            assert gate.weight.data_ptr() != up.weight.data_ptr()
        if row.gain is not None:
            assert submodule_at(module, around[module], row.gain).shape == (down.weight.shape[0],)


@pytest.mark.parametrize("name", REFUSED)
def test_what_keeps_its_queries_and_keys_is_refused_by_name(name: str) -> None:
    model = build(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(
        FamilyError, match=rf"queries and keys of {type(model).__name__} can't be compressed: .*Attention"
    ):
        compress_(model, HALF)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_at_least_forty_model_types_are_compressed() -> None:
    assert len({case.model_type or name for name, case in CASES.items()}) >= 40


FRESH = """
import json, sys, torch, transformers
for auto, directory in json.loads(sys.argv[1]).items():
    auto = auto.partition(":")[0]
    inputs, want = torch.load(directory + "/answer.pt")
    model = getattr(transformers, auto).from_pretrained(directory, trust_remote_code=True).eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], want), directory
assert "collab_hf" not in sys.modules
print("equal")
"""
# One of each contract, by the Auto class that loads it.
FAR = {
    "AutoModelForMaskedLM": "mpnet",
    "AutoModelForImageClassification": "vit",
    "AutoModel": "clip",
    "AutoModelForSeq2SeqLM": "t5",
    "AutoModelForCausalLM": "gpt2",
    "AutoModelForSpeechSeq2Seq": "whisper",
    "AutoModelForImageTextToText": "vision-encoder-decoder",
    "AutoModelForSeq2SeqLM:composite": "encoder-decoder",
    "AutoModelForMaskedLM:rotary": "modernbert",
    "AutoModelForCausalLM:grouped": "llama",
}


def test_checkpoints_of_all_contracts_load_without_the_package(tmp_path: Path) -> None:
    directories = {}
    for auto, name in FAR.items():
        model, inputs = build(name), ALL[name].inputs()
        if name in REFUSED:
            compress_(model, CollabConfig(flops=0.7, length=7), [inputs] * 4)
        else:
            compress_(model, HALF)
        model.save_pretrained(tmp_path / name)
        with torch.no_grad():
            torch.save((inputs, model(**inputs)[0]), tmp_path / name / "answer.pt")
        directories[auto] = str(tmp_path / name)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, json.dumps(directories)],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "attention", "chosen"),
    [
        ("bart", ("cross",), "decoder.layers.*.encoder_attn"),
        ("bart", "decoder-self,encoder", "*.self_attn"),
        ("t5", ("encoder-self",), "encoder.*"),
        ("clip", ("vision",), "vision_model.*"),
        ("clip", ("text-self",), "text_model.*"),
        ("encoder-decoder", ("decoder-self",), "decoder.*.attention.self"),
        ("vision-encoder-decoder", ["cross"], "decoder.*.crossattention"),
    ],
)
def test_some_kinds_of_layers_are_compressed(name: str, attention: Any, chosen: str, tmp_path: Path) -> None:
    model = build(name)
    report = compress_(model, CollabConfig(method="tucker", rank=12, score_width=8, attention=attention))
    for layer in report.layers:
        assert (layer.plan is not None) == fnmatchcase(layer.name, chosen), layer.name
    assert CollabConfig.from_dict(report.config.to_dict()) == report.config
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert all(torch.equal(a, b) for a, b in zip(run(again, name), run(model, name), strict=True))


def test_kinds_that_no_layer_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"attention must be kinds made of self, cross, .*got 'crossing'"):
        CollabConfig(attention="crossing")
    with pytest.raises(ConfigError, match=r"no layer is decoder or vision attention: encoder.layer.0"):
        compress_(build("bert"), CollabConfig(method="copy", attention=("decoder", "vision")))
