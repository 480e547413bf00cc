"""Draw what an image classifier looks at: the photo beside |∂ largest logit / ∂ pixel|.

    python examples/saliency_map.py forward.gradient.onnx photo.jpg saliency.png

It needs onnxruntime, numpy and Pillow only. The graph is made once, anywhere, from any ONNX classifier:

    sad-deploy gradient forward.onnx                              # → forward.gradient.onnx

examples/torchvision_to_onnx.py writes such a forward.onnx. --mean and --std are what the network was trained
with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def saliency_map(graph: Path, photo: Path, mean: list[float], std: list[float]) -> tuple[int, Image.Image]:
    """Classify a photo and draw its input gradient.

    Args:
        graph: ONNX, image (N, C, H, W) → logits (N, K) and gradient (N, C, H, W); C is 1 or 3.
        photo: An image file; it is resized to H×W.
        mean: Of each channel of the network's training images, in [0, 1]; or one value for all.
        std: Likewise, the standard deviation.

    Returns:
        The class, and the photo beside its saliency.
    """
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    _, channels, height, width = source.shape
    picture = Image.open(photo).convert("L" if channels == 1 else "RGB").resize((width, height))
    pixels = np.asarray(picture, dtype=np.float32).reshape(height, width, channels) / 255
    image = ((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    logits, gradient = session.run(["logits", "gradient"], {source.name: image})
    strength = np.abs(gradient[0]).max(axis=0)
    strength = np.clip(strength / max(np.percentile(strength, 99), np.finfo(np.float32).tiny), 0, 1)
    both = Image.new("RGB", (2 * width, height))
    both.paste(picture.convert("RGB"), (0, 0))
    both.paste(Image.fromarray((255 * strength).astype(np.uint8)), (width, 0))
    return int(logits.argmax()), both


def main() -> None:
    """Read the command line, draw, and say which class it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graph", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mean", type=float, nargs="+", default=[0.485, 0.456, 0.406])
    parser.add_argument("--std", type=float, nargs="+", default=[0.229, 0.224, 0.225])
    arguments = parser.parse_args()
    label, picture = saliency_map(arguments.graph, arguments.photo, arguments.mean, arguments.std)
    picture.save(arguments.out)
    print(f"class {label}; {arguments.out}: the photo, and where a small change moves the largest logit most")


if __name__ == "__main__":
    main()
