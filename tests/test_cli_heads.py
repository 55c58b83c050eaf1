"""`collab-hf heads`: scores as JSON, effects with p-values, pruned checkpoints that verify."""

import json

import pytest
import torch
from cli_support import SENTENCES, VOCABULARY, save_with_tokenizer, write_lines
from conftest import TINY, build_tiny
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    DeiTModel,
    Dinov2Model,
    ViTModel,
)

from collab_hf import CollabConfig, compress_, heads, to_dense_
from collab_hf.errors import ConfigError, FamilyError
from collab_hf.modeling.shrinking import HeadsPlan
from collab_hf.parts.heads.removal import columns_of
from collab_hf.parts.registry import HEADS
from collab_hf.parts.shrunk import Shrunk, rows_of

FEW = ["--examples", 12]  # else a thousand that ship fill up the few of a test


@pytest.fixture
def batches():
    ones = torch.ones(8, 12, dtype=torch.long)
    return [{"input_ids": torch.randint(50, (8, 12)), "attention_mask": ones} for _ in range(4)]


def test_score(collab_hf, model, text):
    found = collab_hf("heads", "score", model, "--calibration", text, "--json").values["heads"]
    assert [(row["layer"], row["head"]) for row in found] == [
        (f"encoder.layer.{layer}.attention.self", head) for layer in range(2) for head in range(3)
    ]
    assert all(row["importance"] > 0 for row in found)


@pytest.mark.parametrize("order", ["compensated", "importance", "random", "reverse"])
def test_prune(order, collab_hf, model, text, tmp_path):
    out = tmp_path / "out"
    done = collab_hf(
        "heads", "prune", model, "-o", out, "--share", 0.34, "--by", order, "--calibration", text, *FEW
    )
    assert done.code == 0, done.err
    config = json.loads((out / "config.json").read_text())
    kept = [len(plan["kept"]) for plan in config["collab"]["heads"].values()]
    assert 6 - sum(kept) - 3 * (2 - len(kept)) == 2
    assert {"collab_recipe.yaml", "collab_report.json", "README.md"} <= {file.name for file in out.iterdir()}
    assert collab_hf("verify", out).code == 0
    again = tmp_path / "again"
    arguments = ["--config", out / "collab_recipe.yaml", "--calibration", text]
    recipe = collab_hf("compress", model, "-o", again, *arguments)
    assert recipe.code == 0, recipe.err
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_ablate(collab_hf, model, text):
    found = collab_hf("heads", "ablate", model, "--task", "agreement", "--data", text, "--json").values
    assert found["metric"] == pytest.approx(1, abs=1e-5)
    assert found["tolerance"] == 0.01
    assert all((row["effect"] < -0.01) == (row["p_value"] < 0.5) for row in found["heads"])
    assert all(row["effect"] < 0 for row in found["heads"])


def test_score_on_labels(collab_hf, tiny_bert, model, tmp_path):
    labelled = [f"{text}\t{len(text) % 3}" for text in SENTENCES]
    rows = write_lines(tmp_path / "rows.tsv", ["sentence\tlabel", *labelled])
    pairs = [f"{a}\t{b}\t{len(a + b) % 6}" for a in SENTENCES for b in SENTENCES]
    scored = write_lines(tmp_path / "pairs.tsv", ["sentence1\tsentence2\tscore", *pairs])
    classifier = tiny_bert(BertForSequenceClassification, vocab_size=len(VOCABULARY))
    save_with_tokenizer(classifier, tmp_path / "classifier")
    found = {}
    for task, directory, data in (
        ("accuracy", tmp_path / "classifier", rows),
        ("stsb", model, scored),
    ):
        values = collab_hf("heads", "score", directory, "--task", task, "--data", data, "--json").values
        found[task] = [row["importance"] for row in values["heads"]]
        assert len(found[task]) == 6
        assert min(found[task]) > 0
    unlabelled = collab_hf("heads", "score", model, "--calibration", rows, "--json").values["heads"]
    assert [row["importance"] for row in unlabelled] != found["stsb"]
    said = collab_hf("heads", "score", model, "--task", "accuracy", "--data", rows).complaint
    assert said == "task accuracy needs a sequence classifier, got a BertModel"
    said = collab_hf("heads", "score", model, "--task", "accuracy").complaint
    assert said == "task accuracy needs --data FILE, a tab-separated file"


def test_score_keeps_a_state_and_draws(collab_hf, model, text, tmp_path):
    pytest.importorskip("matplotlib")
    options = ["--calibration", text, "--state", tmp_path / "state.json", "--json"]
    first = collab_hf("heads", "score", model, *options, "--plot", tmp_path / "map.png").values
    assert json.loads((tmp_path / "state.json").read_text())["batches"] == 1
    assert (tmp_path / "map.png").stat().st_size > 1000
    assert collab_hf("heads", "score", model, *options).values == first
    said = collab_hf("heads", "score", model, *options, "--plot", tmp_path / "map.jpg").complaint
    assert said == "a plot is a .png file, got 'map.jpg'"


