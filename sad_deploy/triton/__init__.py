"""A bundle as a model repository of NVIDIA Triton Inference Server.

``configuration`` writes what Triton reads of a model; ``repository`` lays the files out;
``preprocess_model`` is copied into a repository and runs inside Triton.
"""

from .repository import TritonRequest, Written, write_repository

__all__ = ["TritonRequest", "Written", "write_repository"]
