"""Errors that travel with a checkpoint."""

from __future__ import annotations


class CollabError(Exception):
    """Base of every error that collab_hf raises on purpose; its text is one sentence fit for a user."""


class ConfigError(CollabError):
    """Settings that are unknown or contradict each other."""


class RankError(ConfigError):
    """A rank, width or group count outside of what the layer allows."""


class VersionError(CollabError, ImportError):
    """A library in a version that collab_hf does not work with."""


class CheckpointError(CollabError):
    """A checkpoint that can't be read, checked or written."""
