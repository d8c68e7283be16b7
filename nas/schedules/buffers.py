"""Buffers of the activations of a Relax function: as few as hold all that are alive at once.

TVM's own `StaticPlanBlockMemory` gives no small tensor the buffer of a large one. But at every
inference, the virtual machine takes each buffer from its pool, which costs as much as launching two
kernels.
"""

from __future__ import annotations

import tvm
from tvm import relax

_ALLOCATION = "relax.builtin.alloc_tensor"


@relax.transform.function_pass(opt_level=0, name="ShareBuffers")
def share_buffers(
    function: relax.Function, _module: tvm.IRModule, _context: tvm.transform.PassContext
) -> relax.Function:
    """Let the tensors that a function allocates share buffers.

    The function calls kernels that write to tensors, as `CallTIRRewrite` leaves it. A tensor that
    is returned, or read by anything but a kernel, has a buffer of its own.
    """
    bindings = bindings_of(function)
    last_use, has_own = _uses(bindings, function.body.body)
    buffer_bytes: list[int] = []
    free: list[int] = []
    buffer_of: dict[relax.Var, int] = {}
    for position, binding in enumerate(bindings):
        if _is_allocation(binding.value) and binding.var not in has_own:
            needed = _size_bytes(binding.var)
            if not free:
                free.append(len(buffer_bytes))
                buffer_bytes.append(0)
            # The smallest that is large enough, otherwise the largest, which grows.
            free.sort(key=buffer_bytes.__getitem__)
            chosen = next((each for each in free if buffer_bytes[each] >= needed), free[-1])
            free.remove(chosen)
            buffer_bytes[chosen] = max(needed, buffer_bytes[chosen])
            buffer_of[binding.var] = chosen
        free += [buffer_of[each] for each in last_use.get(position, ()) if each in buffer_of]
    return _allocated(function, bindings, buffer_of, buffer_bytes)


def bindings_of(function: relax.Function) -> list[relax.Binding]:
    """Return the bindings of a function without control flow, in order."""
    return [binding for block in function.body.blocks for binding in block.bindings]


def is_kernel_call(value: relax.Expr) -> bool:
    """Return whether a value is a call of a function of the module, such as a kernel."""
    return isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar)


def _uses(
    bindings: list[relax.Binding], returned: relax.Expr
) -> tuple[dict[int, list[relax.Var]], set[relax.Var]]:
    """Return the variables by the position of the last binding that uses them, and others.

    The others are those that are returned, or read by anything but a kernel.
    """
    positions: dict[relax.Var, int] = {}
    has_own = set(relax.analysis.free_vars(returned))
    for position, binding in enumerate(bindings):
        variables = relax.analysis.free_vars(binding.value)
        positions |= dict.fromkeys(variables, position)
        if not is_kernel_call(binding.value):
            has_own |= set(variables)
    last_use: dict[int, list[relax.Var]] = {}
    for variable, position in positions.items():
        last_use.setdefault(position, []).append(variable)
    return last_use, has_own


def _allocated(
    function: relax.Function,
    bindings: list[relax.Binding],
    buffer_of: dict[relax.Var, int],
    buffer_bytes: list[int],
) -> relax.Function:
    """Return a function whose tensors lie in these buffers, each allocated when it is needed."""
    normalize = relax.BlockBuilder().normalize
    buffers: dict[int, relax.Var] = {}
    planned: list[relax.Binding] = []
    for binding in bindings:
        number = buffer_of.get(binding.var)
        if number is None:
            planned.append(binding)
            continue
        shape, dtype, device, scope = binding.value.args
        if number not in buffers:
            size = relax.ShapeExpr([buffer_bytes[number]])
            buffer = normalize(relax.op.memory.alloc_storage(size, device, scope, dtype))
            buffers[number] = relax.Var("buffer", buffer.ty)
            planned.append(relax.VarBinding(buffers[number], buffer))
        tensor = relax.op.memory.alloc_tensor(buffers[number], 0, shape, dtype, device)
        planned.append(relax.VarBinding(binding.var, normalize(tensor)))
    body = relax.SeqExpr([relax.BindingBlock(planned)], function.body.body)
    return relax.Function(
        function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span
    )


def _is_allocation(value: relax.Expr) -> bool:
    is_call = isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op)
    return is_call and value.op.name == _ALLOCATION


def _size_bytes(variable: relax.Var) -> int:
    count = 1
    for size in variable.ty.shape.values:
        count *= int(size)
    return count * tvm.DataType(variable.ty.dtype).bits // 8
