"""What long work says while it runs: a progress bar for who watches, or a line for each stage in a log.

Lines go to the logger `collab_hf`: a stage as INFO, each of its steps as DEBUG. They stand in place of bars
where that logger takes them and stderr is no terminal, as in a command; else bars are drawn as asked for.
A program that shows progress in its own way, such as a page, listens by `heard_by`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

logger = logging.getLogger("collab_hf")

# Title of the stage, steps that are done, and steps in all; None where they can't be counted.
Listener = Callable[[str, float, float | None], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Tell a function what the work inside the with block does, in place of drawing bars.

    Work in other threads is not heard, so that each user of a page hears of their own.

    Args:
        listener: called when a stage begins, and after each of its steps, where progress was asked for.

    Yields:
        Nothing.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def stage(title: str) -> None:
    """Say what begins, where it has no steps that could be counted.

    Args:
        title: what happens now.
    """
    logger.info(title)
    tell(title, 0, None)


def tell(title: str, done: float, total: float | None) -> None:
    """Say to who listens how far a stage is.

    Args:
        title: of the stage.
        done: steps that are done.
        total: steps in all; None where they can't be counted.
    """
    if (listener := _listener.get()) is not None:
        listener(title, done, total)


def in_lines() -> bool:
    """Whether lines, or what a listener makes of them, stand in place of progress bars."""
    if _listener.get() is not None:
        return True
    return logger.isEnabledFor(logging.INFO) and not sys.stderr.isatty()


class Steps(tqdm):  # type: ignore[type-arg]
    """Steps of one stage: to iterate over, or to count by `update`.

    Args:
        items: what is gone through; None to count by `update`.
        title: of the stage.
        unit: what a step is, in the singular.
        progress: whether anything is to be said.
        total: number of steps; None for that of the items.
    """

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        *,
        title: str,
        unit: str,
        progress: bool,
        total: int | None = None,
    ) -> None:
        self._in_lines = progress and in_lines()
        bar = progress and not self._in_lines
        super().__init__(items, desc=title, unit=unit, total=total, disable=not bar)
        self._title = title
        if self._in_lines:
            logger.info("%s%s", title, "" if self.total is None else f": {counted(self.total, unit)}")
            tell(title, self.n, self.total)

    def __iter__(self) -> Iterator[Any]:
        """The items; each is a step."""
        if not self._in_lines:
            yield from super().__iter__()
            return
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: float | None = 1) -> bool | None:
        """Count steps that are done."""
        if not self._in_lines:
            return super().update(n)
        self.n += n or 0
        logger.debug("%s: %d of %s", self._title, self.n, "?" if self.total is None else self.total)
        tell(self._title, self.n, self.total)
        return None


def counted(number: float, unit: str) -> str:
    """A number with its unit, in the plural where it needs one."""
    plural = "" if number == 1 else "es" if unit.endswith("ch") else "s"
    return f"{number:g} {unit}{plural}"
