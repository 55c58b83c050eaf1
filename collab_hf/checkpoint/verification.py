"""Check that a compressed checkpoint is complete and loads anywhere, and compare it with its original."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import DataError
from ..files import REPORT_FILE
from ..modeling.attention import CollabAttention
from ..modeling.core_mixing import CoreMixing
from ..modeling.errors import CheckpointError
from ..modeling.families import relative_name
from ..modeling.mixing import SelectionMixing
from ..modeling.modeling_collab import changed_modules
from ..progress import stage
from . import fresh_load
from .certificate import check_certificate
from .fresh_processes import check_fresh
from .known_code import origin_of_code
from .load import load_model
from .precheck import check_finite, one_sentence, read_json
from .save import is_portable


@dataclass(frozen=True)
class Difference:
    """How far two models' outputs are apart on the same inputs, padding left out.

    Attributes:
        maximum: largest absolute difference.
        mean: mean absolute difference.
        relative: ||y - y_ref||_F / ||y_ref||_F.
        cosine: of all outputs as one vector, <y, y_ref> / (||y|| ||y_ref||).
    """

    maximum: float
    mean: float
    relative: float
    cosine: float


@dataclass(frozen=True)
class Verification:
    """What was checked and found right.

    Attributes:
        layers: attention layers and other modules that are smaller.
        factors: tensors that are new in them.
        qk_parameters: numbers in those tensors that are trained.
        package_loads: whether a fresh process with collab_hf loaded it.
        code_loads: whether a fresh process without collab_hf loaded it with the code that it ships; None
            where no version of collab_hf had that code and it was not allowed to run.
        difference: from the original's outputs; None where no original was given.
        former_code: whether the code that it ships is a former version's.
        portable: whether it is of the host's own class; then qk_parameters counts all that it has.
        moved: how far the outputs on fixed inputs are from those that its report certifies, relative to their
            root mean square; None without a certificate.
    """

    layers: int
    factors: int
    qk_parameters: int
    package_loads: bool
    code_loads: bool | None
    difference: Difference | None
    former_code: bool = False
    portable: bool = False
    moved: float | None = None


def verify_checkpoint(
    directory: Path,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    model: PreTrainedModel | None = None,
    original: PreTrainedModel | None = None,
    trust_remote_code: bool = False,
) -> Verification:
    """Check every factor of a compressed checkpoint, and load it in fresh processes.

    Args:
        directory: the checkpoint.
        batches: inputs to compare outputs on.
        model: the checkpoint as `load_model` gives it; None to load it here. Its device is that of the fresh
            processes too.
        original: the model that was compressed, in eval mode, to compare with.
        trust_remote_code: whether the code in the checkpoint may run where no version of collab_hf had it.

    Returns:
        What was found.

    Raises:
        CheckpointError: not compressed, a factor missing, of a wrong shape or not finite, or a fresh process
            that does not load it or gives other outputs; or outputs that its report does not certify.
        DataError: no batches, or outputs that can't be compared with the original's.
    """
    if model is None:
        model = load_model(directory, trust_remote_code=trust_remote_code)
    if is_portable(directory):
        return _verify_portable(directory, model, batches, original)
    layers = _check_layers(model, directory)
    moved = check_certificate(directory, model)
    inputs = _inputs(model, batches)
    outputs = _run(model, inputs)
    stage("Loading it in fresh processes")
    origin = origin_of_code(directory)
    routes = ("package",) if origin == "foreign" and not trust_remote_code else ("package", "code")
    check_fresh(directory, routes, inputs, outputs, former=origin == "former", device=str(model.device))
    smaller = [module for _, module in changed_modules(model) if not isinstance(module, CollabAttention)]
    tensors = [t for layer in layers for t in _factors(layer).values()]
    inside = {id(m) for layer in layers for m in layer.modules()}
    tensors += [t for m in smaller if id(m) not in inside for t in m.state_dict().values()]
    trained = sum(t.numel() for t in tensors if t.is_floating_point())
    difference = None
    if original is not None:
        difference = compare_outputs(outputs, _run(original, inputs), inputs)
    code_loads = True if "code" in routes else None
    changed = sum(
        isinstance(module, CollabAttention) or bool(getattr(module, "collab_plans", None))
        for module in model.modules()
    )
    former = origin == "former"
    return Verification(changed, len(tensors), trained, True, code_loads, difference, former, moved=moved)


def _verify_portable(
    directory: Path,
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    original: PreTrainedModel | None,
) -> Verification:
    """A checkpoint of the host's own class: its size, and that it loads with transformers alone."""
    check_finite(model, str(directory))
    found, wanted = sum(p.numel() for p in model.parameters()), _report(directory).get("parameters_after")
    if found != wanted:
        raise CheckpointError(f"{directory} has {found} parameters, {REPORT_FILE} says {wanted}")
    moved = check_certificate(directory, model)
    inputs = _inputs(model, batches)
    outputs = _run(model, inputs)
    check_fresh(directory, ("package", "stock"), inputs, outputs)
    difference = None if original is None else compare_outputs(outputs, _run(original, inputs), inputs)
    return Verification(0, 0, found, True, True, difference, portable=True, moved=moved)


