"""What huggingface_hub raises, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP client, whichever this version uses
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ..errors import HubError
from ..modeling.errors import ConfigError


@contextmanager
def _uploads_unwrapped() -> Iterator[None]:
    """Raise what interrupted the upload of a large file, which huggingface_hub hides in a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, HTTPError):
            raise error.__cause__ from error
        raise


@contextmanager
def plain_errors(name: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence."""
    try:
        with _uploads_unwrapped():
            yield
    except HFValidationError as error:
        raise ConfigError(f"{name!r} is not the name of a repository: {_line(error)}") from error
    except LocalTokenNotFoundError as error:
        raise HubError("no Hub token found; set HF_TOKEN or run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise HubError(f"{name} is not on the Hub, or the token may not read it") from error
    except HfHubHTTPError as error:
        status = None if error.response is None else error.response.status_code
        reasons = {
            401: "the Hub refused the token; set HF_TOKEN or run `hf auth login`",
            403: f"the token may not write to {name}",
        }
        raise HubError(reasons.get(status or 0, f"the Hub refused {name}: {_line(error)}")) from error
    except OfflineModeIsEnabled as error:
        raise HubError("the Hub is switched off here by HF_HUB_OFFLINE") from error
    except (HTTPError, ConnectionError) as error:  # the latter from hf_xet, after it has tried for minutes
        raise HubError(
            f"lost the connection to the Hub ({_line(error)}); nothing of {name} became visible, and the "
            "same command sends what has not arrived",
        ) from error


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
