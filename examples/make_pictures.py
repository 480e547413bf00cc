"""Draw photo | saliency S | x + ηS of a two-pass graph, with onnxruntime, numpy and Pillow only.

    sad-deploy defend forward.onnx --eta 0.05 --normalization rms --images photos/
    python examples/make_pictures.py forward.sad.onnx photo.png pictures.png --scale 6

The graph may also be a bundle's model.onnx. η, the normalisation of S and the standard deviation are in the
file. S is shown signed: grey is 0, a channel is brighter where the logit grows with it, and the 99th
percentile of |S| is full scale.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

GAP = 8


def normalized(s: np.ndarray, normalization: str) -> np.ndarray:
    """n(S) of one image; S must not be zero everywhere."""
    scale = {"none": 1.0, "rms": np.sqrt(np.square(s).mean()), "linf": np.abs(s).max()}
    return np.sign(s) if normalization == "sign" else s / scale[normalization]


def pictures(graph: Path, photo: Path, scale: int) -> Image.Image:
    """The three pictures side by side; each pixel that the network sees is scale × scale large."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    eta, normalization, std = (
        json.loads(metadata[f"sad_deploy.{name}"]) for name in ("eta", "normalization", "std")
    )
    _, channels, height, width = session.get_inputs()[0].shape
    picture = Image.open(photo).convert("L" if channels == 1 else "RGB").resize((width, height))
    pixels = np.asarray(picture, dtype=np.float32).reshape(height, width, channels) / 255
    outputs = session.run(["logits", "plain_logits", "saliency"], {"image": pixels.transpose(2, 0, 1)[None]})
    s = outputs[2][0].transpose(1, 2, 0).astype(np.float64)
    step = eta * np.array(std or 1) * normalized(s, normalization)
    print(
        f"{photo}: class {outputs[0].argmax()}, without the defence {outputs[1].argmax()}; "
        f"x + ηS moves a pixel by {255 * np.abs(step).mean():.1f} of 255 levels on average"
    )
    shown = 0.5 + 0.5 * s / np.percentile(np.abs(s), 99)
    large = Image.new("RGB", (3 * width * scale + 2 * GAP, height * scale), "white")
    for place, values in enumerate((pixels, shown, pixels + step)):
        levels = np.round(255 * np.broadcast_to(values, (height, width, 3)).clip(0, 1)).astype(np.uint8)
        enlarged = Image.fromarray(levels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        large.paste(enlarged, (place * (width * scale + GAP), 0))
    return large


def main() -> None:
    """Graph and photo in, picture out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graph", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", type=int, default=1)
    arguments = parser.parse_args()
    pictures(arguments.graph, arguments.photo, arguments.scale).save(arguments.out)


if __name__ == "__main__":
    main()
