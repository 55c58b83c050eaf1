"""Who may read which examples: calibration, recovery, or nobody until the result is judged.

The hold-out is set aside before anything reads the data, so that nothing was fitted to what judges. It
depends on the source, the number of calibration examples and the seed alone: recovery and evaluation find it
again.

A user's texts are mixed with those that ship with the package: fitted to narrow text alone, a model gets
worse on everything else, and on other text of the user's kind too. Images are not: the generated ones that
ship gained nothing beside photographs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CalibrationError
from ..progress import stage
from ..recipe import DEFAULT_EXAMPLES, SHIPPED_SHARE
from .default_images import default_image
from .examples import Examples, is_default, parts_of
from .foreign_text import suits, warn_of_foreign_text
from .picked import Picked
from .sources import DEFAULT, DEFAULT_IMAGES, read_images, read_texts, read_texts_and_images, sample

# Examples that are read at most: their tokens stay in memory, and minutes of recovery read no more.
MOST_EXAMPLES = 20_000
# What is set aside of a source: a quarter at most, or else 64 examples, or 3 % where that is more.
_LEAST_LEFT = 4
_USUAL_NUMBER = 64
_LARGE_SHARE = 0.03
# Generated images that only judge.
_IMAGES_ASIDE = 32


@dataclass(frozen=True)
class Pools:
    """Examples by who may read them.

    Attributes:
        calibration: what statistics, plans and reconstruction read.
        training: what recovery reads: the same, and more of it.
        held_out: what neither reads; empty where there are too few examples to set some aside.
        counts: how many `examples` calibrate, and how many of them are `shipped` with the package; of the
            side that is the user's, where a model takes text and images.
    """

    calibration: Examples
    training: Examples
    held_out: Examples
    counts: Mapping[str, int]

    @property
    def everything(self) -> Examples:
        """All examples, whoever may read them."""
        sides = [(self.training.texts, self.held_out.texts), (self.training.images, self.held_out.images)]
        return Examples(*(_interleaved(*side) for side in sides))


def read_pools(
    source: Any,
    processor: Any,
    *,
    examples: int = DEFAULT_EXAMPLES,
    seed: int = 0,
    shipped_share: float = SHIPPED_SHARE,
) -> Pools:
    """Read a source, and say who may read what of it.

    Args:
        source: as for `load_batches`.
        processor: likewise.
        examples: that calibration reads at most, >= 1.
        seed: of the sampling.
        shipped_share: share of the texts that ship with the package, in [0, 1); they also fill up what the
            source lacks, and recovery reads all of them. 0 for none. A model whose tokenizer does not know
            their words gets none either.

    Returns:
        The examples; equal texts are on one side only.

    Raises:
        CalibrationError: a number out of its range, or a source that can't be read.

    Warns:
        UserWarning: the default text is not what the tokenizer was made for.
    """
    if examples < 1 or not 0 <= shipped_share < 1:
        raise CalibrationError(
            f"calibration needs at least 1 example and a shipped share in [0, 1), got {examples} and "
            f"{shipped_share:g}"
        )
    if isinstance(source, str | Path):
        stage(f"Reading examples: {source}")
    tokenizer, image_processor = parts_of(processor)
    own_texts, own_images = _own(source, tokenizer, image_processor, max(examples, MOST_EXAMPLES), seed)
    texts, images = _Split(), _Split()
    if tokenizer is not None:
        texts = shipped = _shipped_texts(examples, seed)
        if own_texts:
            own = list(dict.fromkeys(own_texts))
            share = shipped_share if suits(tokenizer, shipped.calibration) else 0.0
            texts = _mixed(_split(own, examples, seed), shipped.without(set(own)), examples, share, seed)
        elif is_default(source):
            warn_of_foreign_text(tokenizer, shipped.calibration)
    if image_processor is not None:
        images = _shipped_images(examples)
        if own_images:
            images = _split(own_images, examples, seed)
    parts = ("calibration", "training", "held_out")
    calibration, training, held = (Examples(getattr(texts, p), getattr(images, p)) for p in parts)
    main = images if tokenizer is None or (own_images and not own_texts) else texts
    counts = {"examples": len(main.calibration), "shipped": main.shipped}
    return Pools(calibration, training, held, counts)


def _own(
    source: Any, tokenizer: Any, image_processor: Any, most: int, seed: int
) -> tuple[Sequence[str], Sequence[Any]]:
    """A user's texts and images; none on a side that the shipped examples serve."""
    if is_default(source):
        return (), ()
    if image_processor is None:
        return read_texts(source, most, seed), ()
    if tokenizer is None:
        return (), read_images(source, most, seed)
    texts, images = read_texts_and_images(source, most, seed)
    return texts or (), images or ()


