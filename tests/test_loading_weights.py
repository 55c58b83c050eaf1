"""Weights that are cut, foreign, missing or unused are named, and nothing in them runs or is made up."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_support import configure, edit
from cli_support import CommandLine
from conftest import TINY, build_tiny
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    BertPreTrainedModel,
    ViTModel,
)

from collab_hf import CollabConfig, compress_, load_model
from collab_hf.modeling import modeling_collab
from collab_hf.modeling.errors import CheckpointError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 90\n"


@pytest.fixture
def saved(tiny_bert: Any, tmp_path: Path) -> Path:
    tiny_bert(BertForSequenceClassification).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# Weights.


def test_cut_weights_are_named(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors is corrupt or truncated"):
        load_model(saved)


@pytest.fixture
def pickled(saved: Path) -> Path:
    """The same weights as a pickle."""
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    return saved


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[:-500], "is corrupt or truncated: "),
        (lambda _: b"", "is corrupt or truncated: "),
        (lambda _: b"garbage" * 99, "is corrupt or truncated, or holds more than weights"),
    ],
)
def test_cut_pickles_are_named(pickled: Path, spoil: Callable[[bytes], bytes], message: str) -> None:
    load_model(pickled)
    weights = pickled / "pytorch_model.bin"
    weights.write_bytes(spoil(weights.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"pytorch_model.bin {message}"):
        load_model(pickled)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_named(saved: Path, name: str) -> None:
    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(LFS)
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of Git LFS, not weights; run `git lfs"):
        load_model(saved)


class Evil:
    """A pickle of it runs a command when it is read carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_code_in_weights_never_runs(pickled: Path, tmp_path: Path, collab_hf: CommandLine) -> None:
    torch.save({"weight": Evil(tmp_path / "ran")}, pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds more than weights \(posix.system\), and what comes"):
        load_model(pickled)
    assert "holds more than weights" in collab_hf("compress", pickled, "-o", tmp_path / "out").complaint
    assert not (tmp_path / "ran").exists()
    torch.load(pickled / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # negative control


def test_a_pickle_of_something_else_is_named(pickled: Path) -> None:
    torch.save([1, 2], pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds a list, not weights by name"):
        load_model(pickled)


def test_no_weight_is_made_up(saved: Path) -> None:
    edit(saved, lambda tensors: tensors.pop("bert.encoder.layer.0.output.dense.weight"))
    with pytest.raises(CheckpointError, match=r"lacks 1 weight of BertForS.*, such as bert.encoder.layer.0"):
        load_model(saved)


# Heads and poolers.


def test_a_head_that_nobody_knows_is_not_dropped(saved: Path) -> None:
    configure(saved, architectures=["MyOwnBert"])
    with pytest.raises(CheckpointError, match="was saved from MyOwnBert, which transformers does not know"):
        load_model(saved)
    assert type(load_model(saved, backbone=True)).__name__ == "BertModel"


@pytest.mark.parametrize("architectures", [["BertModel"], None])
def test_weights_that_nobody_reads_are_not_dropped(saved: Path, architectures: list[str] | None) -> None:
    configure(saved, architectures=architectures)
    with pytest.raises(
        CheckpointError, match=r"2 weights that BertModel does not read, such as classifier.bias"
    ):
        load_model(saved)
    assert type(load_model(saved, backbone=True)).__name__ == "BertModel"


def test_the_second_head_of_bert_is_left_out_with_a_warning(tiny_bert: Any, tmp_path: Path) -> None:
    """As in the released checkpoints, which name BertForMaskedLM and hold both heads."""
    tiny_bert(BertForPreTraining).save_pretrained(tmp_path)
    configure(tmp_path, architectures=["BertForMaskedLM"])
    with pytest.warns(
        UserWarning, match=r"4 weights that BertForMaskedLM does not read, such as bert.pooler"
    ):
        assert type(load_model(tmp_path)).__name__ == "BertForMaskedLM"


@pytest.mark.parametrize(("factory", "kind"), [("tiny_bert", BertModel), ("tiny_vit", ViTModel)])
def test_a_model_without_pooler_weights_has_no_pooler(
    request: pytest.FixtureRequest, tmp_path: Path, factory: str, kind: Any
) -> None:
    make = request.getfixturevalue(factory)
    make(kind).save_pretrained(tmp_path / "model")
    edit(tmp_path / "model", lambda t: [t.pop(name) for name in list(t) if name.startswith("pooler.")])
    with pytest.warns(UserWarning, match="has no weights for a pooler, so the model has none"):
        model = load_model(tmp_path / "model")
    assert model.pooler is None
    compress_(model, CollabConfig(method="copy"))
    model.save_pretrained(tmp_path / "small")
    assert not [name for name in load_file(tmp_path / "small" / "model.safetensors") if "pooler" in name]
    with pytest.warns(UserWarning, match="has no weights for a pooler"):
        assert load_model(tmp_path / "small").pooler is None


# Outputs that config.json asks for.


@pytest.mark.parametrize(
    "setting", [{"return_dict": False}, {"output_attentions": True}, {"output_hidden_states": True}]
)
def test_output_settings_survive_compression(
    collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path, setting: dict[str, bool]
) -> None:
    configure(model, **setting)
    options = ["--budget", 0.5, "--calibration", text, "--heal-steps", 2]
    result = collab_hf("compress", model, "-o", tmp_path / "out", *options)
    assert result.code == 0, result.err
    assert setting.items() <= json.loads((tmp_path / "out" / "config.json").read_text()).items()
    assert type(load_model(tmp_path / "out")).__name__ == "CollabBertModel"


def own_model_class(name: str) -> Any:
    """A class as a user defines one: a head of their own on BERT."""

    def init(self: Any, config: Any) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.bert = BertModel(config)
        self.extra = torch.nn.Linear(config.hidden_size, 5)
        self.post_init()

    def forward(self: Any, **inputs: Any) -> Any:
        return (self.extra(self.bert(**inputs).last_hidden_state),)

    return type(name, (BertPreTrainedModel,), {"__init__": init, "forward": forward, "__module__": __name__})


@pytest.mark.parametrize("sections", [{"layers"}, {"feed_forward"}])
def test_a_users_own_class_keeps_its_head(sections: set[str], tmp_path: Path) -> None:
    mine = own_model_class("BertOfMine")
    model = build_tiny(mine, BertConfig(**TINY, vocab_size=50))
    inputs = {"input_ids": torch.arange(6).view(1, 6)}
    dense = model(**inputs)[0]
    if sections == {"layers"}:
        compress_(model, calibration=None, method="tucker", budget=0.5)
    else:
        settings = {"params": 0.9, "parts": ("feed_forward",), "reconstruct_steps": 0}
        compress_(model, settings, [{"input_ids": torch.randint(50, (8, 6))}])
    expected = model(**inputs)[0]
    assert not torch.equal(dense, expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(**inputs)[0], expected)
    model.save_pretrained(tmp_path)
    modeling_collab._CLASSES.pop("CollabBertOfMine")  # as in a new process that imports the user's code
    assert torch.equal(load_model(tmp_path)(**inputs)[0], expected)
    with pytest.raises((RuntimeError, CheckpointError, ValueError)):  # by weights of other shapes
        mine.from_pretrained(tmp_path)


def test_a_class_that_is_defined_again_is_taken_anew(tmp_path: Path) -> None:
    for _ in range(2):
        mine = own_model_class("BertAgain")
        model = build_tiny(mine, BertConfig(**TINY, vocab_size=50))
        compress_(model, calibration=None, method="tucker", budget=0.5)
        assert isinstance(model, mine)
        model.save_pretrained(tmp_path)
        assert isinstance(load_model(tmp_path), mine)


@pytest.mark.parametrize("part", ["feed_forward", "heads", "value_output", "embeddings"])
def test_the_hosts_class_stops_at_every_part(part: str, tiny_bert: Any, tmp_path: Path) -> None:
    """None of the smaller weights may be drawn anew without a word."""
    model = tiny_bert(vocab_size=400)
    before = sum(weight.numel() for weight in model.parameters())
    share = {"heads": 0.97, "embeddings": 0.8}.get(part, 0.95)
    settings = {"params": share, "parts": (part,), "reconstruct_steps": 0}
    compress_(model, settings, [{"input_ids": torch.randint(400, (8, 6))}])
    assert sum(weight.numel() for weight in model.parameters()) <= share * before
    model.save_pretrained(tmp_path)
    with pytest.raises((RuntimeError, ValueError, OSError)):
        BertModel.from_pretrained(tmp_path)
    assert type(load_model(tmp_path)).__name__ == "CollabBertModel"


def test_a_whole_model_without_pooler_weights_has_no_pooler(tiny_bert: Any, tmp_path: Path) -> None:
    model = tiny_bert()
    compress_(model, {"params": 0.8, "reconstruct_steps": 0}, [{"input_ids": torch.randint(50, (8, 6))}])
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(
        {k: v for k, v in load_file(file).items() if "pooler" not in k}, file, metadata={"format": "pt"}
    )
    with pytest.warns(UserWarning, match="has no weights for a pooler"):
        again = load_model(tmp_path)
    inputs = {"input_ids": torch.arange(6).view(1, 6)}
    assert torch.equal(again(**inputs)[0], model(**inputs)[0])
