"""What people give `compress_`: models in wrappers, data in any shape, settings as arguments."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import SENTENCES, VOCABULARY, save_with_tokenizer
from random_models import text_inputs
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification, PreTrainedModel

from collab_hf import CollabConfig, collect_statistics, compress_, compress_checkpoint
from collab_hf.errors import CalibrationError, CollabError, ConfigError, FamilyError
from collab_hf.modeling.attention import CollabAttention

SETTINGS: dict[str, Any] = {"method": "tucker", "budget": 0.5, "reconstruct_steps": 2}
WHOLE: dict[str, Any] = {"params": 0.7, "reconstruct_steps": 2}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def loaded(model: Path) -> tuple[PreTrainedModel, Any]:
    """A tiny BERT from a directory with its tokenizer, and the tokenizer."""
    return AutoModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)


def test_the_function_calibrates_as_the_command_does(model: Path, tmp_path: Path) -> None:
    compress_checkpoint(model, tmp_path / "out", CollabConfig(**SETTINGS))
    expected = weights(AutoModel.from_pretrained(tmp_path / "out"))
    mine = AutoModel.from_pretrained(model)
    assert compress_(mine, **SETTINGS).calibrated
    assert same(weights(mine), expected)
    alone = AutoModel.from_pretrained(model)
    assert not compress_(alone, calibration=None, **SETTINGS).calibrated
    assert not same(weights(alone), expected)


def test_without_a_tokenizer_the_weights_alone_decide_with_a_warning(tiny_bert: Callable[..., Any]) -> None:
    quiet, warned = tiny_bert(), tiny_bert()
    with pytest.warns(UserWarning, match=r"no tokenizer was found for this BertModel.*pass tokenizer="):
        compress_(warned, **SETTINGS)
    compress_(quiet, calibration=None, **SETTINGS)
    assert same(weights(quiet), weights(warned))
    with pytest.raises(CalibrationError, match="examples need a tokenizer"):
        compress_(tiny_bert(), **WHOLE)


def test_data_of_every_shape_gives_the_same(loaded: Any, tmp_path: Path) -> None:
    original, tokenizer = loaded
    original.config.name_or_path = ""  # only what is given counts
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES))
    from datasets import Dataset

    def one_by_one() -> Iterator[Any]:
        yield batch

    found = []
    layers = {f"encoder.layer.{n}.attention.self" for n in range(2)}
    for data in (
        [batch],
        batch,
        one_by_one(),
        SENTENCES,
        tmp_path / "text.txt",
        str(tmp_path / "text.txt"),
        Dataset.from_dict({"text": SENTENCES}),
    ):
        model = copy.deepcopy(original)
        compress_(model, calibration=data, tokenizer=tokenizer, **{**SETTINGS, "reconstruct_steps": 0})
        found.append(weights(model))
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    for other in found[
        4:
    ]:  # texts, which are mixed with those that ship; these are the same in another order
        for name, value in found[3].items():
            torch.testing.assert_close(other[name].abs(), value.abs(), atol=1e-3, rtol=1e-3)
    assert not same(found[3], found[0])
    model = copy.deepcopy(original)
    statistics = collect_statistics(model, {name: model.get_submodule(name) for name in layers}, [batch])
    compress_(model, None, statistics, **{**SETTINGS, "reconstruct_steps": 0})
    assert same(weights(model), found[0])


def test_a_mapping_serves_as_config(tiny_bert: Callable[..., Any]) -> None:
    one, other = tiny_bert(), tiny_bert()
    compress_(one, SETTINGS, None)
    compress_(other, CollabConfig(**SETTINGS), None)
    assert same(weights(one), weights(other))


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((), {"budgett": 0.5}, "there is no setting 'budgett'"),
        ((CollabConfig(),), {"budget": 0.5}, "not both; got config and budget"),
        (([text_inputs()],), {}, "config must be a CollabConfig.*got list; calibration data goes into"),
        ((None, 3), {}, "got int"),
        ((None, [[1, 2]]), {}, "calibration batch 1 must be a mapping of model inputs"),
        ((None, {"input_ids": [[1, 2]]}), {}, "return_tensors='pt'"),
        ((None, SENTENCES), {}, "examples need a tokenizer"),
    ],
)
def test_what_cannot_be_taken(
    arguments: Any, settings: Any, message: str, tiny_bert: Callable[..., Any]
) -> None:
    model = tiny_bert()
    before = weights(model)
    with pytest.raises(CollabError, match=message):
        compress_(model, *arguments, **settings)
    assert same(weights(model), before)


def test_no_model_at_all(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"got the name '.*'; load it with load_model\("):
        compress_(str(model))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got a dict"):
        compress_({})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Linear holds none"):
        compress_(nn.Linear(2, 2))


class Wrapper(nn.Module):
    """A user's own module around a model."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch.compile itself
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.DataParallel, r"got a DataParallel around one; pass its \.module,"),
        (torch.compile, r"got a OptimizedModule around one; pass its \._orig_mod,"),
        (Wrapper, r"got a Wrapper around one; pass its \.bert,"),
    ],
)
def test_wrappers_are_refused_with_the_way_out(
    wrap: Callable[[nn.Module], Any], message: str, tiny_bert: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match=message):
        compress_(wrap(tiny_bert()), SETTINGS, [text_inputs()])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # which PEFT asks for
