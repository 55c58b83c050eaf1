"""Tiny models under the names of those that the documentation and the notebooks speak of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli_support import VOCABULARY, save_with_image_processor, save_with_tokenizer
from transformers import BertForMaskedLM, BertModel, ViTForImageClassification

# Large enough that half of the query/key parameters can be met.
_SIZES = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 64}
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def make_originals(
    folder: Path, tiny_bert: Callable[..., Any], tiny_vit: Callable[..., Any]
) -> dict[str, dict[str, bytes]]:
    """Files by name, by the id of the model."""
    text = {**_SIZES, "vocab_size": len(VOCABULARY)}
    directories = {
        name: folder / name
        for name in (
            "google-bert/bert-base-uncased",
            "sentence-transformers/all-MiniLM-L6-v2",
            "google/vit-base-patch16-224",
        )
    }
    bert, encoder, vit = directories.values()
    save_with_tokenizer(tiny_bert(BertForMaskedLM, **text), bert)
    save_with_tokenizer(tiny_bert(BertModel, **text), encoder)
    (encoder / "modules.json").write_text(json.dumps(_MODULES))
    (encoder / "1_Pooling").mkdir()
    (encoder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 48}))
    (encoder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# An encoder\n")
    save_with_image_processor(tiny_vit(ViTForImageClassification, **_SIZES), vit)
    return {
        name: {
            file.relative_to(directory).as_posix(): file.read_bytes()
            for file in directory.rglob("*")
            if file.is_file()
        }
        for name, directory in directories.items()
    }
