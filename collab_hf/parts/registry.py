"""The parts by name; a new part gets a row here."""

from __future__ import annotations

from .part import Part
from .query_key.part import QueryKey

PARTS: dict[str, Part] = {part.name: part for part in (QueryKey(),)}
