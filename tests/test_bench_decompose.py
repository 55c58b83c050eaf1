import json

import pytest
import torch
from cli_support import SENTENCES, write_lines
from transformers import BertConfig, BertModel

import bench_decompose
import bench_quality
from bench_decompose import Case, cases, measure, solve
from collab_hf import CollabConfig, collect_statistics, compress_checkpoint
from collab_hf.modeling.families import attention_layers


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench_decompose, "SIZES", {"minilm": (3, 24, 8)})


@pytest.mark.parametrize(
    ("solver", "method"),
    [("ours", "cp"), ("parafac", "cp"), ("ours", "tucker"), ("partial_tucker", "tucker")],
)
def test_layers_are_measured_with_every_solver(small, solver, method):
    found = measure(Case("minilm", solver, method, 6, 5), None, torch.get_num_threads())
    assert 0 < found["error"] < 1
    assert found["wall"] > 0


def test_ours_and_tensorlys_tucker_have_the_same_error(small):
    scores = bench_decompose.layer_scores("minilm", None)
    errors = [solve(Case("minilm", name, "tucker", 6, 0), scores) for name in ("ours", "partial_tucker")]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)  # both stop short of the optimum


def test_every_layer_has_tensorly_beside_ours():
    found = {(case.size, case.solver) for case in cases(full=False)}
    for size in bench_decompose.SIZES:
        assert {(size, "ours"), (size, "parafac"), (size, "partial_tucker")} <= found


class _NoTask:
    description = "nothing"

    def evaluate(self, model):
        return {"cosine": 1.0}


def test_quality_rows_of_every_variant():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(**sizes, vocab_size=50)).eval()
    batches = [{"input_ids": torch.arange(5, 25).view(2, 10)}]
    modules = {name: module for name, module, _ in attention_layers(model)}
    statistics = collect_statistics(model, modules, batches)
    run = bench_quality.Run(model, _NoTask(), batches, statistics, 2)
    rows = {}
    for variant in bench_quality.VARIANTS:
        rows[bench_quality.row_key(variant, 0.5)] = row = bench_quality.measure(run, variant, 0.5)
        assert row["kept"] <= 0.5
    table = bench_quality.report_table({"original": {"cosine": 1.0}, "rows": rows})
    assert table.count("\n") >= len(bench_quality.VARIANTS)
    refused = bench_quality.measure(run, bench_quality.VARIANTS[0], 0.01)
    assert "budget must be at least" in refused["refused"]


def test_checkpoints_are_judged_beside_the_original(model, tmp_path, capsys):
    rows = [f"{SENTENCES[i]}\t{SENTENCES[i + 1]}\t{i}" for i in range(5)]
    pairs = write_lines(tmp_path / "pairs.tsv", ["sentence1\tsentence2\tscore", *rows])
    made = tmp_path / "made"
    compress_checkpoint(model, made, CollabConfig(method="cp", rank=4), calibration="none")
    bench_quality.main(model, stsb_train=pairs, stsb_dev=pairs, judge=[made])
    original, found = map(json.loads, capsys.readouterr().out.splitlines())
    assert original["cosine"] == pytest.approx(1, abs=1e-6)
    assert found["model"] == "made"
    assert found["cosine"] < 0.999
