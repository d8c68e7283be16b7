"""Runs the CUDA source that TVM generates on this machine's processor, by `cuda_on_cpu/cuda.h`.

What runs is the very text that a GPU's compiler would get; only the compiler (g++) and the threads
(fibres) differ.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from tvm import tirx

SHIM = Path(__file__).parent / "cuda_on_cpu"

_SIGNATURE = re.compile(r'extern "C" __global__ void [^;{]*?(\w+)_kernel\(([^)]*)\) \{')


@dataclass(frozen=True)
class Launch:
    """Blocks and threads along x, y and z."""

    blocks: tuple[int, int, int]
    threads: tuple[int, int, int]


def launch_of(function: tirx.PrimFunc) -> Launch:
    """The launch that a function's thread bindings ask for."""
    found: dict[str, int] = {}
    statement = function.body
    while isinstance(statement, tirx.AttrStmt):
        if statement.attr_key == "thread_extent":
            found[str(statement.node.thread_tag)] = int(statement.value)
        statement = statement.body
    sizes = [
        tuple(found.get(f"{kind}.{axis}", 1) for axis in "xyz")
        for kind in ("blockIdx", "threadIdx")
    ]
    return Launch(*sizes)  # type: ignore[arg-type]


def source_of(functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target) -> str:
    """The CUDA source of functions; all of them in one file."""
    built = tvm.tirx.build(tvm.IRModule(dict(functions)), target, "tirx")
    (device,) = built.imports
    return str(device.inspect_source())


class Emulated:
    """Kernels compiled with g++, ready to run. Raises RuntimeError where g++ refuses the source."""

    def __init__(
        self, functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target, folder: Path
    ) -> None:
        self._launches = {name: launch_of(function) for name, function in functions.items()}
        source = source_of(functions, target)
        self._parameters = {}
        runners = []
        for name, parameters in _SIGNATURE.findall(source):
            declared = [each.strip().rsplit(" ", 1) for each in parameters.split(",")]
            self._parameters[name] = [word.removesuffix("_ptr") for _, word in declared]
            types = [kind.replace("__restrict__", "").strip() for kind, _ in declared]
            runners.append(_runner(name, types))
        if set(self._parameters) != set(functions):
            raise RuntimeError(f"the source has kernels {sorted(self._parameters)}")
        path = folder / "kernels.cpp"
        path.write_text(source + "\n".join(runners))
        library = folder / "kernels.so"
        # The source reads vectors through pointers to scalars, which the CUDA compilers allow.
        options = ["-O1", "-w", "-fno-strict-aliasing", "-ffp-contract=off", "-shared", "-fPIC"]
        done = subprocess.run(
            ["g++", "-std=c++17", *options, f"-I{SHIM}", str(path), "-o", str(library)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"g++ cannot compile {path}:\n{done.stderr[:3000]}")
        self._library = ctypes.CDLL(str(library))

    def run(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Runs a kernel in both orders of its threads; the output is among `arrays`, by name.

        Raises RuntimeError for a kernel that leaves its tensors, parts at a barrier, or computes
        something else in the other order.
        """
        output = arrays["y"]
        found = []
        for reverse in (0, 1):
            # Every byte set is a NaN, or -1.
            output.view(np.uint8).fill(0xFF)
            self._once(name, arrays, reverse)
            found.append(output.copy())
        if not np.array_equal(*found):
            raise RuntimeError(f"{name} depends on the order of its threads")

    def _once(self, name: str, arrays: Mapping[str, np.ndarray], reverse: int) -> None:
        given = [arrays[word] for word in self._parameters[name]]
        launch = self._launches[name]
        pointers = (ctypes.c_void_p * len(given))(*[array.ctypes.data for array in given])
        sizes = (ctypes.c_size_t * len(given))(*[array.nbytes for array in given])
        run = getattr(self._library, f"run_{name}")
        run.restype = ctypes.c_char_p
        blocks, threads = ((ctypes.c_uint * 3)(*each) for each in (launch.blocks, launch.threads))
        problem = run(pointers, sizes, blocks, threads, reverse)
        if problem:
            raise RuntimeError(f"{name}: {problem.decode()}")


def _runner(name: str, types: Sequence[str]) -> str:
    arguments = ", ".join(f"({kind})tensors[{i}]->data" for i, kind in enumerate(types))
    return f"""
extern "C" const char* run_{name}(void** arrays, size_t* sizes, unsigned* blocks, unsigned* threads,
                                  int reversed) {{
  using namespace cuda_on_cpu;
  Tensor* tensors[{len(types)}];
  for (int i = 0; i < {len(types)}; ++i) tensors[i] = new Tensor(arrays[i], sizes[i], !reversed);
  auto body = [](Tensor** tensors) {{ {name}_kernel({arguments}); }};
  const char* problem = launch(blocks, threads, reversed, body, tensors);
  for (Tensor* tensor : tensors) delete tensor;
  return problem;
}}
"""


def require_compiler() -> None:
    """Fails, and does not skip, where there is no g++: nothing else here runs these kernels."""
    try:
        subprocess.run(["g++", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"g++ is needed to test GPU kernels without a GPU ({error})") from error
