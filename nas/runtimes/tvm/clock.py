"""A clock that a device's own code reads, between two kernels of one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from nas.schedules.templates import flat_type

_CLOCKS = {"linux": 1, "darwin": 6}
"""What `clock_gettime` calls the clock that only goes forward, by operating system."""

_PROCESSORS = ("x86_64", "amd64", "aarch64", "arm64", "riscv64")
"""On which `clock_gettime` writes two numbers of 64 bits."""


def clock_of(target: tvm.target.Target) -> int | None:
    """The clock that a target's code can read by itself; None where none is known."""
    triple = str(target.attrs.get("mtriple", ""))
    if not triple.startswith(_PROCESSORS):
        return None
    return next((clock for system, clock in _CLOCKS.items() if system in triple), None)


def readings_type(count: int) -> relax.TensorType:
    """The type of a tensor of so many readings: seconds and nanoseconds of each."""
    return flat_type((2 * count,), "int64")


def no_readings(count: int) -> NDArray[np.int64]:
    """A tensor of so many readings, before they are taken."""
    return np.zeros(2 * count, np.int64)


def nanoseconds(readings: NDArray[np.int64]) -> NDArray[np.int64]:
    """Nanoseconds of each reading after the first."""
    seconds, nanoseconds = readings.reshape(-1, 2).T
    found: NDArray[np.int64] = 1_000_000_000 * (seconds - seconds[0]) + nanoseconds - nanoseconds[0]
    return found


def reading(index: int, count: int, clock: int) -> tirx.PrimFunc:
    """Takes reading `index` of a tensor of `count`."""
    readings = _buffer(2 * count)
    address = tirx.address_of(tirx.BufferLoad(readings, [2 * index]))
    call = tirx.call_extern("int32", "clock_gettime", clock, address)
    function = tirx.PrimFunc([readings], tirx.Evaluate(call))
    return function.with_attr("global_symbol", f"clock_{index}")


def counted_type(count: int) -> relax.TensorType:
    """As `readings_type`, for those that `next_reading` takes: how many there are stands last."""
    return flat_type((2 * count + 1,), "int64")


def none_counted(count: int) -> NDArray[np.int64]:
    """As `no_readings`, for these."""
    return np.zeros(2 * count + 1, np.int64)


def counted(readings: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those that were taken, as `nanoseconds` reads them."""
    return readings[: 2 * readings[-1]]


def next_reading(count: int, clock: int) -> tirx.PrimFunc:
    """Takes the next reading of a tensor of `count`: the same function for all of many."""
    readings = _buffer(2 * count + 1)
    taken = tirx.BufferLoad(readings, [2 * count])
    address = tirx.address_of(tirx.BufferLoad(readings, [2 * taken]))
    call = tirx.call_extern("int32", "clock_gettime", clock, address)
    one_more = tirx.BufferStore(readings, taken + 1, [2 * count])
    body = tirx.SeqStmt([tirx.Evaluate(call), one_more])
    return tirx.PrimFunc([readings], body).with_attr("global_symbol", "clock")


def first_reading(count: int) -> tirx.PrimFunc:
    """Lets `next_reading` begin anew."""
    readings = _buffer(2 * count + 1)
    none = tirx.BufferStore(readings, tirx.const(0, "int64"), [2 * count])
    return tirx.PrimFunc([readings], none).with_attr("global_symbol", "begin")


def idle(count: int) -> tirx.PrimFunc:
    """Takes none."""
    nothing = tirx.Evaluate(tirx.const(0, "int32"))
    return tirx.PrimFunc([_buffer(2 * count)], nothing).with_attr("global_symbol", "idle")


def in_place(function: relax.GlobalVar, arguments: list[Any], result: Any) -> relax.Call:
    """A call that writes over its last argument, a tensor of the type `result`."""
    return relax.op.call_tir_inplace(function, arguments, [len(arguments) - 1], result)


def _buffer(numbers: int) -> tirx.Buffer:
    return tirx.decl_buffer((numbers,), "int64", "readings")
