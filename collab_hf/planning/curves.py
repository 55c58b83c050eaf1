"""What each layer loses in each form: spectral errors, turned into divergence by a few measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..calibration.held_out import Batch
from ..config import CollabConfig
from ..host.sites import Layers, score_tensor
from ..modeling.errors import ConfigError
from ..modeling.plan import AttentionShape
from ..parts.query_key.candidates import layer_problem
from ..parts.query_key.dense_heads import replaced
from ..parts.query_key.forms import Form, layer_forms, seen_scores, worthwhile
from ..recovery.reconstruction import Piece, reconstruct_layer, recorded
from ..tensors import Problem
from ..tensors.factors import SharedFactors
from ..tensors.moments import LayerStatistics
from .divergence import Divergence
from .knapsack import Array

# Shares of a layer's dense parameters whose best form is measured; between them the error curve interpolates.
_MEASURED_SHARES = (1 / 24, 1 / 12, 1 / 6, 1 / 3, 0.6)

# The share among them where the interaction of layers is measured, all of them at it together.
_CONTEXT_SHARE = 1 / 6

# Sweeps before a form is measured: after three, the error is within a per cent of where it ends.
_TRIAL_SWEEPS = 3

# Gradient steps before a form is measured, and the tokens of one: a twelfth of what the model will get, since
# every layer is reconstructed in every measured form.
_TRIAL_STEPS = 24
_TRIAL_TOKENS = 512


@dataclass(frozen=True)
class LayerCurve:
    """The forms of one layer and what they lose.

    Attributes:
        name: the layer's name relative to the base model.
        shape: sizes of the dense layer.
        forms: none dominated by another, by rising size.
        knots: (truncation error, divergence of the output with this layer alone replaced), measured; empty
            where there was no data to measure on, and the squared error stands for the loss.
        interaction: divergence with all layers compressed over the sum of what each makes alone; the same for
            every layer. Measured layer by layer, it was mostly noise on the few images that calibration
            holds, and plans made with it were worse.
    """

    name: str
    shape: AttentionShape
    forms: tuple[Form, ...]
    knots: tuple[tuple[float, float], ...] = ()
    interaction: float = 1.0

    def losses(self) -> Array:
        """Every form's part of the divergence that all layers make together."""
        return self.losses_alone() * self.interaction

    def losses_alone(self) -> Array:
        """Loss of every form with no other layer changed: a power of its error, fitted to the knots.

        A few dozen examples measure a knot to some ten per cent. Interpolated through every one of them,
        plans of MiniLM were no better, and DINOv2's at a quarter came out below uniform ranks (a cosine of
        .981 against .983), where the power's reach .985.
        """
        errors = np.array([form.error for form in self.forms])
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


def spectral_curves(
    layers: Layers,
    settings: Mapping[str, CollabConfig],
    statistics: Mapping[str, LayerStatistics] | None,
    *,
    progress: bool = False,
) -> list[LayerCurve]:
    """Curves without measurements: the squared error of each layer stands for its loss.

    Args:
        layers: dense attention module and family by name.
        settings: settings of the layers that are planned.
        statistics: moments of the layers' inputs, or None for the weights alone.
        progress: whether to draw a progress bar on stderr.

    Returns:
        One curve a layer, in the order of settings.
    """
    curves = []
    for name, config in tqdm(settings.items(), desc="Spectra", unit="layer", disable=not progress):
        module, family = layers[name]
        scores = score_tensor(module, family, name, config)
        seen = seen_scores(scores, None if statistics is None else statistics[name], config.damping)
        with torch.no_grad():
            curves.append(
                LayerCurve(name, scores.shape, tuple(layer_forms(seen, config, cross=family.cross)))
            )
    return curves


