"""NVIDIA GPUs: kernels with thread bindings, how they are timed, and how their latencies compose.

Importing this imports no TVM; `fusion` does not either.
"""
