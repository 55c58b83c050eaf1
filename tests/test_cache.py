"""A decoder caches the shared key, and generates what the dense decoder generates."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import TINY
from random_models import PLANS, make_collab_
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

from collab_hf import CollabConfig, compress_

RANKS = [
    CollabConfig(method="copy"),
    CollabConfig(method="copy", content_bias="exact"),
    CollabConfig(method="cp", rank=24),
    CollabConfig(method="svd", rank=24),
]
TIED = CollabConfig(method="tucker", rank=24, score_width=8, tied=True)
IDS = [str(config.to_dict()) for config in RANKS]
# float32 through two layers; the cached path adds the same numbers in another order.
ROUNDING = 1e-5
STEPS = 8
WAYS: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "dynamic": {"use_cache": True},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "beam": {"num_beams": 3},
    "beam static": {"num_beams": 2, "cache_implementation": "static", "disable_compile": True},
}

pytestmark = pytest.mark.filterwarnings("ignore:.*is_decoder.*")


@pytest.fixture
def decoder(tiny_bert: Callable[..., Any]) -> Callable[[], PreTrainedModel]:
    def make() -> PreTrainedModel:
        return tiny_bert(BertLMHeadModel, is_decoder=True, pad_token_id=0, eos_token_id=None, bos_token_id=1)

    return make


def prompts() -> tuple[Tensor, Tensor]:
    """Two prompts, the first padded on the left."""
    ids = torch.randint(3, 50, (2, 5), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    ids[0, :2] = mask[0, :2] = 0
    return ids, mask


def generate(model: PreTrainedModel, **way: Any) -> tuple[Tensor, Tensor]:
    ids, mask = prompts()
    made = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=STEPS,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        **way,
    )
    return made.sequences, torch.stack(made.scores)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("config", [*RANKS, TIED], ids=[*IDS, "tied"])
def test_generates_as_dense(config: CollabConfig, way: str, backend: str, decoder: Callable[[], Any]) -> None:
    dense, model = decoder(), decoder()
    compress_(model, config)
    for one in (dense, model):
        one.set_attn_implementation(backend)
    want, got = generate(dense, **WAYS[way]), generate(model, **WAYS[way])
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=ROUNDING * want[1].abs().max())


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("way", [w for w in WAYS if w != "no cache" and "beam" not in w])
def test_the_cache_changes_nothing(plan: str, way: str, decoder: Callable[[], Any]) -> None:
    model = make_collab_(decoder(), PLANS[plan])
    want, got = generate(model, use_cache=False), generate(model, **WAYS[way])
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=ROUNDING * want[1].abs().max())


@pytest.mark.parametrize("plan", PLANS)
def test_a_prefix_goes_on(plan: str, decoder: Callable[[], Any]) -> None:
    """Several tokens after a cached prefix, then one: three calls give what one call gives."""
    model = make_collab_(decoder(), PLANS[plan])
    ids = torch.randint(3, 50, (2, 9))
    with torch.no_grad():
        want = model(ids).logits
        cache, parts = DynamicCache(config=model.config), []
        for start, stop in ((0, 4), (4, 8), (8, 9)):
            mask = torch.ones(2, stop, dtype=torch.long)
            out = model(ids[:, start:stop], attention_mask=mask, past_key_values=cache, use_cache=True)
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), want, rtol=0, atol=ROUNDING * want.abs().max())


@pytest.mark.parametrize("plan", PLANS)
def test_what_is_cached(plan: str, decoder: Callable[[], Any]) -> None:
    """One key of the shared rank a token (and the content bias where it is exact), in either cache."""
    model = make_collab_(decoder(), PLANS[plan])
    width = PLANS[plan].key_rank + (3 if PLANS[plan].content_bias == "exact" else 0)
    ids = torch.randint(3, 50, (2, 6))
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=10)):
        with torch.no_grad():
            model(ids, past_key_values=cache, use_cache=True)
        layer = cache.layers[0]
        assert layer.keys.shape[:2] == layer.values.shape[:2] == (2, 1)
        assert layer.keys.shape[-1] == width
        assert layer.values.shape[-1] == 24


def cross_model() -> PreTrainedModel:
    sizes = {**TINY, "vocab_size": 50}
    encoder = BertConfig(**sizes)
    decoder = BertConfig(**sizes, is_decoder=True, add_cross_attention=True)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, None
    torch.manual_seed(0)
    model = EncoderDecoderModel(config).eval()
    model.generation_config.decoder_start_token_id = 1
    model.generation_config.pad_token_id = 0
    for name, parameter in model.named_parameters():
        if name.endswith(("query.bias", "key.bias")):
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("config", RANKS, ids=IDS)
@pytest.mark.parametrize("way", ["no cache", "dynamic", "beam"])
def test_cross_attention_generates_as_dense(config: CollabConfig, way: str) -> None:
    dense, model = cross_model(), cross_model()
    compress_(model.decoder, config)
    want, got = generate(dense, **WAYS[way]), generate(model, **WAYS[way])
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=ROUNDING * want[1].abs().max())


@pytest.mark.parametrize("plan", [name for name, plan in PLANS.items() if not plan.tied])
def test_cross_attention_caches_the_shared_key(plan: str) -> None:
    model = cross_model()
    make_collab_(model.decoder, PLANS[plan])
    want, got = generate(model, use_cache=False), generate(model, use_cache=True)
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=ROUNDING * want[1].abs().max())
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with torch.no_grad():
        model(
            input_ids=prompts()[0],
            decoder_input_ids=torch.ones(2, 1, dtype=torch.long),
            past_key_values=cache,
        )
    assert cache.cross_attention_cache.layers[0].keys.shape[:3] == (2, 1, 5)
