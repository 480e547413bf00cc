"""Text from outside, made harmless: names of files and classes, and error messages."""

from __future__ import annotations

import html
import json
import re
from typing import Any

# Controls, bidirectional overrides and marks, invisible separators and joiners that no script needs, lone
# surrogates. The joiners of emoji and Persian (U+200C, U+200D) stay.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_NOT_IN_SCRIPTS = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str) -> str:
    r"""The text with everything that hides or reorders written out: ``\n``, ``\u202e``, ``\xff``.

    A byte that is not UTF-8 is in Python's names a lone surrogate, and comes out as that byte.
    """
    return _HIDDEN.sub(lambda match: _written_out(match[0]), text)


def in_html(text: str) -> str:
    """:func:`visible`, for an element's content or a quoted attribute."""
    return html.escape(visible(text))


def in_script(value: Any) -> str:
    """JSON for a ``script`` element: compact, and without anything that could end or open an element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _NOT_IN_SCRIPTS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _written_out(character: str) -> str:
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
