"""How much the loss hangs on each head: the expected size of its gradient in the head's gate."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...errors import CalibrationError, ConfigError
from ...host.inputs import checked_inputs, evaluating, placement
from ...progress import Steps
from .gates import changed_heads, gated
from .losses import Loss, labelled_loss, sampled_loss
from .sites import HeadSite, head_sites

Per = Literal["token", "example", "batch"]


@dataclass(frozen=True)
class HeadScores:
    """Importance of every head.

    Attributes:
        importance: by layer, one number a head, >= 0; float64.
        examples: how many were seen.
        batches: in how many batches.
        labelled: whether the loss was that on labels.
    """

    importance: Mapping[str, Tensor]
    examples: int
    batches: int
    labelled: bool

    def normalized(self) -> HeadScores:
        """The same with the importances of every layer divided by their l2 norm.

        Returns:
            Scores that compare heads of different layers by their share in their own.
        """
        divided = {n: v / v.norm().clamp_min(torch.finfo(v.dtype).tiny) for n, v in self.importance.items()}
        return HeadScores(divided, self.examples, self.batches, self.labelled)

    def rows(self) -> list[dict[str, Any]]:
        """One entry a head, in the model's order: layer, head, importance."""
        return [
            {"layer": name, "head": head, "importance": float(value)}
            for name, values in self.importance.items()
            for head, value in enumerate(values)
        ]


def score_heads(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    loss: Loss | None = None,
    per: Per = "example",
    normalize: bool = True,
    gates: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    state: str | Path | None = None,
    progress: bool = False,
) -> HeadScores:
    r"""Score heads by I_h = E |dL / dgate_h| at gates of one, in one backward pass a batch.

    The gradient in a gate is the head's output times the gradient of the loss in it, summed over tokens.
    Batches with labels are scored by the model's own loss, others by `sampled_loss`.

    Args:
        model: a transformers model, dense or compressed; in eval mode meanwhile, and left as it was found.
        batches: model inputs by name, with or without labels; read once, in order. The loss must be a mean
            over the examples of a batch.
        loss: gives the loss of a batch; None to choose by whether the first batch has labels.
        per: where the absolute value is taken: of each token's share in the gradient, of each example's
            gradient (the paper's formula), or of each batch's. The sum over tokens and the mean over examples
            are taken afterwards.
        normalize: divide by the l2 norm of each layer.
        gates: of heads that are off already, by layer; their importance is then 0.
        seed: of sampled outputs.
        state: a file that keeps what was summed after every batch; where it is there, batches that it has
            seen are skipped. It belongs to one model and one set of settings.
        progress: whether to draw a progress bar on stderr.

    Returns:
        The scores.

    Raises:
        FamilyError: no attention layer that collab_hf knows.
        CalibrationError: no batch, a batch that the model refuses, or a loss that is not finite.
        ConfigError: an unknown `per`, or a state of other settings.

    Source:
        Michel, Levy, Neubig 2019, arXiv:1905.10650, section 4.1, whose code takes absolute values per token;
        Molchanov et al. 2017, arXiv:1611.06440, for the norm of each layer.
    """
    if per not in get_args(Per):
        raise ConfigError(f"per must be token, example or batch, got {per!r}")
    sites = head_sites(model)
    sums = _Sums.read(state, _settings(model, sites, per, seed, gates or {}))
    device, dtype = placement(model)
    for number, batch in enumerate(Steps(batches, title="Scoring heads", unit="batch", progress=progress)):
        if number < sums.batches:
            continue
        inputs = checked_inputs(batch, number + 1, device, dtype)
        labelled = sums.labelled if sums.batches else loss is None and "labels" in inputs
        chosen = loss or (labelled_loss if labelled else sampled_loss(seed))
        with evaluating(model), gated(model, gates) if gates else nullcontext():
            examples, found = _gradients(model, sites, inputs, chosen, number)
        sums.labelled = labelled
        sums.add(examples, {name: _reduced(gradient, examples, per) for name, gradient in found.items()})
        sums.write(state)
    if not sums.batches:
        raise CalibrationError("heads can't be scored without any batch of model inputs")
    scores = sums.scores()
    return scores.normalized() if normalize else scores