def compare_outputs(
    outputs: Mapping[str, Tensor], expected: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> Difference:
    """Compare outputs batch by batch, padding left out.

    Args:
        outputs: by `<batch>`.
        expected: the same for the reference.
        inputs: what both were given, by `<batch>.<name>`.

    Returns:
        The difference over all batches.

    Raises:
        DataError: outputs of different shapes, or not finite.
    """
    found, references = [], []
    for number, output in outputs.items():
        reference = expected[number]
        if output.shape != reference.shape:
            raise DataError(
                "the original gives outputs of another shape, "
                f"{list(reference.shape)} instead of {list(output.shape)}"
            )
        mask = inputs.get(f"{number}.attention_mask")
        if mask is not None and mask.shape == output.shape[:-1]:
            output, reference = output[mask.bool()], reference[mask.bool()]
        found.append(output.double().flatten())
        references.append(reference.double().flatten())
    all_found, wanted = torch.cat(found), torch.cat(references)
    error = (all_found - wanted).abs()
    if not torch.isfinite(error).all():
        raise DataError("the outputs are not finite")
    return Difference(
        error.max().item(),
        error.mean().item(),
        (error.norm() / wanted.norm()).item(),
        F.cosine_similarity(all_found, wanted, dim=0).item(),
    )


def _inputs(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by `<batch>.<name>`; a multiple-choice question gets the examples of a batch as its choices."""
    choices = type(model).__name__.endswith("ForMultipleChoice")
    inputs = {
        f"{i}.{name}": t.unsqueeze(0) if choices and t.dim() == 2 else t
        for i, batch in enumerate(batches)
        for name, t in batch.items()
        if isinstance(t, Tensor)
    }
    if not inputs:
        raise DataError("verification needs at least one batch of inputs, got none")
    return inputs


def _run(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        return fresh_load.run_batches(model, inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        names = ", ".join(dict.fromkeys(name.partition(".")[2] for name in inputs))
        raise DataError(f"{type(model).__name__} can't run on {names}: {one_sentence(error)}") from error


def _check_layers(model: PreTrainedModel, directory: Path) -> list[CollabAttention]:
    check_finite(model, str(directory))
    named = {n: m for n, m in model.named_modules() if isinstance(m, CollabAttention)}
    if not any(True for _ in changed_modules(model)):
        raise CheckpointError(f"{directory} is not compressed: it has no collaborative layer")
    for name, layer in named.items():
        _check_layer(layer, relative_name(model, name))
    _check_report(list(named.values()), directory)
    return list(named.values())


def _check_layer(layer: CollabAttention, name: str) -> None:
    """Shapes were checked against config.json by loading; their number and the indices are not."""
    family, plan, mixing = layer.collab_family, layer.collab_plan, layer.mixing
    shape = family.shape(layer)
    plan.check(shape, name)
    count = sum(t.numel() for t in _factors(layer).values() if t.is_floating_point())
    if count != plan.num_parameters(shape):
        raise CheckpointError(
            f"the factors of {name} hold {count} numbers, config.json says {plan.num_parameters(shape)}"
        )
    if isinstance(mixing, SelectionMixing) and not _within(mixing.index, -1, mixing.query_rank):
        raise CheckpointError(f"mixing.index of {name} must be between -1 and {mixing.query_rank - 1}")
    group = mixing.group if isinstance(mixing, CoreMixing) else None
    if group is not None and not _within(group, 0, plan.key_groups):
        raise CheckpointError(f"mixing.group of {name} must be between 0 and {plan.key_groups - 1}")


def _factors(layer: CollabAttention) -> dict[str, Tensor]:
    family = layer.collab_family
    parts: dict[str, nn.Module] = {"query": family.projection(layer, "query"), "mixing": layer.mixing}
    if not family.lacks_key(layer):
        parts["key"] = family.projection(layer, "key")
    return {f"{part}.{name}": t for part, m in parts.items() for name, t in m.state_dict().items()}


def _within(index: Tensor, least: int, end: int) -> bool:
    return bool(((index >= least) & (index < end)).all())


def _report(directory: Path) -> dict[str, Any]:
    """The report that `collab-hf compress` left; empty where there is none."""
    path = directory / REPORT_FILE
    if not path.is_file():
        return {}
    return read_json(path)


def _check_report(layers: list[CollabAttention], directory: Path) -> None:
    """Compare with the report that `collab-hf compress` left, if any."""
    path = directory / REPORT_FILE
    if not path.is_file():
        return
    try:
        reported = _report(directory)["layers"]
        wanted = sum(row["qk_parameters_after"] for row in reported if row["method"] != "dense")
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a report of collab_hf: {one_sentence(error)}") from error
    found = sum(t.numel() for layer in layers for t in _factors(layer).values() if t.is_floating_point())
    if found != wanted:
        raise CheckpointError(f"{directory} has {found} query/key parameters, {REPORT_FILE} says {wanted}")
