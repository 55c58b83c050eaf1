"""Layer-wise reconstruction: gains on tokens it did not train on, or leaves a layer's factors alone."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from conftest import TINY, build_tiny
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel, BertConfig, BertLMHeadModel, BertModel

from collab_hf import CollabConfig, compress_
from collab_hf.calibration.statistics import collect_statistics
from collab_hf.host.sites import attention_sites
from collab_hf.parts.query_key.candidates import candidate_plans, choose_factors, score_tensor
from collab_hf.parts.query_key.graft import factor_parameters, fill_, graft_, read_factors
from collab_hf.parts.registry import PARTS
from collab_hf.recovery import reconstruction
from collab_hf.recovery.reconstruction import Reconstruction, reconstruct
from collab_hf.tensors.factors import SharedFactors

FORMS = [
    CollabConfig(method="cp", rank=6),
    CollabConfig(method="cp", rank=6, content_bias="folded"),
    CollabConfig(method="cp", rank=8, dims_per_head=3),
    CollabConfig(method="svd", rank=8),
    CollabConfig(method="tucker", rank=8),
    CollabConfig(method="tucker", rank=8, score_width=3, content_bias="exact"),
    CollabConfig(method="tucker", rank=8, score_width=3, tied=True),
    CollabConfig(method="tucker", rank=4, key_groups=3),
    CollabConfig(method="tucker", rank=6, head_rank=2),
]


def sharpened(model: nn.Module) -> Any:
    """Queries and keys large enough that attention is far from uniform, and some scores matter more."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".query.weight" in name or ".key.weight" in name or "q_proj.w" in name or "k_proj.w" in name:
                parameter.mul_(2.0)
    return model


