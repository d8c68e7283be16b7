"""Further processes of this machine that work on the search of a run."""

from __future__ import annotations

import _thread
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from nas.search.liveness import lives, meanwhile, this_process

STORAGE = "NAS_STORAGE"
"""The environment variable with the storage's address, for workers: it may hold a password."""

MAIN = "NAS_MAIN_PROCESS"
"""The environment variable with what tells the process that started a worker from others."""

LOOK_S = 0.5
"""Between two looks of a worker at whether that process still lives."""

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
            MAIN: json.dumps(this_process()),
        }
        command = [sys.executable, "-m", "nas", "search", str(folder), "--worker"]
        with self.log.open("ab") as out:
            for _ in range(count):
                self._started.append(
                    # Ctrl-C at the terminal is not theirs: see `interrupt`.
                    subprocess.Popen(
                        command, env=environment, stdout=out, stderr=out, start_new_session=True
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
                    worker.terminate()
                    worker.wait()

    def interrupt(self) -> None:
        """Lets each end after its trial in flight, before the search is over."""
        for worker in self._started:
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT)


@contextmanager
def ended_with_main() -> Iterator[None]:
    """While this lasts, a worker whose main process is gone is told Ctrl-C.

    A main process that was killed could not tell it; nobody would wait for what it finds, and the
    run may be started again. Workers that somebody started by hand go on.
    """
    if MAIN not in os.environ:
        yield
        return
    main = json.loads(os.environ[MAIN])

    def told() -> bool:
        if lives(main):
            return False
        _thread.interrupt_main()
        return True

    with meanwhile(told, LOOK_S):
        yield
