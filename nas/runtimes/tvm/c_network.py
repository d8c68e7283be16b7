"""Networks as object files that C programs link, without a runtime of TVM."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import tvm
from numpy.typing import NDArray

from nas.graph import Graph
from nas.latency.runtime import Schedules, Weights
from nas.runtimes.tvm.network_function import (
    c_function,
    network_function,
    scratch_arrays,
    taking_addresses,
)
from nas.runtimes.tvm.relax_network import network_parts
from nas.schedules.templates import Templates

_NO_INLINING = "-inline-instr-cost:int=100"
"""Option of LLVM with which even the smallest kernel is too large to be inlined into a network.

LLVM is told that tensors of different names share no memory. In one function it would therefore
move reads of a kernel before the writes of the kernel in front of it. It did on RISC-V, for a
convolution of 4 channels by 2 x 2 pixels."""


class CNetwork(NamedTuple):
    """What the object file of a network does not hold.

    Attributes:
        weights: packed constants of all kernels, which the network reads.
        workspace_bytes: bytes of memory that the network needs.
    """

    weights: NDArray[Any]
    workspace_bytes: int


def write_object(
    graph: Graph,
    schedules: Schedules,
    weights: Weights | None,
    templates: Templates,
    path: Path,
    name: str,
) -> CNetwork:
    """Write the kernels of a network, and a function that calls them, to an object file.

    The function is `int32_t NAME_network(image, weights, logits, workspace)`, of arrays of floats
    that begin at multiples of `ALIGNMENT_BYTES`. It returns 0, and needs no function but those of
    the C library.

    Args:
        graph: the network.
        schedules: schedules of its kernels.
        weights: weights of the folded graph; None for random ones.
        templates: templates of the device's target, for one thread.
        path: path of the object file.
        name: start of the names of all functions, an identifier of C.

    Raises:
        MissingKernelError: a kernel has no schedule.
    """
    parts = network_parts(graph, schedules, weights, templates, prefix=f"{name}_")
    callees = {
        kernel: tvm.ir.GlobalVar(str(function.attrs["global_symbol"]))
        for kernel, function in parts.functions.items()
    }
    channels, height, width = graph.input_shape
    scratch = {kernel: scratch_arrays(function) for kernel, function in parts.functions.items()}
    network = network_function(
        parts.sequence,
        callees,
        parts.constants,
        (1, height, width, channels),
        (1, graph.output_shape[0]),
        templates.dtype,
        scratch,
    )
    functions = {
        callees[each]: taking_addresses(parts.functions[each], scratch[each]) for each in callees
    }
    main = c_function(network.function, f"{name}_network")
    functions[tvm.ir.GlobalVar(f"{name}_network")] = main
    target = tvm.target.Target({**templates.target.export(), "cl-opt": [_NO_INLINING]})
    tvm.tirx.build(tvm.IRModule(functions), target, "tirx").write_to_file(str(path))
    return CNetwork(network.weights, network.workspace_bytes)
