from __future__ import annotations

import json
import subprocess
import sys

import onnxruntime
import torch

from sad_runtime.devices import cuda_devices


def test_doctor_reports_what_really_loads() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "from sad_deploy.cli import main; main()", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {finding["what"]: finding for finding in json.loads(run.stdout)}
    assert found["torch"]["works"]
    assert found["torch"]["state"] == torch.__version__.partition("+")[0]
    assert found["onnxruntime on cpu"]["works"]
    table = subprocess.run(
        [sys.executable, "-c", "from sad_deploy.cli import main; main()", "doctor"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for finding in found.values():
        if finding["remedy"]:
            assert finding["remedy"].split()[-1] in table  # the extra in brackets is no markup
    assert onnxruntime.__version__ in found["onnxruntime on cpu"]["state"]
    # The provider is *listed* as available on any machine; only a session shows whether it loads.
    assert "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if not cuda_devices().count:
        assert not found["onnxruntime on cuda"]["works"]
        assert "GPU" in found["onnxruntime on cuda"]["state"]
