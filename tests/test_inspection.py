"""Inspection: numbers are those of the dense tensors, the report is one file, and nothing is changed."""

import re

import pytest
import torch
import yaml
from cli_support import SENTENCES, VOCABULARY, save_with_tokenizer, write_lines

from collab_hf import CollabConfig
from collab_hf.errors import FamilyError
from collab_hf.files import RECIPE_FILE
from collab_hf.host.sites import attention_sites
from collab_hf.measure.inspection import inspect_model
from collab_hf.measure.inspection_html import render
from collab_hf.parts.query_key.candidates import score_tensor
from collab_hf.parts.query_key.costs import break_even_length
from collab_hf.planning.redundancy import inspect_parts

# Entries are rounded to four or five digits.
DIGITS = 1e-4


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAB_HF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def batches():
    return [{"input_ids": torch.randint(50, (8, 12))} for _ in range(4)]


@pytest.fixture
def bert_directory(tiny_bert, tmp_path):
    return save_with_tokenizer(tiny_bert(vocab_size=len(VOCABULARY)), tmp_path / "bert")


def test_numbers_are_those_of_the_dense_tensor(tiny_bert):
    model = tiny_bert()
    dense = score_tensor(next(iter(attention_sites(model).values())), CollabConfig()).to_dense()
    found = inspect_model(model).layers[0].weights
    energies = torch.linalg.svdvals(dense)[0, :8].square()
    assert found.heads[0] == pytest.approx((energies.cumsum(0) / energies.sum()).tolist(), abs=DIGITS)
    product = torch.linalg.svdvals(dense.sum(0)).square()
    assert found.product == pytest.approx((product.cumsum(0) / product.sum()).tolist(), abs=DIGITS)
    shared = torch.linalg.svdvals(dense.flatten(0, 1)).square()  # heads and queries against keys
    assert found.shared_key == pytest.approx((shared.cumsum(0) / shared.sum()).tolist(), abs=DIGITS)
    cosine = torch.cosine_similarity(dense[0].flatten(), dense[1].flatten(), dim=0)
    assert found.similarity[0][1] == pytest.approx(float(cosine), abs=DIGITS)
    assert found.similarity[0][0] == pytest.approx(1, abs=DIGITS)


def test_a_shared_key_shows(tiny_bert):
    model = tiny_bert()
    before = inspect_model(model).layers[0].weights
    with torch.no_grad():
        key = model.encoder.layer[0].attention.self.key.weight
        key.copy_(key[:8].repeat(3, 1))  # all three heads read the same key
    after = inspect_model(model).layers[0].weights
    assert after.key_overlap[0][1] == pytest.approx(1, abs=DIGITS)
    assert before.key_overlap[0][1] < 0.9
    assert after.dimensions()[1] <= 8 < before.dimensions()[1]


def test_data_tells_more_than_weights(tiny_bert, batches):
    layer = inspect_model(tiny_bert(), batches).layers[0]
    assert layer.data is not None
    assert layer.data.shared_key != layer.weights.shared_key
    assert inspect_model(tiny_bert()).layers[0].data is None


def test_errors_fall_with_size(tiny_bert, batches):
    layer = inspect_model(tiny_bert(), batches).layers[0]
    assert set(layer.curves) == {
        "svd",
        "tucker, one shared key",
        "tucker, narrowed keys",
        "tied tucker",
    }
    for points in layer.curves.values():
        assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    assert list(layer.offers)[:2] == [0.5, 0.25]
    small = [offer.plan for offer in layer.offers.values() if offer.parameters < 1000]
    assert small
    assert all(break_even_length(plan, layer.shape) == float("inf") for plan in small)


def test_model_is_left_as_it_was(tiny_bert, batches):
    model = tiny_bert().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inspect_model(model, batches)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_report_is_one_file_that_needs_nothing(tiny_bert, batches):
    html = render(inspect_model(tiny_bert(), batches, name="<tiny>"))
    assert "&lt;tiny&gt;" in html
    assert html.count("<svg") == 1 + 2 * 5
    assert "<script" not in html
    names = re.findall(r' id="([^"]+)"', html)
    assert len(names) == len(set(names)) > 0
    # Drawings refer to their own parts and hold their images themselves.
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', html)


