"""Calibration examples from every kind of source, and the batches made of them."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from cli_support import VOCABULARY
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    BartConfig,
    BertConfig,
    BertTokenizer,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
)

from collab_hf.calibration.examples import ExampleBatches, load_batches
from collab_hf.calibration.sources import DEFAULT_TEXT_FILE, open_image, read_images, read_texts
from collab_hf.errors import CalibrationError

LINES = ["The cat sat.", "A dog ran home", "Rain", "Nobody came to the party"]


def tiny_tokenizer(**settings: object) -> PreTrainedTokenizerFast:
    """Splits at spaces; every word is one of 50 tokens."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2, **{f"w{i}": i for i in range(3, 50)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    defaults = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**defaults, **settings})


def tiny_image_processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


def picture(value: int, size: int = 20) -> Image.Image:
    return Image.new("RGB", (size, size), (value, value, value))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images in two folders, and a file that is none."""
    (tmp_path / "b").mkdir()
    picture(30).save(tmp_path / "b" / "last.PNG")
    picture(10).save(tmp_path / "a.png")
    Image.new("L", (20, 20), 20).save(tmp_path / "b.jpg")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_default_text_is_varied() -> None:
    lines = DEFAULT_TEXT_FILE.read_text(encoding="utf-8").splitlines()
    words = Counter(word for line in lines for word in line.lower().split())
    lengths = np.array([len(line.split()) for line in lines])
    openings = Counter(" ".join(line.split()[:3]) for line in lines)
    assert len(lines) >= 1000
    assert len(set(lines)) == len(lines)
    assert lengths.min() >= 4
    assert lengths.max() <= 45
    assert (lengths < 8).sum() > 50
    assert (lengths > 25).sum() > 40
    assert len(words) > 5000
    assert openings.most_common(1)[0][1] <= 6  # no template repeated with other words


def test_default_text_is_sampled() -> None:
    texts = read_texts("default", 100, 0)
    lines = DEFAULT_TEXT_FILE.read_text(encoding="utf-8").splitlines()
    assert len(texts) == 100
    assert texts == [line for line in lines if line in set(texts)]  # in the order of the file
    assert texts == read_texts("default", 100, 0)
    assert texts != read_texts("default", 100, 1)


def test_text_file_one_example_a_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffÉtude no. 1\r\n\r\n   \n  second, with space \nthird".encode())
    assert read_texts(path, 10, 0) == ["Étude no. 1", "second, with space", "third"]
    assert read_texts(str(path), 2, 0) in (
        [["Étude no. 1", "third"], ["Étude no. 1", "second, with space"], ["second, with space", "third"]]
    )


def test_text_file_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    picture(1).save(tmp_path / "image.png")
    with pytest.raises(CalibrationError, match=r"empty.txt holds no example$"):
        read_texts(tmp_path / "empty.txt", 10, 0)
    with pytest.raises(CalibrationError, match=r"latin.txt is not UTF-8 text \(.*\); save it as UTF-8"):
        read_texts(tmp_path / "latin.txt", 10, 0)
    with pytest.raises(
        CalibrationError, match=r"missing.txt does not exist; calibration data is a text file"
    ):
        read_texts(str(tmp_path / "missing.txt"), 10, 0)
    with pytest.raises(CalibrationError, match=r"missing.txt does not exist"):
        read_texts("missing.txt", 10, 0)  # not taken for a data set of that name
    with pytest.raises(CalibrationError, match=r"this model reads text, but .*image.png is an image"):
        read_texts(tmp_path / "image.png", 10, 0)


ROWS = [{"text": f"{line} {i}", "topic": "sport", "score": i} for i in range(3) for line in LINES]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_give_their_text_columns(tmp_path: Path, suffix: str) -> None:
    path, table = tmp_path / f"table.{suffix}", datasets.Dataset.from_list(ROWS).to_pandas()
    if suffix == "csv":
        table.to_csv(path, index=False)
    elif suffix == "tsv":
        path.write_text(
            "text\ttopic\tscore\n" + "".join("\t".join(map(str, r.values())) + "\n" for r in ROWS)
        )
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        table.to_parquet(path)
    assert read_texts(path, 100, 0) == [row["text"] for row in ROWS]  # neither the topic nor the score


def test_a_lone_quotation_mark_does_not_swallow_rows_of_a_tsv(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    path.write_text('one\ttwo\n"Hello she said\tsecond\nthird\tfourth\n')
    assert read_texts(path, 10, 0) == ['"Hello she said', "second", "third", "fourth"]


def test_a_broken_table_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text("{not json")
    with pytest.raises(CalibrationError, match=r"^.*table.jsonl can't be loaded as a data set: [^\n]*$"):
        read_texts(path, 10, 0)


def test_dataset_objects_and_folders(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    expected = [row["text"] for row in ROWS]
    assert read_texts(dataset, 100, 0) == expected
    sampled = read_texts(dataset, 5, 3)
    assert len(sampled) == 5
    assert sampled == [text for text in expected if text in sampled]
    dataset.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": dataset.select([0]), "train": dataset}).save_to_disk(
        str(tmp_path / "splits")
    )
    assert read_texts(tmp_path / "one", 100, 0) == expected
    assert read_texts(str(tmp_path / "splits"), 100, 0) == expected  # the train split


def test_datasets_without_text_or_images() -> None:
    numbers = datasets.Dataset.from_dict({"x": [1, 2], "y": [3, 4]})
    with pytest.raises(CalibrationError, match="the data set has no text column, only x, y"):
        read_texts(numbers, 10, 0)
    with pytest.raises(CalibrationError, match="the data set has no image column, only x, y"):
        read_images(numbers, 10, 0)
    blank = datasets.Dataset.from_dict({"text": ["", None, " "]})
    with pytest.raises(CalibrationError, match="the data set holds no example"):
        read_texts(blank, 10, 0)


def test_an_unknown_dataset_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, configuration: str | None) -> None:
        raise ConnectionError(f"no {name}\nwith {configuration}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        CalibrationError, match=r"a/b:c can't be loaded as a data set: no a/b with c; calibration"
    ):
        read_texts("a/b:c", 10, 0)


def test_lists_of_texts() -> None:
    assert read_texts(["one ", "", "two"], 10, 0) == ["one", "two"]
    assert len(read_texts(LINES, 2, 0)) == 2
    with pytest.raises(CalibrationError, match="the list of examples holds no example"):
        read_texts([], 10, 0)
    with pytest.raises(CalibrationError, match="reads text, but the list of examples holds a int"):
        read_texts(["one", 2], 10, 0)
    with pytest.raises(CalibrationError, match=r"calibration data must be a text file, .* got int"):
        read_texts(3, 10, 0)


def test_image_folders_are_sorted(folder: Path) -> None:
    images = read_images(folder, 10, 0)
    opened = [open_image(images, index) for index in range(len(images))]
    assert [image.getpixel((0, 0)) for image in opened] == [(10, 10, 10), (30, 30, 30), (20, 20, 20)]
    assert all(image.mode == "RGB" for image in opened)  # b.jpg is grey
    assert len(read_images(str(folder), 2, 0)) == 2


def test_a_corrupt_image_is_named(folder: Path) -> None:
    whole = (folder / "a.png").read_bytes()
    for broken in (b"", b"no image", whole[: len(whole) // 2]):
        (folder / "a.png").write_bytes(broken)
        with pytest.raises(CalibrationError, match=r"a\.png can't be decoded \(.*\); remove it or repair it"):
            list(load_batches(folder, tiny_image_processor()))


def test_image_sources_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match=r"this model reads images, but .*some.txt is a file"):
        read_images(tmp_path / "some.txt", 10, 0)
    with pytest.raises(CalibrationError, match=r"empty can't be loaded as a data set"):
        read_images(tmp_path / "empty", 10, 0)
    with pytest.raises(CalibrationError, match=r"does not exist"):
        read_images(tmp_path / "missing", 10, 0)
    with pytest.raises(CalibrationError, match=r"reads images, but the list of examples holds a str"):
        read_images(LINES, 10, 0)


def test_datasets_with_images() -> None:
    features = datasets.Features({"label": datasets.Value("int64"), "img": datasets.Image()})
    rows = {"label": [0, 1, 2], "img": [picture(value) for value in (10, 20, 30)]}
    images = read_images(datasets.Dataset.from_dict(rows, features=features), 10, 0)
    assert [open_image(images, i).getpixel((0, 0))[0] for i in range(3)] == [10, 20, 30]


def test_text_batches_are_sorted_and_can_be_read_again() -> None:
    texts = [" ".join(["w5"] * count) for count in (9, 1, 5, 3, 7)]
    batches = load_batches(texts, tiny_tokenizer(), batch_size=2)
    assert isinstance(batches, ExampleBatches)
    assert len(batches) == 3
    first, second = list(batches), list(batches)
    assert [batch["attention_mask"].sum(dim=1).tolist() for batch in first] == [[1], [3, 5], [7, 9]]
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


def test_length_is_counted_in_tokens() -> None:
    batches = load_batches(
        ["an-uncommonly-long-single-word", "w3 w4 w5", "w6"], tiny_tokenizer(), batch_size=2
    )
    assert batches.texts == ["an-uncommonly-long-single-word", "w6", "w3 w4 w5"]


def test_every_example_is_used_once() -> None:
    texts = [f"w{i}" for i in range(3, 50)]
    for batch_size in (1, 4, 46, 47, 100):
        batches = load_batches(texts, tiny_tokenizer(), batch_size=batch_size)
        ids = torch.cat([batch["input_ids"].flatten() for batch in batches])
        assert sorted(ids.tolist()) == list(range(3, 50))
        assert max(len(batch["input_ids"]) for batch in batches) <= batch_size


def test_texts_are_cut_to_what_the_model_takes() -> None:
    texts = [" ".join(["w5"] * 60)]

    def length(max_length: int, tokenizer: PreTrainedTokenizerFast, config: object = None) -> int:
        (batch,) = load_batches(texts, tokenizer, config=config, max_length=max_length)
        return batch["input_ids"].shape[1]

    assert length(128, tiny_tokenizer()) == 60
    assert length(50, tiny_tokenizer()) == 50
    assert length(50, tiny_tokenizer(model_max_length=40)) == 40
    assert length(50, tiny_tokenizer(), BertConfig(max_position_embeddings=32)) == 30


def test_a_tokenizer_without_padding_token_is_not_changed() -> None:
    tokenizer = tiny_tokenizer(pad_token=None)
    (batch,) = load_batches(["w3", "w4 w5"], tokenizer)
    assert batch["input_ids"].tolist() == [[3, 2], [4, 5]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert tokenizer.pad_token is None


def test_a_model_without_mask_sees_the_padding_it_was_trained_with() -> None:
    tokenizer = tiny_tokenizer(model_input_names=["input_ids"], model_max_length=6)
    (batch,) = load_batches(["w3", "w4 w5"], tokenizer)
    assert batch["input_ids"].shape == (2, 6)
    assert "attention_mask" not in batch


def test_decoders_read_the_text_shifted() -> None:
    config = BartConfig(decoder_start_token_id=2)
    (batch,) = load_batches(["w3", "w4 w5 w6"], tiny_tokenizer(), config=config)
    assert batch["decoder_input_ids"].tolist() == [[2, 3, 0], [2, 4, 5]]
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    config.decoder_start_token_id = None
    with pytest.raises(CalibrationError, match="needs decoder_start_token_id in its configuration"):
        load_batches(["w3"], tiny_tokenizer(), config=config)


def test_image_batches() -> None:
    batches = load_batches([picture(value) for value in range(5)], tiny_image_processor(), batch_size=2)
    shapes = [tuple(batch["pixel_values"].shape) for batch in batches]
    assert [shape[0] for shape in shapes] == [1, 2, 2]
    assert {shape[1:] for shape in shapes} == {(3, 16, 16)}
    values = torch.cat([batch["pixel_values"][:, 0, 0, 0] for batch in batches])
    assert torch.equal(values, values.sort().values)  # all five, in their order


def test_default_images_for_an_image_model() -> None:
    batches = load_batches("default", tiny_image_processor(), max_examples=3)
    assert [tuple(batch["pixel_values"].shape) for batch in batches] == [(3, 3, 16, 16)]


def two_towers() -> SimpleNamespace:
    parts = {"tokenizer": tiny_tokenizer(), "image_processor": tiny_image_processor()}
    return SimpleNamespace(model_input_names=["input_ids", "attention_mask", "pixel_values"], **parts)


def test_two_towers_get_both_sides() -> None:
    texts = load_batches(LINES, two_towers(), batch_size=2, max_examples=4)
    assert sorted(texts.texts) == sorted(LINES)
    pairs = [(len(batch["input_ids"]), len(batch["pixel_values"])) for batch in texts]
    assert pairs == [(2, 2), (2, 2)]
    images = load_batches([picture(1)], two_towers(), batch_size=2, max_examples=4)
    assert [(len(batch["input_ids"]), len(batch["pixel_values"])) for batch in images] == [(2, 1), (2, 1)]


def test_two_towers_find_texts_and_images_in_one_dataset() -> None:
    rows = {"caption": LINES, "image": [picture(value) for value in range(4)]}
    features = datasets.Features({"caption": datasets.Value("string"), "image": datasets.Image()})
    batches = load_batches(datasets.Dataset.from_dict(rows, features=features), two_towers())
    assert sorted(batches.texts) == sorted(LINES)
    assert len(batches.images) == 4


def smiles_tokenizer() -> PreTrainedTokenizerFast:
    """Knows atoms, and drops everything else instead of calling it unknown."""
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", *"cnosp"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[cnosp]"), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def letter_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={token: index for index, token in enumerate(VOCABULARY)})


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), smiles_tokenizer()], ids=["unknown", "dropped"])
def test_default_text_that_the_tokenizer_cannot_spell(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.warns(UserWarning, match="the default text does not suit this model: its tokenizer keeps"):
        load_batches("default", tokenizer, max_examples=20)


def test_no_warning_where_the_text_fits_or_is_the_users() -> None:
    """Negative control: warnings are errors here."""
    assert load_batches("default", letter_tokenizer(), max_examples=20)
    assert load_batches(LINES, smiles_tokenizer())


def test_wrong_arguments() -> None:
    with pytest.raises(CalibrationError, match="batch_size must be at least 1, got 0"):
        load_batches(LINES, tiny_tokenizer(), batch_size=0)
    with pytest.raises(CalibrationError, match="max_examples must be at least 1, got -1"):
        load_batches(LINES, tiny_tokenizer(), max_examples=-1)
    with pytest.raises(
        CalibrationError, match="for text and images, but SimpleNamespace prepares input_features"
    ):
        load_batches("default", SimpleNamespace(model_input_names=["input_features"]))
    with pytest.raises(CalibrationError, match="but NoneType prepares neither; pass batches"):
        load_batches("default", None)
