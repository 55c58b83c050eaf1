"""One budget over all parts of a model: the choice of options that loses least."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedModel

from ..config import CollabConfig
from ..errors import ConfigError
from ..files import read_size
from ..modeling.plans import Plans
from ..parts.part import Option
from .attention_options import AttentionForm
from .knapsack import BudgetError, solve_knapsack
from .measured import Measured
from .whole_plan import WholePlan


def choose_whole(
    measured: Measured, length: int, *, operations: float = np.inf, parameters: float = np.inf
) -> WholePlan:
    """The choice of least loss within a number of operations, of parameters, or both.

    Args:
        measured: what planning found out.
        length: tokens of the sequence that operations are counted for.
        operations: most that all sites may take for one sequence.
        parameters: most trainable numbers of all sites.

    Returns:
        The plan.

    Raises:
        ConfigError: nothing meets the target; the message says the nearest that can be met.
    """
    groups = measured.groups(length)
    losses = [np.array([o.loss for o in options]) for options in groups.values()]
    sizes = [np.array([[o.operations, o.parameters] for o in options], float) for options in groups.values()]
    dense = np.sum([size.max(axis=0) for size in sizes], axis=0)
    try:
        picks = solve_knapsack(losses, sizes, (operations, parameters))
    except BudgetError as error:
        least = [smallest / most for smallest, most in zip(error.least, dense, strict=True)]
        raise ConfigError(
            f"no choice of forms is that small: at least {least[0]:.3f} of the layers' operations and "
            f"{least[1]:.3f} of their parameters remain"
        ) from None
    chosen = {name: groups[name][pick] for name, pick in zip(groups, picks, strict=True)}
    return WholePlan(chosen, length, *(int(d) for d in dense_sizes(measured, length)))


# Share of a file of weights that is not weights: names and shapes.
_HEADER = 0.005


def most_parameters(model: PreTrainedModel, config: CollabConfig, before: int) -> float:
    """Numbers that a model may have by a target for its parameters or its size on disk.

    Args:
        model: the model.
        config: settings with params or size.
        before: parameters of the original.

    Returns:
        Their number.
    """
    if config.size is None:
        return (config.params or 1.0) * before
    itemsize = max(p.element_size() for p in model.parameters())
    return read_size(config.size) / itemsize * (1 - _HEADER)


def given_plan(measured: Measured, plans: Plans, length: int) -> WholePlan:
    """A plan whose forms are settled, as a recipe has them.

    Args:
        measured: the model's sites.
        plans: forms by section and site.
        length: tokens of the sequence that operations are counted for.

    Returns:
        The plan, without losses.

    Raises:
        ConfigError: a form for a site that the model doesn't have, or one that does not fit it.
    """
    known = {*measured.attention, *(name for _, name, _ in measured.sites_alone())}
    for forms in plans.values():
        unknown = [name for name in forms if name not in known]
        if unknown:
            raise ConfigError(f"plans has a form for {unknown[0]}, which this model does not have")
    options = {}
    for name, attention in measured.attention.items():
        form = AttentionForm(*(plans.get(section, {}).get(name) for section in AttentionForm.sections))
        form.check(attention)
        operations = form.operations(attention.shape, length)
        options[name] = Option(form, form.parameters(attention.shape), 0.0, operations, 0.0)
    for part, name, site in measured.sites_alone():
        plan = plans.get(part.name, {}).get(name)
        if plan is not None:
            part.check(plan, site.shape, name)
        operations = part.operations(plan, site.shape, length)
        options[name] = Option(plan, part.parameters(plan, site.shape), 0.0, operations, 0.0)
    return WholePlan(options, length, *dense_sizes(measured, length))


def dense_sizes(measured: Measured, length: int) -> tuple[int, int]:
    """Operations for one sequence and parameters of all sites as they are.

    Args:
        measured: the model's sites.
        length: tokens of the sequence.

    Returns:
        Both.
    """
    shapes = [site.shape for site in measured.attention.values()]
    operations = sum(AttentionForm().operations(shape, length) for shape in shapes)
    parameters = sum(AttentionForm().parameters(shape) for shape in shapes)
    for part, _, site in measured.sites_alone():
        operations += part.operations(None, site.shape, length)
        parameters += part.parameters(None, site.shape)
    return operations, parameters
