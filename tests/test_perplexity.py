"""Perplexity is the exponential of the model's own loss, over every token that has one before it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import SENTENCES, VOCABULARY, save_with_tokenizer, write_lines
from transformers import AutoTokenizer, BertConfig, BertLMHeadModel, BertModel

from collab_hf.errors import DataError
from collab_hf.measure.perplexity import measure_perplexity


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    return BertLMHeadModel(BertConfig(vocab_size=len(VOCABULARY), is_decoder=True, **sizes)).eval()


@pytest.fixture
def tokenizer(model: Any, tmp_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(save_with_tokenizer(model, tmp_path / "model"))


def test_it_is_the_models_own_loss(model: Any, tokenizer: Any) -> None:
    loss, right, tokens = 0.0, 0, 0
    for sentence in SENTENCES:  # one at a time: no padding, no batch
        ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = model(input_ids=ids, labels=ids)
        count = ids.shape[1] - 1
        loss += output.loss.item() * count
        right += int((output.logits[0, :-1].argmax(-1) == ids[0, 1:]).sum())
        tokens += count
    found = measure_perplexity(model, tokenizer, SENTENCES, batch_size=4)
    assert found.perplexity == pytest.approx(math.exp(loss / tokens), rel=1e-5)
    assert (found.accuracy, found.tokens, found.examples) == (right / tokens, tokens, len(SENTENCES))
    tokenizer.padding_side = "left"
    assert measure_perplexity(model, tokenizer, SENTENCES, batch_size=4).tokens == tokens
    # Negative control: another model has another one.
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    assert measure_perplexity(model, tokenizer, SENTENCES).perplexity != pytest.approx(
        found.perplexity, rel=0.01
    )


def test_what_predicts_no_text_is_refused(model: Any, tokenizer: Any, tiny_bert: Any) -> None:
    with pytest.raises(DataError, match="needs a causal language model, got a BertModel"):
        measure_perplexity(tiny_bert(BertModel, vocab_size=len(VOCABULARY)), tokenizer, SENTENCES)
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(DataError, match="two tokens"):
        measure_perplexity(model, tokenizer, [SENTENCES[0].split()[0]], max_length=1)
    model.get_output_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        measure_perplexity(model, tokenizer, SENTENCES)


def test_the_command_prints_it(collab_hf: Any, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    text = write_lines(tmp_path / "text.txt", SENTENCES)
    task = ["evaluate", tmp_path / "model", "--task", "perplexity"]
    values = collab_hf(*task, "--data", text, "--json").values
    assert values["perplexity"] == pytest.approx(
        measure_perplexity(model, tokenizer, SENTENCES).perplexity, rel=1e-5
    )
    assert collab_hf(*task, "--data", text, "--max-examples", 2, "--json").values["examples"] == 2
    assert "needs --data FILE, a text file" in collab_hf(*task).complaint
