"""The recipe of a compressed checkpoint: every choice that made it, as a YAML file that makes it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from .asked_parts import WHOLE_TARGETS
from .config import CollabConfig
from .files import RECIPE_FILE, RECOVERY_FILE
from .modeling.errors import ConfigError
from .ranges import check_seed, check_whole, is_number

_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Mapping: "a mapping",
    list: "a list",
    type(None): "null",
}

NO_CALIBRATION = "none"
DEFAULT_EXAMPLES = 1000
# Beside a user's narrow text: of all-MiniLM-L6-v2 this kept more on that text too (docs/benchmarks).
SHIPPED_SHARE = 0.5


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint was, or is to be, compressed.

    Attributes:
        config: method and ranks.
        calibration: `default`, `none`, a file, a folder or a data set id.
        calibration_examples: examples used at most.
        shipped_share: share of them that ship with the package, beside a user's own texts.
        model: the checkpoint that was compressed, by id or by its directory's last name; for the reader.
        versions: of the packages that made it; for the reader.
    """

    config: CollabConfig
    calibration: str = "default"
    calibration_examples: int = DEFAULT_EXAMPLES
    shipped_share: float = SHIPPED_SHARE
    model: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """Read a recipe's entries; `from_dict` makes a recipe of them, alone or with others laid over them.

        Args:
            path: a YAML file.

        Returns:
            The entries by name.

        Raises:
            ConfigError: the file can't be read, or is not a mapping.
        """
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"the recipe {path} can't be read: {error.strerror}") from error
        except (
            yaml.YAMLError,
            ValueError,
            RecursionError,
        ) as error:  # ValueError: a date that no calendar has
            deep = isinstance(error, RecursionError)
            reason = "it is nested too deeply" if deep else " ".join(str(error).split())
            raise ConfigError(f"the recipe {path} is not YAML: {reason}") from error
        if values is None:
            return {}
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise ConfigError(f"the recipe {path} must be a mapping of settings, got {type(values).__name__}")
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Make a recipe of its entries.

        Args:
            values: the fields of `CollabConfig` and of `Recipe`, side by side.

        Returns:
            The recipe.

        Raises:
            ConfigError: an unknown entry, or settings that contradict each other or lack the data they need.
        """
        own = {name for name in cls.__dataclass_fields__ if name != "config"}
        _check_entries(values, {**get_type_hints(CollabConfig), **get_type_hints(cls)}, "the recipe")
        for pattern, override in values.get("layers", {}).items():
            if override != "dense" and not (isinstance(pattern, str) and isinstance(override, Mapping)):
                raise ConfigError(
                    f"a layer's settings must be a mapping or dense, got {override!r} for {pattern!r}"
                )
            hints = {name: hint for name, hint in get_type_hints(CollabConfig).items() if name != "layers"}
            _check_entries({} if override == "dense" else override, hints, f"the recipe for {pattern!r}")
        _check_drawn(values)
        settings = {name: value for name, value in values.items() if name not in own}
        rest = {name: value for name, value in values.items() if name in own}
        recipe = cls(CollabConfig.from_dict(settings), **rest)
        check_data(recipe.config, recipe.calibration)
        return recipe

    @property
    def drawn(self) -> dict[str, Any]:
        """How its examples are drawn: what `read_pools` takes."""
        return {
            "examples": self.calibration_examples,
            "seed": self.config.seed,
            "shipped_share": self.shipped_share,
        }

    @classmethod
    def sampling(cls, directory: Path) -> dict[str, Any]:
        """How the examples that a checkpoint was made with were drawn, so that its hold-out is found again.

        Args:
            directory: of the checkpoint; without a recipe, as for any model, the defaults are given.

        Returns:
            What `read_pools` takes.

        Raises:
            ConfigError: a recipe that can't be read, or that says something impossible.
        """
        path = directory / RECIPE_FILE
        values = cls.read(path) if path.is_file() else {}
        _check_drawn(values)
        return {
            "examples": values.get("calibration_examples", DEFAULT_EXAMPLES),
            "seed": values.get("seed", 0),
            "shipped_share": values.get("shipped_share", SHIPPED_SHARE),
        }

    def write(self, path: Path) -> None:
        """Write the recipe as YAML, without local paths.

        Args:
            path: the file.
        """
        values: dict[str, Any] = {
            "model": self.model,
            **({"target": dict(self.config.target)} if self.config.target else {}),  # near the top
            **self.config.to_dict(),
            "calibration": public_source(self.calibration),
        }
        if self.calibration_examples != DEFAULT_EXAMPLES:
            values["calibration_examples"] = self.calibration_examples
        if self.calibration not in ("default", NO_CALIBRATION):
            values["shipped_share"] = self.shipped_share
        values["versions"] = dict(self.versions)
        path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _check_drawn(values: Mapping[str, Any]) -> None:
    """Refuse what a recipe can't say of how examples were drawn."""
    check_whole("calibration_examples", values.get("calibration_examples", 1))
    check_seed(values.get("seed", 0))
    share = values.get("shipped_share", 0)
    if not is_number(share) or not 0 <= share < 1:
        raise ConfigError(f"shipped_share must be in [0, 1), got {share!r}")


