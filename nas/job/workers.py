"""Worker processes of this machine that take part in the search of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from nas.machine import processes, this_machine

STORAGE_VARIABLE = "NAS_STORAGE"
"""Environment variable with the address of the storage. The address may hold a password."""

MAIN_PROCESS_VARIABLE = "NAS_MAIN_PROCESS"
"""Environment variable with the file descriptor of a worker's pipe to the main process."""

_STDIN = 0
"""File descriptor of the standard input, which is a worker's pipe to the main process."""

MAX_LAST_TRIAL_S = 20.0
"""Seconds that workers have to end their last trials when the search is over."""


class Workers:
    """Worker processes of a search, which run until it is over.

    Args:
        count: number of workers; 0 starts none.
        folder: the run folder. The workers write to its `workers.log`.
        storage: storage of the trials, which the workers share with this process.

    Attributes:
        log: path of the log.
        lost: number of workers that failed or were killed, known after the context has ended.
    """

    def __init__(self, count: int, folder: Path, storage: Path | str) -> None:
        self.log = folder / "workers.log"
        self.lost = 0
        self._started: list[subprocess.Popen[bytes]] = []
        if count == 0:
            return
        threads = max(1, this_machine.allowed_cores() // (count + 1))
        environment = {
            **processes.python_environment(),
            "OMP_NUM_THREADS": str(threads),
            STORAGE_VARIABLE: str(storage),
            MAIN_PROCESS_VARIABLE: str(_STDIN),
        }
        words = processes.python_command("-m", "nas", "search", str(folder), "--worker")
        with self.log.open("ab") as out:
            for _ in range(count):
                self._started.append(
                    # Ctrl-C in the terminal must not reach the workers, see `interrupt`.
                    subprocess.Popen(
                        words,
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
        end = time.monotonic() + (MAX_LAST_TRIAL_S if error is None else 0)
        try:
            while time.monotonic() < end and any(worker.poll() is None for worker in self._started):
                time.sleep(0.02)
            self.lost = sum(worker.poll() not in (None, 0) for worker in self._started)
        finally:
            for worker in self._started:
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()

    def interrupt(self) -> None:
        """Let each worker end after its current trial, before the search is over."""
        for worker in self._started:
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT)


def end_with_main() -> None:
    """End this worker process as soon as the process ends that started it.

    Without the main process nothing waits for the worker's results, and the next start of the run
    repeats the worker's current trial. A worker that a user started continues.
    """
    pipe = os.environ.pop(MAIN_PROCESS_VARIABLE, None)
    if pipe is not None:
        processes.exit_with_parent(int(pipe))
