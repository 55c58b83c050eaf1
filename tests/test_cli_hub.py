"""`push`, `export` and `compress --push-to-hub`, as a user calls them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import VOCABULARY, CommandLine, save_with_tokenizer
from hub_server import HubServer
from random_models import PLANS, make_collab_
from transformers import BertForMaskedLM, BertForSequenceClassification

from collab_hf.hub.facts import card_metadata
from collab_hf.hub.publish import push

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of HTTP clients and exporters
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def saved(tiny_bert: Callable[..., Any], tmp_path: Path) -> Path:
    model = make_collab_(tiny_bert(BertForMaskedLM, vocab_size=len(VOCABULARY)), PLANS["tucker"])
    return save_with_tokenizer(model, tmp_path / "saved")


def test_from_a_private_hub_to_the_hub(
    collab_hf: CommandLine, hub_of_originals: HubServer, tmp_path: Path
) -> None:
    files = hub_of_originals.files(ENCODER)
    hub_of_originals.repositories[ENCODER].private = True
    hub_of_originals.repositories[ENCODER].branches["main"] = {f"v2/{k}": v for k, v in files.items()}
    out = tmp_path / "out"
    result = collab_hf(
        *("compress", ENCODER, "-o", out, "--rank", 6, "--method", "cp", "--calibration", "none"),
        *(
            "--subfolder",
            "v2",
            "--revision",
            "main",
            "--dtype",
            "bfloat16",
            "--push-to-hub",
            "me/out",
            "--json",
        ),
    )
    assert result.code == 0, result.err
    assert "/me/out/commit/" in result.values["commit"]
    published = hub_of_originals.files("me/out")
    assert {"modules.json", "1_Pooling/config.json", "tokenizer.json", "modeling_collab.py"} <= set(published)
    assert json.loads(published["config.json"])["dtype"] == "bfloat16"
    card = published["README.md"].decode()
    assert card_metadata(card)["base_model"] == ENCODER
    assert card_metadata(card)["license"] == "apache-2.0"
    assert card_metadata(card)["library_name"] == "sentence-transformers"
    assert f"collab-hf compress {ENCODER} -o DIR --revision main --subfolder v2 --dtype bfloat16" in card
    assert str(tmp_path) not in card + published["collab_report.json"].decode()


def test_push_with_measurements(
    collab_hf: CommandLine, online: HubServer, saved: Path, tmp_path: Path
) -> None:
    (tmp_path / "evaluation.json").write_text('{"task": "sts", "spearman": 0.82}')
    result = collab_hf(
        "push",
        saved,
        "me/saved",
        "--evaluation",
        tmp_path / "evaluation.json",
        "--revision",
        "tried",
        "--json",
    )
    assert result.values["revision"] == "tried"
    assert "| spearman | 0.8200 |" in online.files("me/saved", "tried")["README.md"].decode()
    (tmp_path / "evaluation.json").write_text("[]")
    refused = collab_hf("push", saved, "me/saved", "--evaluation", tmp_path / "evaluation.json")
    assert "must hold one JSON object, got a list" in refused.complaint


def test_what_the_hub_refuses_is_not_the_users_input(
    collab_hf: CommandLine, online: HubServer, saved: Path, tmp_path: Path
) -> None:
    online.readonly.add("else/saved")
    result = collab_hf("push", saved, "else/saved")
    assert (result.code, result.out) == (1, "")
    assert "error: the token may not write to else/saved" in result.err
    assert "is not the name of a repository" in collab_hf("push", saved, "a/b/c").complaint
    assert "is not a directory" in collab_hf("push", tmp_path / "nowhere", "me/x").complaint


def test_export(collab_hf: CommandLine, saved: Path, tmp_path: Path) -> None:
    (saved / "README.md").write_text("---\nlicense: mit\n---\n")
    result = collab_hf("export", saved, "--onnx", tmp_path / "model.onnx", "--json")
    assert result.values["difference"] < 1e-4
    assert (
        "exists; choose another file"
        in collab_hf("export", saved, "--onnx", tmp_path / "model.onnx").complaint
    )
    assert "give either --onnx FILE or --dense DIR" in collab_hf("export", saved).complaint
    result = collab_hf("export", saved, "--dense", tmp_path / "dense")
    assert result.out.strip().endswith("a plain BertForMaskedLM")
    names = {path.name for path in (tmp_path / "dense").iterdir()}
    assert "tokenizer.json" in names
    assert not {name for name in names if name.endswith(".py") or name.startswith("collab")}
    assert card_metadata((tmp_path / "dense" / "README.md").read_text())["license"] == "mit"


def test_scores_that_no_dense_head_holds(
    collab_hf: CommandLine, tiny_bert: Callable[..., Any], tmp_path: Path
) -> None:
    make_collab_(tiny_bert(), PLANS["cp"]).save_pretrained(tmp_path / "cp")
    assert "need 17 dimensions" in collab_hf("export", tmp_path / "cp", "--dense", tmp_path / "d").complaint
    assert not (tmp_path / "d").exists()
    assert collab_hf("export", tmp_path / "cp", "--dense", tmp_path / "d", "--nearest").code == 0


def test_the_python_call_is_the_same(online: HubServer, saved: Path) -> None:
    push(saved, "me/saved")
    assert "model.safetensors" in online.files("me/saved")


def test_a_healed_checkpoint_has_a_card_of_its_own(
    collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path
) -> None:
    options = ("--method", "tucker", "--budget", 0.5, "--calibration", text)
    assert collab_hf("compress", model, "-o", tmp_path / "small", *options).code == 0
    assert "heal" not in (tmp_path / "small" / "README.md").read_text()
    heal = ("--teacher", model, "--data", text, "--steps", 2, "-o", tmp_path / "healed")
    assert collab_hf("heal", tmp_path / "small", *heal).code == 0
    card = (tmp_path / "healed" / "README.md").read_text()
    assert "collab-hf heal COMPRESSED -o DIR --teacher model --data text.txt --steps 2" in card
    assert 'from_pretrained("healed", trust_remote_code=True)' in card
    assert str(tmp_path) not in card


def test_the_original_of_a_local_copy_is_named(
    saved: Path, collab_hf: CommandLine, online: HubServer, tmp_path: Path, tiny_bert: Callable[..., Any]
) -> None:
    local = save_with_tokenizer(tiny_bert(vocab_size=len(VOCABULARY)), tmp_path / "local")
    settings = ("--method", "cp", "--rank", 6, "--calibration", "none")
    named = tmp_path / "named"
    assert collab_hf("compress", local, "-o", named, *settings, "--base-model", "org/original").code == 0
    assert card_metadata((named / "README.md").read_text())["base_model"] == "org/original"
    refused = collab_hf("compress", local, "-o", tmp_path / "no", *settings, "--base-model", "../x")
    assert refused.code == 2
    assert "base_model must be a Hub id" in refused.err
    assert not (tmp_path / "no").exists()
    assert collab_hf("push", saved, "me/small", "--base-model", "org/other").code == 0
    assert card_metadata(online.files("me/small")["README.md"].decode())["base_model"] == "org/other"


def test_a_backbone_alone(tiny_bert: Callable[..., Any], collab_hf: CommandLine, tmp_path: Path) -> None:
    source = save_with_tokenizer(
        tiny_bert(BertForSequenceClassification, vocab_size=len(VOCABULARY)), tmp_path / "source"
    )
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["BertOfNobody"]}))
    settings = ("--method", "cp", "--rank", 6, "--calibration", "none")
    refused = collab_hf("compress", source, "-o", tmp_path / "out", *settings)
    assert refused.code == 2
    assert "BertOfNobody" in refused.err
    assert "--backbone" in refused.err
    assert collab_hf("compress", source, "-o", tmp_path / "out", *settings, "--backbone").code == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["CollabBertModel"]
