"""Models with a trimmed vocabulary answer as before, and load as ordinary checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, build_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTModel,
)
from vocabulary_cases import KINDS, LETTERS, byte_bpe, unigram, wordpiece

from collab_hf import CollabConfig, compress_, load_model
from collab_hf.errors import ConfigError, DataError, FamilyError
from collab_hf.modeling.embeddings import EmbeddingPlan
from collab_hf.parts.embeddings import Embeddings
from collab_hf.parts.vocabulary import trim_vocabulary_, write_tokenizer
from collab_hf.parts.vocabulary.settings import mentioned, renumber_

CORPUS = ["ab cab", "bad a.", "ecad bb [MASK]", "cab ab"]
TEXTS = st.lists(st.text(f"{LETTERS} .", min_size=1, max_size=12), min_size=1, max_size=4)
# Products with fewer columns may be split otherwise, and round otherwise: float32, sums of 24.
ROUNDING = 1e-5


def inputs(tokenizer: Any, texts: list[str]) -> dict[str, Any]:
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


def outputs(model: PreTrainedModel, batch: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**batch, output_hidden_states=True)


def bert(tiny_bert: Any, tokenizer: Any, head: type[PreTrainedModel] = BertForMaskedLM, **more: Any) -> Any:
    model = tiny_bert(head, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **more)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        nn.init.normal_(bias)
    return model


def check_same(model: PreTrainedModel, tokenizer: Any, corpus: list[str]) -> Any:
    """Trim, and compare hidden states bit for bit and logits of what is kept."""
    before = outputs(model, inputs(tokenizer, corpus))
    trimmed = trim_vocabulary_(model, tokenizer, corpus)
    after = outputs(model, inputs(trimmed.tokenizer, corpus))
    assert len(trimmed.kept) < len(tokenizer)
    for old, new in zip(before.hidden_states, after.hidden_states, strict=True):
        assert torch.equal(old, new)
    if "logits" in before:
        kept = before.logits[..., list(trimmed.kept)]
        assert torch.allclose(after.logits, kept, atol=ROUNDING * float(kept.abs().max()))
    return trimmed


@settings(max_examples=15, deadline=None)
@given(corpus=TEXTS, kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 20))
def test_outputs_on_the_corpus_stay(tiny_bert: Any, corpus: list[str], kind: str, seed: int) -> None:
    tokenizer = KINDS[kind](seed)
    check_same(bert(tiny_bert, tokenizer), tokenizer, corpus)


def test_other_texts_do_not_all_stay(tiny_bert: Any) -> None:
    """The control: a text that used a piece that went."""
    tokenizer = wordpiece()
    model = bert(tiny_bert, tokenizer, BertModel)
    longest = max((n for n in tokenizer.get_vocab() if n.isalpha()), key=len)
    before = outputs(model, inputs(tokenizer, [longest])).pooler_output
    trimmed = trim_vocabulary_(model, tokenizer, ["ab"])
    assert longest not in trimmed.tokenizer.get_vocab()
    after = outputs(model, inputs(trimmed.tokenizer, [longest])).pooler_output
    assert not torch.allclose(before, after, atol=1e-2)


def test_the_result_is_an_ordinary_checkpoint(tiny_bert: Any, tmp_path: Path) -> None:
    tokenizer = wordpiece()
    model = bert(tiny_bert, tokenizer)
    embedding, bias = model.get_input_embeddings(), model.cls.predictions.bias
    embedding.weight.requires_grad_(False)
    trimmed = check_same(model, tokenizer, CORPUS)
    assert model.get_input_embeddings() is embedding
    assert not embedding.weight.requires_grad
    assert model.get_output_embeddings().weight is embedding.weight
    assert torch.equal(model.cls.predictions.bias, bias[list(trimmed.kept)])
    assert model.get_output_embeddings().bias is model.cls.predictions.bias
    model.save_pretrained(tmp_path)
    trimmed.tokenizer.save_pretrained(tmp_path)
    assert "collab" not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is BertForMaskedLM
    assert loaded.config.vocab_size == len(read) == len(trimmed.kept)
    batch = inputs(read, CORPUS)
    assert torch.equal(outputs(loaded, batch).logits, outputs(model, batch).logits)
    assert batch["input_ids"].tolist() == inputs(trimmed.tokenizer, CORPUS)["input_ids"].tolist()


def test_report(tiny_bert: Any) -> None:
    tokenizer = wordpiece()
    model = bert(tiny_bert, tokenizer)
    before = sum(p.numel() for p in model.parameters())
    report = trim_vocabulary_(model, tokenizer, iter(CORPUS)).report
    assert report.rows_before == len(tokenizer)
    assert report.rows_after == len(model.get_input_embeddings().weight)
    assert report.parameters_before == before
    assert report.parameters_after == before - report.rows_dropped * 25  # a row and its bias
    assert report.texts == 4
    assert json.loads(json.dumps(report.to_dict()))["rows_after"] == report.rows_after


def test_ids_serve_in_the_place_of_texts(tiny_bert: Any) -> None:
    tokenizer = byte_bpe()
    ids = [tokenizer(text)["input_ids"] for text in CORPUS]
    models = [bert(tiny_bert, tokenizer) for _ in range(3)]
    found = [
        trim_vocabulary_(model, tokenizer, corpus).kept
        for model, corpus in zip(models, (CORPUS, ids, [torch.tensor(one) for one in ids]), strict=True)
    ]
    assert found[0] == found[1] == found[2]


def gpt2(tokenizer: Any) -> PreTrainedModel:
    ids = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    sizes = {"n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 60, "initializer_range": 0.2}
    return build_tiny(GPT2LMHeadModel, GPT2Config(vocab_size=len(tokenizer), **sizes, **ids))


def test_generation_goes_on_as_before() -> None:
    tokenizer = byte_bpe()
    model = gpt2(tokenizer)
    vocab = tokenizer.get_vocab()
    used = set(tokenizer(" ".join(CORPUS))["input_ids"])
    gone = next(i for name, i in vocab.items() if len(name) > 3 and i not in used and name.isalpha())
    model.generation_config.suppress_tokens = [vocab["a"], gone]
    model.generation_config.bad_words_ids = [[vocab["b"], gone], [vocab["c"], vocab["d"]]]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    batch = inputs(tokenizer, ["ab cab"])
    wanted = model.generate(**batch, max_new_tokens=8, do_sample=False)
    # Everything that was generated is in the corpus, so that greedy search finds it again.
    trimmed = trim_vocabulary_(model, tokenizer, [wanted[0].tolist(), *map(encode(tokenizer), CORPUS)])
    new = {old: i for i, old in enumerate(trimmed.kept)}
    assert gone not in new
    config = model.generation_config
    assert config.suppress_tokens == [new[vocab["a"]]]
    assert config.bad_words_ids == [[new[vocab["c"]], new[vocab["d"]]]]
    assert config.eos_token_id == model.config.eos_token_id == trimmed.tokenizer.sep_token_id
    assert config.pad_token_id == trimmed.tokenizer.pad_token_id
    found = model.generate(**inputs(trimmed.tokenizer, ["ab cab"]), max_new_tokens=8, do_sample=False)
    assert found[0].tolist() == [new[number] for number in wanted[0].tolist()]


def encode(tokenizer: Any) -> Any:
    return lambda text: tokenizer(text)["input_ids"]


class Settings:
    """Stands in for a config."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def test_every_kind_of_setting() -> None:
    config = Settings(
        pad_token_id=5,
        eos_token_id=[5, 9],
        forced_bos_token_id=None,
        image_token_id=-1,
        suppress_tokens=[5, 7, -1],
        begin_suppress_tokens=[7],
        bad_words_ids=[[5], [7, 5]],
        force_words_ids=[[5, 9], [[9]]],
        forced_decoder_ids=[[1, 9], [2, None]],
        sequence_bias={(5,): 1.0, (7,): 2.0},
        lang_to_id={"<en>": 9},
        vocab_size=10,
        hidden_size=5,
    )
    assert mentioned(config, 10) == {5, 9}
    renumber_(config, {5: 0, 9: 1})
    assert vars(config) == {
        "pad_token_id": 0,
        "eos_token_id": [0, 1],
        "forced_bos_token_id": None,
        "image_token_id": -1,
        "suppress_tokens": [0, -1],
        "begin_suppress_tokens": [],
        "bad_words_ids": [[0]],
        "force_words_ids": [[0, 1], [[1]]],
        "forced_decoder_ids": [[1, 1], [2, None]],
        "sequence_bias": {(0,): 1.0},
        "lang_to_id": {"<en>": 1},
        "vocab_size": 10,
        "hidden_size": 5,
    }
    stored = Settings(sequence_bias=[[[5], 1.0], [[7], 2.0]])
    renumber_(stored, {5: 0})
    assert stored.sequence_bias == [[[0], 1.0]]


