"""Models that `bench_model.py` compares, whatever runs them, and how other packages make theirs."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from collab_hf import load_batches
from collab_hf.host.inputs import pool
from collab_hf.measure.bench import Call, Case, forward_call

Array = NDArray[np.float32]


class Peer(Protocol):
    """A sentence encoder, whatever runs it."""

    @property
    def size(self) -> int:
        """Bytes of its weights on disk."""

    def embed(self, texts: Sequence[str]) -> Array:
        """Embeddings of texts, (n, width), in their order."""

    def call(self, case: Case) -> Call | None:
        """A forward pass over tokens; None where the model has none."""


@dataclass(frozen=True, eq=False)
class TorchPeer:
    """A transformers model in torch."""

    model: Any
    tokenizer: Any
    size: int

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Array:
        """Mean of the last hidden states of each text."""
        return _embed(texts, self.tokenizer, self.model.config, self._states)

    def _states(self, batch: dict[str, Any]) -> torch.Tensor:
        states: torch.Tensor = self.model.base_model(**batch).last_hidden_state
        return states

    def call(self, case: Case) -> Call:
        """A forward pass in torch."""
        inner = forward_call(self.model.eval(), case)

        def call() -> None:
            with torch.inference_mode():
                inner()

        return call


@dataclass(frozen=True, eq=False)
class GraphPeer:
    """An ONNX graph in ONNX Runtime."""

    file: Path
    tokenizer: Any
    config: Any
    threads: int

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.file.stat().st_size

    def _session(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        # A thread that waits by spinning would slow down those who are timed in turns with it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(str(self.file), options, providers=["CPUExecutionProvider"])

    def embed(self, texts: Sequence[str]) -> Array:
        """Mean of the last hidden states of each text."""
        session = self._session()
        names = {value.name for value in session.get_inputs()}

        def states(batch: dict[str, Any]) -> torch.Tensor:
            given = {name: value.numpy() for name, value in batch.items() if name in names}
            return torch.from_numpy(session.run(["last_hidden_state"], given)[0])

        return _embed(texts, self.tokenizer, self.config, states)

    def call(self, case: Case) -> Call:
        """A run of the graph."""
        session = self._session()
        ids = np.random.default_rng(0).integers(5, self.config.vocab_size, (case.batch_size, case.length))
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        ready = {value.name: given[value.name] for value in session.get_inputs()}
        return lambda: session.run(["last_hidden_state"], ready)


@dataclass(frozen=True, eq=False)
class StaticPeer:
    """A table of token vectors made by model2vec; it has no layers to time by tokens."""

    model: Any
    size: int

    def embed(self, texts: Sequence[str]) -> Array:
        """Mean vector of each text's tokens."""
        found: Array = np.asarray(self.model.encode(list(texts)), dtype=np.float32)
        return found

    def call(self, case: Case) -> None:
        """None: it looks vectors up."""


def _embed(texts: Sequence[str], tokenizer: Any, config: Any, states: Callable[[Any], torch.Tensor]) -> Array:
    batches = load_batches(list(texts), tokenizer, config=config, max_examples=len(texts), batch_size=64)
    found = torch.cat([pool(states(batch), batch["attention_mask"]) for batch in batches]).numpy()
    place = {text: row for row, text in enumerate(batches.texts)}
    ordered: Array = found[[place[text] for text in texts]]
    return ordered


def static_model(original: Any, tokenizer: Any) -> StaticPeer | None:
    """model2vec's static model of an encoder.

    Args:
        original: the encoder.
        tokenizer: its tokenizer.

    Returns:
        The model; None where model2vec is not installed.
    """
    if importlib.util.find_spec("model2vec") is None:
        return None
    from model2vec.distill import distill_from_model

    made = distill_from_model(model=copy.deepcopy(original), tokenizer=tokenizer, device="cpu")
    return StaticPeer(made, int(made.embedding.nbytes))


def magnitude_pruned(original: Any, share: float) -> Any | None:
    """What Torch-Pruning leaves when heads and neurons of the smallest weights go, equally in all layers.

    Args:
        original: a BERT.
        share: of the heads and neurons that stays.

    Returns:
        A copy, not trained; None where torch_pruning is not installed.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        return None
    import torch_pruning

    model = copy.deepcopy(original).eval().requires_grad_(True)
    attention = {layer.attention.self: layer for layer in model.encoder.layer}
    # What writes to the residual stream keeps its width.
    kept: list[nn.Module] = [model.embeddings, model.pooler] if model.pooler else [model.embeddings]
    for layer in model.encoder.layer:
        kept += [layer.attention.output.dense, layer.output.dense]
    heads = {
        getattr(module, name): module.num_attention_heads
        for module in attention
        for name in ("query", "key", "value")
    }
    pruner = torch_pruning.pruner.BasePruner(
        model,
        {"input_ids": torch.ones(1, 8, dtype=torch.long)},
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1 - share,
        head_pruning_ratio=1 - share,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=kept,
        root_module_types=[nn.Linear],
        output_transform=lambda out: out.last_hidden_state.sum(),
    )
    pruner.step()
    for module in attention:
        module.num_attention_heads = pruner.num_heads[module.query]
        module.all_head_size = module.query.out_features
    return model
