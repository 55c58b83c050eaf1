"""`collab-hf compress` writes a whole checkpoint that anyone can load, or nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_support import (
    SENTENCES,
    VOCABULARY,
    CommandLine,
    save_with_image_processor,
    save_with_tokenizer,
    write_lines,
)
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    ViTModel,
    XLNetConfig,
    XLNetModel,
)

from collab_hf.files import RECIPE_FILE, REPORT_FILE

RANK = ["--method", "cp", "--rank", 6]
FEW = ["--calibration-examples", 12]  # else a thousand that ship fill up the few of a test
WEIGHTS_ALONE = [*RANK, "--calibration", "none"]


def states(directory: Path) -> torch.Tensor:
    inputs = AutoTokenizer.from_pretrained(directory)(SENTENCES[0], return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(directory)(**inputs)[0]


def test_a_warning_is_one_sentence(model: Path, tmp_path: Path) -> None:
    """In a process of its own: pytest keeps warnings to itself."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    for letter in "aeinorst":  # in nearly every word
        del tokenizer["model"]["vocab"][letter], tokenizer["model"]["vocab"][f"##{letter}"]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    words = ["compress", model, "-o", tmp_path / "out", *RANK, "--calibration-examples", 8, "--quiet"]
    command = [sys.executable, "-m", "collab_hf", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr.startswith("warning: the default text does not suit this model")
    assert result.stderr.count("\n") == 1


def test_a_compressed_checkpoint_is_whole(
    collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "folder" / "out"  # parents are made
    result = collab_hf("compress", model, "-o", out, *RANK, "--calibration", text, "--quiet", *FEW)
    assert (result.code, result.err) == (0, "")
    assert "calibrated on 5 of your examples and 7 that ship with the package" in result.out
    assert f"wrote {out}" in result.out
    assert type(AutoModel.from_pretrained(out)).__name__ == "CollabBertModel"
    assert states(out).shape == states(model).shape
    recipe = yaml.safe_load((out / RECIPE_FILE).read_text())
    assert {name: recipe[name] for name in ("model", "method", "rank", "calibration", "shipped_share")} == {
        "model": "model",
        "method": "cp",
        "rank": 6,
        "calibration": "text.txt",
        "shipped_share": 0.5,
    }
    report = json.loads((out / REPORT_FILE).read_text())
    assert report["calibration"] == {"examples": 12, "shipped": 7}
    assert report["calibrated"]
    assert report["qk_parameters_after"] < report["qk_parameters_before"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]


def test_kinds_of_attention_are_chosen_on_the_command_line(
    collab_hf: CommandLine, model: Path, tmp_path: Path
) -> None:
    words = ["compress", model, *WEIGHTS_ALONE, "--attention"]
    chosen = collab_hf(*words, "self,decoder-cross", "-o", tmp_path / "out", "--json")
    assert [layer["rank"] for layer in chosen.values["layers"]] == [6, 6]
    recipe = yaml.safe_load((tmp_path / "out" / RECIPE_FILE).read_text())
    assert recipe["attention"] == ["self", "decoder-cross"]
    none = collab_hf(*words, "cross", "-o", tmp_path / "none")
    assert "no layer is cross attention" in none.complaint
    wrong = collab_hf(*words, "sideways", "-o", tmp_path / "wrong")
    assert "attention must be kinds made of self, cross" in wrong.complaint


def test_nothing_written_names_a_local_path(
    collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path
) -> None:
    assert collab_hf("compress", model, "-o", tmp_path / "out", *RANK, "--calibration", text, *FEW).code == 0
    for file in (tmp_path / "out").rglob("*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file


def test_json_is_one_object_and_nothing_else(collab_hf: CommandLine, model: Path, tmp_path: Path) -> None:
    result = collab_hf("compress", model, "-o", tmp_path / "out", *WEIGHTS_ALONE, "--json")
    assert result.out.count("\n") == 1
    values = result.values
    assert values["output"] == str(tmp_path / "out")
    assert [layer["rank"] for layer in values["layers"]] == [6, 6]
    assert values["file_size"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert not values["calibrated"]


def test_the_recipe_makes_the_same_bytes_again(
    collab_hf: CommandLine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "text.txt", SENTENCES)  # a recipe names a local file by its last name
    options = ["--budget", 0.5, "--method", "tucker", "--calibration", "text.txt", "--seed", 3, *FEW]
    assert collab_hf("compress", model, "-o", "first", *options).code == 0
    assert collab_hf("compress", model, "-o", "second", "--config", f"first/{RECIPE_FILE}").code == 0
    names = ("model.safetensors", "config.json", RECIPE_FILE, REPORT_FILE)
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_options_come_before_the_recipe(collab_hf: CommandLine, model: Path, tmp_path: Path) -> None:
    recipe = write_lines(tmp_path / "recipe.yaml", ["method: cp", "rank: 6", "calibration: none"])
    result = collab_hf("compress", model, "-o", tmp_path / "out", "--config", recipe, "--rank", 4, "--json")
    assert {layer["rank"] for layer in result.values["layers"]} == {4}


# The tiny model has no more layers than the two that by_layer.yaml settles.
@pytest.mark.filterwarnings("ignore:budget has no effect")
@pytest.mark.parametrize("name", sorted(p.name for p in (REPOSITORY / "configs").glob("*.yaml")))
def test_the_recipes_of_the_repository_run(
    collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path, name: str
) -> None:
    recipe = REPOSITORY / "configs" / name
    result = collab_hf(
        "compress", model, "-o", tmp_path / "out", "--config", recipe, "--calibration", text, *FEW, "--json"
    )
    assert result.code == 0, result.err
    assert result.values["qk_parameters_after"] < result.values["qk_parameters_before"]


def test_a_task_head_stays(collab_hf: CommandLine, tiny_bert: Any, text: Path, tmp_path: Path) -> None:
    classifier = tiny_bert(BertForSequenceClassification, vocab_size=len(VOCABULARY))
    save_with_tokenizer(classifier, tmp_path / "classifier")
    assert collab_hf("compress", tmp_path / "classifier", "-o", tmp_path / "out", *WEIGHTS_ALONE).code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["CollabBertForSequenceClassification"]


def test_an_image_model_is_calibrated_with_images(
    collab_hf: CommandLine, tiny_vit: Any, tmp_path: Path
) -> None:
    save_with_image_processor(tiny_vit(ViTModel), tmp_path / "vit")
    options = ["--calibration-examples", 4, "--json"]
    result = collab_hf("compress", tmp_path / "vit", "-o", tmp_path / "out", *RANK, *options)
    assert result.values["calibrated"]
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").size == {"height": 16, "width": 16}


def test_dtype_is_that_of_the_result(collab_hf: CommandLine, model: Path, tmp_path: Path) -> None:
    options = [*WEIGHTS_ALONE, "--dtype", "bfloat16"]
    assert collab_hf("compress", model, "-o", tmp_path / "out", *options).code == 0
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in saved.values() if t.is_floating_point()} == {torch.bfloat16}


def test_overwrite_replaces_a_checkpoint(collab_hf: CommandLine, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert collab_hf("compress", model, "-o", out, *WEIGHTS_ALONE).code == 0
    (out / "stale").touch()
    before = (out / "model.safetensors").read_bytes()
    assert "exists; choose another" in collab_hf("compress", model, "-o", out, *WEIGHTS_ALONE).complaint
    assert (out / "stale").exists()
    smaller = ["--method", "cp", "--rank", 4, "--calibration", "none", "--overwrite"]
    assert collab_hf("compress", model, "-o", out, *smaller).code == 0
    assert not (out / "stale").exists()
    assert len((out / "model.safetensors").read_bytes()) < len(before)


# --- refused input: one sentence, exit code 2, nothing written


def missing(model: Path) -> None:
    shutil.rmtree(model)


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def truncated(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def unknown_architecture(model: Path) -> None:
    config = {**json.loads((model / "config.json").read_text()), "model_type": "abacus"}
    (model / "config.json").write_text(json.dumps(config))


def other_family(model: Path) -> None:
    XLNetModel(XLNetConfig(d_model=24, n_head=3, n_layer=1, d_inner=24, vocab_size=50)).save_pretrained(model)


def not_finite(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["encoder.layer.1.attention.self.key.weight"][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, "is not a directory"),
        (no_config, "has no config.json"),
        (truncated, "model.safetensors is corrupt or truncated"),
        (unknown_architecture, "abacus"),
        (other_family, "XLNetModel has no attention layer that collab_hf knows; `collab-hf families` lists"),
        (not_finite, "encoder.layer.1.attention.self.key.weight in"),
    ],
)
def test_an_unusable_model_is_refused(
    collab_hf: CommandLine, model: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(model)
    assert message in collab_hf("compress", model, "-o", tmp_path / "out", *WEIGHTS_ALONE).complaint
    assert {p.name for p in tmp_path.iterdir()} <= {"model"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "cp", "--rank", 0], "rank must be an integer of at least 1, got 0"),
        (["--method", "cp", "--rank", 25], "rank must be between 1 and 24, got 25 (encoder.layer.0"),
        (["--method", "cp", "--rank", 6, "--budget", 0.5], "give a budget or ranks, not both"),
        (["--rank", 6], "rank belongs to method cp, tucker, svd"),
        (["--budget", 0], "budget must be in (0, 1]"),
        (["--budget", 0.001, "--calibration", "none"], "budget must be at least"),
        (["--calibration", "absent.txt"], "absent.txt does not exist"),
        (["--calibration", "empty.txt"], "empty.txt holds no example"),
        (["--config", "absent.yaml"], "absent.yaml can't be read: No such file"),
        (["--config", "unknown.yaml"], "unknown setting 'ranks' in the recipe; it knows attention"),
        (["--config", "list.yaml"], "must be a mapping of settings, got list"),
        (["--config", "broken.yaml"], "is not YAML"),
        (
            ["--config", "elsewhere.yaml"],
            "layers has settings for 'layer.9.*', which matches none of encoder",
        ),
        (["--device", "abacus"], "device 'abacus' can't be used"),
    ],
)
def test_unusable_settings_are_refused(
    collab_hf: CommandLine,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "empty.txt", ["", " "])
    write_lines(tmp_path / "unknown.yaml", ["ranks: 6"])
    write_lines(tmp_path / "list.yaml", ["- rank"])
    write_lines(tmp_path / "broken.yaml", ["a: [b"])
    write_lines(tmp_path / "elsewhere.yaml", ["layers:", "  layer.9.*: dense"])
    before = set(tmp_path.iterdir())
    assert message in collab_hf("compress", model, "-o", "out", *options).complaint
    assert set(tmp_path.iterdir()) == before


def test_a_compressed_model_is_refused(collab_hf: CommandLine, model: Path, tmp_path: Path) -> None:
    assert collab_hf("compress", model, "-o", tmp_path / "once", *WEIGHTS_ALONE).code == 0
    again = collab_hf("compress", tmp_path / "once", "-o", tmp_path / "twice", *WEIGHTS_ALONE)
    assert "is compressed already; start from the original" in again.complaint
    assert not (tmp_path / "twice").exists()


def test_a_model_without_tokenizer_needs_none_as_calibration(
    collab_hf: CommandLine, tiny_bert: Any, tmp_path: Path
) -> None:
    tiny_bert(BertModel).save_pretrained(tmp_path / "bare")
    result = collab_hf("compress", tmp_path / "bare", "-o", tmp_path / "out", *RANK)
    assert "has no tokenizer or image processor" in result.complaint
    assert collab_hf("compress", tmp_path / "bare", "-o", tmp_path / "out", *WEIGHTS_ALONE).code == 0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file", "exists; choose another directory"),
        ("file/below", "file is a file"),
        ("model", "exists; choose another directory"),
    ],
)
def test_an_output_in_the_way_is_refused_before_any_work(
    collab_hf: CommandLine,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    message: str,
) -> None:
    write_lines(tmp_path / "file", ["keep me"])
    monkeypatch.setattr("collab_hf.checkpoint.load.load_model", pytest.fail)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert message in collab_hf("compress", model, "-o", tmp_path / output, *WEIGHTS_ALONE).complaint
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_without_permission_is_refused(collab_hf: CommandLine, model: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    result = collab_hf("compress", model, "-o", tmp_path / "closed" / "out", *WEIGHTS_ALONE)
    assert "no permission" in result.complaint


def test_a_full_disk_leaves_nothing_behind(
    collab_hf: CommandLine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    result = collab_hf("compress", model, "-o", tmp_path / "out", *WEIGHTS_ALONE)
    assert "No space left on device" in result.complaint
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_kill_while_writing_leaves_no_half_directory(model: Path, tmp_path: Path) -> None:
    """With --overwrite, so that an old checkpoint stays too."""
    code = (
        "import sys, time, transformers\n"
        "from collab_hf.cli import run\n"
        "def half(self, directory, **_):\n"
        "    (directory / 'model.safetensors').write_bytes(b'half')\n"
        "    print('writing', flush=True, file=sys.__stdout__)\n"
        "    time.sleep(60)\n"
        "transformers.PreTrainedModel.save_pretrained = half\n"
        "run(sys.argv[1:])\n"
    )
    old = shutil.copytree(model, tmp_path / "out")
    before = (old / "model.safetensors").read_bytes()
    command = [sys.executable, "-c", code, "compress", model, "-o", old, "--overwrite", *WEIGHTS_ALONE]
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert (old / "model.safetensors").read_bytes() == before
    left = [p for p in tmp_path.iterdir() if p.name not in ("model", "out")]
    assert [p.name.startswith(".out.") for p in left] == [True]  # hidden, and named after what it was for
