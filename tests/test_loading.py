"""What is wrong with a checkpoint is said in one sentence, and nothing of it runs or is made up."""

import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from checkpoint_support import configure
from cli_support import CommandLine
from hub_server import HubServer, Repository
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
)

from collab_hf import load_model
from collab_hf.checkpoint import remote
from collab_hf.checkpoint.load import load_processor
from collab_hf.errors import HubError
from collab_hf.modeling.errors import CheckpointError

TEXT = {"input_ids": torch.arange(20).view(2, 10) % 50}


@pytest.fixture
def saved(tiny_bert: Any, tmp_path: Path) -> Path:
    tiny_bert(BertForSequenceClassification).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# Names.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the model's name is empty"),
        (" ", "the model's name is empty"),
        ("./nope", "^nope is not a directory"),
        ("nope/", "^nope is not a directory"),
        ("~/nope", "is not a directory"),
        ("a/b/c", "a/b/c is not a directory"),
        ("/a", "/a is not a directory"),
        (Path("nope"), "^nope is not a directory"),
    ],
)
def test_what_can_only_be_a_path_is_not_looked_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | Path, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("collab_hf.checkpoint.load.find_on_hub", lambda *_: pytest.fail("asked the Hub"))
    with pytest.raises(CheckpointError, match=message):
        load_model(name)


def questions(hub: HubServer) -> list[str]:
    """What was asked about models; huggingface_hub asks something of its own once a process."""
    return [request for request in hub.requests if "/api/models/" in request or "/resolve/" in request]


def test_a_name_is_looked_up_once(online: HubServer) -> None:
    for name in ("nowhere", "org/nowhere"):
        online.requests.clear()
        with pytest.raises(CheckpointError, match=f"{name} is no directory here, and not on the Hub"):
            load_model(name)
        assert questions(online) == [f"GET /api/models/{name}"]
    with pytest.raises(CheckpointError, match="can't be a name on the Hub"):
        load_model("bad name!")


def test_a_lost_connection_is_not_tried_again(online: HubServer) -> None:
    online.drop, online.drops = ".*", 100
    started = time.monotonic()
    with pytest.raises(HubError, match="the Hub can't be asked for it"):
        load_model("org/nowhere")
    assert len(questions(online)) == 1
    # One refused request takes milliseconds, transformers' own five tries more than ten seconds.
    assert time.monotonic() - started < 5


def test_offline_the_cache_alone_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="not in the Hub's cache, while HF_HUB_OFFLINE"):
        load_model("org/nowhere")


def test_without_a_connection_the_cache_serves(
    online: HubServer, tiny_bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_bert(BertForMaskedLM)
    model.save_pretrained(tmp_path / "saved")
    files = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    online.repositories["org/model"] = Repository(branches={"main": files})
    load_model("org/model")
    online.drop, online.drops = ".*", 1000
    assert torch.equal(load_model("org/model")(**TEXT)[0], model(**TEXT)[0])


def test_a_folder_that_is_not_there_is_named(online: HubServer, saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"saved has no folder 'nope'"):
        load_model(saved, subfolder="nope")
    online.repositories["org/model"] = Repository(branches={"main": {"config.json": b"{}"}})
    with pytest.raises(CheckpointError, match=r"org/model on the Hub has no nope/config.json"):
        load_model("org/model", subfolder="nope")
    with pytest.raises(CheckpointError, match=r"org/model has no revision 'v9'"):
        load_model("org/model", revision="v9")


@pytest.mark.parametrize("command", ["compress", "verify"])
def test_commands_refuse_a_missing_model_in_one_sentence(
    collab_hf: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    output = ("-o", "out") if command == "compress" else ()
    assert collab_hf(command, "./nope", *output).complaint == "nope is not a directory"


def test_a_directory_is_a_checkpoint_or_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config.json, so it is no transformers checkpoint"):
        load_model(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file; give the checkpoint's directory"):
        load_model(tmp_path / "file")


# config.json and other JSON.


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 99999, '{"a":' * 5000 + "1" + "}" * 5000])
def test_a_config_that_is_no_json_is_named(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json can't be read: "):
        load_model(saved)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"'])
def test_a_config_that_is_no_mapping_is_named(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json must hold a mapping, got a "):
        load_model(saved)


@pytest.mark.parametrize("value", [None, 0, -1, "24", [], {}, 24.0, True])
@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"])
def test_sizes_are_whole_numbers(saved: Path, name: str, value: Any) -> None:
    with pytest.raises(
        CheckpointError, match=rf"{name} in .*config.json must be a whole number of at least 1"
    ):
        load_model(configure(saved, **{name: value}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "must name a model_type, got None"),
        ({"model_type": 3}, "must name a model_type, got 3"),
        ({"model_type": "no_such_model"}, "model type `no_such_model` but Transformers does not recognize"),
        ({"architectures": "BertModel"}, "architectures in .* must be a list of names"),
        ({"architectures": [None]}, "architectures in .* must be a list of names"),
        ({"id2label": []}, "id2label in .* must give a name for each label"),
        ({"hidden_act": 3}, "'hidden_act' expected str, got int"),
        ({"hidden_act": "no_such_act"}, "no entry 'no_such_act'"),
        ({"hidden_dropout_prob": 7}, "dropout probability has to be between 0 and 1"),
        ({"dtype": 3}, "dtype in .* must be a type of torch, such as float32, got 3"),
        ({"num_hidden_layers": 1}, "16 weights that BertForSequenceClassification does not read"),
        ({"num_hidden_layers": 3}, "lacks 16 weights of BertForSequenceClassification"),
        ({"hidden_size": 48}, r"has shape \(24,\), where config.json says \(48,\)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"is quantised \(gptq\)"),
    ],
)
def test_settings_that_do_not_fit_are_named(saved: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(configure(saved, **changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must hold a mapping"),
        ("{}", "must give a file for each weight"),
        ('{"weight_map": {"a": 3}}', "must give a file for each weight"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "must name files beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"lacks gone.safetensors, which"),
    ],
)
def test_an_index_that_does_not_fit_is_named(saved: Path, text: str, message: str) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_model(saved)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "[]", r"tokenizer.json must hold a mapping"),
        ("tokenizer.json", "{", r"tokenizer.json can't be read"),
        ("tokenizer.json", '{"a":' * 5000 + "1" + "}" * 5000, "it is nested too deeply"),
        ("tokenizer.json", "{}", r"cannot load what .* has in tokenizer.json"),
        ("tokenizer_config.json", "null", r"tokenizer_config.json must hold a mapping"),
        (
            "tokenizer_config.json",
            '{"tokenizer_class": 5}',
            r"cannot load what .* has in tokenizer_config.json",
        ),
        ("preprocessor_config.json", "[]", r"preprocessor_config.json must hold a mapping"),
    ],
)
def test_a_tokenizer_that_does_not_load_is_told_from_none(
    saved: Path, name: str, text: str, message: str
) -> None:
    assert load_processor(saved) is None  # five special tokens are no tokenizer
    (saved / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_processor(saved)


def test_a_token_of_false_is_no_token(online: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    online.repositories["org/private"] = Repository(private=True, branches={"main": {"config.json": b"{}"}})
    with pytest.raises(CheckpointError, match="not on the Hub, or the token may not read it"):
        remote.find_on_hub("org/private", None, "", False)
    assert remote.find_on_hub("org/private", None, "", None)  # HF_TOKEN
    assert huggingface_hub.get_token()
