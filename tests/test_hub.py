"""Push to a local stand-in for the Hub, and load from it: with the package, and without."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_server import HubServer
from random_models import PLANS, image_inputs, make_collab_, outputs, text_inputs
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BertForMaskedLM,
    PreTrainedModel,
    ViTForImageClassification,
)

from collab_hf.errors import HubError
from collab_hf.files import belongings
from collab_hf.hub import publish as hub_module
from collab_hf.hub.card import write_card
from collab_hf.hub.facts import card_metadata
from collab_hf.hub.fetch import fetch_files
from collab_hf.hub.publish import push
from collab_hf.modeling.errors import CheckpointError, CollabError, ConfigError

# huggingface_hub's own upload of large files, with the newest HTTP client
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(params=["regular", "lfs"])
def hub(request: pytest.FixtureRequest, lfs_hub: HubServer) -> HubServer:
    lfs_hub.reset(large=r"\.safetensors$" if request.param == "lfs" else "nothing")
    return lfs_hub


@pytest.fixture
def lfs_hub(online: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setattr(hub_module, "_PAUSES", (0.01, 0.01))
    return online


@pytest.fixture
def saved(tiny_bert: Callable[..., Any], tmp_path: Path) -> Path:
    directory = tmp_path / "made" / "small-bert"
    make_collab_(tiny_bert(BertForMaskedLM), PLANS["tucker"]).save_pretrained(directory)
    return directory


def test_a_push_is_one_commit_of_everything(hub: HubServer, saved: Path) -> None:
    (saved / ".cache").mkdir()
    (saved / ".cache" / "secret").write_text("no")
    url = push(saved, "me/small-bert", message="First")
    repository = hub.repositories["me/small-bert"]
    assert url.startswith(f"{hub.url}/me/small-bert/commit/")
    assert repository.commits == ["First"]
    files = hub.files("me/small-bert")
    assert files["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    assert {"config.json", "README.md", "modeling_collab.py", "attention.py"} <= set(files)
    assert not any(name.startswith(".") for name in files)
    card = files["README.md"].decode()
    assert "collab_hf" in card_metadata(card)["tags"]
    assert 'from_pretrained("me/small-bert", trust_remote_code=True)' in card
    assert str(saved.parent) not in card


def test_a_second_push_replaces_the_first_as_a_whole(hub: HubServer, saved: Path) -> None:
    push(saved, "me/small-bert")
    hub.files("me/small-bert").update({"model-00001-of-00002.safetensors": b"old", "notes.txt": b"kept"})
    push(saved, "me/small-bert")
    assert "model-00001-of-00002.safetensors" not in hub.files("me/small-bert")
    assert hub.files("me/small-bert")["notes.txt"] == b"kept"
    assert len(hub.repositories["me/small-bert"].commits) == 2


def test_private_and_on_a_branch(lfs_hub: HubServer, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(saved, "me/small-bert", private=True, revision="quarter")
    repository = lfs_hub.repositories["me/small-bert"]
    assert repository.private
    assert repository.branches["main"] == {}
    assert "model.safetensors" in repository.branches["quarter"]
    model = AutoModel.from_pretrained("me/small-bert", revision="quarter", add_pooling_layer=False)
    assert type(model).__name__ == "CollabBertModel"
    assert fetch_files("me/small-bert", revision="quarter").joinpath("config.json").is_file()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="me/small-bert is not on the Hub, or the token may not read it"):
        fetch_files("me/small-bert", revision="main")
    with pytest.raises(HubError, match="set HF_TOKEN or run `hf auth login`"):
        push(saved, "me/small-bert")


def test_the_token_is_told_from_the_name(lfs_hub: HubServer, saved: Path) -> None:
    with pytest.raises(HubError, match="refused the token"):
        push(saved, "me/small-bert", token="hf_wrong")
    lfs_hub.readonly.add("else/small-bert")
    with pytest.raises(HubError, match="the token may not write to else/small-bert"):
        push(saved, "else/small-bert")
    with pytest.raises(ConfigError, match="'a/b/c' is not the name of a repository"):
        push(saved, "a/b/c")
    assert not any(r.branches["main"] for r in lfs_hub.repositories.values())


def test_a_token_of_false_is_no_token(lfs_hub: HubServer, saved: Path, tiny_bert: Callable[..., Any]) -> None:
    model = make_collab_(tiny_bert(BertForMaskedLM), PLANS["tucker"])
    with pytest.raises(HubError, match="set HF_TOKEN or run"):
        push(saved, "me/small-bert", token=False)
    with pytest.raises(HubError, match="set HF_TOKEN or run"):
        model.push_to_hub("me/small-bert", token=False)
    assert lfs_hub.repositories == {}
    model.push_to_hub("me/small-bert", token=True)  # HF_TOKEN's
    assert "model.safetensors" in lfs_hub.files("me/small-bert")


def test_what_no_checkpoint_needs_is_not_published(lfs_hub: HubServer, saved: Path) -> None:
    (saved / "onnx").mkdir()
    for name in ("onnx/model.onnx", "model.gguf", "events.out"):
        (saved / name).write_text("x")
    with pytest.warns(UserWarning, match=r"not published, .*: events.out, model.gguf, onnx/model.onnx"):
        push(saved, "me/small-bert")
    assert not {"onnx/model.onnx", "model.gguf", "events.out"} & set(lfs_hub.files("me/small-bert"))


def test_a_push_after_a_rename_names_the_repository(lfs_hub: HubServer, saved: Path) -> None:
    write_card(saved, "small-bert")
    push(saved.rename(saved.with_name("renamed")), "me/other", base_model="org/original")
    card = lfs_hub.files("me/other")["README.md"].decode()
    assert 'from_pretrained("me/other", trust_remote_code=True)' in card
    assert "small-bert" not in card
    assert card_metadata(card)["base_model"] == "org/original"


def test_a_connection_that_comes_back_is_gone_on_with(lfs_hub: HubServer, saved: Path) -> None:
    lfs_hub.drop, lfs_hub.drops = "POST .*/commit/", 2
    push(saved, "me/small-bert")
    assert len(lfs_hub.repositories["me/small-bert"].commits) == 1
    assert sum(r.startswith("PUT /_blob/") for r in lfs_hub.requests) == 1


def test_no_connection_to_xet_publishes_nothing(
    lfs_hub: HubServer, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hf_xet huggingface_hub uploads through Xet alone, which this Hub lacks: it never turns to LFS."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")  # else it goes on for minutes
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")
    with pytest.raises(
        HubError, match=r"lost the connection to the Hub .*nothing of me/small-bert became visible"
    ):
        push(saved, "me/small-bert")
    assert not lfs_hub.files("me/small-bert")
    assert any("xet-write-token" in request for request in lfs_hub.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    push(saved, "me/small-bert")
    assert "model.safetensors" in lfs_hub.files("me/small-bert")


def test_a_lost_connection_publishes_nothing_and_is_resumed(lfs_hub: HubServer, saved: Path) -> None:
    lfs_hub.drop, lfs_hub.drops = "POST .*/commit/", 1000
    with pytest.raises(
        HubError, match=r"lost the connection to the Hub .*nothing of me/small-bert became visible"
    ):
        push(saved, "me/small-bert")
    assert lfs_hub.files("me/small-bert") == {}
    lfs_hub.drops = 0
    lfs_hub.requests.clear()
    push(saved, "me/small-bert")
    assert "model.safetensors" in lfs_hub.files("me/small-bert")
    assert not any(r.startswith("PUT /_blob/") for r in lfs_hub.requests)  # it had arrived


def test_what_is_no_checkpoint_is_refused_before_any_request(
    lfs_hub: HubServer, saved: Path, tiny_bert: Callable[..., Any], tmp_path: Path
) -> None:
    tiny_bert().save_pretrained(tmp_path / "dense")
    with pytest.raises(
        CheckpointError, match=r"not a compressed checkpoint: config.json has no collab entry"
    ):
        push(tmp_path / "dense", "me/x")
    (saved / "attention.py").unlink()
    (saved / "modeling_collab.py").unlink()
    with pytest.raises(CheckpointError, match=r"lacks modeling_collab.py, which trust_remote_code needs"):
        push(saved, "me/x")
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no safetensors weights"):
        push(saved, "me/x")
    with pytest.raises(CheckpointError, match="is not a directory"):
        push(tmp_path / "nowhere", "me/x")
    assert lfs_hub.requests == []


def test_the_models_own_push_to_hub(hub: HubServer, tiny_vit: Callable[..., Any]) -> None:
    model = make_collab_(tiny_vit(ViTForImageClassification), PLANS["cp-sparse"])
    model.push_to_hub("me/small-vit")
    files = hub.files("me/small-vit")
    assert {"config.json", "model.safetensors", "modeling_collab.py", "README.md"} <= set(files)
    assert len(hub.repositories["me/small-vit"].commits) == 1
    assert "| cp | 16 | 16 | 4 | folded |" in files["README.md"].decode()
    files["README.md"] = b"My own words."
    model.push_to_hub("me/small-vit", commit_message="Again", token=True, max_shard_size="10KB")
    assert hub.files("me/small-vit")["README.md"] == b"My own words."
    assert "model.safetensors" not in hub.files("me/small-vit")
    inputs = image_inputs()
    loaded = AutoModelForImageClassification.from_pretrained("me/small-vit")
    assert torch.equal(outputs(loaded, inputs), outputs(model, inputs))


def test_files_of_an_original(lfs_hub: HubServer, tmp_path: Path) -> None:
    huggingface_hub.create_repo("me/original")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    lfs_hub.files("me/original").update(
        {
            "sub/config.json": b"{}",
            "sub/vocab.txt": b"a",
            "sub/modules.json": b'[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]',
            "sub/1_Pooling/config.json": b"{}",
            "sub/2_Dense/model.safetensors": b"a module's own",
            "sub/3_Old/config.json": b"{}",
            "sub/model.safetensors": b"x",
            "sub/model.gguf": b"x",
            "sub/onnx/model.onnx": b"x",
            "sub/onnx/config.json": b"{}",
            "pytorch_model.bin": b"x",
            "vocab.txt": b"b",
        }
    )
    folder = fetch_files("me/original", subfolder="sub")
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    modules = {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"}
    assert found == {"config.json", "vocab.txt", *modules}
    # In the Hub's cache every file is a link to a blob outside of the snapshot.
    assert set(belongings(folder)) == {"vocab.txt", *modules}
    assert fetch_files(tmp_path, subfolder="sub") == tmp_path / "sub"
    with pytest.raises(HubError, match="me/absent is not on the Hub"):
        fetch_files("me/absent")


# Every head that is saved below, as a fresh process meets it.
FRESH = r"""
import importlib.abc, json, os, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "collab_hf":
            raise ModuleNotFoundError("No module named 'collab_hf'", name=name)

