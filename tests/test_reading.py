"""What a run reads: nothing that judges recovery was read before it."""

from typing import Any

import torch
from cli_support import SENTENCES, VOCABULARY, save_with_tokenizer
from transformers import AutoTokenizer, BertForMaskedLM, BertModel

from collab_hf.surgery.reading import read_run

DRAWN = {"examples": 24, "seed": 0, "shipped_share": 0.0}
OWN = [f"{a} and {b}" for a in SENTENCES for b in SENTENCES]


def rows(batches: Any) -> set[tuple[int, ...]]:
    """Every example's tokens, without padding."""
    return {
        tuple(ids[mask.bool()].tolist())
        for b in batches
        for ids, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
    }


def test_what_judges_was_not_read(tiny_bert: Any, tmp_path: Any) -> None:
    model = tiny_bert(BertModel, vocab_size=len(VOCABULARY))
    tokenizer = AutoTokenizer.from_pretrained(save_with_tokenizer(model, tmp_path))
    found = read_run(OWN, OWN, model, lambda: tokenizer, DRAWN, 0)
    calibration, training, held = rows(found.calibration), rows(found.training), rows(found.held_out)
    assert calibration <= training
    assert not training & held
    assert (len(calibration), len(training), len(held)) == (24, 27, 9)
    assert found.counts == {"examples": 24, "shipped": 0}
    # Recovery's own data hold what calibrated: none of that judges.
    other = read_run(OWN[:24], [*OWN], model, lambda: tokenizer, DRAWN, 0)
    assert rows(other.held_out)
    assert not rows(other.calibration) & rows(other.held_out)


def test_batches_are_taken_apart_for_recovery_alone(tiny_bert: Any) -> None:
    model = tiny_bert()
    ids = torch.arange(40).reshape(4, 10)
    batches = [{"input_ids": ids[i : i + 2], "attention_mask": torch.ones(2, 10)} for i in (0, 2)]
    assert rows(read_run(batches, batches, model, None, DRAWN, None).calibration) == rows(batches)
    found = read_run(batches, batches, model, None, DRAWN, 0)
    assert found.calibration is found.training
    assert not rows(found.training) & rows(found.held_out)
    assert rows(found.training) | rows(found.held_out) == rows(batches)
    single = read_run(batches[:1], batches[:1], model, None, DRAWN, 0)  # too few to set one aside
    assert single.held_out is None


def test_masks_of_a_masked_language_model_train_and_do_not_calibrate(tiny_bert: Any, tmp_path: Any) -> None:
    model = tiny_bert(BertForMaskedLM, vocab_size=len(VOCABULARY))
    tokenizer = AutoTokenizer.from_pretrained(save_with_tokenizer(model, tmp_path))
    found = read_run(OWN, OWN, model, lambda: tokenizer, DRAWN, 0)
    masked = [
        any(tokenizer.mask_token_id in row for row in rows(b)) for b in (found.training, found.held_out)
    ]
    assert masked == [True, True]
    assert not any(tokenizer.mask_token_id in row for row in rows(found.calibration))
