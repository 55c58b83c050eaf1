"""Every long command of the README and the docs runs, on tiny models and data of the names that it has."""

import importlib
import inspect
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from cli_support import SENTENCES, VOCABULARY, save_with_image_processor, save_with_tokenizer, write_lines
from conftest import REPOSITORY
from doc_blocks import code_blocks
from PIL import Image
from random_models import PLANS, make_collab_

import bench_decompose
import bench_speed
from bench_decompose import Case, measure
from collab_hf import cli
from speed_cases import Shape

# In a block, indented, or in the middle of a sentence.
COMMAND = re.compile(r"(?:python scripts/\w+\.py|collab-hf bench)\b(?:[^`\n#\\]|\\\n)*")
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
BENCHMARKS = REPOSITORY / "docs" / "benchmarks"

# What stands in the place of words that mean hours of work, or more room than a tiny model has.
SMALLER = {
    "--budget 0.125": "--budget 0.25",
    "--epochs 4 --epochs-again 2": "--max-train 8 --max-dev 8 --epochs 1 --epochs-again 0",
    "--heal-steps 400": "--heal-steps 2",
    "--json decompose.json": "--json decompose.json --only minilm",
    "--lengths 16,128,512 --batch-sizes 1,8": "--lengths 4,8 --batch-sizes 1,2 --seconds 0.01",
    "--max-train 32000": "--max-train 8",
    "--max-train 4000 --epochs 2": "--max-train 8 --epochs 1",
    "--size small": "--smoke",
    "--only model": "--only minilm",
    "--stsb stsb_dev.tsv": "--stsb stsb_dev.tsv --pairs 8 --ablated 4 --seconds 0.01",
    "few-captions,few-captions-mixed,default,like-the-test,": "",
    "--steps 400": "--steps 2",
    "scripts/glue_table.py": "scripts/glue_table.py --smoke",
    "scripts/bench_calibration.py": "scripts/bench_calibration.py --examples 8",
    "scripts/bench_speed.py": "scripts/bench_speed.py --seconds 0.01 --out docs/benchmarks",
}
# They fetch real checkpoints: tests/test_checkpoints_script.py and tests/test_demo.py run them on made ones.
FETCHING = ("scripts/checkpoints.py", "scripts/demo.py")
# They need other packages, gigabytes, or minutes.
APART = (
    "scripts/bench_model.py",
    "scripts/bench_parts.py",
    "scripts/bench_streaming.py",
    "scripts/faults.py",
)

RUN = ("decomposition", "from-scratch", "heads", "int8", "planning", "recovery", "speed", "whole-model")
RUN_APART = bench_decompose.run_apart
TINY = Shape("tiny", 64, 4, (8,))


def commands(page: Path) -> list[list[str]]:
    """The words of a page's long commands, in order."""
    found = [shlex.split(text.replace("\\\n", " ")) for text in COMMAND.findall(page.read_text())]
    return [words for words in found if words[1] not in APART]


def smaller(words: list[str]) -> list[str]:
    text = shlex.join(words)
    for found, instead in SMALLER.items():
        text = text.replace(found, instead)
    return shlex.split(text)


def run(words: list[str]) -> None:
    """Run one command in this process."""
    if words[0] == "collab-hf":
        assert cli.run(words[1:]) == 0
        return
    main = importlib.import_module(Path(words[1]).stem).main
    sys.argv = words[1:]
    if not inspect.signature(main).parameters:
        main()  # reads sys.argv itself
        return
    with pytest.raises(SystemExit) as ended:
        typer.run(main)
    assert not ended.value.code


def partly_apart(case: Case, checkpoint: Path | None, threads: int) -> dict[str, Any]:
    """The script has a process for every case; starting one takes seconds, so here one case has to do."""
    return (RUN_APART if case.solver == "parafac" else measure)(case, checkpoint, threads)


