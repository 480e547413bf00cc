from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

from sad_deploy.doctor import examine
from sad_runtime.devices import cuda_devices

ENTRY = [sys.executable, "-m", "sad_deploy", "doctor"]


def doctor(*arguments: str, code: int = 0) -> str:
    """stdout, and stderr after it."""
    run = subprocess.run([*ENTRY, *arguments], capture_output=True, text=True)
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout + run.stderr


def test_doctor_reports_what_really_loads() -> None:
    found = {finding["what"]: finding for finding in json.loads(doctor("--json"))}
    assert found["torch"]["works"]
    assert found["torch"]["state"] == torch.__version__.partition("+")[0]
    assert found["onnxruntime on cpu"]["works"]
    lines = doctor().splitlines()
    for finding in found.values():
        assert any(line.endswith(finding["state"]) for line in lines)  # however long, in one piece
        if finding["remedy"]:
            assert finding["remedy"] in [line.strip() for line in lines]  # the extra in brackets is no markup
    assert onnxruntime.__version__ in found["onnxruntime on cpu"]["state"]
    # The provider is *listed* as available on any machine; only a session shows whether it loads.
    assert "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if not cuda_devices().count:
        assert not found["onnxruntime on cuda"]["works"]
        assert "GPU" in found["onnxruntime on cuda"]["state"]


def test_what_is_required_and_missing_is_exit_code_2() -> None:
    doctor("--require", "torch", "--require", "cpu")
    found = {finding["name"]: finding["works"] for finding in json.loads(doctor("--json"))}
    for name in [name for name, works in found.items() if not works][:2]:
        assert "is required: " in doctor("--require", name, code=2)
    assert "there is nothing called rtxx to require" in doctor("--require", "rtxx", code=2)


def test_doctor_imports_no_package_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(module: str) -> None:
        raise ImportError(f"{module} is broken")

    monkeypatch.setattr("sad_deploy.doctor.importlib.import_module", imported)
    findings = {finding.name: finding for finding in examine()}
    assert findings["torch"].works
    thorough = {finding.name: finding for finding in examine(thorough=True)}
    assert thorough["torch"].state == "does not import: torch is broken"


def test_torchvision_for_another_torch_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sad_deploy.doctor.importlib.metadata.requires", lambda name: ["numpy", "torch==1.0.0"]
    )
    findings = {finding.name: finding for finding in examine()}
    assert "is built for torch 1.0.0, and torch" in findings["torchvision"].state
    assert not findings["torchvision"].works


def test_an_onnxruntime_without_contents_is_a_finding(tmp_path: Path) -> None:
    """As pip leaves it where onnxruntime and onnxruntime-gpu were installed and one of them is removed."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    run = subprocess.run(
        ENTRY, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert run.returncode == 0, run.stderr
    assert "onnxruntime is broken: module 'onnxruntime' has no attribute" in run.stdout
    assert "pip install --force-reinstall onnxruntime-gpu" in run.stdout
