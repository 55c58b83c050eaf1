"""Saved models load again, bit for bit, or fail loudly."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DeiTForImageClassification,
    Dinov2ForImageClassification,
    PreTrainedModel,
    ViTForImageClassification,
)

from collab_hf import CollabConfig, compress_, load_model
from collab_hf.modeling.errors import CheckpointError, ConfigError

# One of each form of mixing: shapes on disk differ.
CONFIGS = {
    "copy": CollabConfig(method="copy"),
    "cp": CollabConfig(method="cp", rank=6),
    "sparse": CollabConfig(method="cp", rank=12, dims_per_head=4),
    "svd": CollabConfig(method="svd", rank=12),
    "tucker": CollabConfig(method="tucker", query_rank=12, key_rank=12, score_width=4),
    "tied": CollabConfig(method="tucker", rank=10, score_width=4, tied=True),
    "groups": CollabConfig(method="tucker", query_rank=12, key_rank=4, key_groups=3),
    "head_rank": CollabConfig(method="tucker", query_rank=12, key_rank=6, head_rank=2, content_bias="exact"),
}
TEXT = {"input_ids": torch.arange(20).view(2, 10) % 50}
IMAGE = {"pixel_values": torch.linspace(-2, 2, 2 * 3 * 16 * 16).view(2, 3, 16, 16)}


def logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """The first output at inference: where gradients are followed, attention rounds in another order."""
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.mark.parametrize("form", CONFIGS)
def test_every_form_round_trips_bit_for_bit(tiny_bert: Any, tmp_path: Path, form: str) -> None:
    model = tiny_bert(BertForSequenceClassification)
    compress_(model, CONFIGS[form])
    expected = logits(model, TEXT)
    model.save_pretrained(tmp_path)
    for loaded in (AutoModelForSequenceClassification.from_pretrained(tmp_path), load_model(tmp_path)):
        assert type(loaded).__name__ == "CollabBertForSequenceClassification"
        assert torch.equal(logits(loaded, TEXT), expected)


@pytest.mark.parametrize(
    ("factory", "head"),
    [
        ("tiny_vit", ViTForImageClassification),
        ("tiny_deit", DeiTForImageClassification),
        ("tiny_dinov2", Dinov2ForImageClassification),
    ],
)
def test_image_models_round_trip_whole_and_as_backbones(
    request: pytest.FixtureRequest, tmp_path: Path, factory: str, head: type[PreTrainedModel]
) -> None:
    """These families rename their weights on disk, by class name."""
    model = request.getfixturevalue(factory)(head)
    compress_(model, CONFIGS["tucker"])
    expected = logits(model, IMAGE)
    states = logits(model.base_model, IMAGE)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, IMAGE), expected)
    backbone, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not [key for key in info["missing_keys"] if "pooler" not in key]
    assert torch.equal(logits(backbone, IMAGE), states)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load_model(tmp_path / "again"), IMAGE), expected)


def test_in_place_model_and_loaded_model_save_the_same_weights(tiny_vit: Any, tmp_path: Path) -> None:
    model = tiny_vit(ViTForImageClassification)
    compress_(model, CONFIGS["cp"])
    model.save_pretrained(tmp_path / "first")
    load_model(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = (load_file(tmp_path / d / "model.safetensors") for d in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_heads_share_a_checkpoint(tiny_bert: Any, tmp_path: Path) -> None:
    model = tiny_bert(BertForMaskedLM)
    compress_(model, CONFIGS["tucker"])
    states = logits(model.bert, TEXT)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForMaskedLM.from_pretrained(tmp_path), TEXT), logits(model, TEXT))
    assert torch.equal(logits(AutoModel.from_pretrained(tmp_path), TEXT), states)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert classifier(**TEXT).logits.shape == (2, 5)
    assert torch.equal(logits(classifier.bert, TEXT), states)


def test_sharded_half_precision_and_device_map(tiny_bert: Any, tmp_path: Path) -> None:
    model = tiny_bert(BertModel)
    compress_(model, CONFIGS["sparse"])
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert torch.equal(logits(AutoModel.from_pretrained(tmp_path / "shards"), TEXT), logits(model, TEXT))
    mapped = AutoModel.from_pretrained(tmp_path / "shards", device_map="cpu")
    assert torch.equal(logits(mapped, TEXT), logits(model, TEXT))
    half = AutoModel.from_pretrained(tmp_path / "shards", dtype=torch.bfloat16)
    model.to(torch.bfloat16)
    assert torch.equal(logits(half, TEXT), logits(model, TEXT))
    model.save_pretrained(tmp_path / "half")
    assert load_model(tmp_path / "half").dtype == torch.bfloat16


def test_from_config_builds_a_collaborative_model(tiny_bert: Any) -> None:
    model = tiny_bert(BertModel)
    compress_(model, CONFIGS["sparse"])
    fresh = AutoModel.from_config(model.config)
    assert type(fresh).__name__ == "CollabBertModel"
    assert torch.isfinite(logits(fresh.eval(), TEXT)).all()
    # Initialised with a deviation of 0.2 or with ones, not left as the memory was.
    assert all(0.1 < p.abs().max() < 2 for n, p in fresh.named_parameters() if n.endswith("weight"))
    assert {n: p.shape for n, p in fresh.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }


WITHOUT_PACKAGE = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "collab_hf":
            raise ModuleNotFoundError("collab_hf is not installed here")
sys.meta_path.insert(0, Absent())
import torch, transformers
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
text = {"input_ids": torch.arange(20).view(2, 10) % 50}
auto = {"AutoModel": AutoModel, "AutoModelForMaskedLM": AutoModelForMaskedLM,
        "AutoModelForSequenceClassification": AutoModelForSequenceClassification}
for name, directory in json.loads(sys.argv[1]).items():
    try:
        auto[name].from_pretrained(directory, trust_remote_code=False)
        sys.exit(f"{name} loaded without the package and without trust")
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    model = auto[name].from_pretrained(directory, trust_remote_code=True)
    with torch.no_grad():
        got = model(**text)[0]
    assert torch.equal(got, torch.load(f"{directory}.pt")), name
assert "collab_hf" not in sys.modules
print("equal")
"""