def texts(count: int = 16, rows: int = 8, length: int = 12) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    batches = []
    for _ in range(count):
        ids = torch.randint(1, 50, (rows, length), generator=generator)
        lengths = torch.randint(length // 2, length + 1, (rows, 1), generator=generator)
        mask = (torch.arange(length) < lengths).long()
        batches.append({"input_ids": ids * mask, "attention_mask": mask})
    return batches


def images(count: int = 16) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [{"pixel_values": torch.randn(8, 3, 16, 16, generator=generator)} for _ in range(count)]


def decomposed(model: Any, config: CollabConfig, batches: Any) -> dict[str, SharedFactors]:
    sites = attention_sites(model)
    statistics = collect_statistics(model, modules(model), batches)
    found = {}
    for name, site in sites.items():
        plans = candidate_plans(config, site.shape, name)
        found[name] = choose_factors(score_tensor(site, config), config, plans, statistics[name])
    return found


def modules(model: Any) -> dict[str, nn.Module]:
    return {name: site.module for name, site in attention_sites(model).items()}


def reconstructed(model: Any, factors: Any, batches: Any, steps: int) -> dict[str, Reconstruction]:
    return reconstruct(model, PARTS["query_key"], attention_sites(model), factors, batches, steps=steps)


def tensors(factors: SharedFactors) -> dict[str, Tensor]:
    found = {"query": factors.shared_query, "key": factors.shared_key, **factors.mixing.state_dict()}
    return found if factors.content_bias is None else {**found, "content": factors.content_bias}


@pytest.fixture
def bert(tiny_bert: Any) -> Any:
    return sharpened(tiny_bert(BertModel))


@pytest.mark.parametrize("config", FORMS, ids=lambda config: str(config.to_dict()))
def test_every_form_gains_on_tokens_it_did_not_train_on(bert: Any, config: CollabConfig) -> None:
    batches = texts()
    results = reconstruct(
        bert, PARTS["query_key"], attention_sites(bert), decomposed(bert, config, batches), batches, steps=30
    )
    for result in results.values():
        assert 0 < result.error_after < result.error_before


def test_the_error_is_that_of_the_attention_output(bert: Any) -> None:
    batches = texts(1)  # one piece: held out and trained on are the same
    factors = decomposed(bert, FORMS[4], batches)
    found = reconstructed(bert, factors, batches, steps=20)
    name, module = next(iter(modules(bert).items()))
    student = copy.deepcopy(module)
    graft_(student, found[name].solution)
    seen: list[Any] = []
    hook = module.register_forward_hook(lambda m, a, k, o: seen.append((a, k, o[0])), with_kwargs=True)
    with torch.no_grad():
        bert(**batches[0])
        hook.remove()
        args, kwargs, wanted = seen[0]
        real = batches[0]["attention_mask"].bool()
        difference = (student(*args, **kwargs)[0] - wanted)[real]
        expected = difference.norm() / wanted[real].norm()
    # float32 sums of a thousand terms in another order
    assert found[name].error_after == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("family", ["albert", "vit", "deit", "dinov2", "decoder"])
def test_every_family(family: str, tiny_vit: Any, tiny_deit: Any, tiny_dinov2: Any) -> None:
    from transformers import DeiTModel, Dinov2Model, ViTModel

    sizes = {**TINY, "vocab_size": 50, "max_position_embeddings": 40}
    model = {
        "albert": lambda: build_tiny(AlbertModel, AlbertConfig(**sizes, embedding_size=16)),
        "vit": lambda: tiny_vit(ViTModel),
        "deit": lambda: tiny_deit(DeiTModel),
        "dinov2": lambda: tiny_dinov2(Dinov2Model),
        "decoder": lambda: build_tiny(BertLMHeadModel, BertConfig(**sizes, is_decoder=True)),
    }[family]()
    batches = texts() if family in ("albert", "decoder") else images()
    sharpened(model)
    found = reconstructed(model, decomposed(model, FORMS[4], batches), batches, steps=30)
    assert all(result.error_after < result.error_before for result in found.values())


def test_a_layer_that_does_not_gain_keeps_its_factors(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "_RATES", (50.0,))
    batches = texts()
    factors = decomposed(bert, FORMS[4], batches)
    for name, result in reconstruct(
        bert, PARTS["query_key"], attention_sites(bert), factors, batches, steps=5
    ).items():
        assert result.solution is factors[name]
        assert result.error_after == result.error_before


def test_padding_does_not_count(bert: Any) -> None:
    batches = texts()
    factors = decomposed(bert, FORMS[4], batches)
    other = [{**b, "input_ids": b["input_ids"] + 7 * (1 - b["attention_mask"])} for b in batches]
    results = [reconstructed(bert, factors, data, steps=10) for data in (batches, other)]
    changed = [{**b, "input_ids": (b["input_ids"] + 7) % 50} for b in batches]
    control = reconstructed(bert, factors, changed, steps=10)
    for name, result in results[0].items():
        wanted = tensors(result.solution)
        for key, value in tensors(results[1][name].solution).items():
            # masked keys have weights of exactly zero; sums may be taken in another order
            torch.testing.assert_close(value, wanted[key], rtol=1e-4, atol=1e-6)
        assert (tensors(control[name].solution)["query"] - wanted["query"]).abs().max() > 1e-4


def test_same_bytes_twice_and_in_groups_of_one_layer(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = texts()
    factors = decomposed(bert, FORMS[4], batches)
    first = reconstructed(bert, factors, batches, steps=10)
    monkeypatch.setattr(reconstruction, "_CACHE_BYTES", 1)
    second = reconstructed(bert, factors, batches, steps=10)
    for name, result in first.items():
        for key, value in tensors(result.solution).items():
            assert torch.equal(value, tensors(second[name].solution)[key])


def test_the_model_is_left_as_it_was(bert: Any) -> None:
    batches = texts()
    bert.train()
    before = {name: value.clone() for name, value in bert.state_dict().items()}
    reconstruct(
        bert, PARTS["query_key"], attention_sites(bert), decomposed(bert, FORMS[4], batches), batches, steps=3
    )
    assert all(torch.equal(value, before[name]) for name, value in bert.state_dict().items())
    assert all(module.training for module in bert.modules())
    assert all(p.requires_grad and p.grad is None for p in bert.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in bert.modules())


def test_long_inputs_are_cut_into_steps_and_many_are_left_out(
    bert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "_MOST_TOKENS", 100)
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    bert.register_forward_hook(count)
    for _, pieces in reconstruction.recorded(bert, modules(bert), texts(), step_tokens=24):
        # two examples of 12 tokens, and one where no more are asked for
        assert [len(piece.output) for piece in pieces] == [2, 2, 2, 2, 1]
    assert runs == 2  # of sixteen batches with 96 tokens each


@pytest.mark.parametrize("config", FORMS, ids=lambda config: str(config.to_dict()))
def test_factors_read_back_are_those_filled_in(bert: Any, config: CollabConfig) -> None:
    for name, factors in decomposed(bert, config, texts()).items():
        module: Any = copy.deepcopy(modules(bert)[name])
        graft_(module, factors)
        other = copy.deepcopy(module)
        for parameter in factor_parameters(other):
            nn.init.zeros_(parameter)
        fill_(other, read_factors(module, factors.relative_error))
        before = module.state_dict()
        assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def compressed(model: Any, batches: Any, **settings: Any) -> tuple[Any, Any]:
    model = copy.deepcopy(model)
    return model, compress_(model, CollabConfig(**settings), batches)


def test_compress_reconstructs_and_reports(bert: Any) -> None:
    batches = texts()
    settings: Mapping[str, Any] = {"method": "tucker", "rank": 8}
    plain, without = compressed(bert, batches, **settings, reconstruct_steps=0)
    better, report = compressed(bert, iter(batches), **settings)
    assert all(layer.output_error is None for layer in without.layers)
    for layer in report.layers:
        assert layer.output_error is not None
        assert layer.output_error[1] < layer.output_error[0]
    with torch.no_grad():
        wanted = bert(**batches[0]).last_hidden_state
        errors = [(m(**batches[0]).last_hidden_state - wanted).norm() for m in (plain, better)]
    assert errors[1] < errors[0]


def test_plans_are_measured_with_reconstruction(bert: Any) -> None:
    reports = [compressed(bert, texts(), budget=0.4, reconstruct_steps=steps)[1] for steps in (0, 75)]
    assert reports[1].measured_loss < reports[0].measured_loss
    assert reports[1].predicted_loss < reports[0].predicted_loss


def test_statistics_and_copies_are_not_reconstructed(bert: Any) -> None:
    statistics = collect_statistics(bert, modules(bert), texts())
    for data, settings in ((statistics, {"method": "tucker", "rank": 8}), (texts(), {"method": "copy"})):
        report = compressed(bert, data, **settings)[1]
        assert all(layer.output_error is None for layer in report.layers)
