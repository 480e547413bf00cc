"""Draw photo | saliency | x + ηS for images of a bundle, with onnxruntime, numpy and Pillow only.

    python examples/make_pictures.py photo-model saliency.png photo1.png photo2.png

Each image is a row: what the network sees, the saliency S, and what the second pass sees. S is shown signed:
grey is 0, each channel brighter where the logit grows with it, and the 99th percentile of |S| is full scale.
The bundle's η and normalisation are used unless --eta says otherwise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

GAP = 8


def normalized(s: np.ndarray, normalization: str) -> np.ndarray:
    """n(S) of one image, as the manifest says."""
    scale = {"none": 1.0, "rms": np.sqrt(np.square(s).mean()), "linf": np.abs(s).max()}
    return np.sign(s) if normalization == "sign" else s / scale[normalization]


def row(
    session: onnxruntime.InferenceSession, manifest: dict[str, Any], photo: Path, eta: float
) -> np.ndarray:
    """The three pictures of one photo side by side, (H, 3W + 2 GAP, 3) in [0, 1]."""
    _, _, height, width = session.get_inputs()[0].shape
    pixels = np.asarray(Image.open(photo).convert("RGB").resize((width, height)), dtype=np.float32) / 255
    logits, saliency, plain = session.run(
        ["logits", "saliency", "plain_logits"], {"image": pixels.transpose(2, 0, 1)[None]}
    )
    classes = manifest["classes"]
    print(f"{photo}: {classes[int(logits.argmax())]}, without the defence {classes[int(plain.argmax())]}")
    s = saliency[0].transpose(1, 2, 0).astype(np.float64)
    step = (
        eta * np.array(manifest["input_space"]["std"]) * normalized(s, manifest["defence"]["normalization"])
    )
    print(
        f"  x + ηS: a pixel changes by {255 * np.abs(step).mean():.1f} of 255 levels on average, η = {eta:g}"
    )
    shown = 0.5 + 0.5 * s / np.percentile(np.abs(s), 99)
    gap = np.ones((height, GAP, 3))
    return np.concatenate([pixels, gap, shown, gap, pixels + step], axis=1).clip(0, 1)


def main() -> None:
    """A bundle and photos in, one picture out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--eta", type=float)
    parser.add_argument("--scale", type=int, default=1, help="enlarge each pixel")
    arguments = parser.parse_args()
    manifest = json.loads((arguments.bundle / "manifest.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(
        arguments.bundle / "model.onnx", providers=["CPUExecutionProvider"]
    )
    eta = manifest["defence"]["eta"] if arguments.eta is None else arguments.eta
    rows = [row(session, manifest, photo, eta) for photo in arguments.photos]
    gap = np.ones((GAP, rows[0].shape[1], 3))
    stacked = np.concatenate([part for each in rows for part in (gap, each)][1:])
    picture = Image.fromarray(np.round(255 * stacked).astype(np.uint8))
    size = (picture.width * arguments.scale, picture.height * arguments.scale)
    picture.resize(size, Image.Resampling.NEAREST).save(arguments.out)


if __name__ == "__main__":
    main()
