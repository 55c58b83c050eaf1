"""Blocks that are not run again: the same bits, and every kind of change is seen."""

from typing import Any

import pytest
import torch
from family_models import CASES, build
from torch import nn

from collab_hf.host.blocks import blocks
from collab_hf.host.replay import Replay
from collab_hf.planning import Divergence


class Runs:
    """How often every block of a model is run."""

    def __init__(self, model: nn.Module) -> None:
        self.counts = dict.fromkeys(blocks(model), 0)
        for name, block in blocks(model).items():
            vars(block)["forward"] = self._counted(name, block.forward)

    def _counted(self, name: str, forward: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.counts[name] += 1
            return forward(*args, **kwargs)

        return call


def _changed(block: nn.Module) -> nn.Parameter:
    """A weight of a linear layer of a block, replaced by a longer one."""
    layer = [m for m in block.modules() if isinstance(getattr(m, "weight", None), nn.Parameter)][-1]
    before = layer.weight
    layer.weight = nn.Parameter(1.5 * before.detach() + 0.1)
    return before


@pytest.mark.parametrize("name", [name for name in CASES if blocks(build(name))])
def test_the_same_bits_as_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = build(name).eval(), CASES[name].inputs()
    divergence = Divergence(model, [inputs])
    monkeypatch.setattr("collab_hf.host.replay._MOST_BYTES", 0)
    plain = Divergence(model, [inputs])
    assert divergence.measure() == plain.measure() == 0
    moved = []
    for block in blocks(model).values():
        _changed(block)
        moved.append(divergence.measure())
        assert moved[-1] == plain.measure()
    assert len(set(moved)) > 1 or len(moved) == 1
    assert moved[0] > 0


@pytest.mark.parametrize(("name", "runs"), [("bert", [0, 1]), ("vit", [0, 1]), ("bart", [0, 0, 0, 1])])
def test_blocks_before_a_change_do_not_run(name: str, runs: list[int]) -> None:
    model, inputs = build(name).eval(), CASES[name].inputs()
    counter = Runs(model)
    divergence = Divergence(model, [inputs])
    counter.counts.update(dict.fromkeys(counter.counts, 0))
    _changed(list(blocks(model).values())[-1])
    divergence.measure()
    assert list(counter.counts.values()) == runs


def test_a_decoder_sees_what_changed_in_the_encoder() -> None:
    model, inputs = build("bart").eval(), CASES["bart"].inputs()
    counter = Runs(model)
    divergence = Divergence(model, [inputs])
    counter.counts.update(dict.fromkeys(counter.counts, 0))
    _changed(blocks(model)["encoder.layers.1"])
    assert divergence.measure() > 0
    assert list(counter.counts.values()) == [0, 1, 1, 1]


def _write_into_a_weight(block: nn.Module) -> None:
    with torch.no_grad():
        next(block.parameters()).mul_(2)


def _add_a_hook(block: nn.Module) -> None:
    block.get_submodule("output.dense").register_forward_hook(lambda *given: 2 * given[2])


def _put_in_a_module(block: Any) -> None:
    block.output.dense = nn.Linear(48, 24)


def _change_a_setting(block: Any) -> None:
    block.output.LayerNorm.eps = 1.0


@pytest.mark.parametrize(
    "change",
    [_write_into_a_weight, _add_a_hook, _put_in_a_module, _change_a_setting],
    ids=lambda f: f.__name__,
)
def test_every_change_of_a_block_is_seen(change: Any) -> None:
    model, inputs = build("bert").eval(), CASES["bert"].inputs()
    divergence = Divergence(model, [inputs])
    change(model.base_model.encoder.layer[0])
    assert divergence.measure() > 0


def test_what_was_written_into_is_not_given_again() -> None:
    model, inputs = build("bert").eval(), CASES["bert"].inputs()
    replay = Replay(model)
    with torch.no_grad(), replay.recording(0):
        states = model.base_model(**inputs).last_hidden_state
    expected = states.clone()
    states.zero_()
    with torch.no_grad(), replay.replaying(0):
        found = model.base_model(**inputs).last_hidden_state
    assert torch.equal(found, expected)


def test_forwards_come_back() -> None:
    model = build("bert").eval()
    replay = Replay(model)
    with pytest.raises(RuntimeError), replay.recording(0):
        raise RuntimeError
    assert not any("forward" in vars(module) for module in model.modules())
