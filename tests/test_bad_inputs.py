"""Whatever is wrong with what a user gives: one sentence says so, nothing is written, nothing is changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_input_cases import CONFIG, IMAGES, PROCESSORS, WEIGHTS
from bad_small_cases import HEAL, PUSH, SECTION
from cli_support import (
    SENTENCES,
    VOCABULARY,
    CommandLine,
    save_with_image_processor,
    save_with_tokenizer,
    write_lines,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import ViTModel

from collab_hf import CollabConfig, cli
from collab_hf.calibration.statistics import collect_statistics
from collab_hf.errors import CollabError
from collab_hf.modeling.plan import LayerPlan
from collab_hf.modeling.shrinking import HeadsPlan
from collab_hf.parts.registry import QUERY_KEY
from collab_hf.planning import cache
from collab_hf.planning.curves import predicted_curves
from collab_hf.recovery.config import LossWeights, RecoveryConfig

RANK = ["--method", "tucker", "--rank", 6, "--reconstruct-steps", 0]
COMPRESS = ["compress", "MODEL", "-o", "OUT", *RANK, "--calibration"]
# What each table is read by; the capital words stand for places.
READERS: list[tuple[str, dict[str, Any], list[Any]]] = [
    ("dense", CONFIG, [*COMPRESS, "none"]),
    ("dense", WEIGHTS, [*COMPRESS, "none"]),
    ("dense", PROCESSORS, [*COMPRESS, "TEXT"]),
    ("images", IMAGES, [*COMPRESS, "PHOTOS"]),
    ("small", SECTION, ["verify", "MODEL", "--data", "TEXT"]),
    ("small", HEAL, ["heal", "MODEL", "-o", "OUT", "--teacher", "DENSE", "--data", "TEXT", "--steps", 2]),
    ("small", PUSH, ["push", "MODEL", "me/small", "--token", "none"]),
]
CASES = [
    pytest.param(name, *case, command, id=f"{command[0]}: {title}")
    for name, table, command in READERS
    for title, case in table.items()
]


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(scope="session")
def sound(tiny_bert: Any, tiny_vit: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints with nothing wrong, to be copied, and what they read."""
    place = tmp_path_factory.mktemp("sound")
    dense = save_with_tokenizer(tiny_bert(vocab_size=len(VOCABULARY)), place / "dense")
    save_with_image_processor(tiny_vit(ViTModel), place / "images")
    command = ["compress", dense, "-o", place / "small", *RANK, "--calibration", "none", "--quiet"]
    assert cli.run([str(word) for word in command]) == 0
    write_lines(place / "text.txt", SENTENCES)
    (place / "photos").mkdir()
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "photos" / f"{seed}.png")
    return place


