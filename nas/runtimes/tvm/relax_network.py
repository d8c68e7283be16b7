"""Whole networks: the kernels of the table, called one after the other by TVM's Relax VM.

The Relax function consists of `call_tir` only, and the passes that lower it plan memory and change
nothing else. So the network launches exactly the functions that were timed for the table.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nas.errors import MissingKernelError
from nas.graph import Graph
from nas.latency.fusion import Launch, launches
from nas.latency.kernel import Kernel, batched
from nas.latency.runtime import CompiledNetwork, Schedules, Weights
from nas.runtimes.tvm.device import Device
from nas.schedules.buffers import bindings_of, is_kernel_call
from nas.schedules.templates import (
    Expansion,
    Templates,
    flat_type,
    generate_code,
    lower,
    random_constants,
)


class NetworkCode(NamedTuple):
    """A network compiled for the Relax VM.

    Attributes:
        executable: the code, with the weights as constants. Its function `main` maps images to
            outputs.
        launched: kernels that its function `main` calls, in order.
    """

    executable: relax.VMExecutable
    launched: Sequence[Kernel]


def compile_network(
    graph: Graph,
    schedules: Schedules,
    weights: Weights | None,
    templates: Templates,
    *,
    batch: int = 1,
    is_flat: bool = True,
    texts: Mapping[str, str] | None = None,
) -> NetworkCode:
    """Compile a network for the Relax VM.

    Args:
        graph: the network.
        schedules: schedules of its kernels.
        weights: weights of the network; None for random ones.
        templates: templates of the device's target.
        batch: number of images that run at once.
        is_flat: whether images and outputs have one dimension with all elements, in the order
            image, height, width, channel. Otherwise images are `N x H x W x C`, and outputs
            `N x C`, or `N x H x W x C` if they are maps.
        texts: texts that further functions return, by the name of the function.

    Raises:
        MissingKernelError: a kernel has no schedule.
    """
    builder = relax.BlockBuilder()
    functions: dict[Kernel, relax.GlobalVar] = {}
    sequence = _batched(launches(graph, fuse_expansions=True), batch)
    for kernel in dict.fromkeys(launch.kernel for launch in sequence):
        if kernel not in schedules:
            raise MissingKernelError(
                f"Kernel '{kernel}' has no schedule.",
                remedy="Add it to the table with `nas table build`.",
            )
        name = f"kernel_{len(functions)}"
        function = templates.function(kernel, schedules[kernel], name)
        functions[kernel] = builder.add_func(function, name)
    constants = _Constants(schedules, weights, templates)
    _emit_main(builder, graph, sequence, functions, constants, is_flat)
    for name, text in (texts or {}).items():
        with builder.function(name, []):
            builder.emit_func_output(tvm.ir.StringImm(text))
    kernels = {str(variable.name_hint): kernel for kernel, variable in functions.items()}
    lowered = lower(builder.get(), templates)
    # On a GPU, the host launches ahead of the kernels, and native code was never run there.
    is_native = templates.target.kind.name != "cuda"
    executable = generate_code(lowered, templates, is_native=is_native)
    return NetworkCode(executable, [kernels[name] for name in _called(lowered["main"], kernels)])


class RelaxNetwork(CompiledNetwork):
    """A network compiled for the Relax VM. See `nas.latency.runtime.CompiledNetwork`.

    Args:
        graph: the network.
        schedules: schedules of its kernels.
        weights: weights of the network; None for random ones.
        templates: templates of the device's target.
        device: the device that runs it.
        batch: number of images that run at once.

    Raises:
        MissingKernelError: a kernel has no schedule.
    """

    def __init__(
        self,
        graph: Graph,
        schedules: Schedules,
        weights: Weights | None,
        templates: Templates,
        device: Device,
        batch: int = 1,
    ) -> None:
        self._graph, self._device, self._dtype = graph, device, templates.dtype
        self._batch = batch
        code = compile_network(graph, schedules, weights, templates, batch=batch)
        self._launched = code.launched
        self._vm = device.load_network(code.executable)
        self._set_input(np.zeros((batch, *graph.input_shape), np.float32))

    @property
    def launched(self) -> list[Kernel]:
        """Kernels that the lowered network calls, in order."""
        return [*self._launched]

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs, flat and channels first. See `CompiledNetwork.run`."""
        self._set_input(image.reshape(self._batch, *self._graph.input_shape))
        self._vm.invoke_stateful("main")
        c, h, w = self._graph.output_shape
        output = self._vm.get_outputs("main").numpy().astype(np.float32)
        rows = output.reshape(self._batch, h, w, c).transpose(0, 3, 1, 2).reshape(self._batch, -1)
        return np.ascontiguousarray(rows if self._batch > 1 else rows[0])

    def _set_input(self, images: NDArray[np.float32]) -> None:
        flat = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).reshape(-1)
        self._vm.set_input("main", self._device.to_device(flat.astype(self._dtype)))

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Time inferences on an input that is already on the device."""
        if self._device.tvm_device.type == "cuda":
            return self._evaluate_asynchronous(calls, samples)
        timer = self._vm.time_evaluator(
            "invoke_stateful", self._device.tvm_device, number=calls, repeat=samples
        )
        return [float(value) for value in timer("main").results]

    def _evaluate_asynchronous(self, calls: int, samples: int) -> Sequence[float]:
        """Time inferences on a device that runs on while the host launches; wait after each."""
        timer = self._vm.time_evaluator(
            "invoke_stateful", self._device.tvm_device, number=1, repeat=calls * samples
        )
        seconds = [float(value) for value in timer("main").results]
        return [statistics.mean(seconds[i : i + calls]) for i in range(0, len(seconds), calls)]


class _Constants:
    """The constants of a network's launches, packed as the kernels read them.

    Args:
        schedules: schedules of the kernels.
        weights: weights of the network; None for random ones.
        templates: templates of the device's target.
    """

    def __init__(self, schedules: Schedules, weights: Weights | None, templates: Templates) -> None:
        self._schedules, self._weights, self._templates = schedules, weights, templates
        self._rng = np.random.default_rng(0)
        self.dtype = templates.dtype

    def of(self, launch: Launch) -> list[relax.Constant]:
        """Return the constants of a launch in the order of its function's parameters."""
        arrays = self._packed(launch)
        return [relax.const(array.astype(self.dtype, copy=False)) for array in arrays]

    def _packed(self, launch: Launch) -> list[NDArray[Any]]:
        kernel, weights = launch.kernel, self._weights
        schedule = self._schedules[kernel]
        if weights is None:
            return random_constants(self._templates, kernel, schedule, self._rng)
        return self._templates.pack(
            kernel,
            schedule,
            weights[launch.slot] if kernel.has_weights else None,
            weights[f"{launch.slot}.bias"] if kernel.has_bias else None,
            Expansion(weights[launch.expansion], weights[f"{launch.expansion}.bias"])
            if kernel.is_expanded
            else None,
        )