def test_roberta_counts_positions_from_its_padding(tiny_bert: Any) -> None:
    """Where the padding token has id 60, every id below stays, or positions would move."""
    tokenizer = byte_bpe()
    settings_ = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 60}
    ids = {"pad_token_id": 4, "bos_token_id": 2, "eos_token_id": 3}
    model = build_tiny(RobertaForMaskedLM, RobertaConfig(**settings_, **ids))
    tokenizer.pad_token = "[MASK]"  # id 4
    check_same(model, tokenizer, CORPUS)
    assert model.config.pad_token_id == 4
    model = build_tiny(
        RobertaForMaskedLM,
        RobertaConfig(**{**settings_, **ids, "pad_token_id": 60, "max_position_embeddings": 120}),
    )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(60)
    kept = check_same(model, tokenizer, CORPUS).kept
    assert kept[:61] == tuple(range(61))


def test_encoder_decoders() -> None:
    tokenizer = unigram()
    ids = {"pad_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 3}
    sizes = {"d_model": 24, "d_kv": 8, "num_heads": 3, "num_layers": 2, "d_ff": 48}
    t5 = build_tiny(T5ForConditionalGeneration, T5Config(vocab_size=len(tokenizer) + 9, **sizes, **ids))
    sides = {
        f"{s}_{n}": v
        for s in ("encoder", "decoder")
        for n, v in {"layers": 1, "attention_heads": 3, "ffn_dim": 48}.items()
    }
    bart = build_tiny(
        BartForConditionalGeneration,
        BartConfig(vocab_size=len(tokenizer), d_model=24, max_position_embeddings=40, **sides, **ids),
    )
    nn.init.normal_(bart.final_logits_bias)
    for model in (t5, bart):
        batch = inputs(tokenizer, CORPUS)
        labels = batch["input_ids"]
        with torch.no_grad():
            before = model(input_ids=labels, labels=labels)
        trimmed = trim_vocabulary_(model, tokenizer, CORPUS)
        labels = inputs(trimmed.tokenizer, CORPUS)["input_ids"]
        with torch.no_grad():
            after = model(input_ids=labels, labels=labels)
        assert torch.equal(before.encoder_last_hidden_state, after.encoder_last_hidden_state)
        kept = before.logits[..., list(trimmed.kept)]
        assert torch.allclose(after.logits, kept, atol=ROUNDING * float(kept.abs().max()))
        names = [trimmed.tokenizer.convert_ids_to_tokens(i) for i in (model.config.decoder_start_token_id,)]
        assert names == ["[CLS]"]
    assert bart.final_logits_bias.shape == (1, len(trimmed.kept))


def test_a_head_of_its_own_is_trimmed_too(tiny_bert: Any, tmp_path: Path) -> None:
    tokenizer = wordpiece()
    model = bert(tiny_bert, tokenizer, tie_word_embeddings=False)
    trimmed = check_same(model, tokenizer, CORPUS)
    head = model.get_output_embeddings()
    assert head.weight is not model.get_input_embeddings().weight
    assert head.weight.shape == (len(trimmed.kept), 24)
    model.save_pretrained(tmp_path)
    batch = inputs(trimmed.tokenizer, CORPUS)
    loaded = BertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded, batch).logits, outputs(model, batch).logits)


