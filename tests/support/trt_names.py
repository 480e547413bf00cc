"""Every name of TensorRT that the code uses, by class; "" is the module.

``…_NAMES`` must be in both packages and in every supported version; ``RTX_…_NAMES`` and
``ENTERPRISE_…_NAMES`` in that one only. Checked by test_trt_names.py, against the code too.
"""

from __future__ import annotations

BUILD_NAMES = {
    "": [
        *("Builder", "BuilderFlag", "ILogger", "NetworkDefinitionCreationFlag", "OnnxParser", "__version__"),
    ],
    "Builder": [
        *("build_serialized_network", "create_builder_config", "create_network"),
        "create_optimization_profile",
    ],
    "BuilderFlag": ["TF32"],
    "IBuilderConfig": [
        *("add_optimization_profile", "builder_optimization_level", "clear_flag", "get_flag", "set_flag"),
    ],
    "IHostMemory": ["nbytes"],
    "ILogger": ["ERROR", "INTERNAL_ERROR", "Severity", "VERBOSE", "log"],
    "INetworkDefinition": ["get_input", "get_output", "num_inputs", "num_outputs"],
    "IOptimizationProfile": ["set_shape"],
    "ITensor": ["name", "shape"],
    "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
    "OnnxParser": ["get_error", "num_errors", "parse_from_file"],
    "ParserError": ["desc", "node", "node_name", "node_operator"],
}

RTX_BUILD_NAMES = {
    "": ["ComputeCapability"],
    "ComputeCapability": [*("CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120")],
    "IBuilderConfig": ["num_compute_capabilities", "set_compute_capability"],
}

ENTERPRISE_BUILD_NAMES = {
    "": ["HardwareCompatibilityLevel"],
    # SAME_COMPUTE_CAPABILITY is newer than 10.8, and asked for by name.
    "HardwareCompatibilityLevel": ["AMPERE_PLUS"],
    "IBuilderConfig": [
        *("create_timing_cache", "get_timing_cache", "hardware_compatibility_level", "set_timing_cache"),
    ],
    "ITimingCache": ["serialize"],
}

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
