"""Token embeddings of low rank: exact at full rank, tied heads stay tied, saved and loaded both ways."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, build_tiny
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModel,
    AutoModelForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    ViTModel,
)

from collab_hf import CollabConfig, load_model
from collab_hf.checkpoint.onnx import export_onnx
from collab_hf.errors import CalibrationError, FamilyError
from collab_hf.host.adoption import adopt_, disown_
from collab_hf.modeling.embeddings import (
    EmbeddingPlan,
    LowRankDecoder,
    LowRankEmbedding,
    low_rank_class,
    token_embeddings,
)
from collab_hf.modeling.errors import CheckpointError, ConfigError, RankError
from collab_hf.modeling.modeling_collab import model_class
from collab_hf.parts.embeddings import Embeddings
from collab_hf.parts.embeddings.counts import token_counts
from collab_hf.parts.embeddings.dense import dense_embeddings_
from collab_hf.parts.embeddings.site import EmbeddingShape
from collab_hf.tensors.embedding import low_rank_errors, token_weights

PART = Embeddings()
V, RANK = 50, 6
IDS = torch.arange(20).view(2, 10) % V
TEXT = {"input_ids": IDS}
PAIR = {"input_ids": IDS, "decoder_input_ids": IDS.flip(1)}
# float64 sums of 24 products in another order.
ROUNDING = 1e-12


def albert() -> PreTrainedModel:
    settings = {**TINY, "vocab_size": V, "embedding_size": 12, "max_position_embeddings": 40}
    return build_tiny(AlbertForMaskedLM, AlbertConfig(**settings))


def gpt2() -> PreTrainedModel:
    settings = {"n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 40, "initializer_range": 0.2}
    return build_tiny(GPT2LMHeadModel, GPT2Config(vocab_size=V, bos_token_id=0, eos_token_id=0, **settings))


def t5(head: type[PreTrainedModel] = T5ForConditionalGeneration) -> PreTrainedModel:
    settings = {"d_model": 24, "d_kv": 8, "num_heads": 3, "num_layers": 2, "d_ff": 48}
    return build_tiny(head, T5Config(vocab_size=V, decoder_start_token_id=0, **settings))


def bart() -> PreTrainedModel:
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"layers": 1, "attention_heads": 3, "ffn_dim": 48}.items()
    }
    return build_tiny(
        BartForConditionalGeneration,
        BartConfig(
            vocab_size=V, d_model=24, max_position_embeddings=40, scale_embedding=True, init_std=0.2, **sides
        ),
    )


@pytest.fixture(params=["bert", "mlm", "albert", "gpt2", "t5", "bart"])
def dense(request: pytest.FixtureRequest, tiny_bert: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    makers = {"albert": albert, "gpt2": gpt2, "t5": t5, "bart": bart}
    if request.param in makers:
        model = makers[request.param]()
    else:
        model = tiny_bert(BertForMaskedLM if request.param == "mlm" else BertModel)
    return model, PAIR if request.param in ("t5", "bart") else TEXT


def output(model: PreTrainedModel, inputs: dict[str, Any] = TEXT) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs)[0]
    return found


def site_of(model: PreTrainedModel) -> Any:
    return next(iter(PART.sites(model).values()))


def compress(model: PreTrainedModel, rank: int = RANK, counts: torch.Tensor | None = None) -> PreTrainedModel:
    site = site_of(model)
    PART.install_(site, PART.trial(site, CollabConfig(), counts).solve(EmbeddingPlan(rank)))
    adopt_(model, {"embeddings": {site.name: EmbeddingPlan(rank)}})
    return model


def of_low_rank(model: PreTrainedModel, rank: int = RANK) -> PreTrainedModel:
    """A dense table that a narrow one holds exactly."""
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight.copy_(torch.randn(V, rank).to(weight) @ torch.randn(rank, weight.shape[1]).to(weight))
    return model


def test_a_table_of_low_rank_keeps_its_outputs(dense: Any) -> None:
    model, inputs = dense
    expected = output(of_low_rank(model.double()), inputs)
    compress(model)
    assert torch.allclose(output(model, inputs), expected, atol=ROUNDING * float(expected.abs().max()) * 100)
    lost = [*model.get_input_embeddings().up.unbind(1)][-1]
    with torch.no_grad():
        lost.zero_()
    assert not torch.allclose(output(model, inputs), expected, rtol=1e-2)


def test_outputs_are_those_of_the_dense_product(dense: Any) -> None:
    """Also where rank is lost: the module is the product table @ up^T, in the embedding and in every head."""
    model, inputs = dense
    compress(model.double())
    found = output(model, inputs)
    assert dense_embeddings_(model)
    assert not any("LowRank" in type(m).__name__ for m in model.modules())
    assert torch.allclose(output(model, inputs), found, atol=1e-10)


def test_everything_tied_stays_tied_on_disk(dense: Any, tmp_path: Path) -> None:
    model, inputs = dense
    compress(model)
    expected = output(model, inputs)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tables = [name for name, tensor in tensors.items() if tensor.shape == (V, RANK)]
    assert len(tables) == len([name for name in tensors if name.endswith(".up")]) == 1
    assert not any(t.shape == (V, model.get_input_embeddings().embedding_dim) for t in tensors.values())
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(output(loaded, inputs), expected)
    holders = [m for m in loaded.modules() if isinstance(m, LowRankEmbedding | LowRankDecoder)]
    assert len({id(m.weight) for m in holders}) == len({id(m.up) for m in holders}) == 1
    loaded.tie_weights()
    assert torch.equal(output(loaded, inputs), expected)


def test_modules_stay_what_they_were(tiny_bert: Any) -> None:
    model = tiny_bert(BertForMaskedLM)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    calls: list[int] = []
    embedding.register_forward_hook(lambda *_: calls.append(1))
    embedding.weight.requires_grad_(False)
    positions = model.bert.embeddings.position_embeddings.weight
    compress(model)
    assert model.get_input_embeddings() is embedding
    assert model.get_output_embeddings() is head
    assert isinstance(embedding, nn.Embedding)
    assert isinstance(head, nn.Linear)
    assert (embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx) == (V, 24, 0)
    assert not embedding.weight.requires_grad
    assert not embedding.up.requires_grad
    assert model.bert.embeddings.position_embeddings.weight is positions
    output(model)
    assert calls == [1]
    assert "rank=6" in repr(embedding)


def test_dtype_and_mode_stay(tiny_bert: Any, tmp_path: Path) -> None:
    model = compress(tiny_bert(BertForMaskedLM).to(torch.bfloat16).train())
    embedding = model.get_input_embeddings()
    assert embedding.training
    assert {embedding.weight.dtype, embedding.up.dtype} == {torch.bfloat16}
    model.eval().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.get_input_embeddings().up.dtype == torch.bfloat16
    assert torch.equal(output(loaded), output(model))


def test_padding_gets_no_gradient(tiny_bert: Any) -> None:
    model = compress(tiny_bert())
    model(input_ids=IDS).last_hidden_state.square().sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert not gradient[0].any()
    assert gradient[1].any()


def test_backbone_and_task_models_load_from_each_other(tiny_bert: Any, tmp_path: Path) -> None:
    task = compress(tiny_bert(BertForMaskedLM))
    task.save_pretrained(tmp_path / "task")
    backbone = AutoModel.from_pretrained(tmp_path / "task", add_pooling_layer=False)
    assert isinstance(backbone.get_input_embeddings(), LowRankEmbedding)
    assert torch.equal(output(backbone), output(task.bert))
    backbone.save_pretrained(tmp_path / "backbone")
    for head in (BertForMaskedLM, BertForSequenceClassification):
        loaded = model_class(head).from_pretrained(tmp_path / "backbone")
        assert torch.equal(output(loaded.bert), output(task.bert))
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "backbone")
    decoder = again.cls.predictions.decoder
    assert isinstance(decoder, LowRankDecoder)
    assert decoder.up is again.get_input_embeddings().up


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("bert.embeddings.word_embeddings.up"),
            r"missing factor bert\.embeddings\.word_embeddings\.up",
        ),
        (
            lambda t: t.update({"bert.embeddings.word_embeddings.up": torch.zeros(24, 5)}),
            "wrong-shaped factor bert.embeddings.word_embeddings.up",
        ),
        (
            lambda t: t.update({"bert.embeddings.word_embeddings.weight": torch.zeros(V, 24)}),
            "wrong-shaped factor bert.embeddings.word_embeddings.weight",
        ),
    ],
)
def test_loading_is_strict(tiny_bert: Any, tmp_path: Path, change: Any, message: str) -> None:
    compress(tiny_bert(BertForMaskedLM)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_config_json_names_the_embedding(tiny_bert: Any, tmp_path: Path) -> None:
    compress(tiny_bert(BertForSequenceClassification)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["collab"]["embeddings"] == {"embeddings.word_embeddings": {"rank": RANK}}
    config["collab"]["embeddings"] = {"embeddings.position_embeddings": {"rank": RANK}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"position_embeddings, which is no token embedding here"):
        load_model(tmp_path)


def test_a_head_of_its_own_stays_dense(tiny_bert: Any, tmp_path: Path) -> None:
    model = tiny_bert(BertForMaskedLM, tie_word_embeddings=False)
    compress(model)
    assert type(model.get_output_embeddings()) is nn.Linear
    model.save_pretrained(tmp_path)
    assert torch.equal(output(load_model(tmp_path)), output(model))


def test_weights_that_differ_though_declared_tied_are_refused(tiny_bert: Any) -> None:
    model = tiny_bert(BertForMaskedLM)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone() + 1)
    with pytest.raises(ConfigError, match="tie_word_embeddings to false"):
        compress(model)
    assert type(head) is nn.Linear


@pytest.mark.parametrize("rows", [V + 7, V - 7])
def test_resizing_adds_and_drops_rows_of_the_narrow_table(
    tiny_bert: Any, tmp_path: Path, rows: int, recwarn: Any
) -> None:
    model = compress(tiny_bert(BertForPreTraining))
    ids = {"input_ids": IDS % 40}
    expected = model(**ids).prediction_logits.detach()
    model.resize_token_embeddings(rows)
    found = model(**ids).prediction_logits.detach()
    assert found.shape[-1] == rows
    both = min(V, rows)
    assert torch.allclose(found[..., :both], expected[..., :both], atol=1e-5)
    decoder = model.get_output_embeddings()
    assert isinstance(decoder, LowRankDecoder)
    assert decoder.weight is model.get_input_embeddings().weight
    assert decoder.weight.shape == (rows, RANK)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(**ids).prediction_logits, found)


def test_resizing_goes_well_with_every_host(dense: Any, tmp_path: Path) -> None:
    model, inputs = dense
    compress(model)
    before = output(model, inputs)
    model.resize_token_embeddings(V + 7, mean_resizing=False)
    after = output(model, inputs)
    assert torch.allclose(after[..., :V][..., : before.shape[-1]], before, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(output(type(model).from_pretrained(tmp_path), inputs), after)


@pytest.mark.parametrize("head", [BertModel, BertForMaskedLM])
def test_copies_and_pickles(tiny_bert: Any, head: type[PreTrainedModel]) -> None:
    model = compress(tiny_bert(head))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        assert torch.equal(output(other), output(model))
        with torch.no_grad():
            other.get_input_embeddings().up.zero_()
        assert not torch.equal(output(other), output(model))


def test_subclasses_of_hosts_are_kept_and_pickle() -> None:
    model = compress(bart())
    embedding = model.model.decoder.embed_tokens
    assert type(embedding).__name__ == "LowRankBartScaledWordEmbedding"
    other = pickle.loads(pickle.dumps(embedding))
    assert torch.equal(other(IDS), embedding(IDS))
    scaled = nn.functional.embedding(IDS, embedding.weight @ embedding.up.T) * 24**0.5
    assert torch.allclose(embedding(IDS), scaled, atol=1e-5)


def test_undone_it_is_the_hosts_own(tiny_bert: Any, tmp_path: Path) -> None:
    model = compress(of_low_rank(tiny_bert(BertForMaskedLM)))
    dense_embeddings_(model)
    for inner in (model, model.bert):
        disown_(inner)
    assert type(model) is BertForMaskedLM
    assert "_tied_weights_keys" not in vars(model) or not any(
        key.endswith(".up") for key in model._tied_weights_keys
    )
    expected = output(model)
    model.save_pretrained(tmp_path)
    loaded = BertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(output(loaded), expected)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert not dense_embeddings_(model)


def test_replaced_shows_what_installing_will_do(dense: Any) -> None:
    model, inputs = dense
    expected = output(model, inputs)
    site = site_of(model)
    solution = PART.trial(site, CollabConfig()).solve(EmbeddingPlan(3))
    with PART.replaced({site.name: site}, {site.name: solution}):
        seen = output(model, inputs)
    assert torch.equal(output(model, inputs), expected)
    PART.install_(site, solution)
    assert torch.allclose(output(model, inputs), seen, atol=1e-5)
    assert not torch.allclose(seen, expected, atol=1e-3)


def test_options_have_the_errors_that_solutions_have(tiny_bert: Any) -> None:
    site = site_of(tiny_bert())
    counts = torch.arange(V)
    trial = PART.trial(site, CollabConfig(), counts)
    *others, dense = trial.options
    assert (dense.plan, dense.error, dense.parameters) == (None, 0.0, V * 24)
    assert [o.plan.rank for o in others] == list(range(1, site.shape.largest_rank + 1))
    weight = site.module.weight.detach().double()
    weights = token_weights(counts)
    for option in others:
        solution = trial.solve(option.plan)
        lost = (weight - solution.table @ solution.up.T).square().sum(1)
        error = ((weights * lost).sum() / (weights * weight.square().sum(1)).sum()).sqrt()
        assert option.error == solution.relative_error == pytest.approx(float(error), rel=1e-9)
        assert option.parameters == solution.table.numel() + solution.up.numel() < V * 24
    uniform = PART.trial(site, CollabConfig())
    assert float(uniform.errors[RANK]) == pytest.approx(
        float(low_rank_errors(weight, torch.zeros(V))[RANK].sqrt())
    )
    assert float(uniform.errors[RANK]) != pytest.approx(float(trial.errors[RANK]), rel=1e-3)


def test_frequent_tokens_are_kept_better(tiny_bert: Any) -> None:
    site = site_of(tiny_bert())
    counts = torch.zeros(V)
    counts[:3] = 1000
    solution = PART.trial(site, CollabConfig(), counts).solve(EmbeddingPlan(3))
    lost = (site.module.weight - (solution.table @ solution.up.T)).square().sum(1)
    assert lost[:3].max() < 0.1 * lost[3:].min()


@pytest.mark.parametrize(
    ("vocab_size", "hidden_size", "ladder"),
    [
        (30522, 384, [16, 32]),
        (30522, 768, [32, 64]),
        (30522, 128, [4, 8]),
        (50, 24, [1, 2]),
        (4, 4, [1]),
        (2, 2, []),
    ],
)
def test_ladders(vocab_size: int, hidden_size: int, ladder: list[int]) -> None:
    shape = EmbeddingShape(vocab_size, hidden_size)
    assert shape.ladder()[:2] == ladder
    most = shape.largest_rank
    parts = [most * (vocab_size + hidden_size), vocab_size * hidden_size, (most + 1)]
    assert parts[0] < parts[1] or most == 0
    assert parts[2] * (vocab_size + hidden_size) >= parts[1] or most == hidden_size - 1


def test_sizes_and_ranks_out_of_them(tiny_bert: Any) -> None:
    shape = EmbeddingShape(1000, 96)
    assert PART.parameters(EmbeddingPlan(10), shape) == 10960
    assert PART.operations(EmbeddingPlan(10), shape, 7) == 2 * 10 * 96 * 7
    assert PART.operations(None, shape, 7) == 0
    with pytest.raises(RankError, match=r"between 1 and 87, since dense it is 1000 x 96, got 88 \(words\)"):
        shape.check(88, "words")
    with pytest.raises(RankError, match=r"between 1 and 16, .* got 17 \(embeddings.word_embeddings\)"):
        PART.trial(site_of(tiny_bert()), CollabConfig()).solve(EmbeddingPlan(17))


def test_albert_goes_below_its_own_width() -> None:
    site = site_of(albert())
    assert site.shape.hidden_size == 12
    assert max(site.shape.ladder()) < 12
    compress(site.model, 4)
    assert site.module.up.shape == (12, 4)


def test_what_has_no_token_table(tiny_vit: Any, tiny_bert: Any) -> None:
    assert PART.sites(tiny_vit(ViTModel)) == {}
    assert token_embeddings(nn.Linear(2, 2)) == {}
    assert PART.sites(tiny_bert(vocab_size=2)) != {}
    with pytest.raises(FamilyError, match="of low rank already"):
        PART.sites(compress(tiny_bert()))
    with pytest.raises(ConfigError, match=r"only nn\.Embedding and nn\.Linear"):
        low_rank_class(nn.LayerNorm)


def test_refusals_leave_the_model_alone(tiny_bert: Any) -> None:
    model = tiny_bert()
    embedding = model.get_input_embeddings()
    for rank in (0, 25, True):
        with pytest.raises(RankError, match=r"embedding rank must be between 1 and 24.*\(words\)"):
            EmbeddingPlan(rank).shrink_(embedding, model, "words")
    embedding.max_norm = 1.0
    with pytest.raises(ConfigError, match="max_norm"):
        EmbeddingPlan(3).shrink_(embedding, model, "words")
    assert type(embedding) is nn.Embedding
    embedding.max_norm = None
    EmbeddingPlan(3).shrink_(embedding, model, "words")
    with pytest.raises(ConfigError, match="of low rank already"):
        EmbeddingPlan(2).shrink_(embedding, model, "words")


def test_the_part_finds_what_it_made(tiny_bert: Any) -> None:
    model = compress(tiny_bert(BertForMaskedLM))
    ((name, module),) = PART.converted(model)
    assert name == "embeddings.word_embeddings"
    parameters = PART.trained(module)
    assert [tuple(p.shape) for p in parameters] == [(V, RANK), (24, RANK)]
    assert not list(PART.converted(tiny_bert()))


def test_counts_leave_padding_out() -> None:
    masked = {"input_ids": torch.tensor([[5, 3, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0, 0]])}
    bare = {"input_ids": torch.tensor([[3, 0]]), "decoder_input_ids": torch.tensor([[4, 4]])}
    counts = token_counts([masked, bare], 6, padding=0)
    assert counts.tolist() == [0, 0, 0, 2, 2, 1]
    assert token_counts([masked, bare], 6).tolist() == [1, 0, 0, 2, 2, 1]
    with pytest.raises(CalibrationError, match="between 0 and 4, got 3 to 5 in calibration batch 1"):
        token_counts([masked], 5)
    with pytest.raises(CalibrationError, match="need batches with input_ids"):
        token_counts([{"pixel_values": torch.ones(1)}], 5)


def test_initialised_anew_it_has_numbers() -> None:
    """A model from its config alone, as for training from scratch."""
    model = compress(t5(T5EncoderModel))
    fresh = type(model)(model.config)
    embedding = fresh.get_input_embeddings()
    assert torch.isfinite(embedding.up).all()
    assert embedding.up.std() > 0.1
    assert fresh.encoder.embed_tokens.up is embedding.up


def test_onnx(tiny_bert: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    export = export_onnx(compress(tiny_bert(BertForMaskedLM)), tmp_path / "model.onnx")
    assert export.difference < 1e-4


def test_code_that_travels_loads_without_the_package(tiny_bert: Any, tmp_path: Path) -> None:
    model = compress(tiny_bert(BertForMaskedLM))
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "embeddings.py").is_file()
    save_file(TEXT, tmp_path / "inputs.safetensors")
    code = (
        "import sys; sys.modules['collab_hf'] = None\n"
        "import torch, transformers\n"
        "from safetensors.torch import load_file, save_file\n"
        "where, inputs, outputs = sys.argv[1:]\n"
        "model = transformers.AutoModelForMaskedLM.from_pretrained(where, trust_remote_code=True)\n"
        "with torch.no_grad(): found = model(**load_file(inputs))[0]\n"
        "save_file({'found': found}, outputs)\n"
    )
    arguments = [tmp_path / "model", tmp_path / "inputs.safetensors", tmp_path / "outputs.safetensors"]
    subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        check=True,
        capture_output=True,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert torch.equal(load_file(arguments[2])["found"], output(model))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # which PEFT asks for
def test_peft_adapts_and_merges_the_projections(tiny_bert: Any, tmp_path: Path) -> None:
    """LoRA finds the same modules, and neither the map nor the table is one of them."""
    peft = pytest.importorskip("peft")
    model = compress(tiny_bert(BertForMaskedLM))
    names = {name for name, _ in model.named_modules()}
    expected = output(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    wrapped = {name for name, m in adapted.named_modules() if hasattr(m, "lora_A")}
    assert wrapped
    assert not any("word_embeddings" in name or "decoder" in name for name in wrapped)
    assert torch.equal(output(adapted), expected)
    merged = adapted.merge_and_unload()
    assert {name for name, _ in merged.named_modules()} == names
    assert torch.equal(output(merged), expected)


def test_it_compiles_without_breaks(tiny_bert: Any) -> None:
    model = compress(tiny_bert(BertForMaskedLM))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(output(compiled), output(model), atol=1e-6)
