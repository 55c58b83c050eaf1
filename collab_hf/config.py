"""What the user asks for: `CollabConfig`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from .asked_parts import PART_NAMES, PORTABLE_PARTS, VOCABULARY, WHOLE_TARGETS, check_parts
from .files import read_size
from .layout import changed_repr
from .modeling.errors import ConfigError, RankError
from .modeling.forms import FORMS
from .modeling.kinds import checked_kinds, matches
from .modeling.shapes import ContentBias
from .ranges import check_above, check_plain, check_targets, check_whole, is_whole


@dataclass(frozen=True)
class CollabConfig:
    """What `compress_` is asked to do.

    Give ranks, or a budget or another target, or nothing: then `auto` takes the knee of the measured curve,
    and the other methods a quarter of the query/key parameters.

    Args:
        method: `auto` chooses by measured error at the budget; `cp`, `tucker`, `svd` or `copy`.
        rank: width of both shared projections; for svd the ranks of all heads together.
        query_rank: tucker; width of the shared query projection.
        key_rank: tucker; width of the shared key projection.
        score_width: tucker; width of the score product of one head, <= key_rank.
        key_groups: tucker; number of groups that heads are clustered into; each group has its own shared key.
        head_rank: tucker; rank of the core along the heads.
        tied: tucker; one shared projection serves queries and keys.
        dims_per_head: cp; number of shared dimensions that each head uses (sparse mixing).
        budget: share of the query/key parameters to keep at most, in (0, 1].
        target_params: auto; query/key parameters to keep at most.
        target_flops: auto; `LENGTH:SHARE`, operations for queries, keys and scores at that length, at
            most this share of the dense ones.
        max_loss: auto; greatest divergence of the output from the original's, predicted on calibration data.
        content_bias: `exact`, `folded`, or `auto`: folded where the score fits head_dim (for cp: fills
            it), else exact.
        solver: None for the structured solvers, or a tensorly decomposition such as `tensorly.parafac`.
        damping: added to the covariance's diagonal, relative to its mean (dimensionless, >= 0).
        seed: seed of every random choice.
        reconstruct_steps: gradient steps for each layer that fit its factors to its attention output on the
            calibration data, after the decomposition; 0 for none. They need data; statistics are not enough.
        hold_out: keep every fourth calibration example, 64 at most, out of the statistics, as planning does
            to measure on them; recipes that a plan wrote set it, so that they give the same result again.
        precision: dtype inside the solvers, `float64` or `float32`.
        attention: kinds of layers to compress, of `self`, `cross`, `encoder`, `decoder`, `text` and `vision`,
            or some of them joined, such as `decoder-cross`; the other layers stay dense. None given for all.
        layers: settings by layer name (shell-style pattern) that replace the fields above; the value `dense`
            leaves a layer alone.
        speedup: auto; how many times as fast as the original the model is to be on this machine, at `length`
            and `batch_size`, above 1.
        flops: auto; share of the operations of all layers to keep at most, at `length`, in (0, 1].
        params: auto; share of all parameters to keep at most, embeddings included, in (0, 1].
        size: auto; most that the weights may take on disk, such as `30MB`.
        parts: what the four above may make smaller; None for every part but the vocabulary. `vocabulary`
            drops the tokens that `vocabulary_from` never uses, before anything else.
        vocabulary_from: file or data set with the text whose tokens stay; for the part `vocabulary`.
        portable: keep the host's own class: only what its config can say becomes smaller.
        length: tokens of a sequence, for `speedup` and `flops`.
        batch_size: sequences at once, for `speedup`.
        plans: forms by part and module, as planning wrote them; they build the same model again.
        target: what the forms in `layers` or `plans` were planned for, as planning wrote it; for the reader.

    Raises:
        ConfigError: unknown values, or settings that contradict each other.
    """

    method: str = "auto"
    rank: int | None = None
    query_rank: int | None = None
    key_rank: int | None = None
    score_width: int | None = None
    key_groups: int = 1
    head_rank: int | None = None
    tied: bool = False
    dims_per_head: int | None = None
    budget: float | None = None
    target_params: int | None = None
    target_flops: str | None = None
    max_loss: float | None = None
    content_bias: Literal["auto", "exact", "folded"] = "auto"
    solver: str | None = None
    damping: float = 1e-3
    seed: int = 0
    reconstruct_steps: int = 75
    hold_out: bool = False
    precision: Literal["float64", "float32"] = "float64"
    attention: tuple[str, ...] = ()
    layers: Mapping[str, Mapping[str, Any] | Literal["dense"]] = field(default_factory=dict)
    speedup: float | None = None
    flops: float | None = None
    params: float | None = None
    size: str | None = None
    parts: tuple[str, ...] | None = None
    vocabulary_from: str | None = None
    portable: bool = False
    length: int = 128
    batch_size: int = 8
    plans: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)

    __repr__ = changed_repr

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        object.__setattr__(self, "attention", checked_kinds(self.attention))
        if self.method not in ("auto", *FORMS):
            raise ConfigError(f"method must be one of auto, {', '.join(FORMS)}, got {self.method!r}")
        if self.content_bias not in ("auto", *get_args(ContentBias)):
            raise ConfigError(f"content_bias must be auto, exact or folded, got {self.content_bias!r}")
        if self.precision not in ("float64", "float32"):
            raise ConfigError(f"precision must be float64 or float32, got {self.precision!r}")
        check_plain(self)
        check_targets(self)
        self._check_fields_fit_method()
        self._check_whole()

    def _check_whole(self) -> None:
        """Refuse targets for the whole model that are out of range, or beside others."""
        given = [name for name in self.goals if name in WHOLE_TARGETS]
        others = [name for name in self.goals if name not in WHOLE_TARGETS]
        if len(given) > 1 or (given and (others or self.layers)):
            among = [*given, *others, *(["layers"] if self.layers else [])]
            raise ConfigError(f"give one of {', '.join(WHOLE_TARGETS)} alone, got {' and '.join(among)}")
        if self.plans and self.goals:
            raise ConfigError(f"plans fixes the forms already, got {next(iter(self.goals))} beside it")
        if given and self.method != "auto":
            raise ConfigError(f"{given[0]} belongs to method auto, got it with method {self.method}")
        for name, low, high in (("speedup", 1.0, 1000.0), ("flops", 0.0, 1.0), ("params", 0.0, 1.0)):
            if getattr(self, name) is not None:
                check_above(name, getattr(self, name), low, high)
        if self.size is not None:
            read_size(self.size)
        for name in ("length", "batch_size"):
            check_whole(name, getattr(self, name))
        if self.parts is not None:
            object.__setattr__(self, "parts", tuple(self.parts))
        check_parts(self)

    @property
    def is_whole(self) -> bool:
        """Whether all parts of the model are planned under one budget, or have such plans already."""
        return bool(self.plans) or any(getattr(self, name) is not None for name in WHOLE_TARGETS)

    @property
    def goals(self) -> dict[str, Any]:
        """The budget or other targets that are asked for now, by name."""
        names = ("budget", *sorted(_TARGETS), *WHOLE_TARGETS)
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def asked_for(self) -> dict[str, Any]:
        """The goals, or where planned forms stand here already, what these were planned for."""
        return dict(self.target) if self.target and (self.plans or self.layers) else self.goals

    @property
    def planned_parts(self) -> tuple[str, ...]:
        """The parts that are planned under a target: all but the vocabulary, which goes before."""
        names = self.parts or (PORTABLE_PARTS if self.portable else PART_NAMES)
        return tuple(name for name in names if name != VOCABULARY)

    @property
    def vocabulary_alone(self) -> bool:
        """Whether rows of the vocabulary go and nothing else changes."""
        return self.parts is not None and set(self.parts) == {VOCABULARY}

    def _check_fields_fit_method(self) -> None:
        allowed = _FIELDS_OF_METHOD[self.method]
        for name in sorted({*_RANK_FIELDS, *_TARGETS} - allowed):
            if getattr(self, name) != _NO_RANKS[name]:
                owners = ", ".join(m for m, names in _FIELDS_OF_METHOD.items() if name in names)
                raise ConfigError(f"{name} belongs to method {owners}, got it with method {self.method}")
        for name in _RANK_FIELDS.keys() - {"tied"}:
            value = getattr(self, name)
            if not is_whole(value) and not (value is None and _NO_RANKS[name] is None):
                raise RankError(f"{name} must be an integer of at least 1, got {value!r}")
        goals = [n for n in ("budget", "target_params", "max_loss") if getattr(self, n) is not None]
        if len(goals) > 1:
            raise ConfigError(f"give one of budget, target_params and max_loss, got {' and '.join(goals)}")
        if self.budget is not None and (self.rank or self.query_rank or self.key_rank):
            raise ConfigError("give a budget or ranks, not both")
        if self.rank and (self.query_rank or self.key_rank):
            raise ConfigError("give rank, or query_rank and key_rank, not both")
        if self.tied and (self.key_groups > 1 or self.head_rank):
            raise ConfigError("tied can't be combined with key_groups or head_rank")
        if (self.query_rank is None) != (self.key_rank is None):
            raise ConfigError("query_rank and key_rank are given together or not at all")

    @property
    def exact(self) -> bool:
        """Whether every layer's form equals the dense one, so that no data is needed."""
        return not self.layers and self.method in FORMS and FORMS[self.method].exact

    def for_layer(self, name: str) -> CollabConfig | None:
        """The settings of one layer: the last pattern in `layers` that matches its name wins.

        Args:
            name: the attention layer's name in the model.

        Returns:
            The settings, or None for a layer that stays dense.

        Raises:
            ConfigError: an override names an unknown field, or contradicts itself.
        """
        if not matches(name, self.attention):
            return None
        chosen: Mapping[str, Any] | str = {}
        for pattern, override in self.layers.items():
            if fnmatchcase(name, pattern):
                chosen = override
        if isinstance(chosen, str):
            if chosen != "dense":
                raise ConfigError(
                    f"a layer's settings must be a mapping or 'dense', got {chosen!r} for {name}"
                )
            return None
        base = replace(self, layers={})
        if {*_RANK_FIELDS, "method", "budget"} & set(chosen):
            base = replace(base, method=chosen.get("method", self.method), **_NO_RANKS)
        try:
            return replace(base, **chosen)
        except TypeError as error:
            raise ConfigError(f"cannot read the settings for {name}: {error}") from None

    def check_goals(self, names: Iterable[str]) -> None:
        """Warn of a budget or another target that no layer is left for, as beside a recipe that a plan wrote.

        Args:
            names: the model's attention layers.
        """
        settings = [found for name in names if (found := self.for_layer(name)) is not None]
        for goal in self.goals:
            if not any(getattr(found, goal) == getattr(self, goal) for found in settings):
                warnings.warn(
                    f"{goal} has no effect, because layers fixes the form of every layer", stacklevel=3
                )

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, ready for YAML or JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layers"}
        defaults = {f.name: f.default for f in fields(self)}
        written = {"plans", "target"}  # below, if there is anything in them
        kept = {name: v for name, v in values.items() if name not in written and v != defaults[name]}
        kept |= {name: list(kept[name]) for name in ("attention", "parts") if name in kept}
        if self.layers:
            kept["layers"] = {name: v if isinstance(v, str) else dict(v) for name, v in self.layers.items()}
        if self.plans:
            kept["plans"] = {s: {n: dict(v) for n, v in forms.items()} for s, forms in self.plans.items()}
        if self.target:
            kept["target"] = dict(self.target)
        return kept

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CollabConfig:
        """Read settings from a recipe.

        Args:
            values: fields by name, as `to_dict` gives them.

        Returns:
            The settings.

        Raises:
            ConfigError: a field is unknown or its value is refused.
        """
        known = [f.name for f in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise ConfigError(f"there is no setting {unknown[0]!r}; there are {', '.join(known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"cannot read the settings: {error}") from None


# Fields that settle a form, with the value that says nothing.
_RANK_FIELDS: dict[str, Any] = {
    "rank": None,
    "query_rank": None,
    "key_rank": None,
    "score_width": None,
    "key_groups": 1,
    "head_rank": None,
    "tied": False,
    "dims_per_head": None,
}
_TARGETS = frozenset({"target_params", "target_flops", "max_loss"})
_NO_RANKS: dict[str, Any] = {**_RANK_FIELDS, **dict.fromkeys((*_TARGETS, "budget"))}
_FIELDS_OF_METHOD: dict[str, frozenset[str]] = {
    "auto": _TARGETS,
    **{method: form.settings for method, form in FORMS.items()},
}
