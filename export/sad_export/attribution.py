"""What a gradient graph says of an image: by which method, of which logit, taken where."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sad_runtime.choices import Method, Objective, choose
from sad_runtime.errors import UserError
from sad_runtime.graph_metadata import PREFIX

from .gradient import LARGEST, Seed
from .input_gradient import AT_KEY, OF_KEY

METHOD_KEY = f"{PREFIX}method"
"""Metadata key of a graph of another method than saliency, which is the gradient itself."""

OUTPUTS = {
    Method.SALIENCY: "gradient",
    Method.GRADCAM: "heatmap",
    Method.INTEGRATED: "attribution",
    Method.SMOOTHGRAD: "gradient",
}
"""The output beside the logits."""

_OF_METHOD = {
    Method.SALIENCY: {"at"},
    Method.GRADCAM: {"at"},
    Method.INTEGRATED: {"steps", "baseline"},
    Method.SMOOTHGRAD: {"samples", "noise", "noise_seed"},
}
_DEFAULTS = {"steps": 32, "baseline": 0.0, "samples": 16, "noise": 0.15, "noise_seed": 0}


@dataclasses.dataclass(frozen=True)
class Attribution:
    """What a gradient graph gives.

    Attributes:
        method: A word of :class:`~sad_runtime.choices.Method`.
        seed: What the gradient is one of.
        at: Where it is taken, for ``saliency`` and ``gradcam``; see :func:`~.feature_map.value_at`. The
            default of ``gradcam`` is the last feature map.
        steps: Points of the integral, for ``integrated``: by Gauss–Legendre; 32 by default.
        baseline: Its lower end x', one number or one a channel; 0 by default.
        samples: Noisy images, for ``smoothgrad``; 16 by default.
        noise: Their standard deviation σ, as a part of the image's range max x − min x; 0.15 by default.
        noise_seed: Of the noise, which is a constant of the graph; 0 by default.

    Raises:
        UserError: What is given does not belong to the method, or is out of range.
    """

    method: str = Method.SALIENCY
    seed: Seed = LARGEST
    at: str | None = None
    _: dataclasses.KW_ONLY
    steps: int | None = None
    baseline: float | Sequence[float] | None = None
    samples: int | None = None
    noise: float | None = None
    noise_seed: int | None = None

    def __post_init__(self) -> None:
        method = self.chosen
        for name in sorted(set().union(*_OF_METHOD.values())):
            if getattr(self, name) is not None and name not in _OF_METHOD[method]:
                takers = [each.value for each, names in _OF_METHOD.items() if name in names]
                option = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"--method {method} takes no {option}", hint=f"{option} is for {' and '.join(takers)}"
                )
        if method is Method.GRADCAM and self.seed.objective is Objective.LOSS:
            raise UserError(
                "Grad-CAM shows what speaks for a class, and the loss falls with that",
                hint="--of label takes the logit of the class",
            )
        for name in ("steps", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.noise is not None and not (np.isfinite(self.noise) and self.noise > 0):
            raise UserError(f"noise must be a positive number, got {self.noise}", hint="0.15, for example")

    @classmethod
    def stated(cls, metadata: Mapping[str, str]) -> Attribution:
        """What a graph of ours says of itself in its metadata.

        Raises:
            UserError: A word or a number in it is wrong.
        """
        method = metadata.get(METHOD_KEY, Method.SALIENCY.value)
        names = _OF_METHOD[choose(Method, method, "method")] - {"at"}
        keys = {name: f"{PREFIX}{name}" for name in names}
        settings = {name: json.loads(metadata[key]) for name, key in keys.items() if key in metadata}
        seed = Seed.of(metadata.get(OF_KEY, Objective.LARGEST.value))
        return cls(method, seed, metadata.get(AT_KEY), **settings)

    @property
    def chosen(self) -> Method:
        """The method.

        Raises:
            UserError: It is another word.
        """
        return choose(Method, self.method, "method")

    @property
    def settings(self) -> dict[str, Any]:
        """What the method takes beside ``at``, with its defaults."""
        given = {name: getattr(self, name) for name in _OF_METHOD[self.chosen] if name != "at"}
        return {name: _DEFAULTS[name] if given[name] is None else given[name] for name in sorted(given)}

    @property
    def output(self) -> str:
        """Name of the output beside the logits."""
        return OUTPUTS[self.chosen]

    def metadata(self, at: str | None = None) -> dict[str, str]:
        """What a graph of another method than saliency says of itself.

        Args:
            at: The value that the gradient is taken at; None for the image.
        """
        stated = {OF_KEY: self.seed.word, METHOD_KEY: self.chosen.value}
        if at is not None:
            stated[AT_KEY] = at
        return stated | {f"{PREFIX}{name}": json.dumps(value) for name, value in self.settings.items()}
