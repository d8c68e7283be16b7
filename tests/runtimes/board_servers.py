"""Servers of boards with LiteRT as processes on this machine, and a delegate that stands in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from nas.errors import BoardLostError
from nas.latency.runtime import Runtime
from tests.runtimes.tvm.rpc.rpc_processes import Process, free_port

SOURCE = Path(__file__).parent / "stand_in_delegate.c"

MAX_BOARDS = 5
"""Boards to start until one answers: under qemu, a process with threads can hang when it forks."""

SERVER = (sys.executable, "-m", "nas.runtimes.litert.board_server")
"""The command of a server."""

VENDOR_OPERATOR, CONV_2D = "takes=32", "takes=3"
"""Options of the delegate: the operators that it takes."""


def compile_delegate(folder: Path) -> Path:
    """Compile the delegate that stands in for a vendor's; return its path."""
    library = folder / "libstandin_delegate.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    return library


@contextmanager
def board_server(
    *options: str | Path,
    delegate: Path | None = None,
    delegate_options: tuple[str, ...] = (),
    server: Sequence[str | Path] = SERVER,
) -> Iterator[Process]:
    """Start a server, and yield its process while it runs."""
    port = free_port()
    command = [*server, "--port", str(port)]
    if delegate is not None:
        command += ["--delegate", str(delegate)]
    for option in delegate_options:
        command += ["--delegate-option", option]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as started:
        process = Process(started.pid, port)
        process.wait()
        try:
            yield process
        finally:
            process.kill()


def answering_runtime(
    start: Callable[[], AbstractContextManager[Process]], connect: Callable[[str], Runtime]
) -> Iterator[Runtime]:
    """Start emulated boards until one answers, and yield its runtime while it runs.

    Args:
        start: function that starts a board.
        connect: function that returns the runtime of the board with an address.
    """
    for attempt in range(1, MAX_BOARDS + 1):
        with start() as process:
            try:
                runtime = connect(process.address)
                _ = runtime.fingerprint
            except BoardLostError:
                if attempt == MAX_BOARDS:
                    raise
                continue
            yield runtime
            runtime.release()
            return
