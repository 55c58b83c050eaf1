"""A compressed checkpoint with all that a card is made from."""

import json
from pathlib import Path

from transformers import PreTrainedModel

from collab_hf import CollabConfig, compress_
from collab_hf.files import RECIPE_FILE, REPORT_FILE
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


def compressed(model: PreTrainedModel, tmp_path: Path) -> Path:
    """What `collab-hf compress org/original` leaves, from a machine with telling paths."""
    directory = tmp_path / "home" / "secret-user" / "small"
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
