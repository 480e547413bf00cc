"""``package.module:name``: anybody's own function or class, looked up from the current folder too."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sad_runtime.errors import UserError


def find_object(name: str, *, example: str, hint: str) -> Any:
    """Import the module and take the object.

    Args:
        name: As the user gave it.
        example: Of such a name, for messages.
        hint: What should be named.

    Raises:
        UserError: There is no such module or object.
    """
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A missing import inside the user's own module is theirs to see with its traceback.
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise
        raise UserError(
            f"{name}: there is no module {error.name!r}, neither installed nor in {Path.cwd()}",
            hint="run in the folder that holds it",
        ) from None
    except (ValueError, TypeError):
        raise UserError(f"{name!r} is not package.module:factory", hint=f"for example {example}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), n=3)
            raise UserError(
                f"{name}: {module_name} has no {part!r}" + (f"; close: {', '.join(close)}" if close else ""),
                hint=hint,
            )
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{name} is not callable", hint=hint)
    return found


def described(error: Exception) -> str:
    """What somebody's own code raised, and where, in one line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}{f': {said}' if said else ''} ({last.filename}, line {last.lineno})"


@contextlib.contextmanager
def current_folder_importable() -> Iterator[None]:
    """Modules of the current folder can be imported, as with ``python -m``, for as long as this lasts."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
