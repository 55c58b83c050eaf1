"""What each site loses in each form: errors that its part predicts, turned into divergence by measuring."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ..calibration.held_out import Batch
from ..config import CollabConfig
from ..parts.part import LayerwisePart, LayerwiseTrial, Option, Trial
from ..processes import ALONE, Processes
from ..progress import Steps
from ..recovery.reconstruction import Piece, reconstruct_layer, recorded
from .divergence import Divergence
from .knapsack import Array

# Shares of a site's dense parameters whose best form is measured; between them the error curve interpolates.
_MEASURED_SHARES = (1 / 24, 1 / 12, 1 / 6, 1 / 3, 0.6)

# The share among them where the interaction of sites is measured, all of them at it together.
_CONTEXT_SHARE = 1 / 6

# Gradient steps before a form is measured, and the tokens of one: a twelfth of what the model will get, since
# every layer is reconstructed in every measured form.
_TRIAL_STEPS = 24
_TRIAL_TOKENS = 512


@dataclass(frozen=True)
class Curve:
    """The options of one site and what they lose.

    Attributes:
        name: the site's name relative to the base model.
        shape: sizes of the dense site.
        dense_parameters: trainable numbers of the dense site.
        options: none dominated by another, by rising size.
        knots: (predicted error, divergence of the output with this site alone replaced), measured; empty
            where there was no data to measure on, and the squared error stands for the loss.
        interaction: divergence with all sites compressed over the sum of what each makes alone; the same for
            every site. Measured site by site, it was mostly noise on the few images that calibration holds,
            and plans made with it were worse.
    """

    name: str
    shape: Any
    dense_parameters: int
    options: tuple[Option, ...]
    knots: tuple[tuple[float, float], ...] = ()
    interaction: float = 1.0

    def losses(self) -> Array:
        """Every option's part of the divergence that all sites make together."""
        return self.losses_alone() * self.interaction

    def losses_alone(self) -> Array:
        """Loss of every option with no other site changed: a power of its error, fitted to the knots.

        A few dozen examples measure a knot to some ten per cent. Interpolated through every one of them,
        plans of MiniLM were no better, and DINOv2's at a quarter came out below uniform ranks (a cosine of
        .981 against .983), where the power's reach .985.
        """
        errors = np.array([option.error for option in self.options])
        if not self.knots:
            return errors**2
        tiny = np.finfo(np.float64).tiny
        x, y = np.log(np.maximum(np.array(self.knots).T, tiny))
        spread = x - x.mean()
        slope = float(spread @ y / (spread @ spread)) if spread.any() else 0.0
        if slope <= 0:
            slope = 2.0  # what small errors have
        fitted = y.mean() + slope * (np.log(np.maximum(errors, tiny)) - x.mean())
        losses: Array = np.where(errors > 0, np.exp(fitted), 0.0)
        return losses


def predicted_curves(
    part: LayerwisePart,
    sites: Mapping[str, Any],
    settings: Mapping[str, CollabConfig],
    statistics: Mapping[str, Any] | None,
    *,
    processes: Processes = ALONE,
    progress: bool = False,
) -> list[Curve]:
    """Curves without measurements: the squared error of each site stands for its loss.

    Args:
        part: what is planned.
        sites: dense sites by name.
        settings: settings of the sites that are planned.
        statistics: what calibration found for them, or None for the weights alone.
        processes: that share the sites.
        progress: whether to draw a progress bar on stderr.

    Returns:
        One curve a site, in the order of settings.
    """

    def work(name: str) -> Curve:
        trial = part.trial(sites[name], settings[name], None if statistics is None else statistics[name])
        return _curve(part, sites[name], trial)

    found = processes.each(list(settings), work)
    steps = Steps(found, title="Computing spectra", unit="layer", progress=progress, total=len(settings))
    return [curve for _, curve in steps]


def _curve(part: LayerwisePart, site: Any, trial: Trial) -> Curve:
    return Curve(site.name, site.shape, part.parameters(None, site.shape), trial.options)


