"""TVM's RPC servers and trackers as processes on this machine.

Loading TVM takes seconds, and `python -m tvm.exec.rpc_server` does it twice. So one process loads
it, as `python rpc_processes.py`, and each server or tracker is a fork of that one. With a port and
a request, such as `server`, it is one itself: that starts no other program, as emulators need it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil

START_SECONDS = 120


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


class Processes:
    """Starts servers and trackers, and ends them."""

    def __init__(self) -> None:
        self._started: list[Process] = []
        self._parent = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, *request: str) -> Process:
        """`server`; `tracker`; or `board`, the tracker's port, and a key."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        port = free_port()
        self._parent.stdin.write(" ".join((str(port), *request)) + "\n")
        self._parent.stdin.flush()
        self._started.append(Process(int(self._parent.stdout.readline()), port))
        return self._started[-1]

    def end(self) -> None:
        for process in self._started:
            process.kill()
        self._parent.kill()
        self._parent.wait()


class Process:
    """A server or a tracker that listens."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid, self.port = pid, port
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                return
            assert time.monotonic() < deadline
            time.sleep(0.02)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """With the process that serves its session, which would outlive it."""
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.pid)
            for each in [own, *own.children(recursive=True)]:
                each.kill()


def _serve(port: int, kind: str, *tracker: str) -> None:
    from tvm.rpc.server import PopenRPCServerState

    address = ("127.0.0.1", port, port + 1)
    if kind == "tracker":
        from tvm.rpc.tracker import PopenTrackerServerState

        state = PopenTrackerServerState(*address)
    elif kind == "board":
        theirs, key = tracker
        state = PopenRPCServerState(*address, tracker_addr=("127.0.0.1", int(theirs)), key=key)
    else:
        state = PopenRPCServerState(*address)
    state.thread.join()


def main() -> None:
    import tvm.rpc.server  # noqa: F401

    if len(sys.argv) > 1:
        port, *request = sys.argv[1:]
        _serve(int(port), *request)
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        port, *request = line.split()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            threading.Thread(target=_serve, args=(int(port), *request)).start()
            return
        print(child, flush=True)


if __name__ == "__main__":
    main()