def check_data(config: CollabConfig, calibration: Any) -> None:
    """Refuse settings whose losses are measured on data, where there is none.

    Args:
        config: settings.
        calibration: what was given, or `none`.

    Raises:
        ConfigError: names the setting.
    """
    measured = [name for name in ("max_loss", *WHOLE_TARGETS) if getattr(config, name) is not None]
    if measured and isinstance(calibration, str) and calibration == NO_CALIBRATION:
        raise ConfigError(f"{measured[0]} is measured on calibration data, got calibration none")


def _check_entries(values: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    """Refuse unknown names and values of a wrong type, which YAML lets through."""
    known = sorted(set(hints) - {"config"})
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown setting {name!r} in {where}; it knows {', '.join(known)}")
        alternatives = get_args(hints[name]) if get_origin(hints[name]) is UnionType else (hints[name],)
        choices = [kind for hint in alternatives if isinstance(kind := get_origin(hint) or hint, type)]
        choices = [list if kind is tuple else kind for kind in choices]  # YAML has no tuples
        # To Python an int is no float, and a bool is an int; `rank: yes` is a mistake.
        accepted = (*choices, int) if float in choices else tuple(choices)
        wrong = not isinstance(value, accepted) or (isinstance(value, bool) and bool not in choices)
        if choices and wrong:
            names = " or ".join(_TYPE_NAMES[choice] for choice in choices if choice in _TYPE_NAMES)
            raise ConfigError(f"{name} in {where} must be {names}, got {value!r}")


def public_name(model: str) -> str:
    """A checkpoint's name without the local path that leads to it.

    Args:
        model: a Hub id or a local directory.

    Returns:
        The id, or the directory's last name.
    """
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def public_source(data: str) -> str:
    """What data was read, without the local path that leads to it.

    Args:
        data: a file, a folder or a data set id.

    Returns:
        The file's or folder's name, or the id.
    """
    local = Path(data).expanduser()
    return local.name if local.exists() else data


def read_by(directory: Path) -> set[str]:
    """Names of the data that calibrated a checkpoint or recovered it.

    Args:
        directory: of the checkpoint.

    Returns:
        The names, without the local paths that led to them; none for a checkpoint without a recipe.

    Raises:
        ConfigError: a recipe or report of a recovery that can't be read.
    """
    recipe, recovery = directory / RECIPE_FILE, directory / RECOVERY_FILE
    names = []
    if recipe.is_file():
        names.append(Recipe.read(recipe).get("calibration"))
    if recovery.is_file():
        try:
            found = json.loads(recovery.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{recovery} can't be read: {error}") from error
        names.append(found.get("data") if isinstance(found, dict) else None)
    return {name for name in names if isinstance(name, str)}


def current_versions() -> dict[str, str]:
    """Versions of the packages that decide about the numbers."""
    return {name: version(name) for name in ("collab-hf", "torch", "transformers")}
