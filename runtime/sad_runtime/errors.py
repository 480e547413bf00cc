"""What the user can mend. Anything else that is raised is a bug and keeps its traceback.

Every error here says what is wrong in one line and, as a hint, what to do next.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Mapping

_SHOWN = 5
"""Images that a message names."""


class UserError(Exception):
    """Wrong use or unusable input; the command line prints it as one line and exits with 2.

    Args:
        message: What is wrong, with the offending name or value; one sentence.
        hint: What to do about it, if there is something to do.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class MissingExtraError(UserError):
    """A command needs an optional dependency that is not installed.

    Args:
        what: The missing package, as imported.
        extra: The extra of ``sad-deploy`` that brings it.
        need: What it is needed for.
    """

    def __init__(self, what: str, *, extra: str, need: str) -> None:
        super().__init__(
            f"{need} needs {what}, which is not installed", hint=f'pip install "sad-deploy[{extra}]"'
        )
        self.extra = extra


class BundleError(UserError):
    """A bundle is missing, incomplete, changed since it was written, or of a newer schema."""


class BackendError(UserError):
    """A requested backend cannot run here; nothing falls back silently."""


class UnavailableError(BackendError):
    """What runs the model is not there, for one image as for many."""


class QueueFullError(UserError):
    """As many images are accepted and not yet answered as there may be; a service says "busy" (HTTP 503).

    Args:
        most: How many that is.
    """

    def __init__(self, most: int) -> None:
        super().__init__(
            f"{most} images are waiting already", hint="try again later, or submit(…, block=True)"
        )


class OutOfDeviceMemoryError(BackendError):
    """The GPU has no memory for a batch of this size; a smaller one may fit."""


class ErrorCode(enum.StrEnum):
    """Why one image has an error row. The values are stable: programs may compare with them."""

    NOT_FOUND = "not-found"
    """No such file, or a symbolic link that leads nowhere."""
    UNREADABLE = "unreadable"
    """The file is there but cannot be read: permissions, a folder, a pipe, an I/O error."""
    EMPTY = "empty"
    """The file has no bytes."""
    NOT_AN_IMAGE = "not-an-image"
    """The bytes are of no format that is read."""
    TRUNCATED = "truncated"
    """The file ends before the image does."""
    CORRUPT = "corrupt"
    """The format is known, but the data cannot be decoded."""
    TOO_LARGE = "too-large"
    """More bytes or pixels than the limits allow."""
    UNSUPPORTED = "unsupported"
    """A valid image in a colour mode that has no defined conversion, for example 32-bit floats; or in a
    format that is read by something not installed."""
    NON_FINITE = "non-finite"
    """The image was read, but an output (logits of a pass, or the saliency if asked for) is not finite."""


class ImageError(UserError):
    """One image cannot be used; ``infer`` turns it into one error row.

    Args:
        code: Stable, machine-readable reason.
        message: The same for people.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class BadImagesError(ImageError):
    """Some of several images cannot be used, all of them named.

    Attributes:
        failures: By the image's index, why.

    Args:
        failures: At least one; the code of the first is this error's.
    """

    def __init__(self, failures: Mapping[int, ImageError]) -> None:
        shown = [f"images[{i}]: {error.message}" for i, error in list(failures.items())[:_SHOWN]]
        if more := len(failures) - len(shown):
            shown.append(f"and {more} more")
        super().__init__(next(iter(failures.values())).code, "; ".join(shown))
        self.failures = dict(failures)


def reason_of(error: OSError) -> str:
    """What the system says of a failed write, in words for the end of a sentence."""
    return "no room on the disk" if error.errno == errno.ENOSPC else error.strerror or str(error)
