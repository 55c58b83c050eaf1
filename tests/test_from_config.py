"""`collaborative(config)`: models of every family that begin at random."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import CASES, build
from test_families import difference, run
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from collab_hf import LayerPlan, collaborative
from collab_hf.errors import CollabError, ConfigError, FamilyError, RankError
from collab_hf.modeling.attention import CollabAttention
from collab_hf.modeling.modeling_collab import model_class

# float32 through two layers: a few units in the last place of outputs of the order of ten.
EXACT = 1e-5

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_decoder.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
]


def begun(kind: type[PreTrainedModel], config: PreTrainedConfig, seed: int = 0) -> Any:
    """A model that begins at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind._from_config(config).eval()


# Of classes that are not its own, transformers skips what these hosts' outer modules draw anew of inner ones.
DRAWN_TWICE = frozenset({"data2vec-audio", "mt5", "t5", "umt5", "unispeech"})


@pytest.mark.parametrize("name", CASES)
def test_full_rank_begins_as_the_host(name: str) -> None:
    """With the same seed, number for number; negative control: with another rank it does not."""
    host = build(name)
    full, half = (collaborative(host.config, rank) for rank in (24, 12))
    assert not hasattr(host.config, "collab")
    model = begun(model_class(type(host)), full)
    assert sum(isinstance(m, CollabAttention) for m in model.modules()) == CASES[name].modules
    want = run(begun(type(host), host.config), name)
    if name not in DRAWN_TWICE:
        assert difference(run(model, name), want) < EXACT
    assert difference(run(begun(model_class(type(host)), half), name), want) > 10 * EXACT


SIZES: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2}
BERT = BertConfig(**SIZES, intermediate_size=48, vocab_size=50, initializer_range=0.2)
STARTS = {
    "concatenate": {"rank": 6},
    "ones": {"rank": 6, "mixing": "ones"},
    "random": {"rank": 6, "mixing": "random"},
    "sparse": {"rank": 12, "dims_per_head": 4, "mixing": "random"},
    "narrow heads": {"head_dim": 2},
    "tied": {"plan": LayerPlan("tucker", 12, 12, 4, tied=True, content_bias="folded")},
    "exact bias": {"plan": LayerPlan("tucker", 12, 8, 8)},
}


def tokens() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(0, 50, (2, 7), generator=generator)}


@pytest.mark.parametrize("start", STARTS)
def test_trains_saves_and_loads(start: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(collaborative(BERT, **STARTS[start])).train()
    inputs = {**tokens(), "labels": tokens()["input_ids"]}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**inputs).loss
        losses.append(loss.item())
        loss.backward()
        assert all(p.grad is not None for p in model.bert.encoder.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(**tokens()).logits, model(**tokens()).logits)
    headed = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tmp_path))
    assert type(headed).__name__ == "CollabBertForSequenceClassification"
    assert headed(**tokens()).logits.shape == (2, 2)


def mixing_of(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModel.from_config(collaborative(BERT, **options))
    return model.encoder.layer[0].attention.self.mixing


def test_mixing_begins_as_named() -> None:
    assert torch.equal(mixing_of(rank=6).weight, torch.eye(3).repeat_interleave(2, 1))
    assert torch.equal(mixing_of(rank=6, mixing="ones").weight, torch.ones(3, 6))
    drawn = mixing_of(rank=24, mixing="random").weight.detach()
    # Squares of a head's mixing add up to head_dim = 8: of 72 normal numbers, within three standard errors.
    assert drawn.square().sum().item() / 3 == pytest.approx(8, rel=3 * (2 / 72) ** 0.5)
    windows = mixing_of(rank=12, dims_per_head=4).index
    assert windows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert mixing_of(head_dim=2).index.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_narrow_heads_are_concatenation() -> None:
    """Heads of their own begin as the collaborative model whose mixing is blocks of ones."""
    apart, shared = (
        begun(type(AutoModel.from_config(collaborative(BERT, 6))), collaborative(BERT, **options))
        for options in ({"head_dim": 2}, {"rank": 6})
    )
    torch.testing.assert_close(apart(**tokens())[0], shared(**tokens())[0], atol=EXACT, rtol=0)


def test_kinds_of_layers() -> None:
    config = BartConfig(
        d_model=24,
        vocab_size=50,
        **{
            f"{side}_{name}": n
            for side in ("encoder", "decoder")
            for name, n in (("layers", 1), ("attention_heads", 3), ("ffn_dim", 48))
        },
    )
    names = {
        kinds: list(collaborative(config, 6, attention=kinds).collab["layers"])
        for kinds in ((), ("encoder", "cross", "decoder"), ("cross",), "encoder,decoder-cross")
    }
    everything = ["encoder.layers.0.self_attn", "decoder.layers.0.self_attn", "decoder.layers.0.encoder_attn"]
    assert names[()] == names["encoder", "cross", "decoder"] == everything
    assert names["cross",] == everything[2:]
    assert names["encoder,decoder-cross"] == [everything[0], everything[2]]
    model = AutoModelForSeq2SeqLM.from_config(collaborative(config, 6, attention="cross"))
    assert sum(isinstance(module, CollabAttention) for module in model.modules()) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigError, "give one of rank, plan and head_dim"),
        ({"rank": 6, "head_dim": 2}, ConfigError, "give one of rank, plan and head_dim"),
        ({"rank": 25}, RankError, r"rank must be between 1 and 24, got 25 \(encoder.layer.0"),
        ({"head_dim": 9}, ConfigError, "head_dim must be between 1 and 8, the host's own, got 9"),
        ({"head_dim": 2, "dims_per_head": 2}, ConfigError, "dims_per_head needs a rank"),
        ({"head_dim": 2, "mixing": "ones"}, ConfigError, "mixing belongs to cp, got 'ones' with svd"),
        ({"rank": 6, "mixing": "zeros"}, ConfigError, "mixing must be one of concatenate, ones, random"),
        ({"rank": 6, "attention": "cross"}, ConfigError, "no layer is cross attention"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[CollabError], message: str) -> None:
    with pytest.raises(error, match=message):
        collaborative(BERT, **options)


def test_configs_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="collaborative already, got CollabBertConfig"):
        collaborative(collaborative(BERT, 6), 6)
    with pytest.raises(FamilyError, match="no Auto class knows the model type"):
        collaborative(PreTrainedConfig(), 6)