def test_adapters_are_refused_until_they_are_merged(tiny_bert: Callable[..., Any]) -> None:
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    one_layer = LoraConfig(r=2, target_modules=["query"], layers_to_transform=[1], init_lora_weights=False)
    wrapped = get_peft_model(tiny_bert(), one_layer)
    inside = wrapped.base_model.model
    for given in (wrapped, inside):
        for settings in (SETTINGS, WHOLE):
            before = weights(inside)
            with pytest.raises(FamilyError, match="adapters; merge them first"):
                compress_(given, settings, [text_inputs()])
            assert same(weights(inside), before)
            assert not any(isinstance(module, CollabAttention) for module in inside.modules())
    merged = wrapped.merge_and_unload()
    compress_(merged, SETTINGS, [text_inputs()])
    assert any(isinstance(module, CollabAttention) for module in merged.modules())
    prefix = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    with pytest.raises(FamilyError, match="is a model with adapters"):
        compress_(get_peft_model(tiny_bert(BertForSequenceClassification), prefix), SETTINGS)


class Rounded(nn.Linear):
    """Stands for the quantised Linear of a library."""


def _rounded(linear: nn.Linear) -> nn.Linear:
    made = Rounded(linear.in_features, linear.out_features)
    made.load_state_dict(linear.state_dict())
    return made


def _pruned(linear: nn.Linear) -> nn.Linear:
    made: nn.Linear = prune.l1_unstructured(linear, "weight", 0.5)
    return made


@pytest.mark.parametrize("spoil", [_rounded, _pruned, parametrizations.weight_norm])
@pytest.mark.parametrize(
    ("path", "what", "settings"),
    [
        ("encoder.layer.1.attention.self.query", "the query projection of encoder.layer.1", SETTINGS),
        ("encoder.layer.1.attention.self.value", "the value projection of encoder.layer.1", SETTINGS),
        ("encoder.layer.1.attention.output.dense", "the output projection of encoder.layer.1", WHOLE),
        ("encoder.layer.1.intermediate.dense", "intermediate.dense of encoder.layer.1", WHOLE),
    ],
)
def test_weights_that_are_not_plain_are_named_first(
    spoil: Callable[[nn.Linear], nn.Linear],
    path: str,
    what: str,
    settings: Any,
    tiny_bert: Callable[..., Any],
) -> None:
    model = tiny_bert()
    holder, _, name = path.rpartition(".")
    setattr(model.get_submodule(holder), name, spoil(model.get_submodule(path)))
    before = weights(model)
    with pytest.raises(FamilyError, match=f"{what}.* is no plain projection but a .*quantise, prune or"):
        compress_(model, settings, [text_inputs()])
    assert same(weights(model), before)
    assert not any(isinstance(module, CollabAttention) for module in model.modules())


def test_the_commands_route_names_them_too(tiny_bert: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_bert()
    attention = model.encoder.layer[1].attention.self
    attention.query = _rounded(attention.query)
    with pytest.raises(FamilyError, match=r"query projection of encoder.layer.1.* is no plain projection"):
        compress_checkpoint(model, tmp_path / "out", CollabConfig(**WHOLE), calibration=[text_inputs()])
    assert not (tmp_path / "out").exists()


def test_tables_that_are_not_plain_are_named_first(tiny_bert: Callable[..., Any]) -> None:
    class Scaled(nn.Embedding):
        pass

    model = tiny_bert()
    model.set_input_embeddings(Scaled(50, 24))
    with pytest.raises(FamilyError, match=r"the token embedding embeddings\.word_embeddings is no plain"):
        compress_(model, WHOLE, [text_inputs()])


def test_weights_that_are_not_in_memory_are_named_first(tiny_bert: Callable[..., Any]) -> None:
    model = tiny_bert()
    model.encoder.layer[1].to("meta")
    with pytest.raises(FamilyError, match=r"encoder\.layer\.1\.attention\.self is not in memory"):
        compress_(model, SETTINGS, [text_inputs()])


def test_an_encoder_of_sentence_transformers_works_on(tiny_bert: Callable[..., Any], tmp_path: Path) -> None:
    models = pytest.importorskip("sentence_transformers.models")
    from sentence_transformers import SentenceTransformer

    directory = save_with_tokenizer(tiny_bert(vocab_size=len(VOCABULARY)), tmp_path / "bert")
    transformer = models.Transformer(str(directory))
    encoder = SentenceTransformer(modules=[transformer, models.Pooling(24)], device="cpu")
    original = torch.tensor(encoder.encode(SENTENCES))
    report = compress_(encoder, **SETTINGS)
    assert report.calibrated
    assert report.layers[0].name == "encoder.layer.0.attention.self"
    smaller = torch.tensor(encoder.encode(SENTENCES))
    assert (smaller - original).abs().max() > 1e-3
    encoder.save(str(tmp_path / "out"))
    again = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert any(isinstance(module, CollabAttention) for module in again.modules())
    assert torch.equal(torch.tensor(again.encode(SENTENCES)), smaller)
