"""Run the CUDA source that TVM generates on the CPU, by means of `cuda_on_cpu/cuda.h`.

The source is exactly what the compiler of a GPU would get. Only the compiler (g++) and the threads
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

EMULATION_HEADERS = Path(__file__).parent / "cuda_on_cpu"

_SIGNATURE = re.compile(r'extern "C" __global__ void [^;{]*?(\w+)_kernel\(([^)]*)\) \{')


@dataclass(frozen=True)
class Launch:
    """Numbers of blocks, and of threads in a block, along x, y and z."""

    blocks: tuple[int, int, int]
    threads: tuple[int, int, int]


def launch_of(function: tirx.PrimFunc) -> Launch:
    """Return the launch that a function's thread bindings describe."""
    extents: dict[str, int] = {}
    statement = function.body
    while isinstance(statement, tirx.AttrStmt):
        if statement.attr_key == "thread_extent":
            extents[str(statement.node.thread_tag)] = int(statement.value)
        statement = statement.body
    sizes = [
        tuple(extents.get(f"{kind}.{axis}", 1) for axis in "xyz")
        for kind in ("blockIdx", "threadIdx")
    ]
    return Launch(*sizes)  # type: ignore[arg-type]


def cuda_source(functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target) -> str:
    """Return the CUDA source of functions, all in one file."""
    built = tvm.tirx.build(tvm.IRModule(dict(functions)), target, "tirx")
    (device,) = built.imports
    return str(device.inspect_source())


class EmulatedKernels:
    """CUDA kernels compiled with g++, ready to run on the CPU.

    Args:
        functions: TIR functions by their symbols.
        target: CUDA target to generate source for.
        folder: folder for source and library.

    Raises:
        RuntimeError: g++ cannot compile the source.
    """

    def __init__(
        self, functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target, folder: Path
    ) -> None:
        self._launches = {name: launch_of(function) for name, function in functions.items()}
        source = cuda_source(functions, target)
        # The source may have the parameters in another order.
        self._positions = {}
        runners = []
        for name, parameters in _SIGNATURE.findall(source):
            declared = [each.strip().rsplit(" ", 1) for each in parameters.split(",")]
            names = [parameter.name for parameter in functions[name].params]
            self._positions[name] = [names.index(word.removesuffix("_ptr")) for _, word in declared]
            types = [kind.replace("__restrict__", "").strip() for kind, _ in declared]
            runners.append(_runner_source(name, types))
        if set(self._positions) != set(functions):
            raise RuntimeError(f"the source has kernels {sorted(self._positions)}")
        path = folder / "kernels.cpp"
        path.write_text(source + "\n".join(runners))
        library = folder / "kernels.so"
        # The source reads vectors through pointers to scalars, which CUDA compilers allow.
        options = ["-std=c++17", "-O0", "-w", "-shared", "-fPIC", f"-I{EMULATION_HEADERS}"]
        options += ["-fno-strict-aliasing", "-ffp-contract=off"]
        command = ["g++", *options, str(path), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"g++ cannot compile {path}:\n{done.stderr[:3000]}")
        self._library = ctypes.CDLL(str(library))

    def run(self, name: str, arrays: Sequence[np.ndarray]) -> None:
        """Run a kernel twice, with its threads in either order.

        Args:
            name: symbol of the kernel.
            arrays: arguments of its function; the last, its output, is overwritten.

        Raises:
            RuntimeError: the kernel touches memory outside its tensors, its threads diverge at a
                barrier, or its output depends on the order of threads.
        """
        output = arrays[-1]
        outputs = []
        for reverse in (0, 1):
            # A float with all bits set is a NaN, and an int is -1.
            output.view(np.uint8).fill(0xFF)
            self._run_once(name, arrays, reverse)
            outputs.append(output.copy())
        if not np.array_equal(*outputs):
            raise RuntimeError(f"{name} depends on the order of its threads")

    def _run_once(self, name: str, arrays: Sequence[np.ndarray], reverse: int) -> None:
        ordered = [arrays[position] for position in self._positions[name]]
        launch = self._launches[name]
        pointers = (ctypes.c_void_p * len(ordered))(*[array.ctypes.data for array in ordered])
        sizes = (ctypes.c_size_t * len(ordered))(*[array.nbytes for array in ordered])
        run = getattr(self._library, f"run_{name}")
        run.restype = ctypes.c_char_p
        blocks, threads = ((ctypes.c_uint * 3)(*each) for each in (launch.blocks, launch.threads))
        problem = run(pointers, sizes, blocks, threads, reverse)
        if problem:
            raise RuntimeError(f"{name}: {problem.decode()}")


def _runner_source(name: str, types: Sequence[str]) -> str:
    """Return a C function that runs the kernel `name`, whose parameters have these types."""
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
    """Fail where there is no g++, and do not skip: no other test runs these kernels without a GPU.

    Raises:
        RuntimeError: g++ cannot be started.
    """
    try:
        subprocess.run(["g++", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"g++ is needed to test GPU kernels without a GPU ({error})") from error
