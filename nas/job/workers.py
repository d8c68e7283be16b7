"""Further processes of this machine that work on the search of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from nas import processes

STORAGE = "NAS_STORAGE"
"""The environment variable with the storage's address, for workers: it may hold a password."""

MAIN = "NAS_MAIN_PROCESS"
"""The environment variable with a worker's pipe to the process that started it."""

_STDIN = 0

PATIENCE_S = 20.0
"""For so long workers may be at their last trials when the search is over."""


class Workers:
    """Processes that search in a storage, from their start until the search is over.

    Args:
        count: of them; with 0 nothing happens.
        folder: of the run; what they print is in its `workers.log`.
        storage: that they share with this process.

    Attributes:
        lost: how many failed or were killed; known afterwards.
    """

    def __init__(self, count: int, folder: Path, storage: Path | str) -> None:
        self.log = folder / "workers.log"
        self.lost = 0
        self._started: list[subprocess.Popen[bytes]] = []
        if count == 0:
            return
        threads = max(1, (os.cpu_count() or 1) // (count + 1))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            STORAGE: str(storage),
            MAIN: str(_STDIN),
        }
        command = [sys.executable, "-m", "nas", "search", str(folder), "--worker"]
        with self.log.open("ab") as out:
            for _ in range(count):
                self._started.append(
                    # Ctrl-C at the terminal is not theirs: see `interrupt`.
                    subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.PIPE,
                        stdout=out,
                        stderr=out,
                        start_new_session=True,
                    )
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end = time.monotonic() + (PATIENCE_S if error is None else 0)
        try:
            while time.monotonic() < end and any(each.poll() is None for each in self._started):
                time.sleep(0.02)
            self.lost = sum(worker.poll() not in (None, 0) for worker in self._started)
        finally:
            for worker in self._started:
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()

    def interrupt(self) -> None:
        """Lets each end after its trial in flight, before the search is over."""
        for worker in self._started:
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT)


def end_with_main() -> None:
    """End this process, a worker, as soon as the one does that started it.

    Nobody would wait for what it finds, and the run may be started again. Its trial in flight is
    made again then. A worker that somebody started by hand goes on.
    """
    pipe = os.environ.pop(MAIN, None)
    if pipe is not None:
        processes.exit_with_parent(int(pipe))