def test_compressed_models_are_trimmed_too(tiny_bert: Any, tmp_path: Path) -> None:
    tokenizer = wordpiece()
    model = bert(tiny_bert, tokenizer)
    compress_(model, CollabConfig(method="svd", rank=12))
    part = Embeddings()
    (site,) = part.sites(model).values()
    part.install_(site, part.trial(site, CollabConfig()).solve(EmbeddingPlan(6)))
    model.config.collab["embeddings"] = {site.name: EmbeddingPlan(6).to_dict()}
    trimmed = check_same(model, tokenizer, CORPUS)
    assert model.get_input_embeddings().weight.shape == (len(trimmed.kept), 6)
    model.save_pretrained(tmp_path)
    batch = inputs(trimmed.tokenizer, CORPUS)
    assert torch.equal(outputs(load_model(tmp_path), batch).logits, outputs(model, batch).logits)


def test_sentence_transformers_directories(tiny_bert: Any, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    tokenizer = wordpiece()
    bert(tiny_bert, tokenizer, BertModel).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    transformer = Transformer(str(tmp_path / "plain"))
    whole = sentence_transformers.SentenceTransformer(modules=[transformer, Pooling(24)], device="cpu")
    directory = tmp_path / "sentences"
    whole.save(str(directory), create_model_card=False)
    (directory / "vocab.txt").write_text("old\n")
    expected = whole.encode(CORPUS)
    model = load_model(directory)
    trimmed = trim_vocabulary_(model, AutoTokenizer.from_pretrained(directory), CORPUS)
    model.save_pretrained(directory)
    write_tokenizer(trimmed.tokenizer, directory)
    assert not (directory / "vocab.txt").exists()
    loaded = sentence_transformers.SentenceTransformer(str(directory), device="cpu")
    assert (loaded.encode(CORPUS) == expected).all()
    assert len(loaded.tokenizer) == len(trimmed.kept)


def test_refusals_leave_the_model_as_it_was(tiny_bert: Any, tiny_vit: Any, monkeypatch: Any) -> None:
    tokenizer = wordpiece()
    model = bert(tiny_bert, tokenizer)
    weight = model.get_input_embeddings().weight
    with pytest.raises(DataError, match="at least one text, got none"):
        trim_vocabulary_(model, tokenizer, [])
    with pytest.raises(DataError, match="got both"):
        trim_vocabulary_(model, tokenizer, ["a", [1]])
    with pytest.raises(ConfigError, match=f"has token 999, the token embedding {len(tokenizer)} rows"):
        trim_vocabulary_(model, tokenizer, [[999]])
    with pytest.raises(ConfigError, match="a fast one"):
        trim_vocabulary_(model, None, ["a"])
    with pytest.raises(FamilyError, match="ViTModel has no token embedding"):
        trim_vocabulary_(tiny_vit(ViTModel), tokenizer, ["a"])
    monkeypatch.setattr("collab_hf.parts.vocabulary.trim.Pieces.of_texts", lambda *_: {1})
    with pytest.raises(ConfigError, match=r"reads a text of the corpus otherwise .*: 'ab cab'"):
        trim_vocabulary_(model, tokenizer, CORPUS)
    assert model.get_input_embeddings().weight is weight
    assert model.config.vocab_size == len(tokenizer)


def test_models_whose_rows_hang_together_otherwise(tiny_bert: Any) -> None:
    tokenizer = wordpiece()
    model = bert(tiny_bert, tokenizer, tie_word_embeddings=False)
    model.cls.predictions.decoder = nn.Linear(24, 7)
    with pytest.raises(FamilyError, match="head of BertForMaskedLM has 7 rows and the token embedding"):
        trim_vocabulary_(model, tokenizer, ["a"])
    model = bert(tiny_bert, tokenizer, BertForSequenceClassification)
    model.other = tiny_bert(vocab_size=9)
    with pytest.raises(FamilyError, match=r"several token embeddings \(one of its own in BertModel\)"):
        trim_vocabulary_(model, tokenizer, ["a"])


def test_a_real_checkpoint(checkpoint: Any) -> None:
    """Its texts are read as before; letters, digits and marks alone stay beside them."""
    directory = checkpoint("minilm")
    model, tokenizer = load_model(directory), AutoTokenizer.from_pretrained(directory)
    texts = ["A cat sat on the mat.", "Surgery of transformers, without labels!"]
    trimmed = check_same(model, tokenizer, texts)
    assert trimmed.report.rows_before == 30522
    assert trimmed.report.rows_after < 500
