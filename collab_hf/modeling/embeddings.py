"""Token embeddings of low rank: a narrow table, and one map from it to the hidden size.

An output head whose weight is tied to the table reads the same two factors the other way round. Both are
subclasses of the host's own modules, made in place, so hooks, `padding_idx` and isinstance checks stay.
`resize_token_embeddings` works: it adds or drops rows of the narrow table. This file ships with checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .errors import ConfigError
from .shrinking import _Plan, check_width

_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


@dataclass(frozen=True)
class EmbeddingPlan(_Plan):
    """The width of the token embeddings' table.

    Args:
        rank: columns of the table, fewer than the embedding has.
    """

    rank: int

    section: ClassVar[str] = "embeddings"

    def shrink_(self, module: Any, around: nn.Module, where: str) -> list[nn.Module]:
        """Replace the table, and every weight tied to it, with a narrow table and a map.

        Args:
            module: the dense token embedding.
            around: the whole model, whose output head may be tied.
            where: the embedding's name, for messages.

        Returns:
            The embedding, whose numbers are now uninitialised.

        Raises:
            RankError: a rank that the embedding can't have.
            ConfigError: an embedding that can't be of low rank.
        """
        check_width("embedding rank", self.rank, module.embedding_dim, where)
        tied = tied_modules(around, module)
        for one in tied:
            _check_convertible(one, where)
        for one in tied:
            weight = one.weight
            one.__class__ = low_rank_class(type(one))
            one.weight = nn.Parameter(weight.new_empty(len(weight), self.rank), weight.requires_grad)
            one.up = nn.Parameter(weight.new_empty(weight.shape[1], self.rank), weight.requires_grad)
        # While from_pretrained builds the model this does nothing: a missing weight must not be taken for a
        # tied one.
        extend_ties_(around)
        cast(PreTrainedModel, around).tie_weights(recompute_mapping=False)
        return [module]


class _LowRank(nn.Module):
    """Base of both directions.

    Their `weight` is the narrow table, (vocab_size, rank).

    Attributes:
        up: the map, (hidden_size, rank); row v of the dense table is up @ weight[v].
        collab_host: the class whose place it takes.
    """

    up: nn.Parameter
    collab_host: ClassVar[type[nn.Module]]

    def __reduce__(self) -> tuple[Any, ...]:
        """Classes made on demand have no name of their own that pickle could look up."""
        return _blank, (self.collab_host,), dict(vars(self))

    def extra_repr(self) -> str:
        """The host's, with the rank."""
        return f"{super().extra_repr()}, rank={self.up.shape[1]}"


class LowRankEmbedding(_LowRank, nn.Embedding):
    """Token embeddings e_v = up @ weight[v]; `embedding_dim` is the width that comes out."""

    collab_host = nn.Embedding

    def forward(self, input: Tensor) -> Tensor:
        """Embed tokens.

        Args:
            input: token ids, (...).

        Returns:
            (..., embedding_dim).
        """
        return F.linear(super().forward(input), self.up)


class LowRankDecoder(_LowRank, nn.Linear):
    """An output head tied to a `LowRankEmbedding`: x @ up @ table^T + bias."""

    collab_host = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """Score every token of the vocabulary.

        Args:
            input: hidden states, (..., in_features).

        Returns:
            Logits, (..., vocab_size).
        """
        return super().forward(input @ self.up)


def low_rank_class(host: type[nn.Module]) -> type[nn.Module]:
    """The low-rank subclass of a host's embedding or linear class, made once.

    Args:
        host: nn.Embedding, nn.Linear, or a subclass whose forward is linear in the weight.

    Returns:
        `LowRankEmbedding`, `LowRankDecoder`, or a subclass of one of them and of the host.

    Raises:
        ConfigError: it is neither.
    """
    if host in (nn.Embedding, nn.Linear):
        return LowRankEmbedding if host is nn.Embedding else LowRankDecoder
    if host not in _CLASSES:
        base = next((b for b in (LowRankEmbedding, LowRankDecoder) if issubclass(host, b.collab_host)), None)
        if base is None:
            raise ConfigError(f"only nn.Embedding and nn.Linear can share a table, got {host.__name__}")
        members = {"collab_host": host, "__module__": __name__, "__doc__": host.__doc__}
        _CLASSES[host] = type("LowRank" + host.__name__, (base, host), members)
    return _CLASSES[host]


