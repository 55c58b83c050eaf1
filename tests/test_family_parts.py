"""Heads and neurons of every family: a smaller module is the dense one without what went."""

import json
from typing import Any

import pytest
import torch
from cli_support import CommandLine
from family_models import CASES, REFUSED, build
from test_families import EXACT, difference, run
from torch import Tensor, nn

from collab_hf import CollabConfig, compress_
from collab_hf.modeling.families import (
    Slot,
    all_attention_layers,
    feed_forward_layers,
    row_of_class,
    slot_of,
    submodule_at,
)
from collab_hf.modeling.plans import shrink_
from collab_hf.modeling.shrinking import FeedForwardPlan, HeadsPlan, ValuePlan, fill_
from collab_hf.parts.shrunk import rows_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_decoder.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
]
# Position biases that each head has of its own, or one projection for queries, keys and values.
WHOLE_HEADS = {"beit", "layoutlmv3", "mpnet", "t5", "mt5", "umt5", "gpt2", "vision-encoder-decoder"}
WHOLE_HEADS |= {"data2vec-vision", "trocr"}


def holders(model: nn.Module) -> dict[nn.Module, nn.Module]:
    return {child: module for module in model.modules() for child in module.children()}


def keep_(module: nn.Module, around: nn.Module, plan: Any, rows: list[str], down: str, kept: Tensor) -> None:
    """Make a module smaller, and fill in what is left of its weights."""
    output = submodule_at(module, around, down)
    weights: dict[str, Any] = {path: rows_of(submodule_at(module, around, path), kept) for path in rows}
    columns = (output if isinstance(output, Slot) else Slot(output)).weight.detach()[:, kept].clone()
    shrink_(module, around, plan, "module")
    for path, values in {**weights, down: (columns, None)}.items():
        fill_(submodule_at(module, around, path), *values)


@pytest.mark.parametrize("name", [name for name in CASES if name not in WHOLE_HEADS])
def test_two_heads_of_three(name: str) -> None:
    small, dense = build(name), build(name)
    around, others = holders(small), holders(dense)
    for (title, module, row), (_, other, _) in zip(
        list(all_attention_layers(small)), list(all_attention_layers(dense)), strict=True
    ):
        assert row.refusal(module, "heads") is None, title
        width = row.width(module)
        kept = torch.tensor([*range(width), *range(2 * width, 3 * width)])
        with torch.no_grad():
            Slot(submodule_at(other, others[other], row.output)).weight[:, width : 2 * width] = 0
        keep_(module, around[module], HeadsPlan((0, 2)), [row.query, row.key, row.value], row.output, kept)
    assert difference(run(small, name), run(dense, name)) < EXACT
    assert difference(run(small, name), run(build(name), name)) > 1e-3


@pytest.mark.parametrize("name", sorted(WHOLE_HEADS))
def test_heads_that_stay_are_refused_with_a_reason(name: str) -> None:
    reasons = [row.refusal(module, "heads") for _, module, row in all_attention_layers(build(name))]
    assert any(reason is not None and reason.startswith(("each of its heads", "its ")) for reason in reasons)


@pytest.mark.parametrize("name", CASES)
def test_half_the_neurons(name: str) -> None:
    small, dense = build(name), build(name)
    around = holders(small)
    for (_, module, row), (_, other, _) in zip(
        list(feed_forward_layers(small)), list(feed_forward_layers(dense)), strict=True
    ):
        down = slot_of(other, row.down).weight
        kept = torch.arange(0, down.shape[1], 2)
        with torch.no_grad():
            down[:, kept + 1] = 0
        rows = [path for path in (row.up, row.gate) if path is not None]
        keep_(module, around[module], FeedForwardPlan(len(kept)), rows, row.down, kept)
    assert difference(run(small, name), run(dense, name)) < EXACT
    assert difference(run(small, name), run(build(name), name)) > 1e-3


@pytest.mark.parametrize(
    "name", [name for name in CASES if "gpt2" not in name and name != "vision-encoder-decoder"]
)
def test_narrower_values(name: str) -> None:
    """Hosts have values as wide as a head; a converted module takes any."""
    small, dense, narrow = build(name), build(name), 5
    around, others = holders(small), holders(dense)
    for (title, module, row), (_, other, _) in zip(
        list(all_attention_layers(small)), list(all_attention_layers(dense)), strict=True
    ):
        assert row.refusal(module, "value_output") is None, title
        heads, width = row.heads(module), row.width(module)
        kept = (torch.arange(heads).unsqueeze(1) * width + torch.arange(narrow)).flatten()
        gone = (torch.arange(heads).unsqueeze(1) * width + torch.arange(narrow, width)).flatten()
        with torch.no_grad():
            Slot(submodule_at(other, others[other], row.output)).weight[:, gone] = 0
        keep_(module, around[module], ValuePlan(narrow), [row.value], row.output, kept)
    compress_(small, CollabConfig(method="copy"))
    assert difference(run(small, name), run(dense, name)) < EXACT
    assert difference(run(small, name), run(build(name), name)) > 1e-3


def test_the_command_lists_every_model_type(collab_hf: CommandLine) -> None:
    result = collab_hf("families", "--json")
    assert result.code == 0
    listed = {one["model_type"]: one for one in json.loads(result.out)["families"]}
    composites = {"encoder-decoder", "vision-encoder-decoder"}
    assert {case.model_type or name for name, case in {**CASES, **REFUSED}.items()} == set(
        listed
    ) | composites
    for name in CASES.keys() - composites:
        assert listed[name]["query_key"] is None
        assert listed[name]["heads"] is None or name in WHOLE_HEADS
    assert "rotary" in listed["llama"]["query_key"]
    assert "rotary" in listed["esm"]["note"]
    assert all(one["feed_forward"] is None for one in listed.values())


@pytest.mark.parametrize("name", ["clip", "t5", "opt", "gpt_neo", "encoder-decoder"])
def test_planning_sees_towers_and_decoders(name: str) -> None:
    """Whose base models give no hidden states, or are never called."""
    model = build(name)
    config = CollabConfig(budget=0.5, reconstruct_steps=2)
    report = compress_(model, config, calibration=[CASES[name].inputs()] * 4)
    assert report.qk_parameters_after <= 0.5 * report.qk_parameters_before
    assert report.predicted_loss is not None


def test_copies_of_known_classes_need_no_row() -> None:
    """And a class that names what no contract explains gets none."""
    from transformers.models.metaclip_2.modeling_metaclip_2 import MetaClip2Attention
    from transformers.models.mixtral.modeling_mixtral import MixtralAttention
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeAttention
    from transformers.models.swin.modeling_swin import SwinAttention
    from transformers.models.xmod.modeling_xmod import XmodSelfAttention

    for host, output in ((MetaClip2Attention, "out_proj"), (NllbMoeAttention, "out_proj")):
        row = row_of_class(host)
        assert row is not None
        assert (row.query, row.output, row.refuses) == ("q_proj", output, None)
    xmod, mixtral = row_of_class(XmodSelfAttention), row_of_class(MixtralAttention)
    assert xmod is not None
    assert xmod.query == "query"
    assert mixtral is not None
    assert "rotary" in str(mixtral.refuses)
    assert row_of_class(SwinAttention) is None
