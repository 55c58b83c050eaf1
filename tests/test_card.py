"""Cards say what was measured, are valid, and never name a path of the machine that made them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from card_rules import card_errors
from hub_server import HubServer
from huggingface_hub import ModelCard
from random_models import PLANS, make_collab_
from transformers import BertForMaskedLM, BertModel

from collab_hf import CollabConfig, compress_, to_dense_
from collab_hf.files import CARD_FILE, RECIPE_FILE, RECOVERY_FILE, REPORT_FILE
from collab_hf.hub import card_text
from collab_hf.hub.card import make_card, make_dense_card, renewed_card, write_card
from collab_hf.hub.facts import card_metadata
from collab_hf.hub.paths import hide_paths
from collab_hf.modeling.errors import CheckpointError, ConfigError, RankError
from collab_hf.recipe import Recipe

SOURCE = """---
license: apache-2.0
language: [en, de]
tags: [sentence-similarity, exbert]
pipeline_tag: fill-mask
datasets: [bookcorpus]
---
# The original
"""


@pytest.fixture
def made(tiny_bert: Callable[..., Any], tmp_path: Path) -> Path:
    """What `collab-hf compress org/original` leaves, from a machine with telling paths."""
    directory = tmp_path / "home" / "secret-user" / "small"
    model = tiny_bert(BertForMaskedLM)
    report = compress_(model, CollabConfig(method="tucker", query_rank=8, key_rank=8))
    model.save_pretrained(directory)
    source = {
        "model": "org/original",
        "model_is_local": False,
        "revision": "v2",
        "weight_bytes_before": 10**6,
    }
    (directory / REPORT_FILE).write_text(json.dumps({**source, **report.to_dict()}))
    (directory / "README.md").write_text(SOURCE)
    recipe = Recipe(report.config, calibration=str(tmp_path / "home" / "secret-user" / "mail.txt"))
    recipe.write(directory / RECIPE_FILE)
    return directory


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


RECOVERY = {
    "data": "default",
    "steps": 7,
    "loss_before": 0.5,
    "loss_after": 0.25,
    "agreement_before": 0.9,
    "agreement_after": 0.95,
    "config": {"steps": 7, "minutes": None, "learning_rate": 0.01, "trainable": "all", "seed": 3},
}


def test_a_healed_checkpoints_card_tells_how_it_was_made(made: Path) -> None:
    assert "heal" not in str(make_card(made))
    (made / RECOVERY_FILE).write_text(json.dumps(RECOVERY))
    text = str(make_card(made))
    assert "collab-hf compress org/original -o COMPRESSED --revision v2 --config collab_recipe.yaml" in text
    heal = "heal COMPRESSED -o DIR --teacher org/original --data default --steps 7 --trainable all --seed 3"
    assert heal in text
    assert "held-out loss 0.5000 → 0.2500, agreement with the original 0.9000 → 0.9500" in text


def test_a_card_is_renewed_with_the_directorys_state(made: Path) -> None:
    """Unless somebody has changed its words: then those stay, with the repository's name in them."""
    write_card(made, "small")
    (made / RECOVERY_FILE).write_text(json.dumps(RECOVERY))
    directory = made.rename(made.with_name("renamed"))
    text = renewed_card(directory, "me/other")
    assert "### Recovery" in text
    assert 'from_pretrained("me/other"' in text
    assert '"small"' not in text
    assert '"renamed"' not in text
    (directory / CARD_FILE).write_text(text.replace("# other", "# My own title"))
    again = renewed_card(directory, "me/third")
    assert "# My own title" in again
    assert 'from_pretrained("me/third"' in again
    assert "me/other" not in again
    assert "sha256" not in again
    measured = renewed_card(directory, "me/third", evaluation={"task": "stsb", "spearman": 0.8})
    assert "# My own title" not in measured
    assert "| spearman | 0.8000 |" in measured


def test_a_card_survives_being_read_and_written(made: Path) -> None:
    write_card(made, "small")
    first = (made / CARD_FILE).read_text()
    ModelCard.load(made / CARD_FILE).save(made / CARD_FILE)
    assert renewed_card(made, "small") == first
    for ending in ("\r\n", "\n"):
        (made / CARD_FILE).write_bytes(first.replace("\n", ending).encode())
        assert renewed_card(made, "small") == first


@pytest.mark.parametrize(
    ("plan", "words", "not_words"),
    [
        ("tucker", "common to all heads", "of its own"),
        ("cp", "common to all heads", "of its own"),
        ("svd", "a smaller query and key of its own", "common to all heads"),
        ("copy", "kept what it had", "common to all heads"),
    ],
)
def test_what_heads_share_is_said_of_forms_that_share_it(
    tiny_bert: Callable[..., Any], tmp_path: Path, plan: str, words: str, not_words: str
) -> None:
    make_collab_(tiny_bert(BertModel), PLANS[plan]).save_pretrained(tmp_path / "bare")
    text = str(make_card(tmp_path / "bare"))
    assert words in text
    assert not_words not in text


