"""Checkpoints of the former layout, whose code lay flat, load and verify; no unknown code runs."""

import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from cli_support import CommandLine
from safetensors.torch import load_file

from collab_hf import load_model
from collab_hf.checkpoint import fresh_processes
from collab_hf.checkpoint.known_code import FORMER, origin_of_code
from collab_hf.checkpoint.verification import verify_checkpoint
from collab_hf.modeling.errors import CheckpointError

FIXTURES = Path(__file__).with_name("fixtures")
CODE = FIXTURES / "former-code"
Former = Callable[[str], Path]


@pytest.fixture
def former(tmp_path: Path) -> Former:
    """A checkpoint as the former version wrote it: `former("bert")`, `former("vit")`."""

    def make(name: str) -> Path:
        directory = tmp_path / f"former-{name}"
        shutil.copytree(FIXTURES / f"former-{name}", directory)
        shutil.copytree(CODE, directory, dirs_exist_ok=True)
        (directory / "expected.safetensors").unlink()
        return directory

    return make


def expected(name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs, and what the former version gave for them."""
    tensors = load_file(FIXTURES / f"former-{name}" / "expected.safetensors")
    return tensors, tensors.pop("output")


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_former_checkpoints_load_and_give_the_same(former: Former, name: str) -> None:
    inputs, output = expected(name)
    model = load_model(former(name))
    with torch.no_grad():
        found = model(**inputs)[0]
    # Outputs are of the order of one; the former code added up in another order, in float32.
    assert (found - output).abs().max() < 1e-5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert (model(**inputs)[0] - output).abs().max() > 0.1  # negative control


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_former_checkpoints_verify_with_their_own_code(former: Former, name: str) -> None:
    """In fresh processes, without --trust-remote-code."""
    inputs, _ = expected(name)
    found = verify_checkpoint(former(name), [inputs])
    assert found.former_code
    assert found.code_loads


def test_the_command_says_that_the_code_is_former(
    collab_hf: CommandLine, former: Former, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh_processes, "_start", lambda directory, route, *_: pytest.fail(route))
    monkeypatch.setattr("collab_hf.checkpoint.verification.check_fresh", lambda *_, **__: None)
    result = collab_hf("verify", former("bert"))
    assert "without collab_hf: loads with the code of a former version, same outputs" in result.out


def test_code_is_known_by_its_bytes(former: Former) -> None:
    directory = former("bert")
    assert origin_of_code(directory) == "former"
    (directory / "mixing.py").write_text((directory / "mixing.py").read_text() + "\n")
    assert origin_of_code(directory) == "foreign"
    shutil.copy(CODE / "mixing.py", directory)
    (directory / "extra.py").write_text("")
    assert origin_of_code(directory) == "foreign"
    (directory / "extra.py").unlink()
    (directory / "modeling_collab.py").unlink()
    with pytest.raises(CheckpointError, match=r"lacks modeling_collab.py"):
        origin_of_code(directory)


def test_unknown_code_does_not_run_untrusted(
    former: Former, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = former("bert")
    (directory / "mixing.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    routes: list[str] = []
    monkeypatch.setattr(
        "collab_hf.checkpoint.verification.check_fresh", lambda _, chosen, *rest, **__: routes.extend(chosen)
    )
    assert verify_checkpoint(directory, [expected("bert")[0]]).code_loads is None
    assert routes == ["package"]
    assert not (tmp_path / "ran").exists()


def test_every_former_file_is_in_the_table() -> None:
    found = {file.name: sha256(file.read_bytes()).hexdigest() for file in CODE.glob("*.py")}
    assert set(found) == set(FORMER)
    assert all(digest in FORMER[name] for name, digest in found.items())
