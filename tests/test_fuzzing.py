"""Any JSON value in: a valid object whose round trip is equal, or one of collab_hf's own errors."""

import json
import math
import struct
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from transformers import BertConfig

from collab_hf.checkpoint.precheck import check_local
from collab_hf.config import CollabConfig
from collab_hf.errors import CollabError, RecoveryError
from collab_hf.hub.facts import card_metadata
from collab_hf.modeling.modeling_collab import config_class
from collab_hf.modeling.plans import SECTIONS, read_plans, write_plans
from collab_hf.modeling.shapes import AttentionShape
from collab_hf.recipe import SHIPPED_SHARE, Recipe
from collab_hf.recovery.config import LossWeights, RecoveryConfig
from collab_hf.recovery.state import load_state, save_state

# The same examples on every machine, as many as the whole file has half a minute for.
fuzzed = settings(derandomize=True, deadline=None, max_examples=150, database=None)

NUMBERS = st.one_of(
    st.integers(-3, 30),
    st.sampled_from([0.25, 0.5, 1.0, 2**63, -(2**63), 10**30, 1e308, -0.0, math.nan, math.inf]),
)
WORDS = st.sampled_from(
    [
        *(
            "",
            "cp",
            "tucker",
            "svd",
            "copy",
            "auto",
            "dense",
            "exact",
            "folded",
            "float64",
            "self",
            "yes",
            "none",
        ),
        *("128:0.5", "30MB", "heads", "query_key", "vocabulary", "blocks", "4", "\ud7ff", "a\nb", "*.0.*"),
    ]
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)


