"""TensorRT for RTX as it would be without kernels for deconvolution."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def without_deconvolution(tensorrt: ModuleType) -> ModuleType:
    """The module, whose builder finds no kernel for a ConvTranspose, and says so as TensorRT does.

    TensorRT for RTX 1.7 itself has one for every ConvTranspose that ``auto`` writes: 68 forms in fp32
    and fp16 built, for Turing too.
    """

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger, self._builder = logger, tensorrt.Builder(logger)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._builder, name)

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            for layer in (network.get_layer(i) for i in range(network.num_layers)):
                if layer.type == tensorrt.LayerType.DECONVOLUTION:
                    error = tensorrt.ILogger.Severity.ERROR
                    self._logger.log(error, f"no kernel for operation {layer.name} deconv")
                    return None
            return self._builder.build_serialized_network(network, config)

    other = ModuleType(tensorrt.__name__)
    vars(other).update(vars(tensorrt))
    other.Builder = Builder  # type: ignore[attr-defined]
    return other
