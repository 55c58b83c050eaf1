"""Verification finds every fault of a compressed checkpoint, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import PLANS, make_collab_, text_inputs
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, BertModel

from collab_hf.checkpoint import fresh_processes, verification
from collab_hf.checkpoint.verification import compare_outputs, verify_checkpoint
from collab_hf.errors import DataError
from collab_hf.files import REPORT_FILE
from collab_hf.modeling.errors import CheckpointError, ConfigError


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Leave out the fresh processes, which take seconds; the routes that would have been taken."""
    routes: list[str] = []
    monkeypatch.setattr(
        verification, "check_fresh", lambda directory, chosen, *rest, **settings: routes.extend(chosen)
    )
    return routes


def saved(model: Any, plan: str, directory: Path) -> Path:
    make_collab_(model, PLANS[plan]).save_pretrained(directory)
    return directory


def change(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


LAYER = "encoder.layer.1.attention.self"


@pytest.mark.parametrize("plan", PLANS)
def test_every_form_passes(tiny_bert: Any, tmp_path: Path, in_this_process: list[str], plan: str) -> None:
    directory = saved(tiny_bert(BertModel), plan, tmp_path / "model")
    found = verify_checkpoint(directory, [text_inputs()])
    assert found.layers == 2
    assert found.difference is None
    assert in_this_process == ["package", "code"]


def test_fresh_processes_give_the_same_outputs(tiny_bert: Any, tmp_path: Path) -> None:
    """The one test that starts both."""
    directory = saved(tiny_bert(BertForMaskedLM), "tucker-groups", tmp_path / "model")
    batches = [text_inputs(), text_inputs(3, 5)]
    found = verify_checkpoint(directory, batches, original=tiny_bert(BertForMaskedLM))
    assert found.package_loads
    assert found.code_loads
    assert found.difference is not None
    assert found.difference.maximum > found.difference.mean > 0


class Done:
    """A fresh process that has ended."""

    def __init__(self, command: list[str], returncode: int, stderr: str, **tensors: torch.Tensor) -> None:
        *_, answered, _device = command
        save_file(tensors, answered)
        self.returncode = returncode
        self.stderr = stderr

    def communicate(self) -> tuple[str, str]:
        return "", self.stderr


def test_a_fresh_process_that_fails_is_told(
    tiny_bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = saved(tiny_bert(BertModel), "cp", tmp_path / "model")
    stderr = "Traceback\nImportError: no such thing\n"
    monkeypatch.setattr(
        fresh_processes.subprocess, "Popen", lambda command, **settings: Done(command, 1, stderr)
    )
    with pytest.raises(CheckpointError, match="fresh process with collab_hf: ImportError: no such thing"):
        verify_checkpoint(directory, [text_inputs()])


def test_other_outputs_in_a_fresh_process_are_told(
    tiny_bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = saved(tiny_bert(BertModel), "cp", tmp_path / "model")
    zeros = {"0": torch.zeros(2, 7, 24)}
    monkeypatch.setattr(
        fresh_processes.subprocess, "Popen", lambda command, **settings: Done(command, 0, "", **zeros)
    )
    with pytest.raises(CheckpointError, match="gives other outputs in a fresh process with collab_hf"):
        verify_checkpoint(directory, [text_inputs()])


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}.query.weight"][0, 0] = float("nan")


def infinite_elsewhere(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.layer.0.output.dense.bias"][0] = float("inf")


def lost(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{LAYER}.mixing.weight"]


def narrower(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}.query.weight"] = tensors[f"{LAYER}.query.weight"][:4].clone()


def out_of_range(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}.mixing.index"][0, 0] = 16


@pytest.mark.parametrize(
    ("plan", "edit", "message"),
    [
        ("cp", nan, f"{LAYER}.query.weight in .* is not finite"),
        ("cp", infinite_elsewhere, "encoder.layer.0.output.dense.bias in .* is not finite"),
        ("cp", lost, f"missing factor {LAYER}.mixing.weight"),
        ("cp", narrower, f"{LAYER}.query.weight"),
        ("cp-sparse", out_of_range, f"mixing.index of {LAYER} must be between -1 and 15"),
    ],
)
def test_a_spoiled_factor_is_named(
    tiny_bert: Any,
    tmp_path: Path,
    in_this_process: list[str],
    plan: str,
    edit: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    directory = saved(tiny_bert(BertModel), plan, tmp_path / "model")
    change(directory, edit)
    with pytest.raises(CheckpointError, match=message):
        verify_checkpoint(directory, [text_inputs()])


def test_a_group_out_of_range_is_named(tiny_bert: Any, tmp_path: Path, in_this_process: list[str]) -> None:
    directory = saved(tiny_bert(BertModel), "tucker-groups", tmp_path / "model")
    change(directory, lambda tensors: tensors[f"{LAYER}.mixing.group"].fill_(2))
    with pytest.raises(CheckpointError, match=f"mixing.group of {LAYER} must be between 0 and 1"):
        verify_checkpoint(directory, [text_inputs()])


def test_settings_that_no_layer_can_have_are_told(
    tiny_bert: Any, tmp_path: Path, in_this_process: list[str]
) -> None:
    directory = saved(tiny_bert(BertModel), "cp", tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config["collab"]["layers"][LAYER]["query_rank"] = 1000
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="rank must be between 1 and 24, got 1000"):
        verify_checkpoint(directory, [text_inputs()])


def test_a_report_of_another_model_is_told(
    tiny_bert: Any, tmp_path: Path, in_this_process: list[str]
) -> None:
    directory = saved(tiny_bert(BertModel), "cp", tmp_path / "model")
    rows = [{"method": "cp", "qk_parameters_after": 7}, {"method": "dense", "qk_parameters_after": 9}]
    (directory / REPORT_FILE).write_text(json.dumps({"layers": rows}))
    with pytest.raises(CheckpointError, match=r"query/key parameters, collab_report.json says 7"):
        verify_checkpoint(directory, [text_inputs()])
    (directory / REPORT_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"is not a report of collab_hf"):
        verify_checkpoint(directory, [text_inputs()])


def test_a_dense_model_is_refused(tiny_bert: Any, tmp_path: Path) -> None:
    tiny_bert(BertModel).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is not compressed"):
        verify_checkpoint(tmp_path, [text_inputs()])


def test_foreign_code_runs_only_when_trusted(
    tiny_bert: Any, tmp_path: Path, in_this_process: list[str]
) -> None:
    directory = saved(tiny_bert(BertModel), "cp", tmp_path / "model")
    with (directory / "mixing.py").open("a") as file:
        file.write("# not ours\n")
    assert verify_checkpoint(directory, [text_inputs()]).code_loads is None
    assert in_this_process == ["package"]
    assert verify_checkpoint(directory, [text_inputs()], trust_remote_code=True).code_loads
    (directory / "modeling_collab.py").unlink()
    with pytest.raises(CheckpointError, match=r"lacks modeling_collab.py"):
        verify_checkpoint(directory, [text_inputs()])


def test_differences_leave_padding_out() -> None:
    expected = {"0": torch.tensor([[[3.0], [4.0], [50.0]]])}
    outputs = {"0": expected["0"] + torch.tensor([[[0.5], [-0.1], [70.0]]])}
    inputs = {"0.attention_mask": torch.tensor([[1, 1, 0]])}
    found = compare_outputs(outputs, expected, inputs)
    assert found.maximum == pytest.approx(0.5)
    assert found.mean == pytest.approx(0.3)
    assert found.relative == pytest.approx(0.26**0.5 / 5)
    assert found.cosine == pytest.approx((3.5 * 3 + 3.9 * 4) / (5 * (3.5**2 + 3.9**2) ** 0.5))
    assert compare_outputs(outputs, expected, {}).maximum == 70


def test_outputs_of_another_shape_do_not_compare() -> None:
    with pytest.raises(DataError, match=r"another shape, \[1, 2\] instead of \[1, 3\]"):
        compare_outputs({"0": torch.ones(1, 3)}, {"0": torch.ones(1, 2)}, {})


def test_no_inputs_no_verification(tiny_bert: Any, tmp_path: Path) -> None:
    directory = saved(tiny_bert(BertModel), "cp", tmp_path / "model")
    with pytest.raises(DataError, match="at least one batch"):
        verify_checkpoint(directory, [])
