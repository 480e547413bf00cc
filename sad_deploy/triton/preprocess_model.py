"""Inside Triton, under its Python backend: image files → the graph's input, as ``infer`` makes it.

Triton's Python needs the runtime of sad-deploy. ``preprocessing.json`` lies beside this file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from sad_runtime.errors import ImageError
from sad_runtime.manifest import Preprocessing
from sad_runtime.preprocessing import load_bytes
from sad_runtime.strict_json import from_plain, parse


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read how images are prepared."""
        folder = Path(args["model_repository"]) / args["model_version"]
        problems: list[str] = []
        plain = parse((folder / "preprocessing.json").read_bytes())
        self.preprocessing = from_plain(Preprocessing, plain, "", problems)
        if problems:
            raise triton.TritonModelException(f"preprocessing.json: {'; '.join(problems)}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request: its images, or one line about the first that cannot be used."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        files = triton.get_input_tensor_by_name(request, "bytes").as_numpy().reshape(-1)
        try:
            images = [load_bytes(bytes(file), self.preprocessing).pixels for file in files]
        except ImageError as error:
            return triton.InferenceResponse(error=triton.TritonError(f"{error.code.value}: {error}"))
        return triton.InferenceResponse([triton.Tensor("image", np.stack(images))])