def measured_curves(
    model: PreTrainedModel,
    layers: Layers,
    settings: Mapping[str, CollabConfig],
    statistics: Mapping[str, LayerStatistics],
    seen: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    progress: bool = False,
) -> list[LayerCurve]:
    """Curves with the divergence of the model's output at a few forms of each layer.

    Args:
        model: the dense model; left as it was found.
        layers: dense attention module and family by name.
        settings: settings of the layers that are planned.
        statistics: moments of the layers' inputs.
        seen: model inputs that they come from, to reconstruct on where the settings say so.
        held_out: model inputs that the statistics did not see.
        progress: whether to draw progress bars on stderr.

    Returns:
        One curve a layer, in the order of settings.
    """
    curves = spectral_curves(layers, settings, statistics, progress=progress)
    divergence = Divergence(model, held_out)
    measured, context = [], {}
    points = {curve.name: (curve, _measured_forms(curve)) for curve in curves}
    total = sum(len(forms) for _, forms in points.values()) + 1
    with tqdm(total=total, desc="Measuring", unit="form", disable=not progress) as bar:
        for name, pieces in _recorded(model, layers, settings, seen):
            curve, forms = points[name]
            scores = score_tensor(*layers[name], name, settings[name])
            problem = layer_problem(scores, settings[name], statistics[name])
            knots: list[tuple[float, float]] = []
            solved: list[tuple[float, Form, float]] = []
            for share, form in forms.items():
                factors = _trial(problem, form, name)
                solved.append((share, form, factors.relative_error))
                if pieces:
                    steps = min(_TRIAL_STEPS, settings[name].reconstruct_steps)
                    factors = reconstruct_layer(layers[name][0], factors, pieces, steps=steps).factors
                with replaced(layers, {name: factors}):
                    knots.append((factors.relative_error, divergence.measure()))
                if share <= _CONTEXT_SHARE or name not in context:
                    context[name] = (factors, knots[-1][1])
                bar.update()
            gains = _sweep_gains(curve, solved, problem)
            measured.append(replace(curve, forms=_solved(curve.forms, gains), knots=tuple(knots)))
        with replaced(layers, {name: factors for name, (factors, _) in context.items()}):
            together = divergence.measure()
        bar.update()
    alone = sum(loss for _, loss in context.values())
    interaction = together / alone if alone > 0 else 1.0
    return [replace(curve, interaction=interaction) for curve in measured]


def _recorded(
    model: PreTrainedModel, layers: Layers, settings: Mapping[str, CollabConfig], seen: Sequence[Batch]
) -> Iterator[tuple[str, Sequence[Piece]]]:
    """Every planned layer, with what it takes to reconstruct it where that is asked for."""
    if any(config.reconstruct_steps for config in settings.values()):
        modules = {name: layers[name][0] for name in settings}
        yield from recorded(model, modules, seen, step_tokens=_TRIAL_TOKENS)
    else:
        yield from ((name, ()) for name in settings)


def _trial(problem: Problem, form: Form, name: str) -> SharedFactors:
    """Decompose a layer nearly to the end, with a content bias that the dense host can hold."""
    plan = form.plan
    if plan is None:
        raise ConfigError(f"a dense form has no factors ({name})")
    return problem.solve(replace(plan, content_bias="folded"), max_sweeps=_TRIAL_SWEEPS)


def _sweep_gains(
    curve: LayerCurve, solved: list[tuple[float, Form, float]], problem: Problem
) -> dict[str, list[tuple[float, float]]]:
    """How far sweeps lower truncation errors, by kind: (truncation error, solved error over it).

    Truncation is the best answer for svd but not for tucker, which would come off too badly beside it, and
    the more so where queries and keys have subspaces of their own.
    """
    gains: dict[str, list[tuple[float, float]]] = {}
    for kind in sorted({form.kind for form in curve.forms} - {"dense", "svd"}):
        found = gains.setdefault(kind, [])
        for share, measured, error in solved:
            most = share * curve.shape.dense_parameters
            fitting = [f for f in curve.forms if f.kind == kind and f.parameters <= most]
            if not fitting:
                continue
            form = min(fitting, key=lambda f: f.error)
            if form != measured:
                error = _trial(problem, form, curve.name).relative_error
            if form.error > 0:
                found.append((form.error, min(1.0, error / form.error)))
    return gains


def _solved(forms: tuple[Form, ...], gains: Mapping[str, list[tuple[float, float]]]) -> tuple[Form, ...]:
    """Forms with the errors that sweeps bring them to, without those that others beat then."""

    def error(form: Form) -> float:
        if not gains.get(form.kind):
            return form.error
        errors, ratios = zip(*sorted(gains[form.kind]), strict=True)
        return form.error * float(np.interp(form.error, errors, ratios))

    return tuple(worthwhile([replace(form, error=error(form)) for form in forms]))


def _measured_forms(curve: LayerCurve) -> dict[float, Form]:
    """The form of least error at each of a few shares of the parameters; equal ones once."""
    forms = sorted((f for f in curve.forms if f.plan is not None), key=lambda f: f.parameters)
    chosen: dict[float, Form] = {}
    for share in _MEASURED_SHARES:
        fitting = [f for f in forms if f.parameters <= share * curve.shape.dense_parameters] or forms[:1]
        if fitting and (best := min(fitting, key=lambda f: f.error)) not in chosen.values():
            chosen[share] = best
    return chosen
