"""Compress, save, load, compare: at random over families, parts, methods, ranks and dtypes.

The suite makes a few rounds; `COLLAB_HF_ROUNDS=1000 pytest tests/test_rounds.py` makes more, from
COLLAB_HF_ROUNDS_SEED on.
"""

import os
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import CASES, build

from collab_hf import CollabConfig, compress_, load_model
from collab_hf.errors import CollabError
from collab_hf.modeling.modeling_collab import changed_modules

ROUNDS = int(os.environ.get("COLLAB_HF_ROUNDS", "25"))
SEED = int(os.environ.get("COLLAB_HF_ROUNDS_SEED", "0"))
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float64)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_decoder.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
]


def queries_and_keys(chance: random.Random) -> CollabConfig:
    """A form of the queries and keys, at a rank that any of the tiny layers can have."""
    method = chance.choice(["cp", "tucker", "svd", "copy", "auto"])
    common: dict[str, Any] = {
        "seed": chance.randrange(100),
        "content_bias": chance.choice(["auto", "exact", "folded"]),
        "precision": chance.choice(["float64", "float32"]),
        "reconstruct_steps": 0,
    }
    if method == "auto":
        return CollabConfig(method=method, budget=chance.choice([0.3, 0.5, 0.8]), **common)
    if method == "copy":
        return CollabConfig(method=method, **common)
    rank = chance.choice([3, 6, 12])
    more: dict[str, Any] = {}
    if method == "cp" and chance.random() < 0.5:
        more = {"dims_per_head": chance.randint(1, rank)}
    if method == "tucker":
        more = chance.choice([{}, {"tied": True}, {"key_groups": 3}, {"head_rank": 2}, {"score_width": 2}])
    return CollabConfig(method=method, rank=rank, **common, **more)


def whole(chance: random.Random) -> CollabConfig:
    """A share of all parameters, from some of the parts."""
    names = ["query_key", "heads", "value_output", "feed_forward", "embeddings"]
    parts = tuple(sorted(chance.sample(names, chance.randint(1, 3))))
    return CollabConfig(params=chance.choice([0.8, 0.9, 0.97]), parts=parts, reconstruct_steps=0)


def one_round(number: int, folder: Path) -> str:
    """What was done: `saved`, or `refused` where collab_hf said in one of its own errors that it can't be."""
    chance = random.Random(f"{SEED} {number}")
    name = chance.choice(sorted(CASES))
    config = (whole if chance.random() < 0.25 else queries_and_keys)(chance)
    dtype = chance.choice(DTYPES)
    what = f"round {number} of seed {SEED}: {name}, {dtype}, {config.to_dict()}"
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in CASES[name].inputs().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build(name).to(dtype)  # type: ignore[arg-type]
        try:
            compress_(model, config, [inputs] * 4 if config.is_whole or chance.random() < 0.5 else None)
        except CollabError:
            return "refused"
        if not any(True for _ in changed_modules(model)):
            return "refused"
        model.save_pretrained(folder)
        again = load_model(folder)
    assert again.dtype == dtype, what
    assert type(again) is type(model), what
    ours, theirs = again.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys(), what
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), what
    with torch.no_grad():
        torch.manual_seed(0)
        first = model(**inputs)[0]
        torch.manual_seed(0)
        second = again(**inputs)[0]
    assert torch.isfinite(first).all(), what
    # The same weights, which lie elsewhere in memory: small products may differ in their last bits.
    few = (2 if dtype is torch.bfloat16 else 64) * torch.finfo(dtype).eps
    torch.testing.assert_close(
        second, first, rtol=few, atol=few * float(first.abs().max()), msg=lambda m: f"{what}: {m}"
    )
    return "saved"


def test_rounds(tmp_path: Path) -> None:
    counts = {"saved": 0, "refused": 0}
    failures = []
    for number in range(ROUNDS):
        try:
            counts[one_round(number, tmp_path / str(number))] += 1
        except Exception as error:  # noqa: BLE001 - every round is made, and all that failed are told
            failures.append(f"{type(error).__name__}: {str(error)[:400]} (round {number} of seed {SEED})")
    print(f"{ROUNDS} rounds of seed {SEED}: {counts}, {len(failures)} failed")
    assert not failures, "\n".join(failures)
    assert counts["saved"] > ROUNDS / 2  # else the rounds test refusals
