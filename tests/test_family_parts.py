"""Heads and neurons of every family: a smaller module is the dense one without what went."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import VOCABULARY as TOKENS
from cli_support import CommandLine, save_with_tokenizer
from family_models import ALL, CASES, KEPT, REFUSED, VOCABULARY, build, image
from random_models import PLANS
from test_families import EXACT, WAYS, difference, generate, run
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from collab_hf import CollabConfig, compress_
from collab_hf.errors import ConfigError, FamilyError, RankError
from collab_hf.host.sites import all_attention_sites
from collab_hf.modeling.embeddings import dense_table
from collab_hf.modeling.families import (
    Slot,
    all_attention_layers,
    feed_forward_layers,
    row_of_class,
    slot_of,
    submodule_at,
)
from collab_hf.modeling.plans import QUERY_KEY, apply_plans_, shrink_
from collab_hf.modeling.shrinking import FeedForwardPlan, HeadsPlan, ValuePlan, fill_
from collab_hf.parts.heads.sites import removable_heads
from collab_hf.parts.registry import HEADS
from collab_hf.parts.shrunk import rows_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_decoder.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
]
# Position biases that each head has of its own.
WHOLE_HEADS = {"beit", "layoutlmv3", "mpnet", "t5", "mt5", "umt5", "data2vec-vision", "trocr"}
# Scores of their own, or norms over all heads.
WHOLE_HEADS |= {"deberta", "deberta-v2", "wavlm", "olmo2", "cohere-normed"}


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


@pytest.mark.parametrize("name", [name for name in ALL if name not in WHOLE_HEADS])
def test_without_the_second_head(name: str) -> None:
    """Or without the second key and all heads that share it."""
    small, dense = build(name), build(name)
    for site, other in zip(HEADS.sites(small).values(), HEADS.sites(dense).values(), strict=True):
        heads, sharing, width = site.shape.num_heads, site.shape.sharing, site.shape.head_dim
        assert sharing == (2 if ALL[name].settings.get("num_key_value_heads") else 1)
        gone = range(sharing, 2 * sharing)
        with torch.no_grad():
            output = other.at(other.family.output)
            Slot(output).weight[:, gone.start * width : gone.stop * width] = 0
        plan = HeadsPlan(tuple(head for head in range(heads) if head not in gone))
        HEADS.install_(site, HEADS.solution(site, plan, None))
        assert site.family.heads(site.module) == heads - sharing
    assert difference(run(small, name), run(dense, name)) < EXACT
    assert difference(run(small, name), run(build(name), name)) > 1e-3
    if name in {"gpt2", "gemma3_text", "llama"}:
        for title, way in WAYS.items():
            assert torch.equal(generate(small, name, **way)[0], generate(dense, name, **way)[0]), title


def test_heads_that_share_a_key_stay_together() -> None:
    site = next(iter(HEADS.sites(build("llama")).values()))
    with pytest.raises(RankError, match=r"every 2 heads share a key and stay together, got \[0, 1, 2\]"):
        shrink_(site.module, site.around, HeadsPlan((0, 1, 2)), site.name)
    with pytest.raises(FamilyError, match=r"heads of LlamaForCausalLM can't be taken out: several of them"):
        removable_heads(build("llama"))


@pytest.mark.parametrize("name", sorted(WHOLE_HEADS))
def test_heads_that_stay_are_refused_with_a_reason(name: str) -> None:
    reasons = [row.refusal(module, "heads") for _, module, row in all_attention_layers(build(name))]
    assert any(reason is not None and reason.startswith(("each of its heads", "its ")) for reason in reasons)


@pytest.mark.parametrize("name", ALL)
def test_all_the_neurons_are_the_same_bits(name: str) -> None:
    small = build(name)
    around = holders(small)
    for _, module, row in list(feed_forward_layers(small)):
        kept = torch.arange(slot_of(module, row.down).weight.shape[1])
        rows = [path for path in (row.up, row.gate) if path is not None]
        keep_(module, around[module], FeedForwardPlan(len(kept)), rows, row.down, kept)
    assert all(torch.equal(a, b) for a, b in zip(run(small, name), run(build(name), name), strict=True))


@pytest.mark.parametrize("name", ALL)
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
    cases = {**ALL, **KEPT}
    assert {case.model_type or name for name, case in cases.items()} == set(listed) | composites
    for name in CASES.keys() - composites:
        assert listed[name]["query_key"] is None
        assert listed[name]["heads"] is None or name in WHOLE_HEADS
    assert "rotary" in listed["llama"]["query_key"]
    assert listed["llama"]["heads"] is None
    assert "normed" in listed["olmo2"]["heads"]
    assert "rotary" in listed["esm"]["note"]
    assert "normed" in listed["cohere"]["note"]
    assert all((one["feed_forward"] is None) != (name in KEPT) for name, one in listed.items())


def batches(name: str) -> list[dict[str, Any]]:
    """Inputs that differ, so that every site sees more than one of them."""
    found = []
    for shift in range(6):
        made = ALL[name].inputs()
        if "input_ids" in made:
            made["input_ids"] = (made["input_ids"] + 7 * shift) % (VOCABULARY - 3) + 3
        found.append({k: v + shift * v.roll(1, -1) if v.is_floating_point() else v for k, v in made.items()})
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_what_keeps_its_queries_and_keys_meets_targets_by_other_parts(name: str, tmp_path: Path) -> None:
    dense, model = build(name), build(name)
    report = compress_(model, CollabConfig(flops=0.7, length=7, reconstruct_steps=1), batches(name))
    assert report.whole is not None
    assert "feed_forward" in report.whole.plans
    assert set(report.whole.plans) <= {"feed_forward", "heads"}
    assert report.whole.operations_after <= 0.7 * report.whole.operations_before
    assert report.qk_parameters_before == sum(
        site.shape.dense_parameters for site in all_attention_sites(dense).values()
    )
    want = run(model, name)
    assert difference(want, run(dense, name)) > 1e-3
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert all(torch.equal(a, b) for a, b in zip(run(again, name), want, strict=True))
    if ALL[name].generates:
        first = generate(model, name, use_cache=False)
        for way in WAYS.values():
            assert torch.equal(generate(again, name, **way)[0], first[0])
    with pytest.raises(FamilyError, match="compressed already"):
        compress_(again, CollabConfig(flops=0.9, length=7), batches(name))


@pytest.mark.parametrize("name", ["deberta-v2", "gemma3_text", "llama", "modernbert"])
def test_narrow_embeddings_are_the_table_they_stand_for(name: str) -> None:
    """Gemma scales what it looks up, and reads the same table to write."""
    model, dense = build(name), build(name)
    compress_(model, CollabConfig(params=0.97, parts=["embeddings"], reconstruct_steps=0), batches(name))
    with torch.no_grad():
        dense.get_input_embeddings().weight.copy_(dense_table(model.get_input_embeddings()))
    assert difference(run(model, name), run(dense, name)) < EXACT
    assert difference(run(model, name), run(build(name), name)) > 1e-3


def test_the_commands_on_a_model_whose_queries_and_keys_stay(
    collab_hf: CommandLine, text: Path, tmp_path: Path
) -> None:
    settings = {**ALL["llama"].settings, "vocab_size": len(TOKENS)}
    dense = save_with_tokenizer(LlamaForCausalLM(LlamaConfig(**settings)), tmp_path / "dense")
    out, healed = tmp_path / "out", tmp_path / "healed"
    wanted = ["--params", "0.8", "--parts", "feed_forward,heads,embeddings", "--heal-steps", "2"]
    answer = collab_hf("compress", dense, "-o", out, *wanted, "--calibration", text, "--json")
    assert answer.code == 0, answer.err
    assert answer.values["parameters_after"] <= 0.8 * answer.values["parameters_before"]
    assert collab_hf("verify", out, "--against", dense).code == 0
    again = collab_hf("heal", out, "-o", healed, "--data", text, "--teacher", dense, "--steps", "2")
    assert again.code == 0, again.err
    refused = collab_hf("compress", dense, "-o", tmp_path / "no", "--budget", "0.5", "--calibration", text)
    assert re.search(r"queries and keys of LlamaForCausalLM can't be compressed: .*rotary", refused.complaint)


@pytest.mark.parametrize("name", KEPT)
def test_models_of_which_nothing_can_be_smaller_are_refused_with_the_reason(name: str) -> None:
    model, data = build(name), [KEPT[name].inputs()] * 4
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for config in (CollabConfig(budget=0.5), CollabConfig(flops=0.5), CollabConfig(params=0.5)):
        with pytest.raises(FamilyError, match=r"can't .*: its .* \(.*Attention, .*\)"):
            compress_(model, config, data)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_parts_that_stay_are_refused_also_where_a_recipe_names_them() -> None:
    parts = CollabConfig(flops=0.9, length=7, parts=["query_key", "value_output"])
    with pytest.raises(
        FamilyError, match=r"LlamaForCausalLM can't lose any of its query_key, value_output: .*rotary"
    ):
        compress_(build("llama"), parts, batches("llama"))
    kinds = CollabConfig(flops=0.9, length=7, parts=["query_key"], attention="cross")
    with pytest.raises(ConfigError, match="no layer is cross attention"):
        compress_(build("llama"), kinds, batches("llama"))
    with pytest.raises(FamilyError, match="its feed_forward: collab_hf knows no such layer"):
        compress_(build("segformer"), CollabConfig(flops=0.9, parts=["feed_forward"]), [image()])
    for section, plan in (("value_output", {"width": 3}), ("layers", PLANS["tucker"].to_dict())):
        recipe = CollabConfig(plans={section: {"layers.0.self_attn": plan}})
        with pytest.raises((ConfigError, FamilyError), match=r"rotary|only beside a form"):
            compress_(build("llama"), recipe, batches("llama"))
    with pytest.raises(ConfigError, match=r"of LlamaAttention can't be compressed: .*rotary"):
        apply_plans_(build("llama"), {QUERY_KEY: {"layers.0.self_attn": PLANS["tucker"]}})


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