if sys.argv[1] == "without":
    sys.meta_path.insert(0, Absent())
    try:
        import collab_hf
    except ModuleNotFoundError:
        print("ABSENT")
else:
    import collab_hf
import torch, transformers
torch.set_num_threads(1)
for name, head in json.loads(sys.argv[2]).items():
    auto = getattr(transformers, head)
    try:
        model = auto.from_pretrained(name)
        print("\nPLAIN", head, type(model).__name__)
    except ValueError as error:
        print("\nREFUSED", head, "trust_remote_code" in str(error))
    model = auto.from_pretrained(name, trust_remote_code=True).eval()
    inputs = torch.load(os.path.join(sys.argv[3], name.replace("/", "--") + ".pt"))
    with torch.no_grad():
        difference = (model(**inputs["inputs"])[0] - inputs["output"]).abs().max().item()
    print("\nLOADED", head, type(model).__module__.partition(".")[0], difference)
"""

HEADS = {
    "AutoModel": "BertModel",
    "AutoModelForMaskedLM": "BertForMaskedLM",
    "AutoModelForSequenceClassification": "BertForSequenceClassification",
    "AutoModelForTokenClassification": "BertForTokenClassification",
    "AutoModelForQuestionAnswering": "BertForQuestionAnswering",
    "AutoModelForMultipleChoice": "BertForMultipleChoice",
    "AutoModelForImageClassification": "ViTForImageClassification",
}


@pytest.fixture
def published(
    lfs_hub: HubServer, tiny_bert: Callable[..., Any], tiny_vit: Callable[..., Any], tmp_path: Path
) -> dict[str, str]:
    """Every task head on the Hub; the Auto class by repository, and what each gave, in tmp_path."""
    import transformers

    names = {}
    for number, (auto, host) in enumerate(HEADS.items()):
        plan = list(PLANS.values())[number]
        image = host.startswith("ViT")
        labels = 2 if host == "BertForQuestionAnswering" else 3
        make = tiny_vit if image else tiny_bert
        model: PreTrainedModel = make(getattr(transformers, host), num_labels=labels)
        make_collab_(model, plan).save_pretrained(tmp_path / host)
        push(tmp_path / host, f"me/{host}")
        inputs = image_inputs() if image else text_inputs()
        if host == "BertForMultipleChoice":
            inputs = {key: value.unsqueeze(0) for key, value in inputs.items()}
        torch.save({"inputs": inputs, "output": outputs(model, inputs)}, tmp_path / f"me--{host}.pt")
        names[f"me/{host}"] = auto
    return names


@pytest.mark.parametrize("package", ["with", "without"])
def test_every_head_in_a_fresh_process(
    package: str, published: dict[str, str], lfs_hub: HubServer, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": lfs_hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", FRESH, package, json.dumps(published), str(tmp_path)],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    loaded = {line[1]: (line[2], float(line[3])) for line in lines if line[0] == "LOADED"}
    assert list(loaded) == list(HEADS)
    # The same weights and code; memory that is aligned otherwise may be summed in another order.
    assert max(difference for _, difference in loaded.values()) < 1e-6
    if package == "with":
        assert {module for module, _ in loaded.values()} == {"collab_hf"}
        assert sum(line[0] == "PLAIN" for line in lines) == len(HEADS)
    else:
        assert ["ABSENT"] in lines
        assert {module for module, _ in loaded.values()} == {"transformers_modules"}
        assert [line[1:] for line in lines if line[0] == "REFUSED"] == [[head, "True"] for head in HEADS]


def test_hub_errors_are_the_packages_own() -> None:
    assert issubclass(HubError, CollabError)