def measured_curves(
    model: PreTrainedModel,
    part: LayerwisePart,
    sites: Mapping[str, Any],
    settings: Mapping[str, CollabConfig],
    statistics: Mapping[str, Any],
    seen: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    processes: Processes = ALONE,
    progress: bool = False,
) -> list[Curve]:
    """Curves with the divergence of the model's output at a few forms of each site.

    Args:
        model: the dense model; left as it was found.
        part: what is planned.
        sites: dense sites by name.
        settings: settings of the sites that are planned.
        statistics: what calibration found for them.
        seen: model inputs that they come from, to reconstruct on where the settings say so.
        held_out: model inputs that the statistics did not see.
        processes: that share the sites.
        progress: whether to draw progress bars on stderr.

    Returns:
        One curve a site, in the order of settings.
    """
    divergence = Divergence(model, held_out)
    measured: list[Curve] = []
    context: dict[str, tuple[Any, float]] = {}
    names = list(settings)
    mine = {name: settings[name] for name in processes.share(names)}
    total = len(_MEASURED_SHARES) * len(mine) + 1
    with (
        closing(_recorded(model, sites, mine, seen)) as pieces,
        Steps(total=total, title="Measuring queries and keys", unit="form", progress=progress) as bar,
    ):

        def work(name: str) -> tuple[Curve, tuple[Any, float] | None]:
            trial = part.trial(sites[name], settings[name], statistics[name])
            recorded = next(pieces)[1]
            return _measured_curve(part, sites, name, trial, settings[name], recorded, divergence, bar.update)

        for name, (curve, known) in processes.each(names, work):
            measured.append(curve)
            if known is not None:  # a layer of zeros has no form but the dense one
                context[name] = known
        with part.replaced(sites, {name: solution for name, (solution, _) in context.items()}):
            together = processes.from_main(divergence.measure)
        bar.update(total - bar.n)
    alone = sum(loss for _, loss in context.values())
    interaction = together / alone if alone > 0 else 1.0
    return [replace(curve, interaction=interaction) for curve in measured]


def _measured_curve(
    part: LayerwisePart,
    sites: Mapping[str, Any],
    name: str,
    trial: LayerwiseTrial,
    config: CollabConfig,
    pieces: Sequence[Piece],
    divergence: Divergence,
    done: Callable[[], Any],
) -> tuple[Curve, tuple[Any, float] | None]:
    """The curve of one site, and a solution with its loss that stands for it beside the others."""
    curve = _curve(part, sites[name], trial)
    knots: list[tuple[float, float]] = []
    solved: list[tuple[float, Option, float]] = []
    context: tuple[Any, float] | None = None
    for share, option in _measured_options(curve).items():
        solution = trial.solve(option.plan)
        solved.append((share * curve.dense_parameters, option, solution.relative_error))
        if pieces:
            steps = min(_TRIAL_STEPS, config.reconstruct_steps)
            solution = reconstruct_layer(part, sites[name], solution, pieces, steps=steps).solution
        with part.replaced(sites, {name: solution}):
            knots.append((solution.relative_error, divergence.measure()))
        if share <= _CONTEXT_SHARE or context is None:
            context = (solution, knots[-1][1])
        done()
    return replace(curve, options=trial.solved_options(solved), knots=tuple(knots)), context


def _recorded(
    model: PreTrainedModel,
    sites: Mapping[str, Any],
    settings: Mapping[str, CollabConfig],
    seen: Sequence[Batch],
) -> Generator[tuple[str, Sequence[Piece]]]:
    """Every planned site, with what it takes to reconstruct it where that is asked for."""
    if any(config.reconstruct_steps for config in settings.values()):
        modules = {name: sites[name].module for name in settings}
        yield from recorded(model, modules, seen, step_tokens=_TRIAL_TOKENS)
    else:
        yield from ((name, ()) for name in settings)


def _measured_options(curve: Curve) -> dict[float, Option]:
    """The option of least error at each of a few shares of the parameters; equal ones once."""
    options = sorted((o for o in curve.options if o.plan is not None), key=lambda o: o.parameters)
    chosen: dict[float, Option] = {}
    for share in _MEASURED_SHARES:
        fitting = [o for o in options if o.parameters <= share * curve.dense_parameters] or options[:1]
        if fitting and (best := min(fitting, key=lambda o: o.error)) not in chosen.values():
            chosen[share] = best
    return chosen