def _gradients(
    model: PreTrainedModel,
    sites: Mapping[str, HeadSite],
    inputs: Mapping[str, Any],
    loss: Loss,
    number: int,
) -> tuple[int, dict[str, Tensor]]:
    """Examples in the batch, and by layer the gradient of the loss in gates of (..., num_heads).

    A layer that runs several times has the same gates every time.
    """
    gates: dict[str, list[Tensor]] = {name: [] for name in sites}

    def multiply(name: str, heads: Tensor) -> Tensor:
        gate = torch.ones_like(heads[..., 0], requires_grad=True)
        gates[name].append(gate)
        return heads * gate.unsqueeze(-1)

    with torch.enable_grad(), changed_heads(model, multiply):
        try:
            value = loss(model, inputs, number)
        except (TypeError, ValueError, IndexError) as error:
            raise CalibrationError(
                f"{type(model).__name__} refused batch {number + 1} "
                f"with the inputs {', '.join(inputs)}: {error}"
            ) from error
        flat = [gate for several in gates.values() for gate in several]
        unseen = [name for name, several in gates.items() if not several]
        if unseen:
            raise CalibrationError(f"batch {number + 1} does not run {unseen[0]}")
        if not bool(torch.isfinite(value)):
            raise CalibrationError(f"the loss of batch {number + 1} is not finite")
        gradients = iter(torch.autograd.grad(value, flat, allow_unused=True, materialize_grads=True))
    examples = next(len(v) for v in inputs.values() if isinstance(v, Tensor) and v.dim())
    return examples, {
        name: torch.stack([next(gradients).double() for _ in several]).sum(0)
        for name, several in gates.items()
    }


def _reduced(gradient: Tensor, examples: int, per: Per) -> Tensor:
    """Sum over a batch's examples of absolute gradients, (num_heads,).

    Args:
        gradient: of the mean loss, (..., num_heads); its leading dimensions are examples, or parts of them.
        examples: in the batch.
        per: where the absolute value is taken.

    Returns:
        (num_heads,).
    """
    # The loss is a mean over examples: times their number, each example's share is the gradient of its own.
    shares = gradient.reshape(examples, -1, gradient.shape[-1]) * examples
    if per == "token":
        return shares.abs().sum((0, 1)).cpu()
    if per == "example":
        return shares.sum(1).abs().sum(0).cpu()
    return shares.sum((0, 1)).abs().cpu()


def _settings(
    model: PreTrainedModel, sites: Mapping[str, HeadSite], per: Per, seed: int, gates: Mapping[str, Tensor]
) -> dict[str, Any]:
    heads = {name: site.num_heads for name, site in sites.items()}
    off = {name: gate.detach().tolist() for name, gate in gates.items()}
    return {"model": type(model).__name__, "heads": heads, "per": per, "seed": seed, "gates": off}


@dataclass
class _Sums:
    """What was summed so far."""

    settings: dict[str, Any]
    sums: dict[str, list[float]]
    examples: int = 0
    batches: int = 0
    labelled: bool = False

    @classmethod
    def read(cls, state: str | Path | None, settings: dict[str, Any]) -> _Sums:
        """The sums in a file, or none."""
        fresh = cls(settings, {name: [0.0] * count for name, count in settings["heads"].items()})
        if state is None or not Path(state).exists():
            return fresh
        try:
            found = cls(**json.loads(Path(state).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{state} can't be read as a state of scoring: {error}") from error
        if found.settings != settings:
            raise ConfigError(f"{state} is the state of another model or of other settings; remove it")
        return found

    def write(self, state: str | Path | None) -> None:
        """Keep the sums, whole or not at all."""
        if state is None:
            return
        path = Path(state)
        scratch = path.with_name(f".{path.name}.new")
        scratch.write_text(json.dumps(asdict(self)), encoding="utf-8")
        scratch.replace(path)

    def add(self, examples: int, found: Mapping[str, Tensor]) -> None:
        """Add a batch."""
        for name, values in found.items():
            self.sums[name] = (torch.tensor(self.sums[name], dtype=torch.float64) + values).tolist()
        self.examples += examples
        self.batches += 1

    def scores(self) -> HeadScores:
        """Means over examples."""
        means = {
            name: torch.tensor(values, dtype=torch.float64) / self.examples
            for name, values in self.sums.items()
        }
        return HeadScores(means, self.examples, self.batches, self.labelled)
