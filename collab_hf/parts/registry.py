"""The parts by name; a new part gets a row here."""

from __future__ import annotations

from typing import Any

from .embeddings.part import Embeddings
from .feed_forward.part import FeedForwards
from .heads.removal import HEADS as HEADS
from .query_key.part import QueryKey
from .value_output.part import Values

QUERY_KEY = QueryKey()
VALUES = Values()
FEED_FORWARDS = FeedForwards()
EMBEDDINGS = Embeddings()

PARTS: dict[str, Any] = {part.name: part for part in (QUERY_KEY, HEADS, VALUES, FEED_FORWARDS, EMBEDDINGS)}