def _blank(host: type[nn.Module]) -> nn.Module:
    cls = low_rank_class(host)
    return cls.__new__(cls)


def _check_convertible(module: Any, where: str) -> None:
    if isinstance(module, _LowRank):
        raise ConfigError(f"{where} is of low rank already; start from the original")
    low_rank_class(type(module))
    if getattr(module, "max_norm", None) is not None:
        raise ConfigError(f"an embedding with max_norm can't be of low rank ({where})")


def token_embeddings(model: nn.Module) -> dict[str, Any]:
    """The table that a model looks its input tokens up in.

    Args:
        model: a transformers model.

    Returns:
        The embedding by its name relative to the base model; empty where inputs are no tokens.
    """
    try:
        found = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    except (AttributeError, NotImplementedError):  # what transformers raises where a model has none
        return {}
    if not isinstance(found, nn.Embedding):
        return {}
    prefix = getattr(model, "base_model_prefix", "")
    names = [name for name, module in model.named_modules() if module is found]
    return {name.removeprefix(f"{prefix}.") if prefix else name: found for name in names[:1]}


def tied_modules(model: Any, embedding: nn.Module) -> list[Any]:
    """The modules that hold one weight together with an embedding, as class and config declare it.

    Args:
        model: a transformers model.
        embedding: one of its modules, with a weight.

    Returns:
        Modules, the embedding among them.
    """
    ties: Mapping[str, str] = model.get_expanded_tied_weights_keys(all_submodels=True)
    name = next(f"{name}.weight" for name, module in model.named_modules() if module is embedding)
    source = ties.get(name, name)
    names = dict.fromkeys([source, *(target for target, of in ties.items() if of == source)])
    return [model.get_submodule(one.rpartition(".")[0]) for one in names]


def extend_ties_(model: nn.Module) -> None:
    """Let transformers tie the map wherever it ties the table: when loading, saving and resizing.

    Args:
        model: a transformers model with `LowRankEmbedding` and `LowRankDecoder` modules.
    """
    inner_models: list[Any] = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    for inner in inner_models:
        maps = {
            f"{target.removesuffix('weight')}up": f"{source.removesuffix('weight')}up"
            for target, source in inner.get_expanded_tied_weights_keys().items()
            if target.endswith(".weight") and isinstance(_owner(inner, target), _LowRank)
        }
        if maps:
            vars(inner)["_tied_weights_keys"] = {**inner._tied_weights_keys, **maps}
    for inner in inner_models:
        ties = inner.get_expanded_tied_weights_keys(all_submodels=True)
        inner.all_tied_weights_keys.update({t: s for t, s in ties.items() if t.endswith(".up")})


def forget_ties_(model: nn.Module) -> None:
    """Take back what `extend_ties_` did.

    Args:
        model: a transformers model.
    """
    for inner in (m for m in model.modules() if isinstance(m, PreTrainedModel)):
        for name in ("_tied_weights_keys", "all_tied_weights_keys"):
            if vars(inner).get(name):
                vars(inner)[name] = {t: s for t, s in vars(inner)[name].items() if not t.endswith(".up")}


def resized_head(old: nn.Module, new: nn.Linear) -> nn.Linear:
    """The head that transformers made by resizing, of low rank again where the old one was.

    Args:
        old: the head before.
        new: a dense layer with as many inputs as the old one's table has columns.

    Returns:
        The new head.
    """
    if isinstance(old, LowRankDecoder):
        new.__class__ = type(old)
        new.in_features = old.in_features
        new.up = old.up
    return new


@torch.no_grad()
def dense_table(module: Any) -> Tensor:
    """The table that a low-rank embedding or head stands for.

    Args:
        module: a `LowRankEmbedding` or `LowRankDecoder`.

    Returns:
        (vocab_size, hidden_size), in the weight's dtype.
    """
    table: Tensor = module.weight @ module.up.T
    return table


def _owner(model: nn.Module, parameter: str) -> nn.Module:
    return model.get_submodule(parameter.rpartition(".")[0])
