"""Compiling and timing kernels in a separate process, which may crash, hang or be killed.

A bug in a compiler can end the process in which it runs. That process is a worker: the request that
ended it becomes an error, the next kernel gets a new worker, and the build of a table goes on.

A remote device may vanish and come back. The worker, and with it the connection, is then started
again a few times before the device counts as lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TypeVar

from nas.errors import BoardLostError, DeviceError, MeasurementError, NasError, first_line
from nas.kernels.kernel import Kernel
from nas.latency import core_scheduling
from nas.latency.core_scheduling import CorePlan
from nas.latency.device import Fingerprint
from nas.latency.kit import KitDevice
from nas.latency.runtime import KernelTimer, Runtime, Schedule
from nas.latency.timing import Timing
from nas.machine.processes import ChildProcess

T = TypeVar("T")

KERNEL_LIMIT_SECONDS = 120.0
"""How long one kernel may take to compile and time; the slowest of our spaces takes three."""

DISPATCH_LIMIT_FACTOR = 5
"""The dispatch costs may take this many times longer: megabytes of weights go to the device."""

START_SECONDS = 120.0
"""How long a worker may take to start: it imports the runtime."""

RECONNECTIONS = 3
"""How often a vanished device is connected to again before it counts as lost."""

RECONNECTION_PAUSE_SECONDS = 2.0
"""Pause before the first reconnection; each later pause is longer by as much."""


class WorkerTimer(KernelTimer):
    """The timer of a runtime, in a worker process.

    Use it as a context manager. The worker starts with the first request.

    Args:
        runtime: runtime, which is sent to the worker and opened there. A device with one user at a
            time is released for the worker.
        device: the device that it must have; by default the one that it has now.
        limit_s: seconds that one kernel may take.
        plan: how the workers of one machine share its cores; None if there is only one.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        device: Fingerprint | None = None,
        limit_s: float = KERNEL_LIMIT_SECONDS,
        plan: CorePlan | None = None,
    ) -> None:
        self._device = device or runtime.fingerprint
        self._runtime = runtime
        self._limit_s, self._plan = limit_s, plan
        self._is_closed = False
        runtime.release()
        self._process = ChildProcess()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_closed = True
        self._process.close(for_good=True)

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """See `KernelTimer.time_kernel`.

        Raises:
            MeasurementError: the kernel cannot be timed, or the worker died or ran out of time.
            BoardLostError: the device is gone.
            DeviceError: the device is not equal to the runtime's.
        """
        return self._request(KernelTimer.time_kernel, kernel)

    def retime_kernel(self, kernel: Kernel, schedule: Schedule) -> Timing:
        """See `KernelTimer.retime_kernel`, and `time_kernel` for the errors."""
        return self._request(KernelTimer.retime_kernel, kernel, dict(schedule))

    def time_dispatch(self) -> Mapping[str, Timing]:
        """See `KernelTimer.time_dispatch`, and `time_kernel` for the errors."""
        return self._request(KernelTimer.time_dispatch, limit_factor=DISPATCH_LIMIT_FACTOR)

    def time_miss_curve(self) -> Mapping[str, Timing]:
        """See `KernelTimer.time_miss_curve`, and `time_kernel` for the errors."""
        return self._request(KernelTimer.time_miss_curve, limit_factor=DISPATCH_LIMIT_FACTOR)

    def _request(self, method: Callable[..., T], *arguments: Any, limit_factor: int = 1) -> T:
        """Return the worker's answer, after reconnecting to the device if it vanished."""
        name, limit_s = method.__name__, limit_factor * self._limit_s
        for attempt in range(1, RECONNECTIONS + 1):
            try:
                return self._request_once(name, *arguments, limit_s=limit_s)
            except BoardLostError:
                self._process.close()
                if self._is_closed:
                    raise
                time.sleep(RECONNECTION_PAUSE_SECONDS * attempt)
        return self._request_once(name, *arguments, limit_s=limit_s)

    def _request_once(self, name: str, *arguments: Any, limit_s: float) -> Any:
        self._open()
        try:
            with _measurement_errors():
                return self._process.call(_ask, name, *arguments, limit_s=limit_s, start=False)
        except TimeoutError as error:
            if self._runtime.is_remote:
                # Starting a worker shows whether the kernel hangs or the device vanished.
                self._open()
            raise MeasurementError(
                f"compiling and timing took more than {limit_s:.0f} s",
                remedy="Time it again with `nas table build --retry-failed` on an idle machine.",
            ) from error

    def _open(self) -> None:
        """Start a worker and open the runtime in it, unless one runs."""
        if self._is_closed:
            raise MeasurementError("the timer is closed")
        if self._process.is_running:
            return
        try:
            with _measurement_errors():
                device = self._process.call(
                    _open_runtime, self._runtime, self._plan, limit_s=START_SECONDS
                )
        except (MeasurementError, TimeoutError) as error:
            self._process.close()
            reason = error.message if isinstance(error, MeasurementError) else f"it {error}"
            raise MeasurementError(f"the compiler's process did not start: {reason}") from error
        except NasError:
            self._process.close()
            raise
        differences = self._device.differences(device)
        if differences:
            self._process.close()
            raise DeviceError(
                f"A device is not equal to the others: {'; '.join(differences)}.",
                remedy="Start the command again on the device of the table.",
            )


@contextmanager
def timers_for(runtime: Runtime) -> Iterator[list[WorkerTimer] | KitDevice]:
    """Yield one `WorkerTimer` for each of the equal devices of a runtime, and stop them at the end.

    A device whose kits a transport carries is yielded as it is, see `nas.latency.build_table`.

    If `Runtime.compiles_beside_timing`, there are several if this machine has the cores: while one
    of them times alone on a core, the others compile.

    Args:
        runtime: opened runtime.

    Raises DeviceError for a device whose kits a person carries.
    """
    if isinstance(runtime, KitDevice):
        runtime.require_transport()
        yield runtime
        return
    with ExitStack() as stack:
        device = runtime.fingerprint
        workers = [WorkerTimer(each, device=device) for each in runtime.devices]
        if runtime.compiles_beside_timing:
            plans = core_scheduling.plan_workers(device.threads)
            workers = [WorkerTimer(runtime, plan=plan) for plan in plans] or workers
        yield [stack.enter_context(each) for each in workers]


_opened: Runtime | None = None
"""The runtime of this process, if it is a worker."""


def _open_runtime(runtime: Runtime, plan: CorePlan | None) -> Fingerprint:
    """Open a runtime in this process, a worker, and return its device."""
    global _opened
    if plan is not None:
        core_scheduling.apply_plan(plan)
    runtime.open()
    _opened = runtime
    return runtime.fingerprint


def _ask(name: str, *arguments: Any) -> Any:
    """Call a method of the timer of this worker's runtime."""
    assert _opened is not None
    return getattr(_opened.timer, name)(*arguments)


@contextmanager
def _measurement_errors() -> Iterator[None]:
    """Turn what a compiler raises, and the death of its process, into a MeasurementError."""
    try:
        yield
    except (DeviceError, MeasurementError, TimeoutError):
        raise
    except NasError as error:
        raise MeasurementError(error.message, remedy=error.remedy) from error
    except ChildProcessError as error:
        raise MeasurementError(f"the compiler's process {error}") from error
    except RuntimeError as error:
        raise MeasurementError(str(error)) from error
    # The answer of a timer of another package raises anything while it is read.
    except Exception as error:
        raise MeasurementError(f"the answer cannot be read: {first_line(error)}") from error
