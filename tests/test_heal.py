"""`collab-hf heal` and `compress --heal-steps` write a recovered checkpoint, or nothing."""

import json
from pathlib import Path

import pytest
import torch
from cli_support import (
    SENTENCES,
    VOCABULARY,
    CommandLine,
    save_with_image_processor,
    save_with_tokenizer,
    write_lines,
)
from launched import launch
from safetensors.torch import load_file
from transformers import AutoModel, BertForMaskedLM

from collab_hf.files import RECOVERY_FILE
from collab_hf.recovery.config import states_beside
from collab_hf.recovery.masking import mask_tokens

FEW = ["--calibration-examples", 12]  # else a thousand that ship fill up the few of a test
STEPS = ["--steps", 12, "--batch-size", 2, "--lr", 0.01]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "text.txt", [f"{a} and {b}" for a in SENTENCES for b in SENTENCES])


@pytest.fixture
def compressed(collab_hf: CommandLine, model: Path, tmp_path: Path) -> Path:
    out = tmp_path / "small"
    assert (
        collab_hf("compress", model, "-o", out, "--method", "cp", "--rank", 4, "--calibration", "none").code
        == 0
    )
    return out


def test_a_checkpoint_is_healed(collab_hf, model, compressed, text, tmp_path) -> None:
    out = tmp_path / "healed"
    result = collab_hf("heal", compressed, "--teacher", model, "--data", text, "-o", out, *STEPS, "--json")
    assert result.code == 0, result.err
    values = result.values
    assert values["loss_after"] < values["loss_before"]
    assert values["steps"] == 12
    assert json.loads((out / RECOVERY_FILE).read_text())["loss_after"] == values["loss_after"]
    assert (out / "tokenizer.json").is_file()
    AutoModel.from_pretrained(out)
    before, after = load_file(compressed / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("attention.self" in name and "value" not in name for name in changed)
    assert not states_beside(out).exists()


def test_an_image_model_is_healed(collab_hf, tiny_vit, tmp_path) -> None:
    model = save_with_image_processor(tiny_vit(), tmp_path / "vit")
    small, out = tmp_path / "small", tmp_path / "healed"
    assert collab_hf("compress", model, "-o", small, "--method", "cp", "--rank", 4).code == 0
    result = collab_hf(
        "heal", small, "--teacher", model, "--data", "default", "-o", out, "--steps", 4, "--json"
    )
    assert result.code == 0, result.err
    assert result.values["loss_after"] <= result.values["loss_before"]


def test_compress_heals_with_its_calibration_data(collab_hf, model, text, tmp_path) -> None:
    out = tmp_path / "out"
    options = ["--method", "cp", "--rank", 4, "--calibration", text, "--heal-steps", 5, *FEW]
    result = collab_hf("compress", model, "-o", out, *options, "--json")
    assert result.code == 0, result.err
    recovery = result.values["recovery"]
    assert recovery["steps"] == 5
    assert recovery["held_out_examples"] == 9 + 64  # a quarter of the file's 36 lines, and of what ships
    assert recovery["loss_after"] <= recovery["loss_before"]
    assert (out / RECOVERY_FILE).is_file()
    assert not states_beside(out).exists()
    told = collab_hf("compress", model, "-o", out, *options, "--overwrite")
    assert "recovery: 5 updates" in told.out


def test_states_are_gone_on_from(collab_hf, model, compressed, text, tmp_path) -> None:
    """The second command finds the states of a run that could not write its output."""
    out = tmp_path / "healed"
    command = [
        "heal",
        compressed,
        "--teacher",
        model,
        "--data",
        text,
        "-o",
        out,
        *STEPS,
        "--checkpoint-every",
        5,
    ]
    states = states_beside(out)
    states.mkdir()
    (states / "step-00000005").mkdir()
    assert "can't be read" in collab_hf(*command).complaint
    assert collab_hf(*command, "--no-resume").code == 0


@pytest.mark.slow
def test_launched_processes_answer_once(model, compressed, text, tmp_path) -> None:
    out = tmp_path / "healed"
    command = ["heal", compressed, "--teacher", model, "--data", text, "-o", out, *STEPS, "--json"]
    done = launch("-m", "collab_hf", *command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["loss_after"] < json.loads(done.stdout)["loss_before"]
    assert (out / RECOVERY_FILE).is_file()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--data", "no-such.txt", "--teacher", "{model}"], "no-such.txt does not exist"),
        (
            ["--data", "{text}", "--teacher", "{model}", "--steps", 1, "--minutes", 1],
            "steps or minutes, not both",
        ),
        (["--data", "{text}", "--teacher", "/no/such/model"], "is not a directory"),
        (["--data", "{text}", "--teacher", "{model}", "--lr", -1], "learning_rate must be above 0"),
    ],
)
def test_unusable_input_is_refused(
    collab_hf, model, compressed, text, tmp_path, arguments, complaint
) -> None:
    out = tmp_path / "healed"
    filled = [str(a).format(model=model, text=text) for a in arguments]
    assert complaint in collab_hf("heal", compressed, "-o", out, *filled).complaint
    assert not out.exists()


def test_a_dense_checkpoint_is_refused(collab_hf, model, text, tmp_path) -> None:
    result = collab_hf("heal", model, "--teacher", model, "--data", text, "-o", tmp_path / "out")
    assert "no compressed layer to recover" in result.complaint


def test_a_checkpoint_without_recipe_needs_a_teacher(collab_hf, compressed, text, tmp_path) -> None:
    (compressed / "collab_recipe.yaml").unlink()
    result = collab_hf("heal", compressed, "--data", text, "-o", tmp_path / "out")
    assert "give --teacher MODEL" in result.complaint


def test_healing_needs_data(collab_hf, model, tmp_path) -> None:
    options = ["--method", "cp", "--rank", 4, "--calibration", "none", "--heal-steps", 2]
    result = collab_hf("compress", model, "-o", tmp_path / "out", *options)
    assert "recovery needs data" in result.complaint


def test_masked_language_models_learn_at_masks(collab_hf, tiny_bert, text, tmp_path) -> None:
    from transformers import AutoTokenizer

    model = save_with_tokenizer(tiny_bert(BertForMaskedLM, vocab_size=len(VOCABULARY)), tmp_path / "mlm")
    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    (masked,) = mask_tokens([plain], tokenizer, share=0.5)
    changed = masked["input_ids"] != plain["input_ids"]
    assert (masked["input_ids"][changed] == tokenizer.mask_token_id).all()
    special = torch.isin(plain["input_ids"], torch.tensor(tokenizer.all_special_ids))
    # A share of the tokens that may be masked, give or take chance.
    assert 0.3 < float(changed.sum() / (~special).sum()) < 0.7
    assert not (changed & special).any()
    small, out = tmp_path / "small", tmp_path / "healed"
    assert (
        collab_hf(
            "compress", model, "-o", small, "--method", "cp", "--rank", 4, "--calibration", text, *FEW
        ).code
        == 0
    )
    # Masks hide half of what little text there is: it takes more and smaller steps than above.
    steps = ["--steps", 60, "--batch-size", 4, "--lr", 0.003]
    result = collab_hf("heal", small, "--teacher", model, "--data", text, "-o", out, *steps, "--json")
    assert result.values["loss_after"] < result.values["loss_before"]
