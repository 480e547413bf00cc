"""Every name of TensorRT that the code uses is in TensorRT for RTX and in enterprise 10.8 and 11.4."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import enterprise_bindings, trt_names
from tests.support.enterprise_bindings import names_of

Names = Mapping[str, list[str]]

FOLDER = "SAD_DEPLOY_TRT_BINDINGS"
"""Environment variable: where the wheels of enterprise_bindings.txt lie."""

HERE = Path(__file__).parent
LISTS = {name: value for name, value in vars(trt_names).items() if name.endswith("_NAMES")}
WHEELS = [line for line in (HERE / "enterprise_bindings.txt").read_text().split() if "==" in line]
ROOT = HERE.parent
BUILDING = [
    *sorted((ROOT / "export" / "sad_export" / "tensorrt").glob("*.py")),
    ROOT / "runtime" / "sad_runtime" / "tensorrt" / "loading.py",
]
OBJECTS = {"trt", "tensorrt", "builder", "network", "parser", "config", "profile", "image", "e", "severity"}
"""What TensorRT's module and objects are called in the code that builds."""


def of(package: str) -> list[Names]:
    """The lists that a package (``RTX`` or ``ENTERPRISE``) has to fulfil."""
    other = "ENTERPRISE" if package == "RTX" else "RTX"
    return [names for list_, names in LISTS.items() if not list_.startswith(other)]


def missing(there: Names, wanted: list[Names]) -> list[str]:
    return [
        f"{of_class}.{name}"
        for names in wanted
        for of_class, attributes in names.items()
        for name in attributes
        if name not in there.get(of_class, [])
    ]


def test_tensorrt_for_rtx_has_every_name() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx; the test install has it")
    assert missing(names_of(rtx), of("RTX")) == []


@pytest.mark.parametrize("requirement", WHEELS)
def test_enterprise_tensorrt_has_every_name(requirement: str) -> None:
    """By the bindings alone: the libraries are not on the ordinary index."""
    package, version = requirement.split("==")
    folder = os.environ.get(FOLDER)
    if not folder:
        pytest.skip(f"{FOLDER} names no folder of bindings; `make test` downloads them")
    wheels = list(Path(folder).glob(f"{package.replace('-', '_')}-{version}-*.whl"))
    if not wheels:
        pytest.skip(f"{requirement} could not be downloaded for this Python and machine")
    reader = [sys.executable, enterprise_bindings.__file__, str(wheels[0])]
    run = subprocess.run(reader, capture_output=True, text=True, check=True)
    there = json.loads(run.stdout)
    assert "IBuilderConfig" in there
    assert missing(there, of("ENTERPRISE")) == []


def test_a_name_that_is_not_there_is_found() -> None:
    assert missing({"": ["A"], "A": ["x"]}, [{"": ["A"], "A": ["x", "y"], "B": ["z"]}]) == ["A.y", "B.z"]


def test_every_name_in_the_code_that_builds_is_in_the_lists() -> None:
    listed = {name for names in LISTS.values() for attributes in names.values() for name in attributes}
    used = {name for path in BUILDING for name in _attributes(path)}
    assert {"build_serialized_network", "TF32", "set_compute_capability", "serialize"} <= used
    assert sorted(used - listed - dir_of_str()) == []


def dir_of_str() -> set[str]:
    """What the code asks of TensorRT's values that every Python value of that kind has."""
    return {"__members__", "__name__", *dir(str)}


def _attributes(path: Path) -> set[str]:
    """Attributes of TensorRT's objects: ``trt.A.b``, ``config.f().g``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            root: ast.expr = node
            while isinstance(root, ast.Attribute | ast.Call):
                root = root.value if isinstance(root, ast.Attribute) else root.func
            if isinstance(root, ast.Name) and root.id in OBJECTS:
                found.add(node.attr)
    return found


def test_each_package_is_held_to_the_common_names_and_its_own() -> None:
    assert trt_names.BUILD_NAMES in of("RTX")
    assert trt_names.BUILD_NAMES in of("ENTERPRISE")
    assert trt_names.RTX_BUILD_NAMES not in of("ENTERPRISE")
    assert trt_names.ENTERPRISE_BUILD_NAMES not in of("RTX")