def near(known: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings of known names to what belongs there, or now and then to anything."""
    likely = {name: st.one_of(kind, kind, kind, JSON) for name, kind in known.items()}
    return st.fixed_dictionaries({}, optional=likely)


SMALL = st.integers(1, 24)
RANKS = {
    "method": st.sampled_from(["cp", "tucker", "svd", "copy"]),
    "query_rank": SMALL,
    "key_rank": SMALL,
    "score_width": SMALL,
    "key_groups": st.integers(1, 3),
    "head_rank": st.none() | st.integers(1, 3),
    "tied": st.booleans(),
    "content_bias": st.sampled_from(["exact", "folded"]),
}
LAYER_PLANS = near(RANKS) | st.fixed_dictionaries(
    {name: RANKS[name] for name in ("method", "query_rank", "key_rank", "score_width")}
)
NAMES = st.sampled_from(["encoder.layer.0.attention.self", "encoder.layer.1", "pooler", ""])
PLANS = {
    "layers": st.dictionaries(NAMES, LAYER_PLANS, max_size=2),
    "heads": st.dictionaries(NAMES, near({"kept": st.lists(st.integers(0, 3), max_size=3)}), max_size=2),
    "value_output": st.dictionaries(NAMES, near({"width": SMALL}), max_size=2),
    "feed_forward": st.dictionaries(NAMES, near({"width": SMALL}), max_size=2),
    "embeddings": st.dictionaries(NAMES, near({"rank": SMALL}), max_size=2),
}
SECTION = JSON | near({"format": st.integers(1, 2), **PLANS})
SHAPE = AttentionShape(24, 24, 3, 8)

SHARE = st.sampled_from([0.25, 0.5, 1.0])
SETTINGS = {
    "method": st.sampled_from(["auto", "cp", "tucker", "svd", "copy"]),
    **dict.fromkeys(("rank", "query_rank", "key_rank", "score_width", "head_rank", "dims_per_head"), SMALL),
    "key_groups": st.integers(1, 3),
    "tied": st.booleans(),
    **dict.fromkeys(("budget", "flops", "params", "max_loss"), SHARE),
    "target_params": st.integers(1, 999),
    "target_flops": st.just("128:0.5"),
    "content_bias": st.sampled_from(["auto", "exact", "folded"]),
    "solver": st.just("tensorly.parafac"),
    "damping": SHARE,
    "seed": st.integers(0, 9),
    "reconstruct_steps": st.integers(0, 9),
    "hold_out": st.booleans(),
    "precision": st.sampled_from(["float64", "float32"]),
    "attention": st.lists(st.sampled_from(["self", "cross", "decoder-cross"]), max_size=2),
    "speedup": st.just(2.0),
    "size": st.just("30MB"),
    "parts": st.lists(
        st.sampled_from(["query_key", "heads", "feed_forward", "vocabulary", "blocks"]), max_size=2
    ),
    "vocabulary_from": st.just("text.txt"),
    "portable": st.booleans(),
    "length": SMALL,
    "batch_size": SMALL,
    "plans": near(PLANS),
    "target": st.dictionaries(WORDS, SHARE | WORDS, max_size=1),
}
# Few at a time: many of them contradict each other.
ASKED = st.lists(st.sampled_from(sorted(SETTINGS)), max_size=3, unique=True).flatmap(
    lambda names: near({name: SETTINGS[name] for name in names})
)
LAYERS = st.dictionaries(WORDS, st.just("dense") | ASKED, max_size=2)
RECIPE = JSON | st.builds(
    lambda asked, rest: {**asked, **rest},
    ASKED,
    near(
        {
            "calibration": WORDS,
            "calibration_examples": SMALL,
            "shipped_share": SHARE,
            "model": WORDS,
            "versions": st.dictionaries(WORDS, WORDS, max_size=1),
            "layers": LAYERS,
        }
    ),
)


def own(call: Callable[[], Any]) -> Any:
    """What a call gives, or None where it ends in an error of collab_hf's, whose text is one sentence."""
    try:
        return call()
    except CollabError as error:
        if not str(error).strip():
            raise
        return None


@fuzzed
@given(SECTION)
def test_the_section_in_config_json(values: Any) -> None:
    config = BertConfig(hidden_size=24, num_attention_heads=3)
    config.__class__ = config_class(BertConfig)
    config.collab = values
    config.to_dict()
    plans = own(lambda: read_plans(config))
    if plans is None:
        return
    for plan in plans.get("layers", {}).values():
        if own(lambda plan=plan: plan.check(SHAPE)) is not None:
            assert plan.num_parameters(SHAPE) > 0
            assert plan.projection_operations(SHAPE) > 0
            assert plan.form.label(plan)
    for plan in plans.get("heads", {}).values():
        own(lambda plan=plan: plan.check(3, "here"))
    config.collab = json.loads(json.dumps(write_plans(plans)))
    again = read_plans(config)
    assert {s: v for s, v in again.items() if v} == {s: v for s, v in plans.items() if v}


@fuzzed
@given(JSON | LAYER_PLANS, st.sampled_from(sorted(SECTIONS)))
def test_one_plan(values: Any, section: str) -> None:
    kind = SECTIONS[section]
    plan = own(lambda: kind.from_dict(values, "here"))
    if plan is not None:
        assert kind.from_dict(json.loads(json.dumps(plan.to_dict())), "here") == plan


@fuzzed
@given(RECIPE)
@example({"parts": 3})
def test_a_recipe(values: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        recipe = own(lambda: Recipe.from_dict(Recipe.read(file)))
        if recipe is None:
            return
        for name in ("encoder.layer.0.attention.self", "decoder.1.crossattention"):
            own(lambda: recipe.config.for_layer(name))  # noqa: B023 - called at once
        if recipe.calibration in (
            "default",
            "none",
        ):  # there is nothing of the user's beside the shipped text
            recipe = replace(recipe, shipped_share=SHIPPED_SHARE)
        recipe.write(file)
        assert Recipe.from_dict(Recipe.read(file)) == recipe


@fuzzed
@example({"method": "tucker", "rank": 4, "key_groups": None}, {})
@example({"parts": "heads"}, {})
@given(ASKED | st.dictionaries(st.sampled_from(sorted(SETTINGS)), JSON, max_size=2), LAYERS | JSON)
def test_settings_from_python(values: dict[str, Any], layers: Any) -> None:
    config = own(lambda: CollabConfig(**values, layers=layers))
    if config is not None:
        own(lambda: config.for_layer("encoder.layer.0.attention.self"))
        assert CollabConfig.from_dict(config.to_dict()) == config


@fuzzed
@given(
    st.binary(max_size=20)
    | st.text(max_size=20).map(str.encode)
    | st.sampled_from([b"[" * 1500, b"a: 2020-99-99"])
)
def test_a_recipe_of_any_bytes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "collab_recipe.yaml").write_bytes(content)
        own(lambda: Recipe.from_dict(Recipe.read(Path(folder) / "collab_recipe.yaml")))
        own(lambda: Recipe.sampling(Path(folder)))


RECOVERY = {field.name: JSON for field in fields(RecoveryConfig)}


@fuzzed
@given(
    st.lists(st.sampled_from(sorted(RECOVERY)), max_size=3).flatmap(
        lambda names: near(dict.fromkeys(names, JSON))
    )
)
def test_settings_of_recovery(values: dict[str, Any]) -> None:
    config = own(lambda: RecoveryConfig(**values))
    if config is not None:
        json.dumps(config.to_dict(), allow_nan=False)
        assert config.total_steps is None or config.total_steps > 0


@fuzzed
@given(near({field.name: JSON for field in fields(LossWeights)}))
def test_weights_of_the_loss(values: dict[str, Any]) -> None:
    weights = own(lambda: LossWeights(**values))
    assert weights is None or any(getattr(weights, name.name) > 0 for name in fields(weights))


@fuzzed
@given(JSON | near({"fingerprint": st.just("f"), "step": SMALL}))
def test_a_state_of_recovery(values: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), 3, {"a": torch.zeros(2)}, {})
        (Path(folder) / "step-00000003" / "state.json").write_text(json.dumps(values))
        try:
            found = load_state(Path(folder), "f")
        except RecoveryError:
            return
        assert found is not None
        assert found[1]["fingerprint"] == "f"


