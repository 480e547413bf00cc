from __future__ import annotations

import subprocess
import sys

import pytest

import sad_deploy


@pytest.mark.parametrize(
    "code", ["import sad_deploy", "import sad_deploy.cli.calibrate", "import sad_deploy.recipe"]
)
def test_torch_is_not_imported_before_it_is_needed(code):
    forbidden = "{'torch', 'torchvision', 'sklearn', 'onnx', 'onnxruntime'}"
    check = f"{code}, sys; heavy = {forbidden} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_every_public_name_can_be_imported():
    for name in sad_deploy.__all__:
        assert getattr(sad_deploy, name) is not None
    assert set(sad_deploy.__all__) <= set(dir(sad_deploy))


def test_calibrate_is_the_function():
    assert callable(sad_deploy.calibrate)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        sad_deploy.nonsense  # noqa: B018
