"""How each dtype fuses. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Collection

from nas.errors import RequestError
from nas.latency import device
from nas.runtimes.onnxruntime.float32.fusion import BlockedFusion, block_size
from nas.runtimes.onnxruntime.fusion import OnnxRuntimeFusion
from nas.runtimes.onnxruntime.int8.fusion import QuantisedFusion

DTYPES = ("float32", "int8")


def fusion_on(features: Collection[str] | None, dtype: str) -> OnnxRuntimeFusion:
    """How ONNX Runtime fuses on a processor with these features; None is this machine's.

    Raises RequestError for an unknown dtype.
    """
    if dtype not in DTYPES:
        raise RequestError(
            f"Runtime 'onnxruntime' has no dtype '{dtype}'.",
            remedy=f"Allowed: {', '.join(DTYPES)}.",
        )
    if dtype == "int8":
        return QuantisedFusion()
    return BlockedFusion(block_size(device.processor()[1] if features is None else features))
