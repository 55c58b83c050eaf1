"""The errors that collab_hf raises on input it can't use; all derive from `CollabError`."""

from __future__ import annotations

from .modeling.errors import CheckpointError as CheckpointError
from .modeling.errors import CollabError as CollabError
from .modeling.errors import ConfigError as ConfigError
from .modeling.errors import RankError as RankError
from .modeling.errors import VersionError as VersionError


class CalibrationError(CollabError):
    """Calibration data that can't be read, or activation statistics that can't be collected from it."""


class FamilyError(CollabError):
    """A model without any attention layer that collab_hf knows, or one that is compressed already."""


class DataError(CollabError):
    """Evaluation data that can't be read or does not fit the task, or a model that it can't evaluate."""


class ExportError(CollabError):
    """A model that can't be written in another format."""


class HubError(CollabError):
    """The Hub can't be reached, or refuses a name, a token or a file."""


class RecoveryError(CollabError):
    """Recovery that can't start or continue: unusable batches, another teacher or another run's state."""


class DecompositionError(CollabError):
    """Weights that can't be decomposed, such as ones with NaN, or a solver that failed."""


class LayerError(CollabError):
    """Inputs, masks or a cache that an attention layer can't take."""
