"""Draw what an image classifier's answer comes from, by four methods, beside the photo.

    python examples/explain.py forward.onnx photo.jpg explained.png

The graphs are made from any ONNX classifier, with `sad-deploy gradient forward.onnx --method …` as here or
ahead; what draws needs onnxruntime, numpy and Pillow alone. From left to right: the photo, saliency,
Grad-CAM, integrated gradients, SmoothGrad. A network without a last feature map, such as ViT, has no Grad-CAM
unless --at names a map.

examples/torchvision_to_onnx.py writes such a forward.onnx. --mean and --std are what the network was trained
with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw

METHODS = {
    "saliency": "gradient",
    "gradcam": "heatmap",
    "integrated": "attribution",
    "smoothgrad": "gradient",
}
NAMES = ("photo", "saliency", "Grad-CAM", "integrated gradients", "SmoothGrad")
STRIP = 14


def graphs_of(forward: Path, folder: Path, at: str | None) -> dict[str, Path]:
    """Write the graph of each method; one that the network does not have is left out, and said."""
    from sad_export import GraphError, write_gradient

    made = {}
    for method in METHODS:
        out = folder / f"{forward.stem}.{method}.onnx"
        try:
            write_gradient(forward, out, method=method, at=at if method == "gradcam" else None, notice=print)
        except GraphError as error:
            print(f"{method}: {error.message}; {error.hint}")
        else:
            made[method] = out
    return made


def explain(
    graphs: dict[str, Path], photo: Path, mean: list[float], std: list[float]
) -> tuple[int, Image.Image]:
    """Classify a photo and draw what each method says of it.

    Args:
        graphs: ONNX file of each method, by its word.
        photo: An image file; it is resized to the graphs' H×W.
        mean: Of each channel of the network's training images, in [0, 1]; or one value for all.
        std: Likewise, the standard deviation.

    Returns:
        The class, and the photo beside one panel a method; a grey one where there is no graph.
    """
    label, panels, picture = -1, [], None
    for method, output in METHODS.items():
        if method not in graphs:
            panels.append(None)
            continue
        session = onnxruntime.InferenceSession(graphs[method], providers=["CPUExecutionProvider"])
        source = session.get_inputs()[0]
        _, channels, height, width = source.shape
        picture = Image.open(photo).convert("L" if channels == 1 else "RGB").resize((width, height))
        pixels = np.asarray(picture, dtype=np.float32).reshape(height, width, channels) / 255
        image = ((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
        logits, found = session.run(["logits", output], {source.name: image})
        label = int(logits.argmax())
        panels.append(drawn(found[0], picture if method == "gradcam" else None))
    if picture is None:
        raise SystemExit("there is no graph to draw")
    width, height = picture.size
    whole = Image.new("RGB", ((1 + len(panels)) * width, height + STRIP), "white")
    for i, panel in enumerate([picture.convert("RGB"), *panels]):
        whole.paste(panel or Image.new("RGB", (width, height), "grey"), (i * width, STRIP))
        ImageDraw.Draw(whole).text((i * width + 2, 1), NAMES[i], fill="black")
    return label, whole


def drawn(found: np.ndarray, under: Image.Image | None) -> Image.Image:
    """A (C, H, W) map as a picture, up to its 99th percentile; red to blue over the photo if there is one."""
    strength = np.abs(found).max(axis=0)
    strength = np.clip(strength / max(np.percentile(strength, 99), np.finfo(np.float32).tiny), 0, 1)
    if under is None:
        return Image.fromarray((255 * strength).astype(np.uint8)).convert("RGB")
    colour = np.stack([np.clip(1.5 - np.abs(4 * strength - c), 0, 1) for c in (3, 2, 1)], axis=-1)
    return Image.blend(under.convert("RGB"), Image.fromarray((255 * colour).astype(np.uint8)), 0.5)


def main() -> None:
    """Read the command line, write the graphs, draw, and say which class it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("forward", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--at", help="the feature map of Grad-CAM, by its name in the graph")
    parser.add_argument("--mean", type=float, nargs="+", default=[0.485, 0.456, 0.406])
    parser.add_argument("--std", type=float, nargs="+", default=[0.229, 0.224, 0.225])
    arguments = parser.parse_args()
    graphs = graphs_of(arguments.forward, arguments.out.absolute().parent, arguments.at)
    label, picture = explain(graphs, arguments.photo, arguments.mean, arguments.std)
    picture.save(arguments.out)
    print(f"class {label}; {arguments.out}: {', '.join(NAMES)}")


if __name__ == "__main__":
    main()
