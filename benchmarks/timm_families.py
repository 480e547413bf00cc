"""Every family of timm with BatchNorm: does it calibrate, export, and pass the export's own check?

    python benchmarks/timm_families.py [--models timm:resnet10t …] [--seconds N]

A family is what a module of timm holds under one leading word: ``byobnet`` has ``gernet``, ``repvgg``, …. Of
each the smallest network with BatchNorm is taken, with random weights and randomised statistics, at the
smallest of 64, 96, … pixels that it takes. It goes the user's way: ``--model timm:NAME --weights FILE`` on 48
images, two batches of 8 without an attack, η 0.05 with rms, and ``export``, which compares the two-pass graph
with PyTorch on the bundle's images and refuses what differs.

One process at a time, each ended after ``--seconds`` of CPU time. With ``--models`` the results of the others
stay.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from measuring import machine, write_results
from PIL import Image
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from sad_deploy.attack_config import AttackKind
from sad_deploy.calibration_job import run
from sad_deploy.export_bundle import export_bundle
from sad_deploy.preparation import prepare
from sad_deploy.provenance import save
from sad_deploy.recipe import Options, resolve
from sad_runtime.bundle import Bundle
from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.support.models import forward_onnx, randomised, small_cnn  # noqa: E402

CLASSES = 10
IMAGES = 48
SIZES = (*range(64, 257, 32), 299, 331, 384, 448)
FORK = multiprocessing.get_context("fork")
_WORD = re.compile(r"(?:test_|legacy_|tf_)?[a-z]+")


def families() -> Iterator[tuple[str, list[str]]]:
    """Family → names of its networks."""
    found: dict[str, list[str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            word = _WORD.match(name)
            found.setdefault(f"{module}: {word[0] if word else name}", []).append(name)
    yield from sorted(found.items())


def smallest(names: list[str]) -> str | None:
    """The network of fewest parameters among those with BatchNorm."""
    sized = []
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, num_classes=CLASSES)
        if any(isinstance(module, BatchNorm) for module in model.modules()):
            sized.append((sum(each.numel() for each in model.parameters()), name))
    return min(sized)[1] if sized else None


def fitted(name: str) -> tuple[str, int, torch.nn.Module]:
    """The network at the smallest size that it takes, and how to name it."""
    reason = ""
    for size in SIZES:
        for arguments in ({}, {"img_size": size}):
            torch.manual_seed(0)
            try:
                model = randomised(
                    timm.create_model(name, pretrained=False, num_classes=CLASSES, **arguments)
                )
                with torch.no_grad():
                    model(torch.zeros(2, 3, size, size))
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error)[:200]}"
                continue
            said = f"(img_size={size})" if arguments else ""
            return f"timm:{name}{said}", size, model
    raise UserError(f"takes no size of {SIZES}: {reason}")


def write_images(folder: Path, size: int) -> None:
    """Smooth random images without labels."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(IMAGES):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i}.png")


def measure(name: str) -> dict[str, Any]:
    """One network from its name to its verified graph."""
    started = time.process_time()
    result: dict[str, Any] = {"model": name, "built": False, "calibrated": False, "exported": False}
    try:
        with tempfile.TemporaryDirectory() as folder:
            result["model"], size, model = fitted(name)
            result |= {"built": True, "size": size, "parameters": sum(p.numel() for p in model.parameters())}
            weights, bundle = Path(folder) / "weights.safetensors", Path(folder) / "bundle"
            weights.write_bytes(safetensors.torch.save({k: v.clone() for k, v in model.state_dict().items()}))
            del model
            write_images(Path(folder) / "images", size)
            asked = resolve(
                Options(
                    model=result["model"], weights=str(weights), data=f"{folder}/images", image_size=size,
                    attack=AttackKind.NONE, normalization=Normalization.RMS, eta="0.05", batches=2,
                    batch_size=8, samples=8, device="cpu",
                )
            )  # fmt: skip
            ready = prepare(asked)
            save(bundle, asked, ready, run(asked, ready, lambda *_: None))
            result["calibrated"] = True
            graphs = export_bundle(Bundle.open(bundle)).graphs
            result["exported"] = True
            result["verification"] = {each.entry.target: dict(each.entry.verification) for each in graphs}
    except UserError as error:
        result["reason"] = error.message[:400]
    except Exception as error:
        # One network that fails in an unforeseen way must not end the sweep.
        result["reason"] = f"{type(error).__name__}: {error}"[:400]
    result["cpu_seconds"] = time.process_time() - started
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result


def _send(pipe: Connection, name: str, seconds: int) -> None:
    resource.setrlimit(
        resource.RLIMIT_CPU, (seconds + math.ceil(time.process_time()), resource.RLIM_INFINITY)
    )
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    pipe.send(measure(name))


def in_its_own_process(name: str, seconds: int) -> dict[str, Any]:
    """A crash, or too long a time, is one line of the results."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send, args=(there, name, seconds))
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
        process.join()
        return found
    except EOFError:
        process.join()
    late = process.exitcode == -signal.SIGXCPU
    reason = f"not done in {seconds} s" if late else f"its process ended with {process.exitcode}"
    return {
        "model": f"timm:{name}", "built": True, "calibrated": False, "exported": False, "reason": reason
    }  # fmt: skip


def chosen(wanted: list[str] | None) -> Iterator[tuple[str, str | None]]:
    """Family → its network, None for a family without BatchNorm."""
    for family, names in families():
        given = None if wanted is None else [name for name in names if name in wanted]
        if given is None:
            yield family, smallest(names)
        for name in given or ():
            yield family, name


def figures(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The file."""
    with_batchnorm = [result for result in results if result["model"] is not None]
    summary = {
        "families": len({result["family"] for result in results}),
        "without_batchnorm": len(results) - len(with_batchnorm),
        **{what: sum(r[what] for r in with_batchnorm) for what in ("built", "calibrated", "exported")},
    }
    return {"machine": machine(), "timm": timm.__version__, "summary": summary, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", help="names as timm has them")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "timm_families.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kept = (
        json.loads(arguments.out.read_text())["results"]
        if arguments.models and arguments.out.exists()
        else []
    )
    # What every process needs is loaded once, before they part.
    forward_onnx(small_cnn())
    for family, name in chosen(arguments.models):
        result = {"family": family, "model": None}
        if name is not None:
            started = time.monotonic()
            result |= in_its_own_process(name, arguments.seconds)
            print(f"{time.monotonic() - started:5.0f} s  {family:34}{result['model']:34}", end="", flush=True)
            print("exported" if result["exported"] else result["reason"], flush=True)
        kept = [each for each in kept if each["family"] != family] + [result]
        kept.sort(key=lambda each: str(each["family"]))
        arguments.out.write_text(json.dumps(figures(kept), indent=2) + "\n", encoding="utf-8")
    write_results(arguments.out, figures(kept))


if __name__ == "__main__":
    main()
