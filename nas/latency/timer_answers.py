"""Asking timers, and checking what they answer: a timer of another package may return anything.

Every function raises MeasurementError for an answer that the contract of a timer does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from nas.errors import MeasurementError, as_nas_error
from nas.files.documents import shortened
from nas.kernels.kernel import Kernel
from nas.latency.device import Object
from nas.latency.runtime import KernelTimer, Schedule
from nas.latency.timing import Timing

_SCHEDULE: Final = TypeAdapter[dict[str, Any]](Object)


def time_kernel(timer: KernelTimer, kernel: Kernel) -> tuple[Schedule, Timing]:
    """Return the schedule and the first timing of a kernel, see `KernelTimer.time_kernel`."""
    answer: Any = timer.time_kernel(kernel)
    match answer:
        case (Mapping() as schedule, Timing() as timing):
            pass
        case _:
            raise _unexpected("time_kernel", answer, "a schedule and a Timing")
    try:
        return _SCHEDULE.validate_python(dict(schedule)), timing
    except ValidationError as error:
        raise _unexpected(
            "time_kernel", schedule, "a schedule that JSON can hold", error.errors()[0]["msg"]
        ) from None


def retime_kernel(timer: KernelTimer, kernel: Kernel, schedule: Schedule) -> Timing:
    """Return a further timing of a kernel, see `KernelTimer.retime_kernel`."""
    answer: Any = timer.retime_kernel(kernel, schedule)
    if isinstance(answer, Timing):
        return answer
    raise _unexpected("retime_kernel", answer, "a Timing")


def time_dispatch(timer: KernelTimer) -> Mapping[str, Timing]:
    """Return the timings of dispatch costs, see `KernelTimer.time_dispatch`."""
    return _timings_by_part(timer, "time_dispatch")


def time_miss_curve(timer: KernelTimer) -> Mapping[str, Timing]:
    """Return the timings of the miss curve, see `KernelTimer.time_miss_curve`."""
    return _timings_by_part(timer, "time_miss_curve")


def _timings_by_part(timer: KernelTimer, method: str) -> Mapping[str, Timing]:
    try:
        answer: Any = getattr(timer, method)()
    except Exception as error:
        raise as_nas_error(error, MeasurementError) from error
    if isinstance(answer, Mapping) and all(
        isinstance(part, str) and isinstance(timing, Timing) for part, timing in answer.items()
    ):
        return answer
    raise _unexpected(method, answer, "a Timing for each part")


def _unexpected(method: str, answer: Any, expected: str, problem: str = "") -> MeasurementError:
    try:
        shown = shortened(answer)
    except Exception:  # The text of an object of another package is its own code.
        shown = f"an object of class {type(answer).__name__}"
    reason = f" ({problem})" if problem else ""
    return MeasurementError(f"{method} returned {shown}{reason}; {expected} was expected.")
