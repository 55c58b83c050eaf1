"""Cards follow the state of their directory, and say what holds for these forms alone."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from card_rules import card_errors
from card_support import compressed
from cli_support import CommandLine
from hub_server import HubServer
from huggingface_hub import ModelCard
from random_models import PLANS, make_collab_
from transformers import BertForMaskedLM, BertModel

from collab_hf import to_dense_
from collab_hf.files import CARD_FILE, RECOVERY_FILE, REPORT_FILE
from collab_hf.hub import card_text
from collab_hf.hub.card import make_card, make_dense_card, renewed_card, write_card
from collab_hf.hub.facts import card_metadata
from collab_hf.modeling.errors import ConfigError, RankError


@pytest.fixture
def made(tiny_bert: Callable[..., Any], tmp_path: Path) -> Path:
    return compressed(tiny_bert(BertForMaskedLM), tmp_path)


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


def test_the_cards_commands_make_the_model_again(
    collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parts, recovered by the command itself and once more: the same bytes from the words of the card."""
    monkeypatch.chdir(tmp_path)  # a card names no path, so what it names lies here
    whole = ["compress", "model", "-o", "whole", "--params", 0.7, "--calibration", text, "--heal-steps", 2]
    assert collab_hf(*whole).code == 0
    again = [
        "heal",
        "whole",
        "-o",
        "healed",
        "--teacher",
        "model",
        "--data",
        text,
        "--steps",
        8,
        "--lr",
        0.005,
    ]
    assert collab_hf(*again, "--trainable", "attention").code == 0
    card = Path("healed", CARD_FILE).read_text()
    assert "made smaller by surgery on its attention and feed-forwards." in card
    assert "All weights of the layers were then fitted to the original's outputs." in card
    assert card.count("learned from its original") == 2

    shutil.copy(Path("healed", "collab_recipe.yaml"), tmp_path)
    commands = re.findall(r"^collab-hf (.*)$", card, re.MULTILINE)
    assert [words.split()[0] for words in commands] == ["compress", "heal", "heal"]
    for words in commands:
        assert collab_hf(*shlex.split(words)).code == 0, words
    made, wanted = (Path(name, "model.safetensors").read_bytes() for name in ("DIR", "healed"))
    assert made == wanted
    assert Path("whole", "model.safetensors").read_bytes() != wanted


def test_a_pruned_checkpoints_card_says_what_was_done(
    collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prune = ["heads", "prune", "model", "-o", "pruned", "--share", 0.3, "--calibration", text]
    assert collab_hf(*prune).code == 0
    card = Path("pruned", CARD_FILE).read_text()
    assert "attention heads were left out" in card
    assert "common to all heads" not in card
    assert "fitted to" not in card.replace("refitted to", "")
    assert 'AutoTokenizer.from_pretrained("pruned")' in card
    shutil.copy(Path("pruned", "collab_recipe.yaml"), tmp_path)
    (words,) = re.findall(r"^collab-hf (.*)$", card, re.MULTILINE)
    assert collab_hf(*shlex.split(words)).code == 0
    made, wanted = (Path(name, "model.safetensors").read_bytes() for name in ("DIR", "pruned"))
    assert made == wanted


def test_narrow_embeddings_are_mentioned(made: Path) -> None:
    assert "Token embeddings" not in str(make_card(made))
    config = json.loads((made / "config.json").read_text())
    config["collab"]["embeddings"] = {"embeddings.word_embeddings": {"rank": 8}}
    (made / "config.json").write_text(json.dumps(config))
    card = str(make_card(made))
    assert "surgery on its attention and token embeddings." in card
    assert "Token embeddings are a narrow table" in card


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
        ("copy", "kept what they had", "common to all heads"),
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
