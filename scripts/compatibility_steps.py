"""What collab_hf must do with a version of a library; run by path in the environment in question.

It prints a JSON line a step: its name, and what went wrong or null. transformers below the bound is tried all
the same, to see whether the bound is right.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOT_TRIED = "not tried"
STEPS = ("import", "compress", "outputs", "reload", "verify", "command")
SIZES = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}


def main() -> None:
    """Take the steps one after the other, each on every family."""
    state: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        state["scratch"] = Path(scratch)
        steps = (_import, _compress, _outputs, _reload, _verify, _command)
        for name, step in zip(STEPS, steps, strict=True):
            problem = NOT_TRIED if state.get("failed") else _problem(step, state)
            state["failed"] = problem is not None
            print(json.dumps([name, problem]), flush=True)


def _problem(step: Callable[[dict[str, Any]], None], state: dict[str, Any]) -> str | None:
    try:
        step(state)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong with another version is the finding
        return f"{type(error).__name__}: {error}".splitlines()[0][:160]
    return None


def _import(state: dict[str, Any]) -> None:
    import collab_hf_command  # noqa: F401 - so that the import below does not check the versions yet
    from collab_hf.errors import VersionError
    from collab_hf.registration import versions

    try:
        versions.check_versions()
        state["supported"] = True
    except VersionError:
        versions.MINIMUM_TRANSFORMERS, state["supported"] = "0.0", False
    from collab_hf.registration import register

    register()


def _compress(state: dict[str, Any]) -> None:
    """A quarter of the parameters of a small random model of each family."""
    import torch
    import transformers

    from collab_hf import CollabConfig, compress_

    torch.manual_seed(0)
    structured = CollabConfig(method="tucker", query_rank=12, key_rank=12, score_width=4)
    # So that tensorly is used at all.
    config_by_host = {"Albert": CollabConfig(method="cp", rank=12, solver="tensorly.parafac")}
    image = {"image_size": 16, "patch_size": 4}
    hosts: dict[str, dict[str, Any]] = {
        "Bert": {"vocab_size": 50},
        "Albert": {"vocab_size": 50, "embedding_size": 16},
        "ViT": image,
        "DeiT": image,
        "Dinov2": image,
    }
    state["models"], state["inputs"] = {}, {}
    for host, sizes in hosts.items():
        config = getattr(transformers, f"{host}Config")(**SIZES, **sizes)
        model = getattr(transformers, f"{host}Model")(config).eval()
        compress_(model, config_by_host.get(host, structured))
        state["models"][host] = model
        state["inputs"][host] = (
            {"input_ids": torch.arange(20).view(2, 10) % 50}
            if "vocab_size" in sizes
            else {"pixel_values": torch.randn(2, 3, 16, 16)}
        )


def _outputs(state: dict[str, Any]) -> None:
    """Hidden states and attention weights of a model that was compressed in place."""
    import torch

    for host, model in state["models"].items():
        model.set_attn_implementation("eager")
        with torch.no_grad():
            output = model(**state["inputs"][host], output_attentions=True, output_hidden_states=True)
        model.set_attn_implementation("sdpa")
        if len(output.attentions or ()) != 2 or len(output.hidden_states or ()) != 3:
            raise ValueError(f"{host} gives no attention weights or hidden states")


def _reload(state: dict[str, Any]) -> None:
    """The same bits from AutoModel."""
    import torch
    from transformers import AutoModel

    for host, model in state["models"].items():
        directory = state["scratch"] / host
        model.save_pretrained(directory)
        again = AutoModel.from_pretrained(directory)
        with torch.no_grad():
            expected, found = (m(**state["inputs"][host])[0] for m in (model, again))
        if not torch.equal(expected, found):
            raise ValueError(f"{host} gives other outputs after reloading")


def _verify(state: dict[str, Any]) -> None:
    """In fresh processes, with collab_hf and without it."""
    from collab_hf.checkpoint.verification import verify_checkpoint

    if not state["supported"]:
        raise ImportError("the fresh process refuses a version below the bound")
    for host in state["models"]:
        verify_checkpoint(state["scratch"] / host, [state["inputs"][host]])


def _command(state: dict[str, Any]) -> None:
    """The command's help, and its answer to wrong usage."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    from collab_hf.cli import run

    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()):
        codes = run(["compress", "--help"]), run(["compress"])
    if codes != (0, 2) or "--budget" not in out.getvalue():
        raise ValueError(f"collab-hf gave exit codes {codes}")


if __name__ == "__main__":
    sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).parent]
    main()