WITH_PACKAGE = WITHOUT_PACKAGE.partition("import torch, transformers")[2].replace(
    """    try:
        auto[name].from_pretrained(directory, trust_remote_code=False)
        sys.exit(f"{name} loaded without the package and without trust")
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    model = auto[name].from_pretrained(directory, trust_remote_code=True)
""",
    "    model = auto[name].from_pretrained(directory)\n",
)
WITH_PACKAGE = "import json, sys\nimport collab_hf\nimport torch, transformers" + WITH_PACKAGE.replace(
    'assert "collab_hf" not in sys.modules\n', ""
)


@pytest.mark.parametrize("script", [WITHOUT_PACKAGE, WITH_PACKAGE], ids=["without the package", "with it"])
def test_fresh_processes_give_equal_bits(tiny_bert: Any, tmp_path: Path, script: str) -> None:
    heads = {
        "AutoModel": (BertModel, "tucker"),
        "AutoModelForMaskedLM": (BertForMaskedLM, "sparse"),
        "AutoModelForSequenceClassification": (BertForSequenceClassification, "head_rank"),
    }
    directories = {}
    for auto, (head, form) in heads.items():
        model = tiny_bert(head)
        compress_(model, CONFIGS[form])
        model.save_pretrained(tmp_path / auto)
        torch.save(logits(model, TEXT), tmp_path / f"{auto}.pt")
        directories[auto] = str(tmp_path / auto)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(directories)],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def saved(tiny_bert: Any, directory: Path) -> dict[str, Tensor]:
    model = tiny_bert(BertModel)
    compress_(model, CONFIGS["tucker"])
    model.save_pretrained(directory)
    return load_file(directory / "model.safetensors")


FACTOR = "encoder.layer.1.attention.self.mixing.query_core"


def drop(weights: dict[str, Tensor]) -> None:
    del weights[FACTOR]


def add(weights: dict[str, Tensor]) -> None:
    weights["encoder.layer.1.attention.self.mixing.head"] = torch.zeros(3, 2)


def reshape(weights: dict[str, Tensor]) -> None:
    weights[FACTOR] = weights[FACTOR][:, :3].clone()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop, rf"missing factor {FACTOR}"),
        (add, r"unknown factor encoder.layer.1.attention.self.mixing.head"),
        (reshape, rf"wrong-shaped factor {FACTOR}"),
    ],
)
@pytest.mark.parametrize("lenient", [False, True])
def test_a_factor_that_does_not_fit_is_named(
    tiny_bert: Any, tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None], message: str, lenient: bool
) -> None:
    weights = saved(tiny_bert, tmp_path)
    spoil(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        AutoModel.from_pretrained(tmp_path, ignore_mismatched_sizes=lenient)
    with pytest.raises(CheckpointError):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "collab format 3, newer than 2; update collab_hf"),
        (
            {"layers": {"encoder.layer.9.attention.self": {}}},
            "cannot read the collab settings of encoder.layer.9",
        ),
        (
            {"layers": {"encoder.layer.9.attention.self": CONFIGS["cp"].to_dict() | {}}},
            "cannot read the collab settings of encoder.layer.9",
        ),
    ],
)
def test_settings_in_config_json_that_do_not_fit(
    tiny_bert: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    saved(tiny_bert, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["collab"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        AutoModel.from_pretrained(tmp_path)


FULL = {
    "copy": CONFIGS["copy"],
    "cp": CollabConfig(method="cp", rank=24, dims_per_head=8, content_bias="folded"),
    "svd": CollabConfig(method="svd", rank=24),
    "tucker": CollabConfig(method="tucker", rank=24, score_width=8, content_bias="folded"),
    "tied": CollabConfig(method="tucker", rank=24, score_width=8, tied=True, content_bias="folded"),
}


@pytest.mark.parametrize("form", FULL)
def test_no_form_loads_silently_in_the_hosts_own_class(tiny_bert: Any, tmp_path: Path, form: str) -> None:
    """At full rank every factor may have the shape of the host's own projection."""
    model = tiny_bert(BertModel)
    compress_(model, FULL[form])
    expected = logits(model, TEXT)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use this collab_hf, a later one, or an Auto class"):
        BertModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use this collab_hf, a later one, or an Auto class"):
        BertForSequenceClassification.from_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(logits(loaded, TEXT), expected)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()


@pytest.mark.parametrize("form", ["cp", "tucker", "tied", "head_rank"])
def test_other_forms_stop_the_hosts_class_by_their_shapes(tiny_bert: Any, tmp_path: Path, form: str) -> None:
    model = tiny_bert(BertModel)
    compress_(model, CONFIGS[form])
    model.save_pretrained(tmp_path)
    assert "transformers_weights" not in (tmp_path / "config.json").read_text()
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        BertModel.from_pretrained(tmp_path)


def test_full_rank_checkpoints_from_before_still_load(tiny_bert: Any, tmp_path: Path) -> None:
    model = tiny_bert(BertModel)
    compress_(model, CONFIGS["copy"])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["transformers_weights"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(logits(load_model(tmp_path), TEXT), logits(model, TEXT))
