from __future__ import annotations

import pytest

from sad_deploy.models.reference import Origin, origin_of, reference
from sad_runtime.errors import UserError


@pytest.mark.parametrize(
    ("text", "origin", "name", "arguments"),
    [
        ("resnet18", Origin.NAMED, "resnet18", {}),
        ("a.b:c", Origin.FACTORY, "a.b:c", {}),
        ("a.b:c(n=7, w=[1, -2.5], s='x:y')", Origin.FACTORY, "a.b:c", {"n": 7, "w": [1, -2.5], "s": "x:y"}),
        ("a:b()", Origin.FACTORY, "a:b", {}),
        ("timm:resnet50.a1_in1k(in_chans=1)", Origin.TIMM, "resnet50.a1_in1k", {"in_chans": 1}),
        ("hf:some folder (2)/x", Origin.HUGGING_FACE, "some folder (2)/x", {}),
        ("hf:some (2)/x(num_labels=3)", Origin.HUGGING_FACE, "some (2)/x", {"num_labels": 3}),
        ("nets/a.pt2", Origin.EXPORTED, "nets/a.pt2", {}),
    ],
)
def test_a_name_is_taken_apart(text, origin, name, arguments):
    found = reference(text)
    assert (found.origin, found.name, dict(found.arguments)) == (origin, name, arguments)
    assert origin_of(text) is origin


@pytest.mark.parametrize(
    "inside",
    [
        "3",
        "n=open('x')",
        "n=__import__('os').getcwd()",
        "**{'n': 3}",
        "*[1]",
        "n=m",
        "n=",
        "n=1)(",
        "n=1, n=2",
    ],
)
def test_arguments_are_literals_and_never_run(tmp_path, monkeypatch, inside):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no list of keyword arguments with literal values"):
        reference(f"a.b:c({inside})")
    assert not list(tmp_path.iterdir())