@dataclass(frozen=True)
class _Split:
    """Texts or images by who may read them."""

    calibration: Sequence[Any] = ()
    training: Sequence[Any] = ()
    held_out: Sequence[Any] = ()
    shipped: int = 0

    def without(self, texts: set[str]) -> _Split:
        """What is left when some texts go."""
        parts = (self.calibration, self.training, self.held_out)
        calibration, training, held = ([t for t in part if t not in texts] for part in parts)
        return _Split(calibration, training, held, len(calibration))


def _split(items: Sequence[Any], examples: int, seed: int, aside: int | None = None) -> _Split:
    """Set items aside, from among those that calibration doesn't sample where these are enough."""
    count = len(items)
    if aside is None:
        aside = min(count // _LEAST_LEFT, max(_USUAL_NUMBER, round(_LARGE_SHARE * count)))
    seen = sample(count, min(examples, count - aside), seed)
    rest = sorted(set(range(count)) - set(seen))
    held = [rest[index] for index in sample(len(rest), aside, seed)]
    training = sorted(set(range(count)) - set(held))
    calibration, train, judge = (Picked((items, i) for i in chosen) for chosen in (seen, training, held))
    return _Split(calibration, train, judge)


def _shipped_texts(examples: int, seed: int) -> _Split:
    """The text that ships with the package; a quarter of it always judges."""
    texts = read_texts(DEFAULT, MOST_EXAMPLES, seed)
    found = _split(texts, examples, seed, len(texts) // _LEAST_LEFT)
    return _Split(found.calibration, found.training, found.held_out, len(found.calibration))


def _shipped_images(examples: int) -> _Split:
    images = _Generated(DEFAULT_IMAGES + _IMAGES_ASIDE)
    seen = Picked((images, index) for index in range(min(examples, DEFAULT_IMAGES)))
    held = Picked((images, index) for index in range(DEFAULT_IMAGES, len(images)))
    return _Split(seen, seen, held, len(seen))


def _mixed(own: _Split, shipped: _Split, examples: int, share: float, seed: int) -> _Split:
    """A user's texts with shipped ones among them; both kinds judge, and as many of each if they can."""
    if not share:
        return own
    most = max(1, examples - round(share * examples))
    mine = Picked.some(own.calibration, most, seed)
    theirs = Picked.some(shipped.calibration, examples - len(mine), seed)
    judges = Picked.some(shipped.held_out, max(len(own.held_out), _USUAL_NUMBER), seed)
    return _Split(
        _interleaved(mine, theirs),
        _interleaved(own.training, shipped.training),
        _interleaved(own.held_out, judges),
        len(theirs),
    )


def _interleaved(*groups: Sequence[Any]) -> Picked:
    """All items, each group spread evenly over the whole: texts of one length keep this order in batches."""
    places = [((i + 0.5) / len(group), n, i) for n, group in enumerate(groups) for i in range(len(group))]
    return Picked((groups[n], i) for _, n, i in sorted(places))


class _Generated(Sequence[Any]):
    """The shipped images, each made when it is asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return default_image(index)
