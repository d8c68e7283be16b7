"""Servers of boards with LiteRT as processes on this machine, and a delegate that stands in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.runtimes.tvm.rpc.rpc_processes import Process, free_port

SOURCE = Path(__file__).parent / "stand_in_delegate.c"

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
        try:
            yield process
        finally:
            process.kill()
