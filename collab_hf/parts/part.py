"""What surgery can make smaller: the contract that planner, surgery, report and card speak to.

A part is a kind of thing that can be smaller (queries and keys, say). It finds its sites in a model, offers
forms for each, and knows what they cost; it puts a form into a site and tells what trains afterwards.
Nothing outside of a part's folder asks which part or which method it has before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import nn

from ..config import CollabConfig


@dataclass(frozen=True)
class Option:
    """One form that a site may take, and what it costs and loses.

    Attributes:
        plan: the form, as config.json keeps it; None for the dense module as it is.
        parameters: trainable numbers of the form.
        error: relative error that the part itself predicts, 0 for none (dimensionless).
        operations: floating-point operations of one sequence, two for each multiply-add, at the length that
            was asked for; None where none was.
        loss: divergence of the model's output that it causes; None where that was not predicted.
    """

    plan: Any
    parameters: int
    error: float
    operations: int | None = None
    loss: float | None = None


class Trial(Protocol):
    """One site with its statistics, ready to be solved in several forms."""

    @property
    def options(self) -> tuple[Option, ...]:
        """Forms worth a thought, the dense one included."""

    def solve(self, plan: Any) -> Any:
        """A solution good enough to measure: quicker than the final one, and one that `replaced` takes.

        Args:
            plan: that of one of the options, not the dense one's.

        Returns:
            The solution, with its `relative_error`.
        """


class LayerwiseTrial(Trial, Protocol):
    """A trial of a part whose solvers go further than the errors of its options say."""

    def solved_options(self, solved: Sequence[tuple[float, Option, float]]) -> tuple[Option, ...]:
        """The options with the errors that solving brings them to, after some were solved.

        Args:
            solved: the most parameters that an option might have, the option, and its solution's relative
                error.

        Returns:
            Options; those that others beat then are left out.
        """


class Part(ABC):
    """A kind of thing that can be made smaller.

    Attributes:
        name: as `--parts` and config.json name it.
        size_name: what reports call `size`.
        place: what of a model it makes smaller, as a card's first sentence has it.
        done: what it did to `{layers}`, as a sentence of a card; empty where plans have words of their own.
    """

    name: ClassVar[str]
    size_name: ClassVar[str]
    place: ClassVar[str]
    done: ClassVar[str] = ""

    @abstractmethod
    def sites(self, model: nn.Module) -> Mapping[str, Any]:
        """What it can make smaller in a model.

        Args:
            model: a dense transformers model.

        Returns:
            Sites by name, in the model's order.

        Raises:
            FamilyError: there is none that collab_hf knows, or one is compressed already.
        """

    @abstractmethod
    def size(self, plan: Any, shape: Any) -> int:
        """The one number that tells people how small a form is: a count, a width or a rank.

        Args:
            plan: the form, or None for dense.
            shape: sizes of the dense site.

        Returns:
            The number.
        """

    @abstractmethod
    def parameters(self, plan: Any, shape: Any) -> int:
        """Trainable numbers of a form.

        Args:
            plan: the form, or None for dense.
            shape: sizes of the dense site.

        Returns:
            Their number.
        """

    @abstractmethod
    def operations(self, plan: Any, shape: Any, length: int) -> int:
        """Floating-point operations of a form for one sequence, two for each multiply-add.

        Args:
            plan: the form, or None for dense.
            shape: sizes of the dense site.
            length: tokens in the sequence.

        Returns:
            Their number.
        """

    @abstractmethod
    def trial(self, site: Any, config: CollabConfig, statistics: Any) -> Trial:
        """A site, ready to be solved in several forms.

        Args:
            site: one of `sites`.
            config: the site's settings.
            statistics: what calibration found for it, or None.

        Returns:
            Its options, and the means to solve them.

        Raises:
            DecompositionError: weights or statistics that are not finite.
        """

    @abstractmethod
    def replaced(
        self, sites: Mapping[str, Any], solutions: Mapping[str, Any]
    ) -> AbstractContextManager[None]:
        """Let dense sites compute what solutions give inside the with block; nothing is converted.

        Args:
            sites: of the model.
            solutions: for some of them, such as a trial gives.

        Returns:
            The context.
        """

    @abstractmethod
    def install_(self, site: Any, solution: Any) -> None:
        """Put a solution into a site, in place.

        Args:
            site: one of `sites`.
            solution: its new weights.
        """

    @abstractmethod
    def converted(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """The modules of a model that this part has made smaller, by name."""

    @abstractmethod
    def trained(self, module: nn.Module) -> Iterable[nn.Parameter]:
        """What recovery trains of such a module.

        Args:
            module: one of `converted`.

        Returns:
            Its new parameters.
        """


class LayerwisePart(Part):
    """A part whose forms settings name layer by layer, and whose solutions are fitted to each layer alone."""

    @abstractmethod
    def trial(self, site: Any, config: CollabConfig, statistics: Any) -> LayerwiseTrial:
        """As for any part, with a trial that knows what its solvers gain."""

    @abstractmethod
    def candidates(self, config: CollabConfig, shape: Any, name: str) -> list[Any]:
        """The forms that a site may get where the planner has no say.

        Args:
            config: the site's settings.
            shape: sizes of the dense site.
            name: the site's name, for messages.

        Returns:
            One plan where settings name it, else every form worth trying at the budget.

        Raises:
            RankError: a size outside of what the site allows, or a budget below the smallest form.
        """

    @abstractmethod
    def settings(self, plan: Any) -> Mapping[str, Any] | Literal["dense"]:
        """A form as an entry of `CollabConfig.layers`, which gives it again.

        Args:
            plan: the form, or None for dense.

        Returns:
            Fields of CollabConfig.
        """

    @abstractmethod
    def solve(self, site: Any, config: CollabConfig, plans: Sequence[Any], statistics: Any) -> Any:
        """The final solution of a site, in the form with the least error.

        Args:
            site: one of `sites`.
            config: the site's settings.
            plans: the forms to choose from, at least one.
            statistics: what calibration found for it, or None.

        Returns:
            What `install_` takes.

        Raises:
            DecompositionError: weights that are not finite, or a solver that failed.
        """

    @abstractmethod
    def read(self, module: nn.Module, solution: Any) -> Any:
        """What `install_` put into a module, as it is after training.

        Args:
            module: of a site that got the solution.
            solution: what it got.

        Returns:
            A solution with the module's weights.
        """