@pytest.fixture
def reader(
    tiny_bert: Callable[..., Any],
    tiny_dinov2: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A directory where everything that the commands name is there, and tiny."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("COLLAB_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bench_decompose, "run_apart", partly_apart)
    monkeypatch.setattr(bench_decompose, "SIZES", dict.fromkeys(bench_decompose.SIZES, (4, 64, 16)))
    grid = {"LENGTHS": (8,), "BATCHES": (1,), "BERT_BASE": TINY, "OTHER_SHAPES": (TINY,), "MIN_PAIRS": 2}
    for name, small in grid.items():
        monkeypatch.setattr(bench_speed, name, small)

    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4}
    bert = tiny_bert(vocab_size=len(VOCABULARY), max_position_embeddings=130, **sizes)
    for name in (".cache/checkpoints/minilm", "minilm", "bert-base-uncased", "MODEL"):
        save_with_tokenizer(bert, tmp_path / name)
    save_with_image_processor(tiny_dinov2(**sizes), tmp_path / ".cache/checkpoints/dinov2-small")
    small = make_collab_(tiny_bert(vocab_size=len(VOCABULARY), **sizes), PLANS["tucker"])
    for name in ("bert-quarter", "minilm-quarter"):
        save_with_tokenizer(small, tmp_path / name)

    pairs = [(f"{a} and {b}", b) for a in SENTENCES for b in SENTENCES]
    rows = [f"{a}\t{b}\t{len(a) % 6}" for a, b in pairs]
    (tmp_path / "DATA").mkdir()
    for name in ("stsb_train.tsv", "stsb_dev.tsv", "DATA/stsb_train.tsv", "DATA/stsb_dev.tsv"):
        write_lines(tmp_path / name, ["sentence1\tsentence2\tscore", *rows])
    for name in ("sentences.txt", "train.txt", "dev.txt"):
        write_lines(tmp_path / name, [text for text, _ in pairs])
    labelled = [f"{text}\t{('negative', 'positive')[len(text) % 2]}" for text, _ in pairs]
    for name in (
        "train.tsv",
        "dev.tsv",
        "sst2_train.tsv",
        "sst2_dev.tsv",
        "DATA/agnews_dev.tsv",
        "DATA/sst2_dev.tsv",
    ):
        write_lines(tmp_path / name, ["sentence\tlabel", *labelled])

    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for folder in ("photographs", "DATA/images"):
        (tmp_path / folder).mkdir()
        for number, picture in enumerate(pixels):
            Image.fromarray(picture).save(tmp_path / folder / f"{number}.png")
    for name in ("train.npz", "dev.npz", "DATA/cifar10_train.npz", "DATA/cifar10_dev.npz"):
        np.savez(tmp_path / name, images=pixels, labels=np.arange(12) % 2)
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")  # where tables are written into pages
    return tmp_path


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Trainer and accelerate, about a machine without a GPU
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torchao
@pytest.mark.parametrize("page", RUN)
def test_every_command_runs(page: str, reader: Path) -> None:
    if page == "int8":
        pytest.importorskip("torchao")
    for words in commands(BENCHMARKS / f"{page}.md"):
        if words[1] in FETCHING:
            continue
        run(smaller(words))


def test_a_command_that_fails_is_seen(reader: Path) -> None:
    """Negative control of the above."""
    with pytest.raises(AssertionError):
        run(["python", "scripts/bench_planning.py", "MODEL", "--evaluate", "sentences.txt"])
    with pytest.raises(AssertionError):
        run(["collab-hf", "bench", "bert-quarter", "--versus", "bert-base-uncased"])


def test_what_they_write(reader: Path) -> None:
    """Files appear under the names that the pages speak of, and pages keep the text around their tables."""
    for words in commands(BENCHMARKS / "recovery.md")[:2]:
        run(smaller(words))
    before, after = (root / "docs" / "benchmarks" / "recovery.md" for root in (REPOSITORY, reader))
    kept = [[line for line in page.read_text().splitlines() if line[:1] != "|"] for page in (before, after)]
    assert kept[0] == kept[1]
    assert before.read_text() != after.read_text()


def test_options_of_commands_that_fetch() -> None:
    fetching = [words for page in PAGES for words in commands(page) if words[1] in FETCHING]
    assert {words[1] for words in fetching} == set(FETCHING)
    for _, script, *options in fetching:
        module = importlib.import_module(Path(script).stem)
        app = getattr(module, "app", None) or typer.Typer()
        if not app.registered_commands:
            app.command()(module.main)
        typer.main.get_command(app).make_context(script, options)


def test_no_command_is_overlooked() -> None:
    """Every line of the blocks that tests/test_docs.py leaves to these tests is a command that runs here."""
    listed = [page for page in PAGES if page.stem != "reference"]  # it names commands, and runs none
    with_commands = {page.stem for page in listed if any(w[1] not in FETCHING for w in commands(page))}
    assert with_commands == set(RUN)
    for name in ("decomposition", "planning", "speed"):
        page = BENCHMARKS / f"{name}.md"
        lines = [
            shlex.split(line, comments=True)
            for block in code_blocks(page)
            for line in block.code.replace("\\\n", " ").splitlines()
        ]
        assert [line for line in lines if line not in commands(page)] == []
    everything = [shlex.join(words) for page in PAGES for words in commands(page)]
    assert [found for found in SMALLER if not any(found in command for command in everything)] == []
    scripts = {words[1] for page in PAGES for words in commands(page) if words[0] == "python"}
    benchmarks = {f"scripts/{script.name}" for script in (REPOSITORY / "scripts").glob("bench_*.py")}
    assert benchmarks <= {*scripts, *APART}
