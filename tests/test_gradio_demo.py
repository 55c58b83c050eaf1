"""The page's work, without a browser; the page itself where gradio is installed."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from cli_support import (
    SENTENCES,
    VOCABULARY,
    CommandLine,
    save_with_image_processor,
    save_with_tokenizer,
)
from conftest import REPOSITORY
from PIL import Image

import side_by_side
from collab_hf import CollabError
from side_by_side import Asked, compare


@pytest.fixture
def encoder(tiny_bert: Callable[..., Any], tmp_path: Path) -> str:
    model = tiny_bert(vocab_size=len(VOCABULARY), hidden_size=48)
    return str(save_with_tokenizer(model, tmp_path / "encoder"))


@pytest.fixture
def image_encoder(tiny_vit: Callable[..., Any], tmp_path: Path) -> str:
    return str(save_with_image_processor(tiny_vit(), tmp_path / "image"))


def ignore(*_: Any) -> None:
    """A listener that hears nothing."""


def axis_names(figure: Any) -> list[list[str]]:
    """Words at the axes of the first map, and below the second."""
    first, second = figure.axes
    labels = (first.get_yticklabels(), first.get_xticklabels(), second.get_xticklabels())
    return [[label.get_text() for label in side] for side in labels]


def two_images(folder: Path) -> list[str]:
    """Files of a blue and of a green image."""
    files = [folder / "sky.png", folder / "grass.png"]
    for file, color in zip(files, ("blue", "green"), strict=True):
        Image.new("RGB", (32, 24), color).save(file)
    return [str(file) for file in files]


def test_a_comparison(encoder: str, tmp_path: Path) -> None:
    asked, heard = Asked(encoder, "tucker", 0.5, 40), []
    found = compare(asked, SENTENCES, [], tmp_path, lambda *step: heard.append(step))
    assert len(found.layers) == 2
    assert {len(row) for row in found.layers} == {len(side_by_side.LAYER_COLUMNS)}
    assert "of the query/key parameters kept" in found.summary
    assert [axes.get_title() for axes in found.similarities.axes] == ["original", "compressed"]
    assert axis_names(found.similarities) == [SENTENCES] * 3
    assert len(found.errors.axes[0].patches) == 2
    assert found.pictures == []
    stages = list(dict.fromkeys(title.split()[0] for title, _, _ in heard))
    assert stages == [
        "Loading",
        "Reading",
        "Running",
        "Decomposing",
        "Fitting",
        "Writing",
        "Comparing",
        "Packing",
    ]
    assert [step[1:] for step in heard if step[0] == "Decomposing"] == [(0, 2), (1, 2), (2, 2)]


def test_the_zip_file_has_what_the_command_writes(
    encoder: str, tmp_path: Path, collab_hf: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(encoder, "svd", 0.5, 40)
    found = compare(asked, SENTENCES, [], tmp_path, ignore)
    assert list(tmp_path.glob("*.zip")) == [found.archive]
    assert asked.command in found.summary
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(asked.command)
    assert program == "collab-hf"
    assert collab_hf(*words).code == 0
    with ZipFile(found.archive) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    assert packed == {
        f"encoder-collab/{file.name}": file.read_bytes() for file in Path("encoder-collab").iterdir()
    }


def test_images(image_encoder: str, tmp_path: Path) -> None:
    asked = Asked(image_encoder, "tucker", 0.5, 8)
    shipped = compare(asked, [], [], tmp_path, ignore)
    names = [f"image {number}" for number in range(1, 7)]
    assert axis_names(shipped.similarities) == [names] * 3
    assert [name for _, name in shipped.pictures] == names
    files = two_images(tmp_path)
    own = compare(asked, SENTENCES, files, tmp_path, ignore)
    assert axis_names(own.similarities) == [["sky", "grass"]] * 3
    assert own.pictures[0][0].getpixel((0, 0)) == (0, 0, 255)
    (tmp_path / "sky.png").write_text("no image")
    with pytest.raises(CollabError, match=r"sky\.png"):
        compare(asked, [], files, tmp_path, ignore)
    with pytest.raises(CollabError, match="at least two images, got 1"):
        compare(asked, [], files[1:], tmp_path, ignore)


def test_names_at_the_axes_are_text() -> None:
    names = ["costs $5, or $6", "a sentence that is much too long for an axis of the map"]
    figure = side_by_side.plot_similarities(torch.eye(2), torch.eye(2), names)
    figure.canvas.draw()  # as formulas, unbalanced ones would fail here
    for side in axis_names(figure):
        assert side == [names[0], f"{names[1][:29]}…"]
    assert not any(label.get_parse_math() for label in figure.axes[1].get_xticklabels())


def test_what_cannot_be_compared(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="at least two sentences, got 1"):
        compare(Asked(encoder, "tucker", 0.5), SENTENCES[:1], [], tmp_path, ignore)
    with pytest.raises(CollabError, match="budget must be"):
        compare(Asked(encoder, "tucker", 2.0), SENTENCES, [], tmp_path, ignore)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


PAGE = """
import sys
from pathlib import Path
from gradio_client import Client, handle_file
from gradio_demo import build_page

model, image_model, folder, *files = sys.argv[1:]
page = build_page(model, Path(folder))
page.launch(prevent_thread_lock=True, quiet=True)
client = Client(page.local_url, verbose=False, download_files=folder)
try:
    client.predict(model, "svd", 0.5, 32, "one alone", None, api_name="/compare")
except Exception as error:
    print(error)
found = client.predict(model, "svd", 0.5, 32, "a cat\\na dog", None, api_name="/compare")
print(Path(found[1]).name, len(found[5]["data"]))
found = client.predict(image_model, "svd", 0.5, 32, "", [handle_file(f) for f in files], api_name="/compare")
print(Path(found[1]).name, [picture["caption"] for picture in found[3]])
page.close(verbose=False)
"""


@pytest.mark.skipif(find_spec("gradio") is None, reason="an extra of its own: it wants an older pillow")
def test_the_page(encoder: str, image_encoder: str, tmp_path: Path) -> None:
    """In a process of its own: gradio leaves event loops open, and warnings are errors here."""
    paths = os.pathsep.join([str(REPOSITORY / "scripts"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": paths, "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PAGE, encoder, image_encoder, str(tmp_path), *two_images(tmp_path)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "a comparison needs at least two sentences, got 1",
        "encoder-collab.zip 2",
        "image-collab.zip ['sky', 'grass']",
    ], done.stderr
    assert "Traceback" not in done.stderr
