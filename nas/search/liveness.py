"""Detection of dead processes: whether the process that evaluates a trial is still alive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nas.machine.process_identity import host, is_alive

HEARTBEAT_INTERVAL_SECONDS = 10.0

HEARTBEAT_TIMEOUT_SECONDS = 60.0
"""A process on another machine counts as dead after so long without a heartbeat."""


@contextmanager
def repeat_in_background(action: Callable[[], object], interval_seconds: float) -> Iterator[None]:
    """Call `action` at regular intervals from a thread while the context is active."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(interval_seconds):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        # A thread that waits for a storage is left behind; it ends when the storage answers.
        thread.join(timeout=1)


class LivenessMonitor:
    """Decides whether the processes that evaluate trials are dead.

    A process of this machine is dead if the operating system no longer lists it. Of a process on
    another machine, only the heartbeats in the storage are known. It counts as dead if their number
    has not changed for `HEARTBEAT_TIMEOUT_SECONDS`. This process's own clock measures that time, so
    the clocks of the machines need not agree.
    """

    def __init__(self) -> None:
        self._last_change: dict[int, tuple[int, float]] = {}

    def is_dead(
        self,
        trial_id: int,
        process: Mapping[str, Any],
        heartbeats: int,
        available_since: float = -float("inf"),
    ) -> bool:
        """Whether the process that evaluates a trial counts as dead.

        Args:
            trial_id: the trial's ID in the storage.
            process: the process's description of itself, see `nas.machine.process_identity`.
            heartbeats: number of the trial's heartbeats in the storage.
            available_since: time from which on the storage has been available, by
                `time.monotonic`. No process can record heartbeats in a storage that is not
                available, so the timeout starts at this time at the earliest.
        """
        if process["host"] == host():
            return not is_alive(process)
        last_heartbeats, changed_at = self._last_change.get(trial_id, (-1, 0.0))
        if heartbeats != last_heartbeats:
            self._last_change[trial_id] = heartbeats, time.monotonic()
            return False
        silence_seconds = time.monotonic() - max(changed_at, available_since)
        return silence_seconds > HEARTBEAT_TIMEOUT_SECONDS
