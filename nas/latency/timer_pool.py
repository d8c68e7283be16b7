"""Sharing kernels among the timers of equal devices, such as the cores that Vela uses.

An idle device takes the next kernel. Only the caller's thread receives results, so a table has one
writer no matter how many devices there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from nas.errors import BoardLostError, DeviceError
from nas.kernels.kernel import Kernel
from nas.latency.rounds import outcome_of
from nas.latency.runtime import KernelTimer

T = TypeVar("T")


class TimerPool:
    """The timers of equal devices; those of lost devices are removed.

    The length of a pool is the number of devices that are left.

    Args:
        timers: one or more timers. A single one is only called from the caller's own thread.
    """

    def __init__(self, timers: Sequence[KernelTimer]) -> None:
        self._has_one_timer = len(timers) == 1
        self._timers = list(timers)
        self._losses: list[BoardLostError] = []
        self._last_timer: dict[Kernel, KernelTimer] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def call_any(self, call: Callable[[KernelTimer], T]) -> T:
        """Call a function with one timer, or with the next one if its device is lost.

        Returns:
            The result of the first call that succeeds.

        Raises:
            BoardLostError: all devices are lost.
        """
        while self._timers:
            try:
                return call(self._timers[0])
            except BoardLostError as error:
                self._remove(self._timers[0], error)
        raise self.none_left()

    def each(
        self, kernels: Sequence[Kernel], call: Callable[[KernelTimer, Kernel], T]
    ) -> Iterator[tuple[Kernel, T | Exception]]:
        """Call a function for every kernel, with the timer of an idle device.

        If a device is lost, its kernel goes to another device, once, because the kernel may be the
        cause. If that device is lost too, or none is left, the loss is the outcome of the kernel.

        Yields:
            Each kernel with its outcome, the result of the call or the error that it raised, as
            soon as the call ends.

        Raises:
            BoardLostError: no device is left for the kernels that have not started.
            DeviceError: a device is not equal to the others.
        """
        waiting = deque(kernels)
        moved: set[Kernel] = set()
        for kernel, timer, outcome in self._outcomes(waiting, call):
            if isinstance(outcome, DeviceError):
                if not isinstance(outcome, BoardLostError):
                    raise outcome
                self._remove(timer, outcome)
                if self._timers and kernel not in moved:
                    moved.add(kernel)
                    waiting.appendleft(kernel)
                    continue
            yield kernel, outcome
        if waiting:
            raise self.none_left()

    def _outcomes(
        self, waiting: deque[Kernel], call: Callable[[KernelTimer, Kernel], T]
    ) -> Iterator[tuple[Kernel, KernelTimer, T | Exception]]:
        """Yield each kernel with its timer and its outcome."""
        if self._has_one_timer:
            while waiting and self._timers:
                kernel, timer = waiting.popleft(), self._timers[0]
                yield kernel, timer, outcome_of(call, timer, kernel)
            return
        executor = ThreadPoolExecutor(max(1, len(self._timers)))
        running: dict[Future[T | Exception], tuple[Kernel, KernelTimer]] = {}
        try:
            while running or (waiting and self._timers):
                busy = [timer for _, timer in running.values()]
                for timer in self._timers:
                    if any(timer is other for other in busy):
                        continue
                    taken = self._take_kernel(waiting, timer)
                    if taken is not None:
                        self._last_timer[taken] = timer
                        running[executor.submit(outcome_of, call, timer, taken)] = (taken, timer)
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    kernel, timer = running.pop(future)
                    yield kernel, timer, future.result()
        finally:
            # The caller closes the timers when it stops here, which ends the running calls.
            executor.shutdown(wait=False, cancel_futures=True)

    def _take_kernel(self, waiting: deque[Kernel], timer: KernelTimer) -> Kernel | None:
        """Take the next kernel that no other remaining timer has compiled before."""
        for kernel in waiting:
            last = self._last_timer.get(kernel, timer)
            if last is timer or not any(last is other for other in self._timers):
                waiting.remove(kernel)
                return kernel
        return None

    def _remove(self, timer: KernelTimer, error: BoardLostError) -> None:
        self._timers = [each for each in self._timers if each is not timer]
        self._losses.append(error)

    def none_left(self) -> BoardLostError:
        """Return the error of a pool whose devices are all lost."""
        losses = "; ".join(error.message.rstrip(".") for error in self._losses)
        return BoardLostError(
            f"No board is left to time kernels on: {losses}.",
            remedy="What was timed is kept; the same command continues once a board is back.",
        )
