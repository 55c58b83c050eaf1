"""Every text of a corpus is read as before, by tokenizers of every kind with less pieces."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from vocabulary_cases import HOSTS, KINDS, LETTERS, byte_bpe, unigram, wordpiece

from collab_hf.errors import ConfigError
from collab_hf.parts.vocabulary import pieces as pieces_module
from collab_hf.parts.vocabulary.pieces import (
    always_kept,
    check_kind,
    pieces_of_unknown,
    trimmed_model,
    vocabulary,
    with_parts,
)
from collab_hf.parts.vocabulary.tokenizer import Pieces

WORDS = st.text(LETTERS, min_size=1, max_size=7)
# Also letters that no tokenizer has, marks, two spaces, special and added tokens.
ODD = st.sampled_from(["É", "x", "漢", ".", " ", "[MASK]", "bad cab"])
TEXTS = st.lists(WORDS | ODD, max_size=6).map(" ".join)
CORPORA = st.lists(TEXTS, min_size=1, max_size=4)
EXAMPLES = settings(max_examples=50, deadline=None)


def trimmed(tokenizer: Any, corpus: list[str]) -> tuple[Any, dict[int, int]]:
    pieces = Pieces(tokenizer)
    new_ids = {old: new for new, old in enumerate(pieces.kept(pieces.of_texts(corpus)))}
    return pieces.trimmed(new_ids), new_ids


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text)["input_ids"]
    return found


@pytest.mark.parametrize("kind", KINDS)
@EXAMPLES
@given(corpus=CORPORA, others=CORPORA, seed=st.integers(0, 30))
def test_a_corpus_is_read_as_before(kind: str, corpus: list[str], others: list[str], seed: int) -> None:
    """And so is every text whose pieces stay; only where one went, less is known."""
    tokenizer = KINDS[kind](seed)
    made, new_ids = trimmed(tokenizer, corpus)
    assert len(new_ids) <= len(tokenizer)
    assert type(made) is type(tokenizer)
    for text in corpus:
        assert ids(made, text) == [new_ids[number] for number in ids(tokenizer, text)]
        assert made.decode(ids(made, text)) == tokenizer.decode(ids(tokenizer, text))
    unknown = tokenizer.unk_token_id
    for text in others:
        before, after = ids(tokenizer, text), ids(made, text)
        assert set(after) <= set(range(len(new_ids)))
        if all(number in new_ids for number in before) and unknown not in before:
            assert after == [new_ids[number] for number in before]
            assert made.unk_token_id not in after


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_go(kind: str) -> None:
    """Not everything stays, and texts that used what went are read otherwise."""
    tokenizer = KINDS[kind](3)
    made, new_ids = trimmed(tokenizer, ["ab cab", "[MASK] a."])
    assert len(made) == len(new_ids) < len(tokenizer) - 20
    gone = [name for name, number in tokenizer.get_vocab().items() if number not in new_ids]
    words = [name.strip("#\u0120\u2581").removesuffix("</w>") for name in gone]
    changed = [w for w in words if ids(made, w) != [new_ids.get(n) for n in ids(tokenizer, w)]]
    assert len(changed) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_what_always_stays(kind: str) -> None:
    tokenizer = KINDS[kind](0)
    made, _ = trimmed(tokenizer, ["a"])
    names = made.get_vocab()
    assert set(tokenizer.all_special_tokens) <= set(names)
    assert made.all_special_tokens == tokenizer.all_special_tokens
    for name in tokenizer.get_vocab():
        bare = name.removeprefix("##").removesuffix("</w>")
        if len(bare) == 1 and (bare.isascii() or kind == "byte_bpe"):
            assert name in names
    if kind in ("wordpiece", "byte_bpe", "unigram"):
        assert "bad cab" in made.added_tokens_encoder
    assert ids(made, "a")[0] == made.cls_token_id
    assert made("a", "b")["input_ids"].count(made.sep_token_id) == 2


@pytest.mark.parametrize("name", HOSTS)
def test_classes_of_hosts(name: str) -> None:
    """They build themselves from their own pieces when they load, and have special tokens of their own."""
    tokenizer = HOSTS[name]()
    tokenizer.padding_side = "left"
    corpus = ["ab cab", "bad a.", "ecad bb", "cab ab"]
    made, new_ids = trimmed(tokenizer, corpus)
    assert len(made) < len(tokenizer)
    assert [new_ids[number] for number in tokenizer.all_special_ids] == made.all_special_ids
    for text in corpus:
        assert ids(made, text) == [new_ids[number] for number in ids(tokenizer, text)]
    assert made.padding_side == "left"
    assert made.model_max_length == tokenizer.model_max_length


def test_parts_of_pieces_stay_or_they_are_out_of_reach() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}, [("a", "b"), ("ab", "c")]))
    model = pieces_of(backend)
    assert with_parts(model, {4}) == {0, 1, 2, 3, 4}
    for kept, found in ((with_parts(model, {4}), ["abc"]), ({0, 1, 2, 4}, ["a", "b", "c"])):
        assert read(model, kept, "abc") == found


def test_a_merge_that_a_corpus_never_applies_stays_where_its_pieces_do() -> None:
    vocab = {"a": 0, "b": 1, "ab": 2, "ba": 3, "aba": 4}
    model = pieces_of(Tokenizer(models.BPE(vocab, [("a", "b"), ("ab", "a"), ("b", "a"), ("a", "ba")])))
    small = trimmed_model(model, {i: i for i in range(5)})
    assert small["merges"] == model["merges"]
    small = trimmed_model(model, {0: 0, 1: 1, 2: 2, 4: 3})
    assert small["merges"] == [["a", "b"], ["ab", "a"]]


def test_unknown_words_stay_unknown() -> None:
    names = ["[UNK]", "ab", "a", "##bx", "c"]
    model = pieces_of(
        Tokenizer(
            models.WordPiece(
                {name: i for i, name in enumerate(names)}, unk_token="[UNK]", max_input_chars_per_word=5
            )
        )
    )
    assert pieces_of_unknown("abx", model) == [1]
    assert pieces_of_unknown("abxabx", model) == []
    used = {0, 2, 3, 4}  # of the corpus "abx a cbx"
    assert read(model, used | {1}, "abx") == ["[UNK]"]
    assert read(model, used, "abx") == ["a", "##bx"]


def test_the_lowest_score_stays_since_unknown_characters_are_judged_by_it() -> None:
    scores = {"?": 0.0, "é": -25.0, "éa": -8.0, "bc": -8.0, "d": -8.0, "abcd": -1.0, "z": -12.0}
    model = pieces_of(Tokenizer(models.Unigram(list(scores.items()), unk_id=0)))
    every = set(range(len(scores)))
    assert 1 in always_kept(model, False)
    assert read(model, every, "éabcd") == ["éa", "bc", "d"]
    assert read(model, every - {1}, "éabcd") != ["éa", "bc", "d"]


def test_bytes_of_a_fallback_stay() -> None:
    vocab = {"<0x61>": 0, "<0x7A>": 1, "zz": 2, "a": 3, "é": 4, "?": 5}
    model = pieces_of(Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="?")))
    assert always_kept(model, False) == {0, 1, 3, 5}
    assert always_kept({**model, "byte_fallback": False}, True) == {3, 4, 5}


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"needs a tokenizer with a tokenizer\.json .*, got str"):
        Pieces("tokenizer")
    with pytest.raises(ConfigError, match=r"only vocabularies of WordPiece, BPE, .* got None"):
        check_kind({})
    with pytest.raises(ConfigError, match="dropout"):
        check_kind({"type": "BPE", "dropout": 0.1})


def test_a_tokenizer_that_numbers_otherwise_is_refused(monkeypatch: Any) -> None:
    tokenizer = wordpiece()

    def shuffled(model: Any, new_ids: Any) -> Any:
        made = trimmed_model(model, new_ids)
        names = list(made["vocab"])
        return {**made, "vocab": dict(zip(names, [*range(1, len(names)), 0], strict=True))}

    monkeypatch.setattr("collab_hf.parts.vocabulary.tokenizer.trimmed_model", shuffled)
    with pytest.raises(ConfigError, match="numbers its pieces in an order of its own"):
        trimmed(tokenizer, ["ab"])


def test_vocabularies() -> None:
    assert vocabulary(Pieces(unigram()).spec["model"])["[UNK]"] == 1
    assert Pieces(byte_bpe()).size == len(byte_bpe())
    assert pieces_module.KINDS == ("WordPiece", "BPE", "Unigram", "WordLevel")


def pieces_of(backend: Tokenizer) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(backend.to_str())["model"]
    return model


def read(model: dict[str, Any], kept: set[int], text: str) -> list[str]:
    """A text's pieces with some of a model's pieces."""
    new_ids = {old: new for new, old in enumerate(sorted(kept))}
    spec = json.loads(Tokenizer(models.BPE()).to_str())
    backend = Tokenizer.from_str(json.dumps({**spec, "model": trimmed_model(model, new_ids)}))
    found: list[str] = backend.encode(text).tokens
    return found
