"""The errors that collab_hf raises on input it can't use; all derive from `CollabError`."""

from __future__ import annotations


class CollabError(Exception):
    """Base of every error that collab_hf raises on purpose; its text is one sentence fit for a user."""


class CalibrationError(CollabError):
    """Calibration data that can't be read, or activation statistics that can't be collected from it."""