@pytest.mark.parametrize(
    ("plan", "nearest"), [("tucker", False), ("copy", False), ("cp", True), ("tucker-narrow", False)]
)
def test_what_no_dense_head_holds_is_not_promised(
    tiny_bert: Callable[..., Any], tmp_path: Path, plan: str, nearest: bool
) -> None:
    model = make_collab_(tiny_bert(BertModel), PLANS[plan])
    model.save_pretrained(tmp_path / "bare")
    assert ("nearest=True" in str(make_card(tmp_path / "bare"))) is nearest
    if not nearest:
        to_dense_(model)
    else:
        with pytest.raises(RankError):
            to_dense_(model)


def test_the_original_of_a_local_copy_can_be_named(made: Path) -> None:
    report = json.loads((made / REPORT_FILE).read_text())
    (made / REPORT_FILE).write_text(json.dumps({**report, "model": "/data/copy", "model_is_local": True}))
    assert "base_model" not in card_metadata(str(make_card(made)))
    card = make_card(made, base_model="org/original")
    assert card.data.base_model == "org/original"
    assert "collab-hf compress org/original -o DIR" in str(card)
    assert "copy" not in str(card)
    write_card(made, "small", base_model="org/original")
    assert card_metadata(renewed_card(made, "me/small"))["base_model"] == "org/original"
    with pytest.raises(ConfigError, match=r"base_model must be a Hub id such as owner/name, got '\.\./x'"):
        make_card(made, base_model="../x")


def test_an_evaluation_becomes_a_model_index(made: Path, online: HubServer) -> None:
    evaluation = {
        "task": "stsb",
        "data": "/data/STS test.tsv",
        "spearman": 0.8,
        "pearson": 0.7,
        "examples": 9,
    }
    card = make_card(made, repo_id="me/small", evaluation=evaluation)
    card.validate()
    (index,) = card_metadata(str(card))["model-index"]
    assert index["name"] == "small"
    (result,) = index["results"]
    assert result["task"]["type"] == "sentence-similarity"
    assert result["dataset"] == {"name": "STS test", "type": "sts-test"}
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"spearmanr": 0.8, "pearsonr": 0.7}
    agreement = {"task": "agreement", "data": None, "mean_cosine": 0.9}  # no score on a data set
    assert "model-index" not in card_metadata(str(make_card(made, evaluation=agreement)))


def test_the_load_code_has_what_prepares_inputs(made: Path) -> None:
    assert "AutoTokenizer" not in str(make_card(made))
    (made / "vocab.txt").touch()
    text = str(make_card(made, repo_id="me/small"))
    assert "from transformers import AutoModelForMaskedLM, AutoTokenizer" in text
    assert text.count('tokenizer = AutoTokenizer.from_pretrained("me/small")') == 2
    (made / "preprocessor_config.json").touch()
    assert 'processor = AutoImageProcessor.from_pretrained("me/small")' in str(
        make_card(made, repo_id="me/small")
    )


def test_the_measured_divergence_is_told(made: Path) -> None:
    report = json.loads((made / REPORT_FILE).read_text())
    assert "Divergence" not in str(make_card(made))
    (made / REPORT_FILE).write_text(json.dumps({**report, "measured_loss": 0.0125}))
    assert "held out: 0.0125." in str(make_card(made))
    (made / RECOVERY_FILE).write_text(json.dumps(RECOVERY))
    assert "held out, before the recovery: 0.0125." in str(make_card(made))


def test_no_index_has_the_package(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(make_card(made))
    assert "pip install collab" not in text
    assert "`pip install .` in a clone" in text
    monkeypatch.setattr(card_text, "PACKAGE_URL", "https://example.org/collab_hf.git")
    assert "`pip install git+https://example.org/collab_hf.git`" in str(make_card(made))


@pytest.mark.parametrize(
    "content",
    [
        "---\nlicense: mit\n---\nGrüße".encode("latin-1"),
        "---\nlicense: mit\n---\nGrüße".encode("utf-8-sig"),
        b"---\nlicense: mit\n---\n\xff\xfe\x00",
    ],
)
def test_readmes_in_any_encoding_are_read(made: Path, content: bytes) -> None:
    (made / CARD_FILE).write_bytes(content)
    assert make_card(made).data.license == "mit"


@pytest.mark.parametrize(
    "header", ["date: 2020-99-99", "a: &a [*a]", "- list", "license: [mit]", "tags: text", "x: " + "[" * 9999]
)
def test_odd_headers_do_not_end_the_run(made: Path, header: str) -> None:
    (made / CARD_FILE).write_text(f"---\n{header}\n---\n")
    assert card_errors(str(make_card(made))) == []


def test_a_dense_export_keeps_the_licence(made: Path) -> None:
    write_card(made, "small")
    card = make_dense_card(made, "dense", "BertForMaskedLM")
    data = card_metadata(str(card))
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == "org/original"
    assert "compressed" not in data["tags"]
    assert "trust_remote_code" not in str(card)
    assert card_errors(str(card)) == []
