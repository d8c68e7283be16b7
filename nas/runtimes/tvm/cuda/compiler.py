"""Compile the CUDA source that TVM generates with NVRTC, without reading libcu++.

TVM's source includes headers of libcu++ for names that no kernel here uses. NVRTC takes 0.4 s to
read them, and 0.05 to 0.2 s for a kernel. So this gives NVRTC short headers in their place, with
the few names that the beginning of TVM's source refers to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm

_CALLBACK = "tvm_callback_cuda_compile"
"""TVM calls the function of this name with CUDA source and gets machine code back."""

_INTEGERS = {
    "int8_t": "signed char",
    "int16_t": "short",
    "int32_t": "int",
    "int64_t": "long long",
    "uint8_t": "unsigned char",
    "uint16_t": "unsigned short",
    "uint32_t": "unsigned int",
    "uint64_t": "unsigned long long",
}

_TRAITS = ("is_integral", "is_signed", "is_unsigned", "is_floating_point")

HEADERS = {
    "cuda/std/cstdint": "#pragma once\nnamespace cuda { namespace std {\n"
    + "".join(f"using {name} = {type_name};\n" for name, type_name in _INTEGERS.items())
    + "} }\n",
    # Only declared: source that does more than name a trait does not compile.
    "cuda/std/type_traits": "#pragma once\nnamespace cuda { namespace std {\n"
    + "".join(f"template <class T> struct {name};\n" for name in _TRAITS)
    + "template <class A, class B> struct is_same;\n"
    "template <class A, class B> constexpr bool is_same_v = false;\n"
    "template <class A> constexpr bool is_same_v<A, A> = true;\n"
    "template <bool condition, class T = void> struct enable_if;\n"
    "template <bool condition, class A, class B> struct conditional;\n"
    "} }\n",
}
"""Text of each header that replaces one of libcu++, by the name that source includes it with."""


def use_nvrtc(arch: str, toolkit: Path) -> None:
    """Let TVM compile CUDA source with `compile_source` in this process.

    Args:
        arch: compute capability of the GPU, such as `sm_90`.
        toolkit: folder of the CUDA toolkit.
    """
    folders = include_folders(toolkit)

    def compile_with_nvrtc(source: str) -> bytes:
        return compile_source(str(source), arch, folders)

    tvm.register_global_func(_CALLBACK, compile_with_nvrtc, override=True)


def include_folders(toolkit: Path) -> list[Path]:
    """Return the folders of a CUDA toolkit with the headers of half-precision numbers."""
    # Some toolkits have their headers by architecture.
    folders = [toolkit / "include", *sorted(toolkit.glob("targets/*/include"))]
    folders += [folder / "cccl" for folder in folders]
    return [folder for folder in folders if folder.is_dir()]


def compile_source(source: str, arch: str, folders: Sequence[Path]) -> bytes:
    """Return the machine code (a cubin) of CUDA source.

    Several threads may compile at once.

    Args:
        source: CUDA C++ that includes no other headers than `HEADERS` and the toolkit's.
        arch: compute capability of the GPU, such as `sm_90`.
        folders: result of `include_folders`.

    Raises:
        RuntimeError: the source does not compile; the message is the compiler's.
    """
    from cuda.bindings import nvrtc

    options = [
        f"--gpu-architecture={arch}",
        "-default-device",
        "--use_fast_math",
        "--split-compile=0",  # On all cores.
        # As TVM's own callback does.
        "--ptxas-options=--register-usage-level=10",
        *(f"--include-path={folder}" for folder in folders),
    ]
    program = _checked(
        nvrtc.nvrtcCreateProgram(
            source.encode(),
            b"kernels.cu",
            len(HEADERS),
            [text.encode() for text in HEADERS.values()],
            [name.encode() for name in HEADERS],
        )
    )
    try:
        (status,) = nvrtc.nvrtcCompileProgram(
            program, len(options), [option.encode() for option in options]
        )
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
            _checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise RuntimeError(f"NVRTC cannot compile a kernel: {log.decode(errors='replace')}")
        code = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(code)


def _checked(answer: Sequence[Any]) -> Any:
    """Return the result of a call of NVRTC, if it has one.

    Raises:
        RuntimeError: the call failed.
    """
    status, *results = answer
    if status != 0:
        raise RuntimeError(f"NVRTC failed: {status}")
    return results[0] if results else None
