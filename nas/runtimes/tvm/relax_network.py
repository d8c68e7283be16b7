"""Whole networks: the kernels of the table, called one after the other by TVM's Relax VM.

The Relax function consists of `call_tir` only, and the passes that lower it plan memory and change
nothing else. So the network launches exactly the functions that were timed for the table.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from nas.errors import MissingKernelError
from nas.graph import Graph
from nas.latency.fusion import Launch, launches
from nas.latency.kernel import Kernel, batched
from nas.latency.runtime import CompiledNetwork, Schedules, Weights
from nas.runtimes.tvm.device import Device
from nas.schedules.templates import Expansion, Templates, build, flat_type, random_constants

_CALL = re.compile(r"^\s*call\s+(kernel_\d+)\s", re.MULTILINE)


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
        rng = np.random.default_rng(0)
        self._names: dict[Kernel, str] = {}
        builder = relax.BlockBuilder()
        functions: dict[Kernel, relax.GlobalVar] = {}
        launch_sequence = _batched(launches(graph, fuse_expansions=True), batch)
        for launch in launch_sequence:
            kernel = launch.kernel
            if kernel in self._names:
                continue
            if kernel not in schedules:
                raise MissingKernelError(
                    f"Kernel '{kernel}' has no schedule.",
                    remedy="Add it to the table with `nas table build`.",
                )
            name = self._names[kernel] = f"kernel_{len(self._names)}"
            function = templates.function(kernel, schedules[kernel], name)
            functions[kernel] = builder.add_func(function, name)

        def constants(launch: Launch) -> list[NDArray[Any]]:
            kernel = launch.kernel
            if weights is None:
                return random_constants(templates, kernel, schedules[kernel], rng)
            return templates.pack(
                kernel,
                schedules[kernel],
                weights[launch.slot] if kernel.has_weights else None,
                weights[f"{launch.slot}.bias"] if kernel.has_bias else None,
                Expansion(weights[launch.expansion], weights[f"{launch.expansion}.bias"])
                if kernel.is_expanded
                else None,
            )

        _emit_main(builder, graph, launch_sequence, functions, constants, templates.dtype)
        executable = build(builder.get(), templates)
        self._code = executable.as_text()
        self._vm = device.load_network(executable)
        self._set_input(np.zeros((batch, *graph.input_shape), np.float32))

    @property
    def launched(self) -> list[Kernel]:
        """Kernels that the bytecode of the network calls, in order."""
        kernels = {name: kernel for kernel, name in self._names.items()}
        return [kernels[name] for name in _CALL.findall(self._code)]

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
    constants: Callable[[Launch], list[NDArray[Any]]],
    dtype: str,
) -> None:
    """Add the function `main`, in which every launch is a `call_tir`.

    Tensors are flat, in the order height, width, channel.
    """
    batch = sequence[0].kernel.batch
    image = relax.Var("image", flat_type((batch, *graph.input_shape), dtype))
    values: dict[int, relax.Expr] = {0: image}
    with builder.function("main", [image]):
        with builder.dataflow():
            for launch in sequence:
                kernel = launch.kernel
                split = len(kernel.inputs)
                sources = [values[source] for source in launch.sources]
                weights = [
                    relax.const(array.astype(dtype, copy=False)) for array in constants(launch)
                ]
                arguments = [*sources[:split], *weights, *sources[split:]]
                result_type = flat_type((kernel.elements(kernel.output),), dtype)
                call = relax.call_tir(functions[kernel], arguments, result_type)
                values[launch.result] = builder.emit(call)
            result = builder.emit_output(values[sequence[-1].result])
        builder.emit_func_output(result)
