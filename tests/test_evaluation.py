"""Similarity, accuracy and agreement are what their names say, in the order of the data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import SENTENCES, VOCABULARY, save_with_image_processor, save_with_tokenizer, write_lines
from random_models import PLANS, make_collab_
from scipy import stats
from transformers import AutoTokenizer, BertForMaskedLM, BertForSequenceClassification, BertModel, ViTModel

from collab_hf.calibration.examples import load_batches
from collab_hf.checkpoint.load import load_processor
from collab_hf.errors import DataError
from collab_hf.host.inputs import pool
from collab_hf.measure.evaluation import measure_accuracy, measure_agreement, measure_similarity
from collab_hf.measure.tables import read_scores, read_table

PAIRS = list(zip(SENTENCES, [*SENTENCES[1:], SENTENCES[0]], strict=True))
SCORES = [0.5, 4.0, 1.0, 3.5, 2.0, 5.0]


@pytest.fixture
def model(tiny_bert: Any) -> Any:
    return tiny_bert(BertModel, vocab_size=len(VOCABULARY))


@pytest.fixture
def tokenizer(model: Any, tmp_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(save_with_tokenizer(model, tmp_path / "model"))


def embedding(model: Any, tokenizer: Any, sentence: str) -> torch.Tensor:
    """One sentence at a time: no padding, no batch, no order to get wrong."""
    with torch.no_grad():
        return model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].mean(0)


def test_similarity_is_the_correlation_of_cosines(model: Any, tokenizer: Any) -> None:
    cosines = [
        torch.cosine_similarity(*(embedding(model, tokenizer, s) for s in pair), dim=0).item()
        for pair in PAIRS
    ]
    found = measure_similarity(model, tokenizer, PAIRS, SCORES, batch_size=4)
    # float32 sums over padded and unpadded batches differ in the last digits
    assert found.spearman == pytest.approx(stats.spearmanr(cosines, SCORES).statistic, abs=1e-6)
    assert found.pearson == pytest.approx(stats.pearsonr(cosines, SCORES).statistic, abs=1e-4)
    assert found.examples == len(PAIRS)
    # Negative control: scores in another order are seen.
    assert measure_similarity(model, tokenizer, PAIRS, SCORES[::-1]).spearman != found.spearman


@pytest.mark.parametrize(
    ("pairs", "scores", "message"),
    [
        (PAIRS[:1], SCORES[:1], "at least two pairs with different scores"),
        (PAIRS, [1.0] * len(PAIRS), "at least two pairs with different scores"),
        ([("rain", "rain"), ("dogs", "dogs")], [1.0, 2.0], "every pair has the same cosine"),
    ],
)
def test_similarity_refuses_what_has_no_correlation(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], scores: list[float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        measure_similarity(model, tokenizer, pairs, scores)


def test_every_sentence_gets_its_own_embedding(model: Any, tokenizer: Any) -> None:
    """Order by characters and order by tokens differ here: every letter is a token, a space is none."""
    pairs = [("a b c d e f", "abcdefgh"), ("a b c d", "abcdef"), ("xyz", "x y"), ("m n o p q", "mnopqrst")]
    scores = [_cosine(model, tokenizer, *pair) for pair in pairs]
    found = measure_similarity(model, tokenizer, pairs, scores, batch_size=2)
    # The same cosines, but for rounding.
    assert found.pearson == pytest.approx(1.0, abs=1e-6)


def _cosine(model: Any, tokenizer: Any, first: str, second: str) -> float:
    with torch.no_grad():
        means = [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)
            for text in (first, second)
        ]
    return float(torch.cosine_similarity(*means))


def test_accuracy_counts_right_answers(tiny_bert: Any, tokenizer: Any) -> None:
    model = tiny_bert(BertForSequenceClassification, vocab_size=len(VOCABULARY))
    model.config.label2id = {"bad": 0, "good": 1, "fair": 2}
    names = list(model.config.label2id)
    with torch.no_grad():
        right = [model(**tokenizer(s, return_tensors="pt")).logits.argmax().item() for s in SENTENCES]
    labels = [names[right[0]], str(right[1]), *(names[index] for index in right[2:-1])]
    wrong = names[(right[-1] + 1) % 3]
    found = measure_accuracy(model, tokenizer, SENTENCES, [*labels, wrong], batch_size=4)
    assert found.accuracy == pytest.approx(5 / 6)
    with pytest.raises(DataError, match="label 'ugly' is none of the model's 3: bad, good, fair"):
        measure_accuracy(model, tokenizer, SENTENCES[:1], ["ugly"])
    with pytest.raises(DataError, match="label '3' is none"):
        measure_accuracy(model, tokenizer, SENTENCES[:1], ["3"])


def test_accuracy_needs_a_classifier(model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="needs a sequence classifier, got a BertModel"):
        measure_accuracy(model, tokenizer, SENTENCES[:1], ["0"])


def test_a_model_agrees_with_itself_and_not_with_another(tiny_bert: Any, tokenizer: Any) -> None:
    model, twin = (tiny_bert(BertForMaskedLM, vocab_size=len(VOCABULARY)) for _ in range(2))
    batches = load_batches(SENTENCES, tokenizer, config=model.config, batch_size=4)
    same = measure_agreement(model, twin, batches)
    assert same.mean_cosine == pytest.approx(1, abs=1e-6)
    assert same.relative_error == 0
    assert same.examples == len(SENTENCES)
    other = measure_agreement(make_collab_(twin, PLANS["cp"]), model, batches)
    assert other.min_cosine < other.mean_cosine < 0.999
    assert other.relative_error > 0.01


def test_padding_does_not_count(tiny_bert: Any, tokenizer: Any) -> None:
    model = tiny_bert(BertModel, vocab_size=len(VOCABULARY))
    other = make_collab_(tiny_bert(BertModel, vocab_size=len(VOCABULARY)), PLANS["tucker"])
    one_by_one = measure_agreement(other, model, load_batches(SENTENCES, tokenizer, batch_size=1))
    together = measure_agreement(other, model, load_batches(SENTENCES, tokenizer, batch_size=6))
    assert together.relative_error == pytest.approx(one_by_one.relative_error, rel=1e-5)
    assert together.mean_cosine == pytest.approx(one_by_one.mean_cosine, rel=1e-5)


def test_images_are_compared_by_their_first_state(tiny_vit: Any, tmp_path: Path) -> None:
    from PIL import Image

    model = tiny_vit(ViTModel)
    processor = load_processor(save_with_image_processor(model, tmp_path / "vit"))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    batches = load_batches([Image.fromarray(p) for p in pixels], processor)
    found = measure_agreement(make_collab_(tiny_vit(ViTModel), PLANS["svd"]), model, batches)
    assert found.examples == 3
    assert found.min_cosine < 0.9999
    states = torch.randn(2, 5, 4)
    assert torch.equal(pool(states, None, "cls"), states[:, 0])
    assert torch.equal(pool(states, None), states.mean(1))


def test_outputs_that_are_not_finite_are_refused(model: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match="hidden states of BertModel are not finite"):
        measure_similarity(model, tokenizer, PAIRS, SCORES)


def test_other_sizes_do_not_compare(tiny_bert: Any, model: Any, tokenizer: Any) -> None:
    wider = tiny_bert(BertModel, vocab_size=len(VOCABULARY), hidden_size=48)
    with pytest.raises(DataError, match="hidden states differ in shape"):
        measure_agreement(wider, model, load_batches(SENTENCES, tokenizer))


# --- tables


def test_a_table_is_read_without_quoting(tmp_path: Path) -> None:
    table = write_lines(tmp_path / "t.tsv", ["score\tsentence2\tsentence1", '5\t"b" c\t "a', "1.5\td\te"])
    pairs, scores = read_scores(table)
    assert pairs == [('"a', '"b" c'), ("e", "d")]
    assert scores == [5, 1.5]


def test_fewer_examples_are_spread_over_the_table(tmp_path: Path) -> None:
    table = write_lines(tmp_path / "t.tsv", ["n", *map(str, range(10))])
    assert read_table(table, ["n"], 4) == [("0",), ("2",), ("5",), ("7",)]
    assert len(read_table(table, ["n"], 99)) == 10


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["sentence1\tscore", "a\t1"], "must have the tab-separated columns .*, got sentence1, score"),
        ([], "got an empty file"),
        (["sentence1\tsentence2\tscore"], "holds no example"),
        (["sentence1\tsentence2\tscore", "a\tb\t1", "a\tb"], "line 3: every column needs a value"),
        (["sentence1\tsentence2\tscore", "a\tb\tgood"], "must be a number, got 'good'"),
        (["sentence1\tsentence2\tscore", "a\tb\tnan"], "must be finite, got nan"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_scores(write_lines(tmp_path / "t.tsv", lines))


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.tsv can't be read: No such file"):
        read_scores(tmp_path / "absent.tsv")
    (tmp_path / "latin.tsv").write_bytes("sentence1\tsentence2\tscore\nä\tb\t1".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.tsv can't be read: 'utf-8'"):
        read_scores(tmp_path / "latin.tsv")
