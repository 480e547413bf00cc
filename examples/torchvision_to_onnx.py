"""Write a torchvision classifier as an ONNX graph: images (N, 3, 224, 224), normalised → logits (N, 1000).

    python examples/torchvision_to_onnx.py resnet18 resnet18.onnx --weights DEFAULT

It is a forward graph as any exporter writes it: `sad-deploy gradient` and `sad-deploy defend` start from one.
Without --weights the weights are random; DEFAULT downloads torchvision's.
"""

from __future__ import annotations

import argparse

import torch
import torchvision


def main() -> None:
    """Name of a network in, ONNX file out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--weights")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = torchvision.models.get_model(arguments.model, weights=arguments.weights).eval()
    batch = torch.export.Dim("N")
    torch.onnx.export(
        model,
        (torch.rand(2, 3, 224, 224),),
        arguments.out,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        external_data=False,
    )


if __name__ == "__main__":
    main()
