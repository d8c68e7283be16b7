"""Whole networks: the table's own kernels, called one after the other by TVM's Relax VM.

The Relax function consists of `call_tir` only, and the passes that lower it plan memory and nothing
else, so the network launches exactly the functions that the table timed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nas.errors import MissingKernelError
from nas.graph import Graph
from nas.latency.kernel import Kernel
from nas.latency.runtimes import Schedules, Weights
from nas.latency.runtimes.tvm import dense, nest, window
from nas.latency.runtimes.tvm.fusion import Launch, launches

_CALL = re.compile(r"^\s*call\s+(kernel_\d+)\s", re.MULTILINE)

PASSES = tvm.transform.Sequential(
    [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
)
"""TVM's own lowering for CPUs without the passes that would fuse or rewrite kernels."""


def pack(
    kernel: Kernel,
    schedule: nest.Schedule,
    lanes: int,
    weight: NDArray[np.float32] | None,
    bias: NDArray[np.float32] | None,
) -> list[NDArray[np.float32]]:
    """The constants of a kernel as its function takes them: weight, then bias, if it has them.

    Args:
        weight: shaped `kernel.weight_shape`.
        bias: one value an output channel.
    """
    found = []
    if kernel.has_weights:
        assert weight is not None
        packed = (
            window.pack_weight(weight)
            if kernel.is_depthwise
            else dense.pack_weight(kernel, schedule, lanes, weight)
        )
        found.append(packed)
    if kernel.has_bias:
        assert bias is not None
        found.append(
            np.ascontiguousarray(bias)
            if kernel.is_depthwise
            else dense.pack_bias(kernel, schedule, lanes, bias)
        )
    return found


def random_weights(
    kernel: Kernel, rng: np.random.Generator
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Weight and bias that keep activations near one (He et al. 2015), so none is denormal."""
    weight = bias = None
    if kernel.has_weights:
        shape = kernel.weight_shape
        scale = np.sqrt(2 / np.prod(shape[1:]))
        weight = (rng.standard_normal(shape, np.float32) * scale).astype(np.float32)
    if kernel.has_bias:
        bias = rng.standard_normal(kernel.output[0], np.float32) * np.float32(0.1)
    return weight, bias


class RelaxNetwork:
    """A graph compiled for the Relax VM. See `nas.latency.runtimes.CompiledNetwork`.

    Args:
        lanes, threads: as the kernels were scheduled for.
        rng: draws the weights if none are given.
    """

    def __init__(
        self,
        graph: Graph,
        schedules: Schedules,
        weights: Weights | None,
        *,
        target: tvm.target.Target,
        lanes: int,
        threads: int,
        rng: np.random.Generator,
    ) -> None:
        self._graph = graph
        self._names: dict[Kernel, str] = {}
        builder = relax.BlockBuilder()
        functions: dict[Kernel, relax.GlobalVar] = {}
        steps = launches(graph)
        for launch in steps:
            kernel = launch.kernel
            if kernel in self._names:
                continue
            if kernel not in schedules:
                raise MissingKernelError(
                    f"Kernel '{kernel}' has no schedule.",
                    remedy="Add it to the table with `nas table build`.",
                )
            name = self._names[kernel] = f"kernel_{len(self._names)}"
            function = nest.build(kernel, schedules[kernel], lanes, threads, name)
            functions[kernel] = builder.add_func(function, name)

        def constants(launch: Launch) -> list[NDArray[np.float32]]:
            kernel = launch.kernel
            if weights is None:
                weight, bias = random_weights(kernel, rng)
            else:
                weight = weights[launch.slot] if kernel.has_weights else None
                bias = weights[f"{launch.slot}.bias"] if kernel.has_bias else None
            return pack(kernel, schedules[kernel], lanes, weight, bias)

        _emit_main(builder, graph, steps, functions, constants)
        executable = relax.build(builder.get(), target, relax_pipeline=PASSES, tir_pipeline="tirx")
        self._code = executable.as_text()
        self._vm = relax.VirtualMachine(executable, tvm.cpu())
        c, h, w = graph.input_shape
        self._set_input(np.zeros((c, h, w), np.float32))

    @property
    def launched(self) -> list[Kernel]:
        """The kernels that the VM's bytecode calls, in order."""
        kernels = {name: kernel for kernel, name in self._names.items()}
        return [kernels[name] for name in _CALL.findall(self._code)]

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output of one image `channels x height x width`, flat and channels first."""
        self._set_input(image)
        self._vm.invoke_stateful("main")
        c, h, w = self._graph.output_shape
        output = self._vm.get_outputs("main").numpy().reshape(h, w, c)
        return np.ascontiguousarray(output.transpose(2, 0, 1)).reshape(-1)

    def _set_input(self, image: NDArray[np.float32]) -> None:
        flat = np.ascontiguousarray(image.transpose(1, 2, 0)).reshape(-1)
        self._vm.set_input("main", tvm.runtime.tensor(flat))

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Seconds of one inference with the input already in place; see `timing.Evaluate`."""
        timer = self._vm.time_evaluator("invoke_stateful", tvm.cpu(), number=calls, repeat=samples)
        return [float(value) for value in timer("main").results]


def flat_type(shape: Sequence[int]) -> relax.TensorType:
    """The type of a tensor of a shape, as kernels take it: its elements in a row."""
    return relax.TensorType((math.prod(shape),), "float32")


def _emit_main(
    builder: relax.BlockBuilder,
    graph: Graph,
    steps: Sequence[Launch],
    functions: Mapping[Kernel, relax.GlobalVar],
    constants: Callable[[Launch], list[NDArray[np.float32]]],
) -> None:
    """Adds `main`: every launch a `call_tir`, tensors flat in height, width, channel order."""
    image = relax.Var("image", flat_type(graph.input_shape))
    values: dict[int, relax.Expr] = {0: image}
    with builder.function("main", [image]):
        with builder.dataflow():
            for launch in steps:
                kernel = launch.kernel
                split = len(kernel.inputs)
                sources = [values[source] for source in launch.sources]
                weights = [relax.const(array) for array in constants(launch)]
                arguments = [*sources[:split], *weights, *sources[split:]]
                call = relax.call_tir(functions[kernel], arguments, flat_type(kernel.output))
                values[launch.result] = builder.emit(call)
            result = builder.emit_output(values[steps[-1].result])
        builder.emit_func_output(result)
