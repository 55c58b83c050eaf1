"""Recipes are what YAML says, and YAML lets everything through."""

from pathlib import Path
from typing import Any

import pytest

from collab_hf.config import CollabConfig
from collab_hf.modeling.errors import ConfigError
from collab_hf.recipe import Recipe, current_versions, public_name, read_by


def test_a_recipe_survives_the_round_trip(tmp_path: Path) -> None:
    layers = {"*.0.*": "dense", "*.1.*": {"method": "svd", "rank": 8}}
    recipe = Recipe(
        CollabConfig(method="cp", budget=0.5, damping=1, layers=layers),
        calibration="a data set/with-a-name:part",
        calibration_examples=7,
        shipped_share=0.25,
        model="me/model",
        versions=current_versions(),
    )
    recipe.write(tmp_path / "recipe.yaml")
    assert Recipe.from_dict(Recipe.read(tmp_path / "recipe.yaml")) == recipe


def test_how_examples_were_drawn_is_found_again(tmp_path: Path) -> None:
    assert Recipe.sampling(tmp_path) == Recipe(CollabConfig()).drawn
    recipe = Recipe(CollabConfig(seed=4), "mine.txt", 50, 0.0)
    recipe.write(tmp_path / "collab_recipe.yaml")
    assert Recipe.sampling(tmp_path) == recipe.drawn
    assert read_by(tmp_path) == {"mine.txt"}


def test_an_empty_recipe_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert Recipe.from_dict(Recipe.read(tmp_path / "empty.yaml")) == Recipe(CollabConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": "6"}, "rank in the recipe must be a whole number or null, got '6'"),
        ({"rank": True}, "rank in the recipe must be a whole number or null, got True"),
        ({"budget": "half"}, "budget in the recipe must be a number or null, got 'half'"),
        ({"seed": None}, "seed in the recipe must be a whole number, got None"),
        ({"calibration": 3}, "calibration in the recipe must be text, got 3"),
        ({"calibration_examples": 0}, "calibration_examples must be a whole number of at least 1, got 0"),
        ({"shipped_share": 1}, r"shipped_share must be in \[0, 1\), got 1"),
        ({"layers": 5}, "layers in the recipe must be a mapping, got 5"),
        ({"layers": {"a": 3}}, "a layer's settings must be a mapping or dense, got 3 for 'a'"),
        ({"layers": {1: {}}}, "a layer's settings must be a mapping or dense, got {} for 1"),
        (
            {"layers": {"a": {"ranks": 3}}},
            "unknown setting 'ranks' in the recipe for 'a'; it knows attention",
        ),
        ({"layers": {"a": {"layers": {}}}}, "unknown setting 'layers' in the recipe for 'a'"),
        ({"config": {}}, "unknown setting 'config' in the recipe"),
        ({"method": ["cp"]}, r"method in the recipe must be text, got \['cp'\]"),
    ],
)
def test_values_of_a_wrong_kind_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict(values)


def test_a_public_name_has_no_local_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    assert public_name(str(tmp_path / "model")) == "model"
    monkeypatch.chdir(tmp_path / "model")
    assert public_name(".") == "model"
    assert public_name("owner/model") == "owner/model"
