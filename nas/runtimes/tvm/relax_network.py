"""Whole networks: the kernels of the table, called one after the other, in TVM's Relax VM.

On a processor the virtual machine calls one function, which calls the kernels
(`nas.runtimes.tvm.network_function`). On a GPU it calls the kernels. No pass fuses or rewrites
kernels, so the network launches exactly the functions that were timed for the table.
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
from nas.kernels.fusion import Launch, launches
from nas.kernels.kernel import Kernel, batched
from nas.latency.runtime import CompiledNetwork, Schedules, Weights
from nas.runtimes.tvm.device import Device
from nas.runtimes.tvm.network_function import called_names, network_function, taking_addresses
from nas.schedules.templates import (
    Constants,
    Expansion,
    Templates,
    add_function,
    flat_type,
    generate_code,
    lower,
    random_constants,
)


class NetworkParts(NamedTuple):
    """What the code of a network is made of.

    Attributes:
        sequence: launches, in order.
        functions: function of tensors of each kernel.
        constants: packed constants of each launch.
    """

    sequence: Sequence[Launch]
    functions: Mapping[Kernel, tvm.tirx.PrimFunc]
    constants: Sequence[Sequence[NDArray[Any]]]


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
    parts = network_parts(graph, schedules, weights, templates, batch)
    kernels = {str(each.attrs["global_symbol"]): at for at, each in parts.functions.items()}
    builder = relax.BlockBuilder()
    # A GPU runs no function that calls kernels: the host launches them.
    is_native = templates.target.kind.name != "cuda"
    _emit_main(builder, graph, parts, templates.dtype, is_flat=is_flat, is_native=is_native)
    for name, text in (texts or {}).items():
        with builder.function(name, []):
            builder.emit_func_output(tvm.ir.StringImm(text))
    lowered = lower(builder.get(), templates)
    launched = [kernels[name] for name in _launched_names(lowered, kernels)]
    return NetworkCode(generate_code(lowered, templates, is_native=is_native), launched)


def network_parts(
    graph: Graph,
    schedules: Schedules,
    weights: Weights | None,
    templates: Templates,
    batch: int = 1,
    prefix: str = "",
) -> NetworkParts:
    """Return what the code of a network is made of. See `compile_network`.

    Args:
        graph, schedules, weights, templates, batch: as for `compile_network`.
        prefix: text before the names of all functions.
    """
    sequence = _batched(launches(graph, fuse_expansions=True), batch)
    functions: dict[Kernel, tvm.tirx.PrimFunc] = {}
    for kernel in dict.fromkeys(launch.kernel for launch in sequence):
        if kernel not in schedules:
            raise MissingKernelError(
                f"Kernel '{kernel}' has no schedule.",
                remedy="Add it to the table with `nas table build`.",
            )
        name = f"{prefix}kernel_{len(functions)}"
        functions[kernel] = templates.function(kernel, schedules[kernel], name)
    rng = np.random.default_rng(0)
    constants = [
        random_constants(templates, launch.kernel, schedules[launch.kernel], rng)
        if weights is None
        else templates.pack(launch.kernel, schedules[launch.kernel], _constants(launch, weights))
        for launch in sequence
    ]
    return NetworkParts(sequence, functions, constants)


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
        output = self._vm.get_outputs("main").numpy().astype(np.float32)
        c, h, w = self._graph.output_shape
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


def _constants(launch: Launch, weights: Weights) -> Constants:
    """Return the weights and biases of a launch."""
    kernel = launch.kernel
    return Constants(
        weights[launch.slot] if kernel.has_weights else None,
        weights[f"{launch.slot}.bias"] if kernel.has_bias else None,
        Expansion(weights[launch.expansion], weights[f"{launch.expansion}.bias"])
        if kernel.is_expanded
        else None,
    )


def _batched(sequence: Sequence[Launch], batch: int) -> list[Launch]:
    """Return the launches with their kernels for a batch of images."""
    kernels = batched([launch.kernel for launch in sequence], batch)
    return [
        launch._replace(kernel=kernel) for launch, kernel in zip(sequence, kernels, strict=True)
    ]


def _emit_main(
    builder: relax.BlockBuilder,
    graph: Graph,
    parts: NetworkParts,
    dtype: str,
    *,
    is_flat: bool,
    is_native: bool,
) -> None:
    """Add the function `main`. See `compile_network` for the shapes of images and outputs."""
    emit_launches = _emit_network_function if is_native else _emit_launches
    batch = parts.sequence[0].kernel.batch

    def shape(channels: int, height: int, width: int, *, is_output: bool) -> tuple[int, ...]:
        if is_flat:
            return (batch * channels * height * width,)
        is_vector = is_output and (height, width) == (1, 1)
        return (batch, channels) if is_vector else (batch, height, width, channels)

    image_type = relax.TensorType(shape(*graph.input_shape, is_output=False), dtype)
    image = relax.Var("image", image_type)
    with builder.function("main", [image]):
        with builder.dataflow():
            output_shape = shape(*graph.output_shape, is_output=True)
            result = emit_launches(builder, parts, image, output_shape, dtype)
            output = builder.emit_output(result)
        builder.emit_func_output(output)


def _emit_network_function(
    builder: relax.BlockBuilder,
    parts: NetworkParts,
    image: relax.Expr,
    output_shape: Sequence[int],
    dtype: str,
) -> relax.Expr:
    """Emit one call, of the function that calls the kernels, and return its output."""
    callees = {
        kernel: add_function(builder, taking_addresses(function))
        for kernel, function in parts.functions.items()
    }
    image_shape = [int(size) for size in image.ty.shape]
    network = network_function(
        parts.sequence, callees, parts.constants, image_shape, output_shape, dtype
    )
    called = add_function(builder, network.function)
    output_type = relax.TensorType(output_shape, dtype)
    arguments = [image, relax.const(network.weights)]
    return builder.emit(relax.call_tir(called, arguments, output_type))


def _emit_launches(
    builder: relax.BlockBuilder,
    parts: NetworkParts,
    image: relax.Expr,
    output_shape: Sequence[int],
    dtype: str,
) -> relax.Expr:
    """Emit a `call_tir` for each launch, and return the last result. All tensors are flat."""
    called = {
        kernel: add_function(builder, function) for kernel, function in parts.functions.items()
    }
    values: dict[int, relax.Expr] = {0: image}
    for launch, arrays in zip(parts.sequence, parts.constants, strict=True):
        kernel = launch.kernel
        split = len(kernel.inputs)
        sources = [values[source] for source in launch.sources]
        constants = [relax.const(array.astype(dtype, copy=False)) for array in arrays]
        result_type = flat_type((kernel.elements(kernel.output),), dtype)
        arguments = [*sources[:split], *constants, *sources[split:]]
        values[launch.result] = builder.emit(relax.call_tir(called[kernel], arguments, result_type))
    return values[parts.sequence[-1].result]


def _launched_names(module: tvm.IRModule, names: Collection[str]) -> list[str]:
    """Return the functions that `main` of a lowered module calls, those of some names, in order."""
    launched: list[str] = []
    for block in module["main"].body.blocks:
        for value in (binding.value for binding in block.bindings):
            if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar):
                name = str(value.op.name_hint)
                launched += [name] if name in names else called_names(module[name])
    return launched
