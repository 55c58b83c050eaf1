"""`verify` computes again what the report certifies: outputs on fixed inputs."""

import json
from pathlib import Path

import pytest
from cli_support import CommandLine
from safetensors.torch import load_file, save_file

from collab_hf import load_model
from collab_hf.checkpoint.certificate import certify, check_certificate
from collab_hf.errors import CheckpointError
from collab_hf.files import REPORT_FILE


@pytest.fixture
def small(collab_hf: CommandLine, model: Path, tmp_path: Path) -> Path:
    out = tmp_path / "small"
    words = ["compress", model, "-o", out, "--method", "tucker", "--rank", "8", "--calibration", "none"]
    assert collab_hf(*words).code == 0
    return out


def certificate(directory: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((directory / REPORT_FILE).read_text())["certificate"]
    return found


def change(directory: Path, name: str, factor: float) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = tensors[name] * factor
    save_file(tensors, file, {"format": "pt"})


def test_what_was_written_holds(small: Path) -> None:
    # The same sums of the same numbers; JSON keeps every digit.
    assert check_certificate(small, load_model(small)) == 0
    moved = check_certificate(small, load_model(small, dtype="bfloat16"))
    assert moved is not None
    assert 0 < moved < 0.05


# One of ours, and one that no count or shape of the report speaks of.
@pytest.mark.parametrize(
    "name", ["encoder.layer.1.attention.self.query.weight", "encoder.layer.0.output.dense.weight"]
)
def test_changed_weights_are_told(small: Path, collab_hf: CommandLine, name: str) -> None:
    change(small, name, 1.0 + 1e-6)
    check_certificate(small, load_model(small))  # control: so little may be rounding
    change(small, name, 1.5)
    assert "its weights were changed since" in collab_hf("verify", small).complaint
    certify(small, load_model(small))
    assert check_certificate(small, load_model(small)) == 0


def test_recovery_certifies_anew(collab_hf: CommandLine, small: Path, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"a cat and {number} dogs\n" for number in range(40)))
    out = tmp_path / "healed"
    words = ["heal", small, "-o", out, "--teacher", model, "--data", text, "--steps", 8, "--batch-size", 4]
    healed = collab_hf(*words, "--lr", 0.01, "--shipped-share", 0, "--json")
    assert healed.values["best_step"] > 0  # else the weights are those before
    assert certificate(out) != certificate(small)
    assert check_certificate(out, load_model(out)) == 0


@pytest.mark.parametrize("spoiled", [[], {}, {"inputs": 1, "scale": 1.0, "outputs": ["a"] * 16}, "x"])
def test_a_certificate_that_is_none(small: Path, spoiled: object) -> None:
    report = json.loads((small / REPORT_FILE).read_text())
    (small / REPORT_FILE).write_text(json.dumps({**report, "certificate": spoiled}))
    with pytest.raises(CheckpointError, match=r"certificate in .* can't be read"):
        check_certificate(small, load_model(small))


def test_without_a_report_there_is_nothing_to_hold(small: Path) -> None:
    (small / REPORT_FILE).unlink()
    model = load_model(small)
    certify(small, model)
    assert check_certificate(small, model) is None
    assert not (small / REPORT_FILE).exists()
