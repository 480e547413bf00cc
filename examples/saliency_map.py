"""Draw what an image classifier looks at, with onnxruntime alone: the input gradient of an ONNX model.

    python examples/saliency_map.py photo.jpg saliency.png [--model resnet18]

Once, on a machine with PyTorch: export the classifier and differentiate the graph. Then, anywhere: run it.
The network has random weights unless --weights names torchvision's (which are downloaded).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from PIL import Image

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def differentiated(name: str, weights: str | None, path: Path) -> None:
    """Write the classifier with its input gradient to ``path``; the only part that needs PyTorch."""
    import torch
    import torchvision

    from sad_deploy import fold_batchnorm
    from sad_deploy.to_onnx import to_onnx
    from sad_export import input_gradient

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=weights).eval()
    onnx.save(input_gradient(to_onnx(fold_batchnorm(model), (3, 224, 224))), str(path))


def main() -> None:
    """Photo in, picture of the saliency out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights")
    arguments = parser.parse_args()
    graph = arguments.out.with_suffix(".onnx")
    differentiated(arguments.model, arguments.weights, graph)

    photo = Image.open(arguments.photo).convert("RGB").resize((224, 224))
    x = (np.asarray(photo) / 255 - MEAN) / STD
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    image = x.transpose(2, 0, 1)[None].astype(np.float32)
    logits, gradient = session.run(["logits", "gradient"], {session.get_inputs()[0].name: image})
    strength = np.abs(gradient[0]).max(0)
    strength = np.clip(strength / np.percentile(strength, 99), 0, 1)
    picture = np.concatenate([np.asarray(photo), np.repeat(255 * strength[..., None], 3, axis=2)], axis=1)
    Image.fromarray(picture.astype(np.uint8)).save(arguments.out)
    print(f"class {logits.argmax()}; {arguments.out}: the photo, and |∂ largest logit / ∂ pixel|")


if __name__ == "__main__":
    main()