def test_ablate_on_labels(collab_hf, tiny_bert, model, tmp_path):
    pairs = [f"{a}\t{b}\t{len(a + b) % 6}" for a in SENTENCES for b in SENTENCES]
    scored = write_lines(tmp_path / "pairs.tsv", ["sentence1\tsentence2\tscore", *pairs])
    options = ["--task", "stsb", "--data", scored, "--json"]
    whole = collab_hf("evaluate", model, *options).values["spearman"]
    found = collab_hf("heads", "ablate", model, *options).values
    assert found["metric"] == pytest.approx(whole)
    assert all(row["metric"] - row["effect"] == pytest.approx(whole) for row in found["heads"])
    alone = collab_hf("heads", "ablate", model, *options, "--all-but-one").values
    assert set(alone["one_head_serves"]) <= {row["layer"] for row in alone["heads"]}
    rows = write_lines(tmp_path / "rows.tsv", ["sentence\tlabel", *(f"{t}\t{len(t) % 3}" for t in SENTENCES)])
    classifier = tiny_bert(BertForSequenceClassification, vocab_size=len(VOCABULARY))
    save_with_tokenizer(classifier, tmp_path / "classifier")
    options = ["--task", "accuracy", "--data", rows, "--json"]
    values = collab_hf("heads", "ablate", tmp_path / "classifier", *options).values
    expected = collab_hf("evaluate", tmp_path / "classifier", *options).values["accuracy"]
    assert values["metric"] == pytest.approx(expected)


def test_prune_in_steps_and_by_kind(collab_hf, model, text, tmp_path):
    options = ["--share", 0.5, "--calibration", text, "--json", *FEW]
    done = collab_hf(
        "heads", "prune", model, "-o", tmp_path / "steps", *options, "--steps", 3, "--attention", "self"
    )
    assert done.code == 0, done.err
    card = (tmp_path / "steps" / "README.md").read_text()
    assert "layers attention heads were left out and the output projection was refitted" in card
    assert " heads left |" in card
    assert "arXiv:1905.10650" in card
    said = collab_hf(
        "heads", "prune", model, "-o", tmp_path / "no", *options, "--attention", "cross"
    ).complaint
    assert said.startswith("no layer is cross attention")


def test_refused(collab_hf, model, text, tmp_path):
    out = tmp_path / "out"
    said = collab_hf("heads", "prune", model, "-o", out, "--share", 1.5, "--calibration", text).complaint
    assert said == "share must be between 0 and 1, the share of all heads that go, got 1.5"
    said = collab_hf("heads", "prune", model, "-o", out, "--share", 0.9, "--calibration", text).complaint
    assert said.startswith("5 of 6 heads can't go: with at least 1 left in every layer")
    said = collab_hf("heads", "ablate", model, "--task", "stsb").complaint
    assert said == "task stsb needs --data FILE, a tab-separated file"
    assert not out.exists()


def first(model, batch):
    with torch.no_grad():
        return model(**batch)[0]


FAMILIES = {
    "bert": lambda makers: makers["bert"](BertModel),
    "decoder": lambda makers: makers["bert"](BertLMHeadModel, is_decoder=True),
    "albert": lambda makers: build_tiny(AlbertModel, AlbertConfig(**TINY, vocab_size=50, embedding_size=16)),
    "vit": lambda makers: makers["vit"](ViTModel),
    "deit": lambda makers: makers["deit"](DeiTModel),
    "dinov2": lambda makers: makers["dinov2"](Dinov2Model),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gate_at_one_is_nothing_and_at_zero_is_removal(
    family, tiny_bert, tiny_vit, tiny_deit, tiny_dinov2, batches
):
    makers = {"bert": tiny_bert, "vit": tiny_vit, "deit": tiny_deit, "dinov2": tiny_dinov2}
    model = FAMILIES[family](makers).double()
    images = family in ("vit", "deit", "dinov2")
    batch = {"pixel_values": torch.randn(2, 3, 16, 16).double()} if images else batches[0]
    name, site = next(iter(HEADS.sites(model).items()))
    whole = first(model, batch)
    with heads.gated(model, {name: torch.ones(3)}):
        assert torch.equal(first(model, batch), whole)
    with heads.gated(model, heads.without(model, [(name, 1)])):
        off = first(model, batch)
    plan, row = HeadsPlan((0, 2)), site.family
    columns = columns_of(plan, 8)
    kept = {path: rows_of(site.at(path), columns) for path in (row.query, row.key, row.value)}
    output = site.at(row.output)
    kept[row.output] = output.weight.detach()[:, columns], output.bias.detach()
    HEADS.install_(site, Shrunk(plan, kept, 0.0))
    torch.testing.assert_close(first(model, batch), off, rtol=0, atol=1e-9)  # float64
    assert (off - whole).abs().max() > 1e-3  # negative control: the head matters


def test_importance_is_the_slope_of_the_loss(tiny_bert, batches):
    """Central differences of the labelled loss in each gate, within 1 %."""
    model = tiny_bert(BertForSequenceClassification).double()
    batch = {**batches[0], "labels": torch.arange(8) % 3}
    found = heads.score_heads(model, [batch], per="batch", normalize=False).importance
    step = 1e-4
    for name, values in found.items():
        for head, value in enumerate(values):
            losses = []
            for sign in (1, -1):
                gates = torch.ones(3, dtype=torch.float64)
                gates[head] += sign * step
                with heads.gated(model, {name: gates}), torch.no_grad():
                    losses.append(float(model(**batch).loss))
            assert float(value) == pytest.approx(abs(losses[0] - losses[1]) / (2 * step), rel=0.01)


def test_orders_need_data(tiny_bert, batches):
    plans = heads.pruning_plan(tiny_bert(), batches, 0.5, by="importance")
    assert sum(3 - len(plan.kept) for plan in plans.values()) == 3
    with pytest.raises(ConfigError, match="heads are ordered by importance on data"):
        heads.pruning_plan(tiny_bert(), None, 0.5, by="importance")


def test_there_is_no_dense_form_without_heads(tiny_bert, batches):
    model = tiny_bert()
    plans = {"heads": {"encoder.layer.0.attention.self": HeadsPlan((0, 2)).to_dict()}}
    compress_(model, CollabConfig(plans=plans, reconstruct_steps=0), batches)
    with pytest.raises(FamilyError, match="heads of this model are smaller than its own class can hold"):
        to_dense_(model)
