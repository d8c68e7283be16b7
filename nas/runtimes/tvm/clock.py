"""Functions of TVM that read a clock on the device, between two kernels of one call.

A tensor of readings holds the seconds and the nanoseconds of each reading. A tensor of counted
readings also holds, as its last number, how many readings were taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from nas.schedules.templates import flat_type

_MONOTONIC_CLOCKS = {"linux": 1, "darwin": 6}
"""Number of the monotonic clock in calls of `clock_gettime`, by operating system."""

_PROCESSORS_OF_64_BITS = ("x86_64", "amd64", "aarch64", "arm64", "riscv64")
"""Processors on which `clock_gettime` writes two numbers of 64 bits."""


def clock_of(target: tvm.target.Target) -> int | None:
    """Return the number of the clock that code of a target can read; None if none is known."""
    triple = str(target.attrs.get("mtriple", ""))
    if not triple.startswith(_PROCESSORS_OF_64_BITS):
        return None
    return next((clock for system, clock in _MONOTONIC_CLOCKS.items() if system in triple), None)


def readings_type(count: int) -> relax.TensorType:
    """Return the type of a tensor of `count` readings."""
    return flat_type((2 * count,), "int64")


def empty_readings(count: int) -> NDArray[np.int64]:
    """Return a tensor for `count` readings, none of them taken."""
    return np.zeros(2 * count, np.int64)


def nanoseconds(readings: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the nanoseconds from the first reading to each reading."""
    seconds, nanoseconds = readings.reshape(-1, 2).T
    elapsed: NDArray[np.int64] = (
        1_000_000_000 * (seconds - seconds[0]) + nanoseconds - nanoseconds[0]
    )
    return elapsed


def write_reading(readings: tirx.Buffer, index: Any, clock: int) -> tirx.Stmt:
    """Return the statement that writes the time now to reading `index` of a tensor of readings."""
    address = tirx.address_of(tirx.BufferLoad(readings, [2 * index]))
    return tirx.Evaluate(tirx.call_extern("int32", "clock_gettime", clock, address))


def read_clock(index: int, count: int, clock: int) -> tirx.PrimFunc:
    """Return a function that takes reading `index` of a tensor of `count` readings."""
    readings = _buffer(2 * count)
    function = tirx.PrimFunc([readings], write_reading(readings, index, clock))
    return function.with_attr("global_symbol", f"clock_{index}")


def do_nothing(count: int) -> tirx.PrimFunc:
    """Return a function with the signature of `read_clock` that does nothing."""
    nothing = tirx.Evaluate(tirx.const(0, "int32"))
    return tirx.PrimFunc([_buffer(2 * count)], nothing).with_attr("global_symbol", "idle")


def call_in_place(function: relax.GlobalVar, arguments: list[Any], result: Any) -> relax.Call:
    """Return a call that overwrites its last argument, a tensor of the type `result`."""
    return relax.op.call_tir_inplace(function, arguments, [len(arguments) - 1], result)


def _buffer(size: int) -> tirx.Buffer:
    return tirx.decl_buffer((size,), "int64", "readings")
