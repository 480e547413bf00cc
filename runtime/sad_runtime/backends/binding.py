"""Run an onnxruntime session with its input and outputs in buffers on the device, kept from batch to batch.

Only the outputs that are asked for are bound, so only they are copied back. The copies are from and to
ordinary memory: onnxruntime's Python interface hands out no pinned memory.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .protocol import INPUT

_KEPT = 4
"""Bindings, of different batch sizes or outputs."""

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_NO_GRAPH = "-1"


@dataclasses.dataclass(frozen=True)
class _Binding:
    """Buffers of one batch size and choice of outputs.

    Attributes:
        bound: onnxruntime's.
        image: The input on the device.
        options: Which CUDA graph belongs to it, if any.
    """

    bound: Any
    image: Any
    options: Any


class Bindings:
    """A session's bindings.

    Args:
        session: onnxruntime's, of a graph from an image of static (C, H, W).
        device: ``cuda`` or ``cpu``.
        cuda_graphs: Whether the session was created with CUDA graphs. onnxruntime keeps them until it ends,
            so only the first few batch sizes and choices of outputs get one.
        image: Name of the graph's input.
    """

    def __init__(self, session: Any, device: str, *, cuda_graphs: bool = False, image: str = INPUT) -> None:
        self._session = session
        self._device = device
        self._cuda_graphs = cuda_graphs
        self._made: collections.OrderedDict[tuple[int, tuple[str, ...]], _Binding] = collections.OrderedDict()
        self._outputs = {output.name: output for output in session.get_outputs()}
        self._image = image
        (found,) = (item for item in session.get_inputs() if item.name == image)
        self._input_shape = found.shape[1:]

    def run(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a batch.

        Args:
            images: (N, C, H, W), contiguous.
            outputs: Which outputs to copy back.

        Returns:
            The outputs by name; arrays of their own.
        """
        names = tuple(outputs)
        binding = self._binding(len(images), names)
        binding.image.update_inplace(images)
        self._session.run_with_iobinding(binding.bound, binding.options)
        values = [value.numpy() for value in binding.bound.get_outputs()]
        if self._device == "cpu":  # where these are views of the buffers, which the next batch overwrites
            values = [value.copy() for value in values]
        return dict(zip(names, values, strict=True))

    def compute(self, count: int, outputs: Sequence[str]) -> None:
        """Run the kernels alone, on whatever lies in the buffers; for measuring.

        Args:
            count: Images.
            outputs: As for :meth:`run`.
        """
        binding = self._binding(count, tuple(outputs))
        self._session.run_with_iobinding(binding.bound, binding.options)

    def _binding(self, count: int, names: tuple[str, ...]) -> _Binding:
        key = (count, names)
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key]
        if len(self._made) >= _KEPT:
            if self._cuda_graphs:  # what a graph was recorded with must stay
                return self._bind(count, names, graph=_NO_GRAPH)
            self._made.popitem(last=False)
        # onnxruntime keeps 0 for itself.
        self._made[key] = self._bind(count, names, graph=str(len(self._made) + 1))
        return self._made[key]

    def _bind(self, count: int, names: tuple[str, ...], *, graph: str) -> _Binding:
        import onnxruntime

        allocate = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        bound = self._session.io_binding()
        image = allocate([count, *self._input_shape], np.float32, self._device, 0)
        bound.bind_ortvalue_input(self._image, image)
        for name in names:
            output = self._outputs[name]
            row = output.shape[1:]
            if output.type in _TYPES and all(isinstance(side, int) for side in row):
                value = allocate([count, *row], _TYPES[output.type], self._device, 0)
                bound.bind_ortvalue_output(name, value)
            else:  # onnxruntime allocates it, again in every run
                bound.bind_output(name, self._device, 0)
                graph = _NO_GRAPH
        options = None
        if self._cuda_graphs:
            options = onnxruntime.RunOptions()
            options.add_run_config_entry("gpu_graph_id", graph)
        return _Binding(bound, image, options)

    def forget(self) -> None:
        """Give the buffers back; not those that CUDA graphs write to."""
        if not self._cuda_graphs:
            self._made.clear()
