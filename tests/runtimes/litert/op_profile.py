"""LiteRT's own profile of a file: the operators that it and its delegate XNNPACK really run.

The Python package gives no access to the profiler, but the library in it has LiteRT's interface in
C (`litert/c/litert_profiler.h`). The profile counts whole microseconds, so it says what runs, not
how long it takes.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from contextlib import ExitStack
from ctypes import c_char_p, c_int32, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import ai_edge_litert

CPU = 1
"""`kLiteRtHwAcceleratorCpu`."""

OPTIONS = {
    b"runtime_options_string": b"enable_profiling = true\n",
    b"xnnpack": b"num_threads = 1\n",
}
"""Options of LiteRT by identifier; their values are in TOML."""

MAX_TYPE_BYTES = 512
"""More than the size of a `LiteRtRankedTensorType`: its number type, rank, shape and strides."""

_LINE = re.compile(r"\s*(?:Delegate/)?(\S.*?)\s{2,}[\d.]+\s+[\d.]+\s+[\d.]+\s.*", re.ASCII)


class Library:
    """The functions of the library, which raise an error for every status but success."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(Path(ai_edge_litert.__file__).parent / "libLiteRt.so"))
        self.environment = self.get("CreateEnvironment", 0, None)
        # The options are constants, which need no release.
        self.release = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, f"LiteRt{name}")(*arguments)
        if status != 0:
            raise RuntimeError(f"LiteRt{name} returned status {status}")

    def get(self, name: str, *arguments: Any, kind: Any = c_void_p) -> Any:
        """Return what a function writes into its last argument."""
        result = kind()
        self.call(name, *arguments, ctypes.byref(result))
        return result

    def destroy(self, kind: str, own: c_void_p) -> None:
        getattr(self._library, f"LiteRtDestroy{kind}")(own)


@cache
def _library() -> Library:
    return Library()


def operators(data: bytes) -> Counter[str]:
    """Return how often each operator runs in one inference, by its name in LiteRT's profile."""
    with ExitStack() as objects:
        summary = _profile_summary(_library(), data, objects)
    run_order, _, _ = summary.partition("Top by Computation Time")
    lines = [_LINE.fullmatch(line) for line in run_order.splitlines()]
    return Counter(line[1] for line in lines if line)


def _profile_summary(library: Library, data: bytes, objects: ExitStack) -> str:
    """Return LiteRT's report of one inference.

    Args:
        library: the library.
        data: contents of the file.
        objects: what the objects of the library are added to, which need much memory.
    """

    def create(kind: str, function: str, *arguments: Any) -> Any:
        result = library.get(function, *arguments)
        objects.callback(library.destroy, kind, result)
        return result

    contents = ctypes.create_string_buffer(data, len(data))
    environment, size = library.environment, c_size_t(len(data))
    model = create("Model", "CreateModelFromBuffer", environment, contents, size)
    options = create("Options", "CreateOptions")
    library.call("SetOptionsHardwareAccelerators", options, CPU)
    for identifier, toml in OPTIONS.items():
        own = library.get("CreateOpaqueOptions", identifier, toml, library.release)
        library.call("AddOpaqueOptions", options, own)
    compiled = create("CompiledModel", "CreateCompiledModel", environment, model, options)
    signature = library.get("GetModelSignature", model, c_size_t(0))
    buffers: list[Any] = []
    for kind in ("Input", "Output"):
        count = library.get(f"GetNumSignature{kind}s", signature, kind=c_size_t).value
        own = []
        for index in map(c_size_t, range(count)):
            tensor = library.get(f"GetSignature{kind}TensorByIndex", signature, index)
            needs = library.get(
                f"GetCompiledModel{kind}BufferRequirements", compiled, c_size_t(0), index
            )
            arguments = environment, _tensor_type(library, tensor), needs
            function = "CreateManagedTensorBufferFromRequirements"
            own.append(create("TensorBuffer", function, *arguments))
        buffers += [c_size_t(count), (c_void_p * count)(*own)]
    profiler = library.get("CompiledModelGetProfiler", compiled)
    library.call("StartProfiler", profiler)
    library.call("RunCompiledModel", compiled, c_size_t(0), *buffers)
    library.call("StopProfiler", profiler)
    summary = library.get("GetProfileSummary", profiler, compiled, kind=c_char_p)
    return summary.value.decode()


def _tensor_type(library: Library, tensor: c_void_p) -> Any:
    """Return the number type and shape of a tensor for a batch of 1."""
    tensor_type = ctypes.create_string_buffer(MAX_TYPE_BYTES)
    library.call("GetRankedTensorType", tensor, tensor_type)
    # Number type, rank, and the first dimension: the batch, which is -1, open, in our files.
    fields = ctypes.cast(tensor_type, ctypes.POINTER(c_int32))
    fields[2] = 1
    return tensor_type
