"""Values of the command line, from text; what is wrong with one goes to a list of problems."""

from __future__ import annotations

AUTO = "auto"
"""In place of an η: the sweep."""


def read_eta(text: str | None, problems: list[str]) -> float | None:
    """η, or None for the sweep."""
    return None if text is None or text == AUTO else read_number("--eta", text, problems, also=AUTO)


def read_grid(text: str | None, problems: list[str]) -> tuple[float, ...] | None:
    """Some η separated by commas, at least one above 0."""
    if text is None:
        return None
    try:
        values = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        values = ()
    if not values or not 0 <= values[0] <= values[-1] < float("inf") or values[-1] == 0:
        problems.append(f"--eta-grid takes values of at least 0 separated by commas, got {text!r}")
        return None
    return values


def read_size(size: int | str | None, problems: list[str]) -> tuple[int, int] | None:
    """A side, or height,width."""
    if size is None:
        return None
    parts = str(size).split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        problems.append(f"--image-size takes a side or height,width in pixels, got {size!r}")
        return None
    return int(parts[0]), int(parts[-1])


def read_number(
    name: str, text: str | None, problems: list[str], *, also: str = "a fraction"
) -> float | None:
    """A number, or a fraction such as 8/255; at least 0."""
    if text is None:
        return None
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        problems.append(f"{name} takes a number or {also}, got {text!r}")
        return None
    if not 0 <= value < float("inf"):
        problems.append(f"{name} must be at least 0 and finite, got {text!r}")
        return None
    return value


def read_channels(name: str, text: str | None, problems: list[str]) -> tuple[float, ...] | None:
    """One number a channel, separated by commas."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3, 4):
        problems.append(
            f"{name} takes one value, three (RGB) or four (RGBA) separated by commas, got {text!r}; image "
            "files are not read with other numbers of channels"
        )
        return None
    if not all(0 <= value <= 1 for value in values) or (name == "--std" and 0 in values):
        least = "above 0" if name == "--std" else "at least 0"
        advice = ": divide by 255" if max(values) > 1 else ""
        problems.append(f"{name} is in pixels of [0, 1], {least} and at most 1, got {text}{advice}")
        return None
    return values