# A sound file of two weights.
WEIGHTS = save({"a.weight": torch.arange(6.0).view(2, 3), "b.index": torch.arange(4)}, {"format": "pt"})
(SIZE,) = struct.unpack("<Q", WEIGHTS[:8])
HEADER: dict[str, Any] = json.loads(WEIGHTS[8 : 8 + SIZE])
ENTRY = near(
    {
        "dtype": st.sampled_from(["F32", "I64", "F16", "I32", "U8"]),
        "shape": st.lists(st.integers(0, 24), max_size=3),
        "data_offsets": st.lists(st.integers(0, 56), min_size=2, max_size=2),
    }
)
HEADERS = JSON | st.builds(
    lambda change, extra: {
        **{
            name: {**HEADER[name], **change.get(name, {})}
            if isinstance(change.get(name, {}), dict)
            else change[name]
            for name in HEADER
        },
        **extra,
    },
    near({"a.weight": ENTRY, "b.index": ENTRY}),
    near({"__metadata__": st.dictionaries(WORDS, WORDS, max_size=1)}),
)


def checked(weights: bytes) -> None:
    """A checkpoint with such a file is refused, or every weight in it can be read."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text('{"model_type": "bert"}')
        file = Path(folder) / "model.safetensors"
        file.write_bytes(weights)
        before = file.read_bytes()

        def read() -> bool:
            check_local(Path(folder))
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    assert opened.get_tensor(name).numel() >= 0
            return True

        own(read)
        assert file.read_bytes() == before


@fuzzed
@given(HEADERS)
def test_a_header_of_weights(values: Any) -> None:
    made = json.dumps(values).encode()
    checked(struct.pack("<Q", len(made)) + made + WEIGHTS[8 + SIZE :])


@fuzzed
@given(st.integers(0, len(WEIGHTS) - 1), st.integers(0, 255), st.integers(0, len(WEIGHTS)))
@example(0, 255, len(WEIGHTS))
def test_weights_with_a_byte_changed_and_the_end_cut(place: int, byte: int, end: int) -> None:
    checked((WEIGHTS[:place] + bytes([byte]) + WEIGHTS[place + 1 :])[:end])


CONFIG = JSON | near(
    {
        "model_type": st.just("bert"),
        "architectures": st.just(["BertModel"]),
        "hidden_size": SMALL,
        "id2label": st.dictionaries(st.sampled_from(["0", "1"]), WORDS, min_size=1),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "quantization_config": st.dictionaries(WORDS, WORDS, max_size=1),
        "collab": SECTION,
    }
)


@fuzzed
@given(
    CONFIG, JSON | near({"metadata": st.just({}), "weight_map": st.dictionaries(WORDS, WORDS, max_size=2)})
)
def test_config_and_index(config: Any, index: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        own(lambda: check_local(Path(folder)))
        (Path(folder) / "config.json").write_text('{"model_type": "bert"}')
        (Path(folder) / "model.safetensors.index.json").write_text(json.dumps(index))
        own(lambda: check_local(Path(folder)))


@fuzzed
@given(JSON | st.text(max_size=30))
def test_the_header_of_a_card(values: Any) -> None:
    text = values if isinstance(values, str) else yaml.safe_dump(values)
    assert isinstance(card_metadata(f"---\n{text}\n---\n"), dict)


def test_what_is_sound_passes() -> None:
    """Negative control: the strategies do not live of refusals alone."""
    config = BertConfig(hidden_size=24, num_attention_heads=3)
    config.collab = {
        "format": 2,
        "layers": {"a": {"method": "tucker", "query_rank": 6, "key_rank": 6, "score_width": 6}},
    }
    assert read_plans(config)["layers"]["a"].check(SHAPE)
    checked(WEIGHTS)
    with pytest.raises(AssertionError), tempfile.TemporaryDirectory():
        assert own(lambda: CollabConfig(rank=6)) is not None
