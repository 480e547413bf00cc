"""The rule that CONTRIBUTING.md shows is a rule of the code; so is the one in the registry's docstring."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from sad_export.gradient import registry
from sad_export.gradient.rules import activation

ROOT = Path(__file__).parents[3]


def test_the_rule_in_contributing_is_one_of_the_code() -> None:
    (shown,) = re.findall(r"```python\n(@vjp.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert shown in inspect.getsource(activation)


def test_the_rule_in_the_docstring_is_one_of_the_code() -> None:
    assert registry.__doc__ is not None
    (shown,) = re.findall(r"( +@vjp.*?)\n\n", registry.__doc__, re.DOTALL)
    assert inspect.cleandoc(shown) in re.sub(r" *\"\"\".*?\"\"\"\n", "", inspect.getsource(activation))
