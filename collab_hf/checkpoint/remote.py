"""Names of checkpoints: which are paths, and which the Hub knows."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP client, whichever this version uses
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import HubError
from ..modeling.errors import CheckpointError
from .precheck import CONFIG_FILE, one_sentence

# A look-up that takes longer is of no use to someone who mistyped a name.
_SECONDS = 10.0


def is_local(name: str | Path) -> bool:
    """Whether a name can only be a directory of this machine, or is one.

    Args:
        name: a Path is always one; of text, a Hub id is `name` or `owner/name`.

    Returns:
        Whether the Hub has not to be asked.
    """
    if isinstance(name, Path) or Path(name).exists():
        return True
    return name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name or name.count("/") > 1


def find_on_hub(name: str, revision: str | None, subfolder: str, token: str | bool | None) -> bool:
    """Ask the Hub once for a checkpoint, without a second try.

    Args:
        name: `name` or `owner/name`.
        revision: branch, tag or commit.
        subfolder: of the checkpoint inside the repository.
        token: access token; None for the environment's, False for none.

    Returns:
        Whether the Hub answered; if not, the checkpoint is in the cache.

    Raises:
        CheckpointError: no repository of that name, revision or subfolder can be read.
        HubError: the Hub can't be reached, and the checkpoint is not in the cache.
    """
    config = f"{subfolder}/{CONFIG_FILE}" if subfolder else CONFIG_FILE
    absent = f"{name} is no directory here"
    try:
        info = HfApi(token=token).model_info(name, revision=revision, timeout=_SECONDS)
    except GatedRepoError as error:
        raise CheckpointError(f"{name} is on the Hub, but its owner has not granted access to it") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{name} has no revision {revision!r} on the Hub") from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise CheckpointError(f"{absent}, and not on the Hub, or the token may not read it") from error
    except HFValidationError as error:
        raise CheckpointError(f"{absent}, and can't be a name on the Hub: {one_sentence(error)}") from error
    except (OfflineModeIsEnabled, HTTPError, ConnectionError, HfHubHTTPError) as error:
        if isinstance(try_to_load_from_cache(name, config, revision=revision), str):
            return False
        if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
            raise CheckpointError(
                f"{absent}, and not in the Hub's cache, while HF_HUB_OFFLINE keeps off the Hub itself"
            ) from error
        raise HubError(f"{absent}, and the Hub can't be asked for it ({one_sentence(error)})") from error
    files = {sibling.rfilename for sibling in info.siblings or ()}
    if files and config not in files:
        raise CheckpointError(f"{name} on the Hub has no {config}, so it is no transformers checkpoint")
    return True
