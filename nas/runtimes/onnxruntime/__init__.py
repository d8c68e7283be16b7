"""ONNX Runtime on this machine's processor. Importing this imports no ONNX Runtime."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from nas.latency import device
from nas.latency.runtime import Availability
from nas.runtimes.onnxruntime.dtypes import fusion_on
from nas.runtimes.onnxruntime.float32.fusion import block_size

if TYPE_CHECKING:
    from nas.runtimes.onnxruntime.runtime import OnnxRuntime

# ONNX Runtime, which only modules of this package import, reads it when it is loaded. Without it
# a device id and a queue of events are written below the user's cache folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["availability", "fusion_on", "open"]


def open(*, target: str, threads: int, dtype: str) -> OnnxRuntime:  # noqa: A001
    """See `nas.latency.runtime.open_runtime`."""
    from nas.runtimes.onnxruntime.runtime import OnnxRuntime

    return OnnxRuntime(target=target, threads=threads, dtype=dtype)


def availability() -> Availability:
    """Whether ONNX Runtime is installed, loads, and fuses here by the rules that are known."""
    try:
        versions = {"onnxruntime": version("onnxruntime")}
    except PackageNotFoundError:
        return Availability("onnxruntime", False, "onnxruntime is not installed")
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        return Availability("onnxruntime", False, f"onnxruntime does not load ({error})", versions)
    if "CPUExecutionProvider" not in onnxruntime.get_available_providers():
        return Availability("onnxruntime", False, "it was built without its CPU provider", versions)
    if block_size(device.processor()[1]) == 1:
        reason = "how it fuses is known for x86 processors only"
        return Availability("onnxruntime", False, reason, versions)
    return Availability("onnxruntime", True, "", versions)
