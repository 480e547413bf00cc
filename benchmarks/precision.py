"""What lower precision costs in labels, saliency and accuracy, and saves in CPU time, on trained networks.

    python benchmarks/precision.py [--models digits resnet18 resnet50] [--folder trained]

``digits`` is the embedded default. The others are trained on patches of photographs (benchmarks/trained.py)
and then go the user's way: ``sad-deploy calibrate``, ``sad-deploy export`` in every precision. Figures
against PyTorch are those of the export, on 64 held-out images; accuracy is on test patches; CPU time is on
one thread, all forms taking turns in one process, relative to the undefended float32 network: the first
pass, cut out.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cpu_cost import interleaved, session
from measuring import machine, write_results
from trained import MEAN, SIDE, STD, patches, trained

from sad_deploy.data.digits import digits_splits
from sad_export.first_pass import first_pass
from sad_runtime import Classifier
from sad_runtime.bundle import Bundle

# Words of --precision and --saliency-precision; whether for onnxruntime's CPU.
VARIANTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "fp32": (("fp32",), False),
    "fp32, cpu": (("fp32",), True),
    "fp16": (("fp16",), False),
    "bf16": (("bf16",), False),
    "int8": (("int8",), False),
    "int8, cpu": (("int8",), True),
    "fp32-int8, cpu": (("fp32", "int8"), True),
}
TARGETS = {
    "fp16": {"label_agreement": 0.995, "saliency_cosine_median": 0.995},
    "bf16": {"label_agreement": 0.99, "saliency_cosine_median": 0.98},
    "int8": {"label_agreement": 0.98},
    "int8, cpu": {"label_agreement": 0.98, "cost_ratio": 1.1},
    "fp32-int8, cpu": {"cost_ratio": 2.0},
}
CALIBRATION = (
    *("--normalization", "rms", "--eta", "0.1", "--attack", "fgsm", "--epsilon", "2/255"),
    *("--batches", "16", "--batch-size", "32", "--image-size", str(SIDE)),
    *("--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))),
)
ACCURACY_IMAGES = 280


def sad_deploy(*arguments: str) -> None:
    """The command, in a process of its own."""
    code = "from sad_deploy.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)


def calibrated(name: str, folder: Path, work: Path) -> Path:
    bundle = work / name
    if bundle.is_dir():
        return bundle
    if name == "digits":
        sad_deploy("calibrate", "--out", str(bundle))
    else:
        weights = trained(name, folder)
        data = ("--data", str(folder / "train"), "--weights", str(weights))
        sad_deploy("calibrate", "--model", name, *data, *CALIBRATION, "--out", str(bundle))
    return bundle


def exported(name: str, bundle: Path, words: tuple[str, ...], *, cpu: bool, work: Path) -> Path:
    """A copy of the bundle with a graph in one variant: forms for TensorRT and the CPU share a name."""
    copy = work / f"{name}-{'-'.join(words)}{'-cpu' if cpu else ''}"
    if copy.is_dir():
        return copy
    draft = copy.with_name(f"{copy.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(bundle, draft)
    options = ["--precision", words[0], "--allow-inaccurate", "--target", "cpu" if cpu else "portable"]
    if len(words) > 1:
        options += ["--saliency-precision", words[1]]
    sad_deploy("export", str(draft), *options)
    return draft.rename(copy)


def test_images(name: str, folder: Path) -> tuple[Any, Any]:
    if name == "digits":
        _, _, test = digits_splits()
        images, labels = test.images, test.labels
    else:
        images, labels = (tensor.numpy() for tensor in patches(folder, "test"))
    chosen = np.random.default_rng(0).permutation(len(images))[:ACCURACY_IMAGES]
    return images[chosen].astype(np.float32) / 255, labels[chosen]


def accuracy(bundle: Path, precision: str, images: Any, labels: Any) -> dict[str, float]:
    """Of the defended network, and of its first pass."""
    with Classifier.load(bundle, backend="cpu", precision=precision) as classifier:
        predict = functools.partial(classifier.predict, outputs=("plain_logits",))
        parts = [predict(images[i : i + 8]) for i in range(0, len(images), 8)]
    logits = np.concatenate([part.logits for part in parts])
    plain = np.concatenate([part.plain_logits for part in parts if part.plain_logits is not None])
    return {
        "accuracy": float((logits.argmax(1) == labels).mean()),
        "plain_accuracy": float((plain.argmax(1) == labels).mean()),
    }


def measure(name: str, folder: Path, batches: list[int], rounds: int, work: Path) -> list[dict[str, Any]]:
    bundle = calibrated(name, folder, work)
    images, labels = test_images(name, folder)
    rows: dict[str, dict[str, Any]] = {}
    paths: dict[str, Path] = {}
    copies: dict[str, Path] = {}
    for form, (words, cpu) in VARIANTS.items():
        # Lower precision takes the float32 graph along instead of writing it again.
        source = bundle if words == ("fp32",) else copies["fp32"]
        copies[form] = copy = exported(name, source, words, cpu=cpu, work=work)
        (graph,) = [each for each in Bundle.open(copy).manifest.graphs if each.precision == "-".join(words)]
        rows[form] = {"model": name, "form": form, "bytes": (copy / graph.file).stat().st_size}
        rows[form] |= {"verification": dict(graph.verification)}
        if cpu or form == "fp32":
            paths[form] = copy / graph.file
            rows[form] |= accuracy(copy, graph.precision, images, labels)
        print(line(rows[form]), flush=True)
    single = work / f"{name}-single.onnx"
    onnx.save(first_pass(paths["fp32"]), str(single))
    for batch in batches:
        jobs: dict[str, Callable[[], Any]] = {}
        for form, path in {"single": single, **paths}.items():
            output = "plain_logits" if form == "single" else "logits"
            jobs[form] = functools.partial(session(path).run, [output], {"image": images[:batch]})
        seconds = interleaved(jobs, rounds)
        for form in paths:
            ratio = seconds[form] / seconds["single"]
            rows[form].setdefault("cost_ratio", {})[str(batch)] = ratio
            rows[form].setdefault("cpu_seconds", {})[str(batch)] = seconds[form]
    return list(rows.values())


def line(row: dict[str, Any]) -> str:
    """One row in words."""
    figures = row["verification"]
    text = f"{row['model']:<9}{row['form']:<16}labels {figures['label_agreement']:.4f}, "
    text += f"S {figures['saliency_cosine_median']:.4f} (least {figures['saliency_cosine_min']:.4f})"
    if "accuracy" in row:
        text += f", accuracy {row['accuracy']:.3f} (first pass {row['plain_accuracy']:.3f})"
    ratios = [f"{ratio:.2f} at batch {batch}" for batch, ratio in row.get("cost_ratio", {}).items()]
    return text + (f", CPU {', '.join(ratios)}" if ratios else "")


def main() -> None:
    """Print and write all figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["digits", "resnet18", "resnet50"])
    parser.add_argument("--folder", type=Path, default=Path("trained"))
    parser.add_argument("--work", type=Path, help="keep bundles here, and take those that are there")
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "precision.json")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as temporary:
            work = arguments.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            rows += measure(name, arguments.folder, arguments.batches, arguments.rounds, work)
    for row in rows:
        print(line(row))
    write_results(arguments.out, {"machine": machine(), "targets": TARGETS, "rows": rows})


if __name__ == "__main__":
    main()
