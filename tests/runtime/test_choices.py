"""The words of options: spelled once, and a wrong one is a UserError that lists them."""

from __future__ import annotations

import enum
import subprocess
import sys

import pytest

from sad_runtime import choices
from sad_runtime.errors import UserError

KINDS = [
    kind
    for kind in vars(choices).values()
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum) and kind is not enum.StrEnum
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_is_chosen_by_itself_and_a_wrong_one_is_refused(kind: type[enum.StrEnum]) -> None:
    for word in kind:
        assert choices.choose(kind, word.value, "thing") is word
        assert choices.choose(kind, word, "thing") is word
    with pytest.raises(UserError, match=r"no thing 'wrong'; there are ") as caught:
        choices.choose(kind, "wrong", "thing")
    assert all(word in caught.value.message for word in kind)


def test_naming_choices_imports_nothing_but_the_standard_library() -> None:
    code = "import sys, sad_runtime.choices; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split()) - set(sys.stdlib_module_names)
    assert not loaded & {"numpy", "PIL", "onnxruntime", "torch", "onnx", "typer", "rich"}