@pytest.fixture
def run(
    sound: Path, tmp_path: Path, collab_hf: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Spoil a copy of a checkpoint, run a command on it, and see that neither it nor its place changed."""
    monkeypatch.setenv("COLLAB_HF_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))

    def run(name: str, spoil: Callable[[Path], object], command: list[Any]) -> Any:
        directory = shutil.copytree(sound / name, tmp_path / "model")
        spoil(directory)
        places = {
            "MODEL": directory,
            "OUT": tmp_path / "out",
            "TEXT": sound / "text.txt",
            "PHOTOS": sound / "photos",
            "DENSE": sound / "dense",
        }
        before = files(tmp_path)
        result = collab_hf(*(places.get(word, word) for word in command))
        after = files(tmp_path)
        assert {name: content for name, content in after.items() if not name.startswith("out/")} == before
        return result

    return run


@pytest.mark.filterwarnings("ignore::UserWarning")  # what is odd and harmless may be said first
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # by NumPy, of a division by zero
@pytest.mark.parametrize(("name", "spoil", "message", "command"), CASES)
def test_one_sentence(
    run: Callable[..., Any], tmp_path: Path, name: str, spoil: Any, message: str, command: list[Any]
) -> None:
    complaint = run(name, spoil, command).complaint
    assert message in complaint
    assert len(complaint) < 500
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("name", "table", "command"), READERS[:4])
def test_what_is_sound_is_taken(run: Callable[..., Any], name: str, table: Any, command: list[Any]) -> None:
    """Negative control."""
    assert run(name, lambda _: None, command).code == 0


def test_there_are_many() -> None:
    assert len(CASES) >= 120
    assert len({case.id for case in CASES}) >= len(CASES) - len(HEAL)  # some files have several readers


# --- values from Python

PYTHON: dict[str, tuple[Callable[[], object], str]] = {
    "method": (lambda: CollabConfig(method=["cp"]), "method must be one of"),  # type: ignore[arg-type]
    "rank text": (
        lambda: CollabConfig(method="cp", rank="6"),
        "rank must be an integer of at least 1, got '6'",
    ),
    "rank true": (
        lambda: CollabConfig(method="cp", rank=True),
        "rank must be an integer of at least 1, got True",
    ),
    "rank float": (
        lambda: CollabConfig(method="cp", rank=6.0),
        "rank must be an integer of at least 1, got 6.0",
    ),
    "groups": (
        lambda: CollabConfig(method="tucker", rank=6, key_groups=None),
        "key_groups must be an integer",
    ),
    "budget": (lambda: CollabConfig(budget=float("nan")), r"budget must be in \(0, 1\]"),
    "budget text": (lambda: CollabConfig(budget="half"), r"budget must be in \(0, 1\]"),
    "damping": (lambda: CollabConfig(damping=None), "damping must be at least 0, got None"),
    "seed": (lambda: CollabConfig(seed=2**64), "seed must be a whole number from 0"),
    "parts text": (
        lambda: CollabConfig(params=0.5, parts="heads"),
        "parts must be a list of names, got 'heads'",
    ),
    "parts number": (lambda: CollabConfig(params=0.5, parts=3), "parts must be a list of names, got 3"),
    "parts numbers": (
        lambda: CollabConfig(params=0.5, parts=[3]),
        r"parts must be a list of names, got \[3\]",
    ),
    "portable": (
        lambda: CollabConfig(params=0.5, portable="yes"),
        "portable must be true or false, got 'yes'",
    ),
    "target": (lambda: CollabConfig(target=[0.5]), "target must be a mapping"),
    "target of a list": (
        lambda: CollabConfig(target={"budget": [0.5]}),
        r"target must have numbers or text by name, got 'budget': \[0.5\]",
    ),
    "vocabulary": (lambda: CollabConfig(vocabulary_from=3), "vocabulary_from must be text, got 3"),
    "size": (lambda: CollabConfig(size=[30]), "size must be a number with KB, MB or GB"),
    "size infinite": (lambda: CollabConfig(size="inf"), "size must be a number with KB, MB or GB"),
    "flops": (lambda: CollabConfig(target_flops={}), "target_flops must be LENGTH:SHARE"),
    "layers": (lambda: CollabConfig(layers=["a"]), "layers must be a mapping"),
    "layer": (
        lambda: CollabConfig(layers={"*": None}),
        "a layer's settings must be a mapping or 'dense', got None",
    ),
    "layer name": (lambda: CollabConfig(layers={3: "dense"}), "a layer's settings .* for 3"),
    "plans": (lambda: CollabConfig(plans={"heads": 3}), "heads in plans must be a mapping, got 3"),
    "plan": (lambda: CollabConfig(plans={"heads": {"a": 3}}), "a of heads in plans must be a mapping, got 3"),
    "attention": (lambda: CollabConfig(attention=3), "attention must be kinds made of"),
    "speedup": (lambda: CollabConfig(speedup=float("inf")), "speedup must be above 1 and at most 1000"),
    "steps": (lambda: RecoveryConfig(steps=1.5), "steps must be a whole number of at least 1, got 1.5"),
    "warmup": (
        lambda: RecoveryConfig(warmup="a"),
        r"warmup must be in \[0, 1\), the share of the run, got 'a'",
    ),
    "held out": (lambda: RecoveryConfig(held_out=None), r"held_out must be in \(0, 1\).*got None"),
    "weights": (lambda: RecoveryConfig(weights={"hidden": 1}), "weights must be LossWeights, got"),
    "weight": (
        lambda: LossWeights(hidden=float("nan")),
        "the loss weight hidden must be at least 0, got nan",
    ),
    "no weight": (lambda: LossWeights(0, 0, 0, 0, 0), "at least one loss weight must be above 0"),
    "blocks": (
        lambda: RecoveryConfig(teacher_blocks=["a"]),
        "teacher_blocks must be whole numbers of at least 0",
    ),
    "resume": (lambda: RecoveryConfig(resume="no"), "resume must be true or false, got 'no'"),
    "log": (lambda: RecoveryConfig(log=3), "log must be a path, got 3"),
    "states": (lambda: RecoveryConfig(checkpoint_dir=[]), r"checkpoint_dir must be a path, got \[\]"),
    "layer plan": (lambda: LayerPlan.from_dict([1], "here"), "settings of here: they must be a mapping"),
    "heads plan": (lambda: HeadsPlan.from_dict({"kept": "all"}), "kept heads must be a list of numbers"),
}


@pytest.mark.parametrize("case", PYTHON)
def test_values_from_python(case: str) -> None:
    call, message = PYTHON[case]
    with pytest.raises(CollabError, match=message):
        call()


# --- the planning cache

LAYERS = ("encoder.layer.0.attention.self", "encoder.layer.1.attention.self")


@pytest.fixture
def entry(tiny_bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Callable[[], Any]]:
    """An entry that can be read, and how it is."""
    monkeypatch.setenv("COLLAB_HF_CACHE", str(tmp_path / "cache"))
    model = tiny_bert()
    sites = QUERY_KEY.sites(model)
    settings = {name: CollabConfig(budget=0.5) for name in LAYERS}
    modules = {name: sites[name].module for name in LAYERS}
    seen = collect_statistics(model, modules, [{"input_ids": torch.randint(50, (8, 6))}])
    cache.save("key", predicted_curves(QUERY_KEY, sites, settings, seen), seen)
    shapes = {name: sites[name].shape for name in LAYERS}

    def read() -> Any:
        return cache.load("key", shapes)

    assert read() is not None
    return cache.directory() / "key.safetensors", read


def rewritten(file: Path, change: Callable[[dict[str, Any], dict[str, str]], object]) -> None:
    """The same well-formed file with other content."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata)


def other_error(_: Any, metadata: dict[str, str]) -> None:
    curves = json.loads(metadata["curves"])
    curves[0][2][0][1] += 0.5
    metadata["curves"] = json.dumps(curves)


ALTERATIONS: dict[str, Callable[[dict[str, Any], dict[str, str]], object]] = {
    "another error": other_error,
    "no curves": lambda _, metadata: metadata.update(curves="[]"),
    "no statistics": lambda _, metadata: metadata.update(moments="[]"),
    "another covariance": lambda tensors, _: tensors["0.query.covariance"].mul_(2),
    "a mean of NaN": lambda tensors, _: tensors["0.query.mean"].fill_(float("nan")),
    "a tensor more": lambda tensors, _: tensors.update(more=torch.zeros(1)),
    "no digest": lambda _, metadata: metadata.pop("digest"),
    "another digest": lambda _, metadata: metadata.update(digest="0" * 40),
}


@pytest.mark.parametrize("case", ALTERATIONS)
def test_an_altered_entry_is_measured_anew(entry: Any, case: str) -> None:
    file, read = entry
    rewritten(file, ALTERATIONS[case])
    assert read() is None
    assert not file.exists()


def test_an_entry_under_another_name_is_measured_anew(entry: Any) -> None:
    file, read = entry
    rewritten(file, lambda *_: None)
    assert read() is not None  # negative control
    file.rename(file.with_name("other.safetensors"))
    shutil.copy(file.with_name("other.safetensors"), file)
    assert read() is not None
    assert cache.load("other", {}) is None


@pytest.mark.parametrize("spoil", ["a file", "a folder", "no rights"])
def test_a_cache_that_cannot_be_read_is_none(entry: Any, spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = entry
    if spoil == "a file":
        monkeypatch.setenv("COLLAB_HF_CACHE", str(file))
    elif spoil == "a folder":
        file.unlink()
        file.mkdir()
    else:

        def refused(
            *_: Any, **__: Any
        ) -> bool:  # what Path.is_file raises for a directory without rights; root has all
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "is_file", refused)
        monkeypatch.setattr(Path, "unlink", refused)
    assert read() is None
    cache.save("key", [], {})  # costs time on the next run, nothing else
