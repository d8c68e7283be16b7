"""Kernels shared among timers of equal devices, such as the boards that a tracker has.

Whichever device is idle takes the next kernel. Only the caller's thread sees results, so a table
has one writer however many devices there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from nas.errors import BoardLostError, DeviceError
from nas.latency.kernel import Kernel
from nas.latency.runtime import KernelTimer

T = TypeVar("T")


class TimerPool:
    """Timers of equal devices, less those that are lost.

    Args:
        timers: one or more. A single one is only ever called from the caller's own thread.
    """

    def __init__(self, timers: Sequence[KernelTimer]) -> None:
        self._alone = len(timers) == 1
        self._left = list(timers)
        self._lost: list[BoardLostError] = []
        self._had: dict[Kernel, KernelTimer] = {}

    def __len__(self) -> int:
        return len(self._left)

    def any(self, ask: Callable[[KernelTimer], T]) -> T:
        """What the first device that is not lost answers. Raises BoardLostError if all are."""
        while self._left:
            try:
                return ask(self._left[0])
            except BoardLostError as error:
                self._lose(self._left[0], error)
        raise self._none_left()

    def each(
        self, kernels: Sequence[Kernel], ask: Callable[[KernelTimer, Kernel], T]
    ) -> Iterator[tuple[Kernel, T | Exception]]:
        """Every kernel with what became of it, as they are done.

        A kernel whose device is lost goes to another one, once: it may be what takes devices down.
        Where that one is lost too, or there is none, the loss is what became of the kernel.

        Raises BoardLostError once no device is left; kernels that none had begun are not among the
        results. Raises DeviceError for a device that is not like the others.
        """
        todo = deque(kernels)
        moved: set[Kernel] = set()
        for kernel, timer, found in self._answers(todo, ask):
            if isinstance(found, DeviceError):
                if not isinstance(found, BoardLostError):
                    raise found
                self._lose(timer, found)
                if self._left and kernel not in moved:
                    moved.add(kernel)
                    todo.appendleft(kernel)
                    continue
            yield kernel, found
        if todo:
            raise self._none_left()

    def _answers(
        self, todo: deque[Kernel], ask: Callable[[KernelTimer, Kernel], T]
    ) -> Iterator[tuple[Kernel, KernelTimer, T | Exception]]:
        if self._alone:
            while todo and self._left:
                kernel, timer = todo.popleft(), self._left[0]
                yield kernel, timer, _outcome(ask, timer, kernel)
            return
        pool = ThreadPoolExecutor(max(1, len(self._left)))
        running: dict[Future[T | Exception], tuple[Kernel, KernelTimer]] = {}
        try:
            while running or (todo and self._left):
                busy = [timer for _, timer in running.values()]
                for timer in self._left:
                    if any(timer is other for other in busy):
                        continue
                    chosen = self._next(todo, timer)
                    if chosen is not None:
                        self._had[chosen] = timer
                        running[pool.submit(_outcome, ask, timer, chosen)] = (chosen, timer)
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    kernel, timer = running.pop(future)
                    yield kernel, timer, future.result()
        finally:
            # Whoever stops here stops the timers as well, which ends what is still running.
            pool.shutdown(wait=False, cancel_futures=True)

    def _next(self, todo: deque[Kernel], timer: KernelTimer) -> Kernel | None:
        """The next kernel for a timer: none that another one had, and has compiled already."""
        for kernel in todo:
            had = self._had.get(kernel, timer)
            if had is timer or not any(had is left for left in self._left):
                todo.remove(kernel)
                return kernel
        return None

    def _lose(self, timer: KernelTimer, error: BoardLostError) -> None:
        self._left = [each for each in self._left if each is not timer]
        self._lost.append(error)

    def _none_left(self) -> BoardLostError:
        words = "; ".join(error.message.rstrip(".") for error in self._lost)
        return BoardLostError(
            f"No board is left to time kernels on: {words}.",
            remedy="What was timed is kept; the same command continues once a board is back.",
        )


def _outcome(
    ask: Callable[[KernelTimer, Kernel], T], timer: KernelTimer, kernel: Kernel
) -> T | Exception:
    """What a timer answers, or the error that it raises.

    A compiler may raise anything; whatever it is, it is what became of the kernel.
    """
    try:
        return ask(timer, kernel)
    except Exception as error:
        return error
