"""Who may read which examples: the hold-out is set aside first, and shipped examples are mixed in."""

import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli_support import VOCABULARY, save_with_tokenizer
from PIL import Image
from transformers import AutoTokenizer, BertModel, ViTImageProcessorPil

from collab_hf.calibration.pools import Pools, read_pools
from collab_hf.calibration.sources import DEFAULT_TEXT_FILE, read_images, read_texts
from collab_hf.errors import CalibrationError

SHIPPED = set(DEFAULT_TEXT_FILE.read_text(encoding="utf-8").splitlines())
OWN = [f"caption {a}{b}" for a in string.ascii_lowercase for b in string.ascii_lowercase]  # 676 of them


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Knows every letter, so that the shipped text suits it."""
    directory = tmp_path_factory.mktemp("model")
    return AutoTokenizer.from_pretrained(
        save_with_tokenizer(tiny_bert(BertModel, vocab_size=len(VOCABULARY)), directory)
    )


def parts(pools: Pools) -> tuple[set[str], set[str], set[str]]:
    return set(pools.calibration.texts), set(pools.training.texts), set(pools.held_out.texts)


def test_the_default_is_what_it_was(tokenizer: Any) -> None:
    """A thousand of the shipped texts by the seed, as `load_batches` takes them; a quarter never trains."""
    pools = read_pools("default", tokenizer, seed=3)
    assert list(pools.calibration.texts) == read_texts("default", 1000, 3)
    calibration, training, held = parts(pools)
    assert calibration <= training
    assert not training & held
    assert training | held == SHIPPED
    assert len(held) == len(SHIPPED) // 4
    assert pools.counts == {"examples": 1000, "shipped": 1000}


@pytest.mark.parametrize("count", [4, 100, 676])
def test_nothing_reads_what_is_set_aside(tokenizer: Any, count: int) -> None:
    pools = read_pools(OWN[:count], tokenizer, examples=300)
    calibration, training, held = parts(pools)
    assert calibration <= training
    assert not training & held
    own = set(OWN[:count])
    assert len(held & own) == min(count // 4, 64)
    assert held & SHIPPED  # both kinds judge
    assert own <= training | held


def test_a_repeated_text_is_on_one_side(tokenizer: Any) -> None:
    """Negative control: by position, half of what is held out would have been read."""
    _, training, held = parts(read_pools([*OWN[:50], *OWN[:50]], tokenizer, shipped_share=0))
    assert not training & held
    assert len(training | held) == 50


def test_a_text_that_ships_too_does_not_calibrate_where_it_judges(tokenizer: Any) -> None:
    shipped = read_texts("default", 40, 1)
    calibration, training, held = parts(read_pools([*OWN[:160], *shipped], tokenizer, examples=1200))
    assert not (training | calibration) & held
    assert held & set(shipped)


def test_half_ship_and_they_fill_up_what_a_small_file_lacks(tokenizer: Any) -> None:
    half = read_pools(OWN, tokenizer, examples=300)
    assert (len(half.calibration), half.counts["shipped"]) == (300, 150)
    small = read_pools(OWN[:100], tokenizer, examples=300)
    assert (len(small.calibration), small.counts["shipped"]) == (300, 225)
    alone = read_pools(OWN, tokenizer, examples=300, shipped_share=0)
    assert (len(alone.calibration), alone.counts["shipped"]) == (300, 0)
    assert not SHIPPED & set(alone.training.texts)
    quarter = read_pools(OWN, tokenizer, examples=300, shipped_share=0.25)
    assert quarter.counts["shipped"] == 75


def test_text_that_a_tokenizer_does_not_know_is_not_mixed_in() -> None:
    from test_examples import tiny_tokenizer

    pools = read_pools(OWN, tiny_tokenizer(), examples=300)
    assert pools.counts["shipped"] == 0
    assert not SHIPPED & set(pools.training.texts)


def test_the_same_again(tokenizer: Any) -> None:
    """Recovery in a later command finds the hold-out of the first one, whatever share it mixes in."""
    first, again = (read_pools(OWN, tokenizer, examples=300) for _ in range(2))
    assert parts(first) == parts(again)
    alone = parts(read_pools(OWN, tokenizer, examples=300, shipped_share=0))
    assert parts(first)[2] - SHIPPED == alone[2]
    other = parts(read_pools(OWN, tokenizer, examples=300, shipped_share=0, seed=1))
    assert other[2] != alone[2]


def test_images_are_a_users_own_alone(tmp_path: Path) -> None:
    for index in range(60):
        Image.new("RGB", (20, 20), (index, 0, 0)).save(tmp_path / f"{index:02}.png")
    pools = read_pools(str(tmp_path), ViTImageProcessorPil(size={"height": 16, "width": 16}), examples=40)
    seen, trained, held = (set(p.images) for p in (pools.calibration, pools.training, pools.held_out))
    assert pools.counts == {"examples": 40, "shipped": 0}
    assert seen <= trained
    assert not trained & held
    assert (len(trained), len(held)) == (45, 15)


def test_default_images_are_the_same_and_others_judge() -> None:
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    pools = read_pools("default", processor, examples=2)
    for mine, theirs in zip(pools.calibration.images[:], read_images("default", 2, 0), strict=True):
        assert np.array_equal(np.asarray(mine), np.asarray(theirs))
    assert not np.array_equal(np.asarray(pools.held_out.images[0]), np.asarray(pools.calibration.images[0]))


@pytest.mark.parametrize(("settings", "given"), [({"examples": 0}, "0 and"), ({"shipped_share": 1}, "and 1")])
def test_numbers_out_of_range(tokenizer: Any, settings: dict[str, Any], given: str) -> None:
    with pytest.raises(CalibrationError, match=rf"shipped share in \[0, 1\), got .*{given}"):
        read_pools(OWN, tokenizer, **settings)


def test_two_towers_count_the_side_that_is_the_users(tokenizer: Any, tmp_path: Path) -> None:
    for index in range(8):
        Image.new("RGB", (20, 20), (index, 0, 0)).save(tmp_path / f"{index}.png")
    both = SimpleNamespace(
        model_input_names=["input_ids", "pixel_values"],
        tokenizer=tokenizer,
        image_processor=ViTImageProcessorPil(size={"height": 16, "width": 16}),
    )
    pictures = read_pools(str(tmp_path), both, examples=10)
    assert pictures.counts == {"examples": 6, "shipped": 0}
    assert set(pictures.calibration.texts) <= SHIPPED
    texts = read_pools(OWN, both, examples=30)
    assert texts.counts == {"examples": 30, "shipped": 15}
    assert (len(texts.calibration.images), len(texts.calibration)) == (30, 30)
