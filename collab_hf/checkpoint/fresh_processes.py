"""Start the fresh processes that load a checkpoint, and compare what they answer."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..modeling.errors import CheckpointError
from . import fresh_load

# Former code adds the same numbers up in another order; float32, relative to the largest output.
_OTHER_ORDER = 1e-4

_ROUTES = {
    "package": "with collab_hf",
    "code": "without collab_hf, by its own code",
    "stock": "without collab_hf",
}


def check_fresh(
    directory: Path,
    routes: Iterable[str],
    inputs: dict[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    former: bool = False,
    device: str = "cpu",
) -> None:
    """Load in new processes, one for each route, and compare outputs bit for bit.

    Args:
        directory: the checkpoint.
        routes: `package` with collab_hf, `code` without it, `stock` without it and without other code.
        inputs: by `<batch>.<name>`.
        expected: outputs by `<batch>`.
        former: whether the checkpoint's code is a former version's, which may round otherwise.
        device: where they run; that of the expected outputs.

    Raises:
        CheckpointError: a process does not load it, or gives other outputs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch) / "inputs.safetensors"
        save_file({name: t.contiguous() for name, t in inputs.items()}, given)
        started: dict[str, subprocess.Popen[str]] = {}
        try:
            for route in routes:
                started[route] = _start(directory, route, given, Path(scratch) / route, device)
            complaints = {route: process.communicate()[1] for route, process in started.items()}
        finally:
            # Where this process is interrupted, nothing goes on without it.
            for process in started.values():
                if process.returncode is None:
                    process.kill()
        for route, process in started.items():
            how = _ROUTES[route]
            if process.returncode:
                reason = (complaints[route].strip().splitlines() or ["no message"])[-1]
                raise CheckpointError(f"{directory} does not load in a fresh process {how}: {reason}")
            outputs = load_file(Path(scratch) / route / "outputs.safetensors")
            exact = not (former and route == "code")
            if any(not _same(outputs[number], output, exact) for number, output in expected.items()):
                raise CheckpointError(f"{directory} gives other outputs in a fresh process {how}")


def _same(output: Tensor, expected: Tensor, exact: bool) -> bool:
    if exact or output.shape != expected.shape:
        return torch.equal(output, expected)
    return bool((output - expected).abs().max() <= _OTHER_ORDER * expected.abs().max())


def _start(directory: Path, route: str, given: Path, place: Path, device: str) -> subprocess.Popen[str]:
    place.mkdir()
    # As many threads as here: sums split otherwise differ in the last bit. Copied code is not kept.
    settings = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_MODULES_CACHE": str(place)}
    script, answered = fresh_load.__file__, place / "outputs.safetensors"
    return subprocess.Popen(
        [sys.executable, "-P", script, route, str(directory), str(given), str(answered), device],
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
