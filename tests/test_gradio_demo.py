"""The page's work, without a browser; the page itself where gradio is installed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import SENTENCES, VOCABULARY, save_with_image_processor, save_with_tokenizer

import gradio_demo
from collab_hf import CollabError


@pytest.fixture
def encoder(tiny_bert: Callable[..., Any], tmp_path: Path) -> str:
    model = tiny_bert(vocab_size=len(VOCABULARY), hidden_size=48)
    return str(save_with_tokenizer(model, tmp_path / "encoder"))


def test_a_comparison(encoder: str) -> None:
    found = gradio_demo.compare(encoder, "tucker", 0.5, SENTENCES)
    assert len(found.layers) == 2
    assert {len(row) for row in found.layers} == {len(gradio_demo.LAYER_COLUMNS)}
    assert "of the query/key parameters kept" in found.summary
    assert [axes.get_title() for axes in found.similarities.axes] == ["original", "compressed"]
    assert len(found.errors.axes[0].patches) == 2
    # The original is kept for the next comparison.
    assert gradio_demo.compare(encoder, "tucker", 0.5, SENTENCES).summary == found.summary


def test_what_cannot_be_compared(encoder: str, tiny_vit: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="at least two sentences, got 1"):
        gradio_demo.compare(encoder, "tucker", 0.5, SENTENCES[:1])
    image = save_with_image_processor(tiny_vit(), tmp_path / "image")
    with pytest.raises(CollabError, match="has no tokenizer"):
        gradio_demo.compare(str(image), "tucker", 0.5, SENTENCES)


def test_the_page(encoder: str) -> None:
    pytest.importorskip("gradio", reason="an extra of its own: it wants an older pillow")
    assert gradio_demo.build_page(encoder).fns
