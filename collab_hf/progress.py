"""What long work says while it runs: a progress bar for who watches, or a line for each stage in a log.

Lines go to the logger `collab_hf`: a stage as INFO, each of its steps as DEBUG. They stand in place of bars
where that logger takes them and stderr is no terminal, as in a command; else bars are drawn as asked for.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm.auto import tqdm

logger = logging.getLogger("collab_hf")


def stage(title: str) -> None:
    """Say what begins, where it has no steps that could be counted.

    Args:
        title: what happens now.
    """
    logger.info(title)


def in_lines() -> bool:
    """Whether lines stand in place of progress bars."""
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
        return None


def counted(number: float, unit: str) -> str:
    """A number with its unit, in the plural where it needs one."""
    plural = "" if number == 1 else "es" if unit.endswith("ch") else "s"
    return f"{number:g} {unit}{plural}"