def test_command(collab_hf, bert_directory, tmp_path):
    data = write_lines(tmp_path / "text.txt", SENTENCES)
    report = tmp_path / "report.html"
    found = collab_hf("inspect", bert_directory, "--calibration", data, "--html", report, "--json")
    assert found.code == 0
    assert len(found.values["layers"]) == 2
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "report.html", "text.txt"]
    assert "exists" in collab_hf("inspect", bert_directory, "--html", report).complaint
    text = collab_hf("inspect", bert_directory, "--calibration", "none")
    assert "95% of a head" in text.out


def test_compressed_models_are_refused(tiny_bert):
    from collab_hf import compress_

    model = tiny_bert()
    compress_(model, CollabConfig(method="svd", rank=6))
    with pytest.raises(FamilyError, match="compressed already"):
        inspect_model(model)


def test_dry_run_writes_nothing(collab_hf, bert_directory, tmp_path):
    data = write_lines(tmp_path / "text.txt", SENTENCES * 2)
    before = sorted(tmp_path.rglob("*"))
    arguments = ["compress", bert_directory, "--calibration", data, "--budget", 0.4, "--dry-run"]
    values = collab_hf(*arguments, "--json").values
    assert values["qk_parameters_after"] <= 0.4 * values["qk_parameters_before"]
    assert values["predicted_loss"] > 0
    assert "nothing was written" in collab_hf(*arguments).out
    cached = tmp_path / "cache"
    assert [path for path in sorted(tmp_path.rglob("*")) if not path.is_relative_to(cached)] == before
    given = ["compress", bert_directory, "--method", "svd", "--rank", 6, "--calibration", "none"]
    assert collab_hf(*given, "--dry-run", "--json").values["predicted_loss"] is None


def test_written_recipe_makes_the_same_weights(collab_hf, bert_directory, tmp_path):
    data = write_lines(tmp_path / "text.txt", SENTENCES * 2)
    first, second = tmp_path / "first", tmp_path / "second"
    planned = collab_hf(
        "compress", bert_directory, "-o", first, "--calibration", data, "--budget", 0.4, "--json"
    )
    assert planned.values["measured_loss"] > 0
    recipe = yaml.safe_load((first / RECIPE_FILE).read_text(encoding="utf-8"))
    assert len(recipe["layers"]) == 2
    again = collab_hf(
        "compress", bert_directory, "-o", second, "--calibration", data, "--config", first / RECIPE_FILE
    )
    assert again.code == 0
    name = "model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()


def test_impossible_budget_is_one_sentence(collab_hf, bert_directory):
    found = collab_hf("compress", bert_directory, "--budget", 0.001, "--dry-run", "--calibration", "none")
    assert re.match(r"budget must be at least 0\.\d+, got 0.001", found.complaint)


def test_dead_neurons_are_redundant(tiny_bert, batches):
    model = tiny_bert().eval()
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[:, :36] = 0  # of 48
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = inspect_parts(model, batches, ["feed_forward"])
    assert first.parameters == second.parameters == 2 * 24 * 48 + 48
    assert second.losses[0.5] < 1e-9 < 1e-5 < first.losses[0.5]
    assert first.losses[0.75] <= first.losses[0.5]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_parts_at_the_command_line(collab_hf, bert_directory, tmp_path):
    data = write_lines(tmp_path / "text.txt", SENTENCES * 2)
    report = tmp_path / "report.html"
    options = ["--calibration", data, "--parts", "heads,feed_forward"]
    found = collab_hf("inspect", bert_directory, *options, "--html", report, "--json").values
    assert [row["part"] for row in found["parts"]] == ["heads"] * 2 + ["feed_forward"] * 2
    assert all(loss > 0 for row in found["parts"] for loss in row["losses"].values())
    assert "Half of one part in one layer" in report.read_text(encoding="utf-8")
    table = collab_hf("inspect", bert_directory, *options).out
    assert f"feed_forward  {found['parts'][2]['name']}" in table
    assert (
        collab_hf("inspect", bert_directory, "--calibration", data).out
        in table.partition("\n\npart")[0] + "\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parts", "neurons"], "--parts must be all or some of query_key, heads, .*, got 'neurons'"),
        (["--parts", "heads", "--calibration", "none"], "--parts measures on examples"),
    ],
)
def test_parts_that_cannot_be_measured(collab_hf, bert_directory, options, message):
    found = collab_hf("inspect", bert_directory, *options)
    assert found.code == 2
    assert re.search(message, found.complaint)
