"""What a two-pass graph says of itself, so that one that does not belong to its manifest is noticed.

η, the normalisation, the clip and the input space are constants inside the graph; the manifest states them
for people. They are written into the ONNX file's metadata too, and compared when it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from .choices import Normalization
from .manifest import Defence, InputSpace

PREFIX = "sad_deploy."
Bound = float | Sequence[float]


def graph_metadata(
    *,
    eta: float,
    normalization: Normalization,
    clip: tuple[Bound, Bound] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> dict[str, str]:
    """Key → text for the ``metadata_props`` of an ONNX model; equal settings give equal text."""
    values = {"eta": eta, "normalization": normalization.value, "clip": clip, "mean": mean, "std": std}
    return {f"{PREFIX}{name}": json.dumps(value) for name, value in values.items()}


def space_metadata(mean: Sequence[float], std: Sequence[float]) -> dict[str, str]:
    """The same of a graph without a defence that has its mean and std inside."""
    return {f"{PREFIX}{name}": json.dumps(value) for name, value in (("mean", mean), ("std", std))}


def contradictions(metadata: Mapping[str, str], defence: Defence, space: InputSpace) -> list[str]:
    """What a graph's metadata says otherwise than the manifest, in words; nothing for a graph without any."""
    expected = graph_metadata(
        eta=defence.eta,
        normalization=defence.normalization,
        clip=defence.bounds(space),
        mean=space.mean,
        std=space.std,
    )
    if set(space.mean) == {0.0} and set(space.std) == {1.0}:  # a graph without them takes images as they are
        expected |= {key: "null" for key in (f"{PREFIX}mean", f"{PREFIX}std") if metadata.get(key) == "null"}
    return [
        f"{key.removeprefix(PREFIX)} is {metadata[key]} in the graph and {value} in the manifest"
        for key, value in expected.items()
        if key in metadata and metadata[key] != value
    ]
