"""Cards say what was measured, are valid, and never name a path of the machine that made them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from card_rules import card_errors
from card_support import compressed
from hub_server import HubServer
from huggingface_hub import ModelCard
from random_models import PLANS, make_collab_
from transformers import BertForMaskedLM, BertModel

from collab_hf.files import RECIPE_FILE, REPORT_FILE
from collab_hf.hub.card import make_card
from collab_hf.hub.facts import card_metadata
from collab_hf.hub.paths import hide_paths
from collab_hf.modeling.errors import CheckpointError


@pytest.fixture
def made(tiny_bert: Callable[..., Any], tmp_path: Path) -> Path:
    return compressed(tiny_bert(BertForMaskedLM), tmp_path)


def test_what_a_card_says(made: Path) -> None:
    card = make_card(made, repo_id="me/small")
    data = card.data.to_dict()
    assert data["base_model"] == "org/original"
    assert data["base_model_relation"] == "finetune"
    assert data["library_name"] == "transformers"
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["en", "de"]
    assert data["datasets"] == ["bookcorpus"]
    assert data["pipeline_tag"] == "fill-mask"
    assert data["tags"][0] == "collab_hf"
    assert {"sentence-similarity", "exbert"} <= set(data["tags"])
    report = json.loads((made / REPORT_FILE).read_text())
    text = str(card)
    for layer in report["layers"]:
        assert f"| {layer['name']} | tucker | 8 | 8 | 8 | folded | {layer['relative_error']:.4f} |" in text
    assert f"| all parameters | {report['parameters_before']:,} | {report['parameters_after']:,} |" in text
    assert "| weights on disk | 1.0 MB |" in text
    assert "collab-hf compress org/original -o DIR --revision v2 --config collab_recipe.yaml" in text
    assert 'AutoModelForMaskedLM.from_pretrained("me/small", trust_remote_code=True)' in text
    assert "to_dense_" in text
    assert "2006.16362" in text
    assert "$" not in text
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["query_rank"] == 8


def test_a_card_is_valid(made: Path, online: HubServer) -> None:
    """By huggingface_hub's own check, which asks the Hub."""
    make_card(made).validate()
    assert online.requests == ["POST /api/validate-yaml"]


def test_odd_metadata_of_the_original_is_mended_or_left_out(made: Path, online: HubServer) -> None:
    (made / "README.md").write_text(
        "---\nlicense: other\nlicense_name: my-own\nlicense_link: /home/secret-user/LICENSE\n"
        "language: [en, no]\ndatasets: [squad, ../secret-user/data, 3]\ntags: [nice, 7]\n---\n"
    )
    card = make_card(made)
    card.validate()
    data = card_metadata(str(card))
    assert data["language"] == ["en", "no"]  # YAML reads Norwegian as a boolean
    assert data["datasets"] == ["squad"]
    assert data["license_link"] == "LICENSE"
    assert "secret-user" not in str(card)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("license: free", "license"),
        ("license: other", "license_name"),
        ("language: English", "language"),
        ("language: [en, false]", "language"),
        ("datasets: [null]", "datasets"),
        ("datasets: /home/me/data", "datasets"),
        ("metrics: [Mean squared error]", "metrics"),
        ("base_model: ./bert", "base_model"),
        ("base_model_relation: shrunk\nbase_model: org/bert", "base_model_relation"),
        ("base_model_relation: finetune", "base_model"),
        ("pipeline_tag: shrinking", "pipeline_tag"),
        ("tags: [1]", "tags"),
    ],
)
def test_the_check_refuses(online: HubServer, line: str, complaint: str) -> None:
    """Negative control of the two above."""
    with pytest.raises(ValueError, match=f'"{complaint}'):
        ModelCard(f"---\n{line}\n---\n").validate()


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("model-index: [{name: small}]", "results"),
        ("model-index: [{name: small, results: [{task: {type: fill-mask}}]}]", "dataset"),
        ("tags: [", "not YAML"),
        ("just words", "no header"),
    ],
)
def test_what_the_client_does_not_even_send(header: str, complaint: str) -> None:
    (error,) = card_errors(f"---\n{header}\n---\n")
    assert complaint in error["message"]


def test_no_local_path_gets_in(made: Path, tmp_path: Path) -> None:
    report = json.loads((made / REPORT_FILE).read_text())
    report |= {"model": str(tmp_path / "home" / "secret-user" / "original"), "model_is_local": True}
    (made / REPORT_FILE).write_text(json.dumps(report))
    (made / RECIPE_FILE).write_text(
        yaml.safe_dump({"model": "~/secret-user/x", "calibration": "../secret-user/mail.txt"})
    )
    evaluation = {"model": str(made), "task": "sts", "spearman": 0.8123456}
    text = str(
        make_card(made, evaluation=evaluation, bench={"rows": [{"file": f"{made}/b.json", "ms": 1.5}]})
    )
    assert "secret-user" not in text
    assert str(tmp_path) not in text
    assert "base_model" not in card_metadata(text)
    assert "| spearman | 0.8123 |" in text
    assert "| b.json | 1.5000 |" in text
    exported = str(
        make_card(made, export={"file": str(made / "q.onnx"), "file_size": 22524588, "int8": True})
    )
    assert "| file | q.onnx |" in exported
    assert "| file_size | 22524588 |" in exported
    assert "collab-hf compress original -o DIR" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see /home/me/data/x.txt now", "see x.txt now"),
        ("~/models/bert", "bert"),
        ("../up/there", "there"),
        (r"C:\Users\me\bert", "bert"),
        ("file:///tmp/a/b", "b"),
        ("https://huggingface.co/org/name stays", "https://huggingface.co/org/name stays"),
        ("org/name stays, and 1/2 too", "org/name stays, and 1/2 too"),
        ('from_pretrained("me/small")', 'from_pretrained("me/small")'),
        ("[text](https://arxiv.org/abs/2006.16362)", "[text](https://arxiv.org/abs/2006.16362)"),
    ],
)
def test_paths_are_told_from_ids_and_urls(text: str, expected: str) -> None:
    assert hide_paths(text) == expected


def test_a_bare_checkpoint_has_a_card(tiny_bert: Callable[..., Any], tmp_path: Path) -> None:
    make_collab_(tiny_bert(BertModel), PLANS["tucker-groups"]).save_pretrained(tmp_path / "bare")
    text = str(make_card(tmp_path / "bare"))
    assert "tucker, 2 key groups" in text
    assert card_metadata(text)["pipeline_tag"] == "feature-extraction"
    assert card_errors(text) == []


def test_what_has_no_card(tiny_bert: Callable[..., Any], made: Path, tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match="not a compressed checkpoint"):
        make_card(tmp_path / "dense")
    (made / REPORT_FILE).write_text("{")
    with pytest.raises(CheckpointError, match=r"collab_report.json can't be read"):
        make_card(made)
    assert (
        card_metadata("no header") == card_metadata("---\n- a\n---") == card_metadata("---\n: [\n---") == {}
    )


def test_a_card_says_which_layers_are_tied(tiny_bert: Callable[..., Any], tmp_path: Path) -> None:
    make_collab_(tiny_bert(BertModel), PLANS["tucker-tied"]).save_pretrained(tmp_path / "bare")
    row = "| encoder.layer.1.attention.self | tied tucker | 12 | 12 | 4 |"
    assert row in str(make_card(tmp_path / "bare"))
