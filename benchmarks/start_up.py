"""What starting costs: CPU seconds of `sad-deploy --help`, and which heavy packages `infer` loads.

python benchmarks/start_up.py
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import machine, write_results

RUNS = 9
_HEAVY = ("torch", "torchvision", "onnx", "onnx_ir", "sklearn")
_INFER = f"""
import json, sys
sys.argv = ["sad-deploy", "infer", sys.argv[1], "--bundle", sys.argv[2], "--out", "-"]
from sad_deploy.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps([name for name in {_HEAVY!r} if name in sys.modules]))
"""


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a finished child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loaded_by_infer() -> list[str]:
    """Heavy packages in memory after an `infer` of one image through the bundle in ./sad-model."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        Image.new("L", (16, 16), 128).save(Path(folder) / "grey.png")
        run = subprocess.run(
            [sys.executable, "-c", _INFER, folder, "sad-model"], check=True, capture_output=True, text=True
        )
    loaded: list[str] = json.loads(run.stdout.splitlines()[-1])
    return loaded


def main() -> None:
    entry = [sys.executable, "-c", "from sad_deploy.cli import main; main()"]
    for _ in range(2):  # bytecode and page cache
        cpu_seconds([*entry, "--help"])
    empty = statistics.median(cpu_seconds([sys.executable, "-c", "pass"]) for _ in range(RUNS))
    helped = statistics.median(cpu_seconds([*entry, "--help"]) for _ in range(RUNS))
    loaded = loaded_by_infer()
    print(f"sad-deploy --help: {helped:.3f} s of CPU (an empty Python: {empty:.3f} s); target 0.25 s")
    print(f"heavy packages that infer loads: {', '.join(loaded) or 'none'}; target none")
    results = {"help_cpu_seconds": helped, "python_cpu_seconds": empty, "heavy_packages_of_infer": loaded}
    write_results(Path(__file__).parent / "results" / "start_up.json", {"machine": machine(), **results})


if __name__ == "__main__":
    main()
