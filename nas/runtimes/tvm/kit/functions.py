"""What a kit times: candidates of kernels and whole networks, as functions in object files.

Each is compiled for the device and for this machine, from the same TIR: what it computes here is
what it should compute there. Tensors are filled with random numbers on the device, so that a kit
holds nothing but code.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tvm
from tvm import tirx

from nas.graph import ACTIVATIONS, Graph
from nas.kernels.fusion import launches
from nas.kernels.kernel import Kernel
from nas.latency.runtime import Schedules
from nas.runtimes.tvm.c_network import write_object
from nas.runtimes.tvm.cross import code_target
from nas.runtimes.tvm.dispatch_benchmarks import USES_WEIGHTS_OFTEN
from nas.runtimes.tvm.kernel_timer import MANY_WEIGHT_BYTES
from nas.runtimes.tvm.kit.address import KitTarget
from nas.runtimes.tvm.network_function import scratch_arrays, taking_addresses
from nas.schedules.cpu import CpuTemplates, winograd
from nas.schedules.cpu.loops import this_processor
from nas.schedules.templates import Schedule

FOLDERS = ("device", "host")
"""Folders of the object files for the device, and of those for this machine."""

_BIAS_SCALE = 0.1

Part = Literal["kernel", "dispatch", "network"]

_CONSTANTS = ("ew", "eb", "w", "b")
"""Names of the parameters of a kernel that are constants."""


class Tensor(NamedTuple):
    """An argument of a function.

    Attributes:
        elements: number of its elements.
        scale: standard deviation of the random numbers that it holds; 0 for what is written to.
        is_constant: whether it is a weight or a bias.
    """

    elements: int
    scale: float
    is_constant: bool = False


@dataclass(frozen=True)
class Function:
    """A function that a kit times.

    Args:
        part: as `manifest.Item.part`.
        name: as `manifest.Item.name`.
        symbol: name of the function in C.
        parameters: the tensors whose addresses it takes, as indices into `tensors`.
        tensors: its tensors, each of which begins at a multiple of the alignment, behind the one
            before.
        output: index of the tensor with its result.
        schedule: schedule of a kernel.
        has_many_weights: whether the kernel has `MANY_WEIGHT_BYTES` of weights.
        calls: number of calls in a chain, each with constants of its own: the tensors are those of
            the first call, with the constants of all. The first call reads the first tensor and
            writes the last one, the second one reads that, and so on.
    """

    part: Part
    name: str
    symbol: str
    parameters: Sequence[int]
    tensors: Sequence[Tensor]
    output: int
    schedule: Schedule | None = None
    has_many_weights: bool = False
    calls: int = 1


@lru_cache(maxsize=1)
def _templates(target: KitTarget) -> tuple[CpuTemplates, CpuTemplates]:
    """Return the templates of the device, and the same with the target of this machine."""
    own = CpuTemplates(code_target(target.triple, target.cpu, target.features), 1)
    here = copy.copy(own)
    here.target = this_processor()
    return own, here


def compile_kernel(
    target: KitTarget, text: str, stem: str, folder: Path, only: int | None = None
) -> list[Function]:
    """Write object files with a kernel, once for each schedule that it is timed with.

    A process of its own calls it.

    Args:
        target: the device.
        text: text of the kernel.
        stem: name of the object files and start of the names of the functions.
        folder: folder of `FOLDERS`.
        only: number of the only schedule, below `count_schedules`; None for all.

    Returns:
        The functions.
    """
    templates, _ = _templates(target)
    kernel = Kernel.parse(text)
    schedules = _schedules(templates, kernel)
    if only is not None:
        schedules = [schedules[only]]
    functions = [
        _function("kernel", kernel, schedule, templates, f"{stem}_{number}")
        for number, schedule in enumerate(schedules)
    ]
    if functions:
        _write_kernel(target, kernel, functions, stem, folder)
    return functions


def count_schedules(target: KitTarget, text: str) -> int:
    """Return how many schedules `compile_kernel` times a kernel with."""
    templates, _ = _templates(target)
    return len(_schedules(templates, Kernel.parse(text)))


def _write_kernel(
    target: KitTarget, kernel: Kernel, functions: Sequence[Function], stem: str, folder: Path
) -> None:
    """Write the object files of functions of a kernel."""
    own, here = _templates(target)
    compiled: dict[tvm.ir.GlobalVar, tirx.PrimFunc] = {}
    for each in functions:
        function = own.function(kernel, each.schedule or {}, each.symbol)
        taking = taking_addresses(function, scratch_arrays(function))
        compiled[tvm.ir.GlobalVar(each.symbol)] = taking
    module = tvm.IRModule(compiled)
    for name, templates in zip(FOLDERS, (own, here), strict=True):
        path = folder / name / f"{stem}.o"
        tvm.tirx.build(module, templates.target, "tirx").write_to_file(str(path))


def compile_chain(
    target: KitTarget, name: str, calls: int, stem: str, folder: Path
) -> list[Function]:
    """Write object files with the kernel of a chain of the cache benchmark.

    Args:
        target, stem, folder: see `compile_kernel`.
        name: name of the item.
        calls: number of kernels in the chain, an even one, so that its result is in the first
            tensor.

    Returns:
        The function of the chain.
    """
    templates, _ = _templates(target)
    schedule = templates.candidates(USES_WEIGHTS_OFTEN)[0]
    function = _function("dispatch", USES_WEIGHTS_OFTEN, schedule, templates, f"{stem}_0")
    _write_kernel(target, USES_WEIGHTS_OFTEN, [function], stem, folder)
    first, *constants, last = function.tensors
    tensors = [first, *(calls * constants), last]
    return [replace(function, name=name, schedule=None, tensors=tensors, output=0, calls=calls)]


def compile_network(
    target: KitTarget,
    graph: Graph,
    schedules: Schedules | None,
    part: Part,
    name: str,
    alone: Collection[str],
    stem: str,
    folder: Path,
) -> list[Function]:
    """Write object files with a whole network.

    Args:
        target, stem, folder: see `compile_kernel`.
        graph: the network.
        schedules: schedules of its kernels; None for the first candidate of each.
        part: what is timed.
        name: name of the item.
        alone: texts of its kernels that are also timed alone.

    Returns:
        The function of the network, and those of the kernels.

    Raises:
        MissingKernelError: a kernel has no schedule.
    """
    templates, here = _templates(target)
    sequence = launches(graph, fuse_expansions=True)
    kernels = list(dict.fromkeys(launch.kernel for launch in sequence))
    if schedules is None:
        schedules = {kernel: templates.candidates(kernel)[0] for kernel in kernels}
    for folder_name, each in zip(FOLDERS, (templates, here), strict=True):
        path = folder / folder_name / f"{stem}.o"
        network = write_object(graph, schedules, None, each, path, stem)
    own = {
        kernel: _function(part, kernel, schedules[kernel], templates, f"{stem}_kernel_{number}")
        for number, kernel in enumerate(kernels)
    }
    tensors = [
        Tensor(math.prod(graph.input_shape), 1.0),
        *(each for launch in sequence for each in own[launch.kernel].tensors if each.is_constant),
        Tensor(math.prod(graph.output_shape), 0.0),
        Tensor(network.workspace_bytes // 4, 0.0),
    ]
    output = len(tensors) - 2
    parameters = (0, 1, output, output + 1)
    whole = Function(part, name, f"{stem}_network", parameters, tensors, output)
    return [whole, *(own[kernel] for kernel in kernels if kernel.text in alone)]


def _function(
    part: Part, kernel: Kernel, schedule: Schedule, templates: CpuTemplates, symbol: str
) -> Function:
    """Return what is timed of a kernel with a schedule."""
    function = templates.function(kernel, schedule, symbol)
    tensors = _tensors(kernel, schedule, function)
    return Function(
        part,
        kernel.text,
        symbol,
        range(len(tensors)),
        tensors,
        len(function.params) - 1,
        schedule,
        kernel.weight_bytes >= MANY_WEIGHT_BYTES,
    )


def _schedules(templates: CpuTemplates, kernel: Kernel) -> list[dict[str, Any]]:
    """Return the candidates of a kernel and all their refinements, each once."""
    candidates = templates.candidates(kernel)
    refined = [each for one in candidates for each in templates.refinements(kernel, one)]
    return [*{json.dumps(each, sort_keys=True): each for each in [*candidates, *refined]}.values()]


def _tensors(kernel: Kernel, schedule: Schedule, function: tirx.PrimFunc) -> list[Tensor]:
    """Return the tensors of the parameters of a kernel's function, and its scratch arrays."""
    scales = {
        "w": _weight_scale(kernel.weight_shape, kernel.epilogue) if kernel.has_weights else 0.0,
        "ew": 0.0
        if kernel.expansion is None
        else _weight_scale(kernel.expansion_shape, kernel.expansion),
        "b": _BIAS_SCALE,
        "eb": _BIAS_SCALE,
        "y": 0.0,
    }
    if "winograd" in schedule:
        # The weights are transformed ones: sums of nine values in place of each.
        scales["w"] *= 3 / winograd.output_gain(schedule["winograd"])
    scratch = [
        Tensor(math.prod(int(size) for size in array.shape), 0.0)
        for array in scratch_arrays(function)
    ]
    return [
        Tensor(
            int(parameter.shape[0]),
            scales.get(parameter.name, 1.0),
            parameter.name in _CONSTANTS,
        )
        for parameter in function.params
    ] + scratch


def _weight_scale(shape: Sequence[int], steps: Sequence[str]) -> float:
    """Return the scale of weights that keeps activations near one (He et al. 2015), so that no
    number is denormal, which would be slow, and none overflows in a chain of many kernels."""
    gain = 2 if ACTIVATIONS.intersection(steps) else 1
    return math.sqrt(gain / math.prod(shape[1:]))
