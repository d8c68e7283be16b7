"""A network as one TIR function that calls its kernels, and the same for a kernel that is timed.

If TVM's virtual machine calls the kernels, it makes a tensor of every activation and passes each
argument in a structure that the kernel checks. That costs a tenth of a microsecond a kernel, and
its code is so long that a network evicts it from the caches. Here the addresses of all arguments
are known when the network is compiled: the weights lie in one array and the activations in one
workspace.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.buffer import buffer_data_pointer_type
from tvm.tirx.stmt import Return

from nas.kernels.fusion import Launch
from nas.kernels.kernel import Kernel
from nas.runtimes.memory_plan import Buffer, place

ALIGNMENT_BYTES = 64
"""Kernels are compiled for tensors that begin at multiples of this address."""

_STACK_BYTES = 1024
"""Size from which TVM asks a runtime for the memory of an array; smaller ones are on the stack."""

_INT32 = tvm.ir.PrimType("int32")
_LOWERED = 1
"""Calling convention of a function whose arguments no pass may wrap."""


class Workspace(NamedTuple):
    """Places of the activations of a network in one array.

    Attributes:
        offsets: first element of each activation, by its number in `Launch`. The image and the
            output of the network are not among them.
        elements: size of the array, at least 1.
    """

    offsets: Mapping[int, int]
    elements: int


class NetworkFunction(NamedTuple):
    """A network as a TIR function.

    Attributes:
        function: function of the image, `weights` (a flat tensor) and the output. It fails if
            there is no memory for the activations.
        weights: packed constants of all launches.
        workspace_bytes: size of the memory for the activations and for the arrays that kernels
            take from their caller, a multiple of `ALIGNMENT_BYTES`.
    """

    function: tirx.PrimFunc
    weights: NDArray[Any]
    workspace_bytes: int


def network_function(
    sequence: Sequence[Launch],
    callees: Mapping[Kernel, tvm.ir.GlobalVar],
    constants: Sequence[Sequence[NDArray[Any]]],
    image_shape: Sequence[int],
    output_shape: Sequence[int],
    dtype: str,
    scratch: Mapping[Kernel, Sequence[tirx.Buffer]] | None = None,
) -> NetworkFunction:
    """Return a network as a TIR function.

    Args:
        sequence: launches of the network, in order. The last one makes the output.
        callees: for each kernel, its function in the module, made by `taking_addresses`.
        constants: packed constants of each launch.
        image_shape: shape of the image; its elements are those of a flat one, in order.
        output_shape: shape of the output, likewise.
        dtype: type of all tensors.
        scratch: for each kernel, the arrays that its function takes, see `taking_addresses`; by
            default it takes none.
    """
    unit = ALIGNMENT_BYTES // np.dtype(dtype).itemsize
    workspace = plan_workspace(sequence, unit)
    weights, weight_offsets = _concatenated(constants, unit, dtype)
    output = sequence[-1].result
    shapes = {"image": image_shape, "weights": weights.shape, "output": output_shape}
    tensors = {name: tirx.decl_buffer(shape, dtype, name) for name, shape in shapes.items()}
    scratch_offsets, elements = {}, workspace.elements
    for kernel, arrays in (scratch or {}).items():
        sizes = [_aligned(_elements(array), unit) for array in arrays]
        first = _aligned(workspace.elements, unit)
        *scratch_offsets[kernel], end = itertools.accumulate(sizes, initial=first)
        elements = max(elements, end)
    memory = tirx.decl_buffer((elements,), dtype, "workspace")

    def activation(number: int) -> tvm.ir.Expr:
        if number in workspace.offsets:
            return _address(memory, workspace.offsets[number])
        return _address(tensors["output" if number == output else "image"])

    calls = []
    for launch, offsets in zip(sequence, weight_offsets, strict=True):
        split = len(launch.kernel.inputs)
        sources = [activation(source) for source in launch.sources]
        own_weights = [_address(tensors["weights"], offset) for offset in offsets]
        arrays = [_address(memory, offset) for offset in scratch_offsets.get(launch.kernel, ())]
        inputs = [*sources[:split], *own_weights, *sources[split:]]
        calls.append(_call(callees[launch.kernel], [*inputs, activation(launch.result), *arrays]))
    function = tirx.PrimFunc([*tensors.values()], tirx.SeqStmt([tirx.AllocBuffer(memory), *calls]))
    size = _aligned(elements, unit) * np.dtype(dtype).itemsize
    return NetworkFunction(function.with_attr("global_symbol", "network"), weights, size)


def repeated_kernel(function: tirx.PrimFunc) -> tvm.IRModule:
    """Return a module whose function `main` calls a kernel as a network does, many times.

    Args:
        function: the kernel, a function of tensors.

    Returns:
        The module. Arguments of `main` are the tensors and the number of calls.
    """
    callee = tvm.ir.GlobalVar("kernel")
    tensors = [tirx.decl_buffer(each.shape, each.dtype, each.name) for each in function.params]
    call, calls = tirx.Var("call", "int32"), tirx.Var("calls", "int32")
    body = tirx.For(
        call, 0, calls, tirx.ForKind.SERIAL, _call(callee, [_address(each) for each in tensors])
    )
    main = tirx.PrimFunc([*tensors, calls], body).with_attr("global_symbol", "main")
    kernel = taking_addresses(function.with_attr("global_symbol", callee.name_hint))
    return tvm.IRModule({callee: kernel, tvm.ir.GlobalVar("main"): main})


def plan_workspace(sequence: Sequence[Launch], unit: int) -> Workspace:
    """Return places of activations such that no two that are alive at once overlap.

    Args:
        sequence: launches of the network, in order.
        unit: number of elements of which all offsets are multiples.
    """
    buffers: dict[int, Buffer] = {}
    for at, launch in enumerate(sequence):
        size = _aligned(launch.kernel.elements(launch.kernel.output), unit)
        buffers[launch.result] = Buffer(size, at, at)
        for source in launch.sources:
            if source in buffers:
                buffers[source] = buffers[source]._replace(last=at)
    del buffers[sequence[-1].result]
    numbers = sorted(buffers, key=lambda number: buffers[number].size, reverse=True)
    offsets = dict(zip(numbers, place(map(buffers.__getitem__, numbers)), strict=True))
    ends = [offset + buffers[number].size for number, offset in offsets.items()]
    return Workspace(offsets, max(ends, default=1))


def scratch_arrays(function: tirx.PrimFunc) -> list[tirx.Buffer]:
    """Return the arrays of a kernel for which TVM would allocate memory outside the stack."""
    arrays: list[tirx.Buffer] = []

    def add(allocation: tirx.AllocBuffer) -> None:
        array = allocation.buffer
        if _elements(array) * np.dtype(array.dtype).itemsize >= _STACK_BYTES:
            arrays.append(array)

    tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, add))
    return arrays


def taking_addresses(function: tirx.PrimFunc, scratch: Sequence[tirx.Buffer] = ()) -> tirx.PrimFunc:
    """Return a function of tensors as a function of their addresses, which returns 0.

    The machine code of the kernel is that of the function of tensors.

    Args:
        function: the function of tensors.
        scratch: arrays of it whose addresses the caller gives, too, after those of the tensors. The
            function allocates all others.
    """
    addresses, views = _taken_by_address(function.params)
    body = function.body
    if scratch:
        own, declarations = _taken_by_address(scratch)
        addresses += own

        def given(allocation: tirx.AllocBuffer) -> tirx.Stmt:
            for array, declaration in zip(scratch, declarations, strict=True):
                if array.same_as(allocation.buffer):
                    return declaration
            return allocation

        body = tvm_ffi.structural_map(body, (tirx.AllocBuffer, given))
    # TVM makes a function of its own of such a scope. LLVM could reorder kernels that were inlined
    # into a network, because it is told that tensors of different names never share memory. For
    # some processors it inlines the smallest of these functions, too: see `c_network`. Every
    # exported file is compared with torch.
    name = tvm.ir.StringImm(f"{function.attrs['global_symbol']}_compute")
    compute = tirx.AttrStmt(tirx.const(0, "int32"), "compute_scope", name, body)
    body = tirx.SeqStmt([*views, compute, Return(tirx.const(0, "int32"))])
    # Scratch memory is allocated on this device.
    for key, number in (("device_type", tvm.cpu().dlpack_device_type()), ("device_id", 0)):
        body = tirx.AttrStmt(tvm.ir.StringImm("default"), key, tirx.const(number, "int32"), body)
    result = tirx.PrimFunc(addresses, body, _INT32, function.attrs)
    return result.with_attr("calling_conv", _LOWERED)


def c_function(network: tirx.PrimFunc, name: str) -> tirx.PrimFunc:
    """Return the function of a network as one that a C program calls, and that allocates nothing.

    Its arguments are the addresses of the image, the weights, the output, and the workspace, which
    has the activations. It returns 0, and asks no kernel whether there was memory.

    Args:
        network: the function, see `NetworkFunction`.
        name: name of the new function.
    """
    addresses, views = _taken_by_address([*network.params, network.body.seq[0].buffer])
    calls = [tirx.Evaluate(call) for call in _kernel_calls(network)]
    body = tirx.SeqStmt([*views, *calls, Return(tirx.const(0, "int32"))])
    result = tirx.PrimFunc(addresses, body, _INT32)
    return result.with_attr("global_symbol", name).with_attr("calling_conv", _LOWERED)


def called_names(function: tirx.PrimFunc) -> list[str]:
    """Return the names of the kernels that the function of a network calls, in order."""
    return [str(call.op.name_hint) for call in _kernel_calls(function)]


def _kernel_calls(network: tirx.PrimFunc) -> list[tvm.ir.Call]:
    """Return the calls of kernels in the function of a network; it compares their results."""
    _, *statements = network.body.seq
    return [statement.condition.a for statement in statements]


def _taken_by_address(
    tensors: Sequence[tirx.Buffer],
) -> tuple[list[tirx.Var], list[tirx.Stmt]]:
    """Return variables for the addresses of tensors, and the declarations of these tensors."""
    addresses = [
        tirx.Var(f"{tensor.name}_address", buffer_data_pointer_type(tensor)) for tensor in tensors
    ]
    views = [
        tirx.DeclBuffer(tensor, data=address)
        for tensor, address in zip(tensors, addresses, strict=True)
    ]
    return addresses, views


def _address(tensor: tirx.Buffer, offset: int = 0) -> tvm.ir.Expr:
    return tirx.address_of(tirx.BufferLoad(tensor, [*[0] * (len(tensor.shape) - 1), offset]))


def _call(callee: tvm.ir.GlobalVar, addresses: Sequence[tvm.ir.Expr]) -> tirx.Stmt:
    """Return a call of a function of addresses; if it fails, the caller fails as well."""
    status = tvm.ir.Call(callee, addresses, ret_ty=_INT32)
    return tirx.IfThenElse(status != 0, Return(tirx.const(-1, "int32")), None)


def _concatenated(
    constants: Sequence[Sequence[NDArray[Any]]], unit: int, dtype: str
) -> tuple[NDArray[Any], list[list[int]]]:
    """Return all arrays in one, and the first element of each."""
    offsets: list[list[int]] = []
    elements = 0
    for arrays in constants:
        offsets.append([])
        for array in arrays:
            offsets[-1].append(elements)
            elements += _aligned(array.size, unit)
    together = np.zeros(max(1, elements), dtype)
    for arrays, firsts in zip(constants, offsets, strict=True):
        for array, first in zip(arrays, firsts, strict=True):
            together[first : first + array.size] = array.reshape(-1)
    return together, offsets


def _elements(tensor: tirx.Buffer) -> int:
    return math.prod(int(each) for each in tensor.shape)


def _aligned(elements: int, unit: int) -> int:
    return -(-elements // unit) * unit
