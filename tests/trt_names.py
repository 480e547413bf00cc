"""Every name of TensorRT that the runtime uses, by class; "" is the module."""

from __future__ import annotations

RUNTIME_NAMES: dict[str, list[str]] = {
    "": [
        "__version__",
        "DataType",
        "ExecutionContextAllocationStrategy",
        "ILogger",
        "Runtime",
        "TensorIOMode",
    ],
    "DataType": ["FLOAT"],
    "ExecutionContextAllocationStrategy": ["USER_MANAGED"],
    "ICudaEngine": [
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "num_io_tensors",
    ],
    "IExecutionContext": [
        "execute_async_v3",
        "set_device_memory",
        "set_input_shape",
        "set_tensor_address",
        "update_device_memory_size_for_shapes",
    ],
    "ILogger": ["ERROR", "INTERNAL_ERROR", "Severity", "log"],
    "Runtime": ["deserialize_cuda_engine"],
    "TensorIOMode": ["INPUT"],
}
"""What both flavors have."""

RTX_RUNTIME_NAMES: dict[str, list[str]] = {
    "": ["CudaGraphStrategy"],
    "CudaGraphStrategy": ["WHOLE_GRAPH_CAPTURE"],
    "ICudaEngine": ["create_runtime_config"],
    "IRuntimeCache": ["deserialize", "serialize"],
    "IRuntimeConfig": [
        "create_runtime_cache",
        "cuda_graph_strategy",
        "set_execution_context_allocation_strategy",
        "set_runtime_cache",
    ],
}
"""What is used of TensorRT for RTX alone."""
