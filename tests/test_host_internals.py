"""What of transformers is not public is reached in one file, and missed by name."""

import ast
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    PreTrainedModel,
    ViTForImageClassification,
    ViTModel,
)

import collab_hf
from collab_hf import CollabConfig, compress_
from collab_hf.errors import VersionError
from collab_hf.modeling import host_internals

PACKAGE = Path(collab_hf.__file__).parent
INTERNALS = Path(host_internals.__file__)
# Underscored names of other libraries, which are documented, or counted and not called.
OTHERS = {"_replace", "_foreach_copy_", "_scaled_dot_product_flash_attention_for_cpu", "_version"}
# A class may define it: transformers' documentation of own models says so.
CONVENTIONS = {"_init_weights", "_tied_weights_keys"}
VERSION = re.escape(transformers.__version__)


def lacks(name: str) -> str:
    """The sentence for a name that is gone."""
    return f"transformers {transformers.__version__} lacks {name}, or it works in another way"


def test_the_attention_backend(tiny_bert: Callable[..., Any]) -> None:
    model = tiny_bert()
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        try:
            found = host_internals.attention_backend(model.config)
        except AttributeError:
            found = None
        assert found == backend, lacks("_attn_implementation")


def test_the_registry_of_outputs(tiny_bert: Callable[..., Any]) -> None:
    """A class that no model was built of records nothing, until it is told to."""
    model = tiny_bert()
    model.__class__ = type("NewBertModel", (BertModel,), {})
    inputs = {"input_ids": torch.arange(10)[None]}
    before = model(**inputs, output_hidden_states=True).hidden_states
    assert not before, "classes are told of by themselves now: record_outputs_ is not needed any more"
    model.__class__ = type("NewerBertModel", (BertModel,), {})
    host_internals.record_outputs_(model)
    states = model(**inputs, output_hidden_states=True).hidden_states
    assert len(states or ()) == 3, lacks("_CAN_RECORD_REGISTRY or _can_record_outputs")


def test_the_renaming_of_a_loaded_model(tiny_vit: Callable[..., Any], tmp_path: Path) -> None:
    tiny_vit().save_pretrained(tmp_path)
    loaded = ViTModel.from_pretrained(tmp_path)
    assert vars(loaded).get("_weight_conversions"), lacks("_weight_conversions")
    host_internals.forget_renaming_(loaded)
    assert vars(loaded)["_weight_conversions"] is None


def test_the_table_of_renamings() -> None:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    host_internals.share_renaming(ViTModel, "AnotherViTModel")
    assert get_checkpoint_conversion_mapping("AnotherViTModel"), lacks("ViT's renaming of weights")
    host_internals.share_renaming(BertModel, "AnotherBertModel")
    renaming = get_checkpoint_conversion_mapping("bert")
    assert bool(get_checkpoint_conversion_mapping("AnotherBertModel")) == bool(renaming)


def test_the_tables_of_the_auto_classes() -> None:
    heads = host_internals.heads_of("bert")
    assert heads["AutoModel"] == "BertModel", lacks("_model_mapping")
    assert heads["AutoModelForMaskedLM"] == "BertForMaskedLM"
    assert "AutoModelForImageClassification" not in heads
    # A tuple there.
    assert host_internals.heads_of("deit")["AutoModelForImageClassification"] == "DeiTForImageClassification"


def share_renaming_of(model: PreTrainedModel) -> None:
    """With the model as the only argument, as the others have it."""
    host_internals.share_renaming(type(model), "Another")


@pytest.mark.parametrize(
    ("place", "name", "use"),
    [
        ("utils.output_capturing", "_CAN_RECORD_REGISTRY", host_internals.record_outputs_),
        ("conversion_mapping", "get_checkpoint_conversion_mapping", share_renaming_of),
        ("conversion_mapping", "register_checkpoint_conversion_mapping", share_renaming_of),
    ],
)
def test_a_name_that_is_gone_is_said(
    monkeypatch: pytest.MonkeyPatch,
    tiny_bert: Callable[..., Any],
    place: str,
    name: str,
    use: Callable[[Any], object],
) -> None:
    model = tiny_bert()
    monkeypatch.delattr(importlib.import_module(f"transformers.{place}"), name)
    with pytest.raises(VersionError, match=f"transformers {VERSION} lacks {name}, which collab_hf needs"):
        use(model)


def test_a_table_that_is_gone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModel, "_model_mapping", None)  # as its base has it
    with pytest.raises(VersionError, match=f"transformers {VERSION} lacks _model_mapping"):
        host_internals.heads_of("bert")


def test_a_module_that_is_gone_is_said() -> None:
    with pytest.raises(VersionError, match="lacks anything, which collab_hf needs"):
        host_internals._private("transformers.no_such_module", "anything")


def borrowed_names(source: str) -> set[str]:
    """Underscored names that a file takes from elsewhere: by attribute, import, `getattr` or `vars`."""
    found: set[Any] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr=name):
                found.add(name)
            case ast.ImportFrom(names=names, level=0):
                found.update(alias.name for alias in names)
            case ast.Call(func=ast.Name(), args=[_, ast.Constant(value=name), *_]):
                found.add(name)
            case ast.Subscript(slice=ast.Constant(value=name)):
                found.add(name)
    return {name for name in found if isinstance(name, str) and re.match(r"_[A-Za-z]", name)}


def own_names() -> set[str]:
    """Underscored names that the package itself defines."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return found


def test_private_names_are_reached_in_one_file() -> None:
    allowed = own_names() | OTHERS | CONVENTIONS
    for file in PACKAGE.rglob("*.py"):
        if file != INTERNALS:
            borrowed = borrowed_names(file.read_text(encoding="utf-8")) - allowed
            assert not borrowed, f"{file}: {sorted(borrowed)} belong in {INTERNALS.name}"
    # Negative control: the search does find them.
    assert {"_attn_implementation", "_CAN_RECORD_REGISTRY", "_weight_conversions"} <= borrowed_names(
        INTERNALS.read_text(encoding="utf-8")
    )


def test_saving_ships_the_file_and_config_classes_stay_public(tiny_vit: Any, tmp_path: Path) -> None:
    model = tiny_vit(ViTForImageClassification)
    compress_(model, CollabConfig(method="svd", rank=12))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "host_internals.py").read_bytes() == INTERNALS.read_bytes()
    assert type(AutoConfig.from_pretrained(tmp_path)).__name__ == "CollabViTConfig"
    assert not BertConfig.is_remote_code()