def _called(function: relax.Function, names: Collection[str]) -> list[str]:
    """Return the functions that a lowered Relax function calls, those of some names, in order."""
    values = [binding.value for binding in bindings_of(function)]
    called = [str(value.op.name_hint) for value in values if is_kernel_call(value)]
    return [name for name in called if name in names]


def _batched(sequence: Sequence[Launch], batch: int) -> list[Launch]:
    """Return the launches with their kernels for a batch of images."""
    kernels = batched([launch.kernel for launch in sequence], batch)
    return [
        launch._replace(kernel=kernel) for launch, kernel in zip(sequence, kernels, strict=True)
    ]


def _emit_main(
    builder: relax.BlockBuilder,
    graph: Graph,
    sequence: Sequence[Launch],
    functions: Mapping[Kernel, relax.GlobalVar],
    constants: _Constants,
    is_flat: bool,
) -> None:
    """Add the function `main`, in which every launch is a `call_tir` of flat tensors.

    See `compile_network` for the shapes of images and outputs.
    """
    batch, dtype = sequence[0].kernel.batch, constants.dtype
    c, h, w = graph.input_shape
    size = batch * c * h * w
    image = relax.Var("image", relax.TensorType((size,) if is_flat else (batch, h, w, c), dtype))
    with builder.function("main", [image]):
        with builder.dataflow():
            first = image if is_flat else builder.emit(relax.op.reshape(image, (size,)))
            values: dict[int, relax.Expr] = {0: first}
            for launch in sequence:
                kernel = launch.kernel
                split = len(kernel.inputs)
                sources = [values[source] for source in launch.sources]
                arguments = [*sources[:split], *constants.of(launch), *sources[split:]]
                result_type = flat_type((kernel.elements(kernel.output),), dtype)
                call = relax.call_tir(functions[kernel], arguments, result_type)
                values[launch.result] = builder.emit(call)
            result = values[sequence[-1].result]
            c, h, w = graph.output_shape
            shape = (batch, c) if (h, w) == (1, 1) else (batch, h, w, c)
            output = builder.emit_output(result if is_flat else relax.op.reshape(result, shape))
        builder.emit_func_output(output)
