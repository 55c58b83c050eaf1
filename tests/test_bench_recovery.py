"""The data and the table of the recovery benchmark."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

import bench_recovery
from collab_hf.checkpoint.load import load_processor
from reaction_smiles import reactions

ROW = {
    "checkpoint": "minilm",
    "budget": 0.25,
    "kept": 0.2488,
    "data": "STS-B train sentences",
    "metric": "STS-B dev Spearman",
    "original": 86.716,
    "before": 85.268,
    "after": 86.5,
    "steps": 400,
    "batch_size": 32,
    "seconds": 130.0,
    "cpu_seconds": 249.0,
}


def test_reactions_are_different_whole_and_repeatable() -> None:
    made = reactions(500)
    assert len(set(made)) == 500
    assert made == reactions(500) != reactions(500, seed=1)
    for reaction in made:
        reactants, _, product = reaction.partition(">>")
        assert product
        for side in (reactants, product):
            assert side.count("(") == side.count(")")
            assert side.count("[") == side.count("]")
            # Every ring that opens closes: digits outside of brackets come in pairs.
            outside = "".join(part.partition("]")[2] if "]" in part else part for part in side.split("["))
            assert all(count % 2 == 0 for digit, count in Counter(outside).items() if digit.isdigit()), side


def test_the_checkpoints_know_every_token_of_them(checkpoint) -> None:
    tokenizer = load_processor(checkpoint("rxn-bert"))
    ids = tokenizer(reactions(200))["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)


def test_the_table_goes_between_the_marks(tmp_path) -> None:
    results, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    results.write_text(json.dumps(ROW) + "\n")
    page.write_text(f"before\n{bench_recovery.START}\nan old table\n{bench_recovery.END}\nafter\n")
    app = bench_recovery.typer.Typer()
    app.command()(bench_recovery.main)
    outcome = CliRunner().invoke(app, ["--results", str(results), "--write", str(page)])
    assert outcome.exit_code == 0, outcome.output
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "an old table" not in lines
    assert "| 86.72 | 85.27 | 86.50 | 99.75% |" in page.read_text()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_a_checkpoint_without_a_task_is_refused(tmp_path) -> None:
    with pytest.raises(bench_recovery.typer.BadParameter, match="no task is known for bert"):
        bench_recovery.find_task("bert", tmp_path, tmp_path, "in-domain", 32)
