"""TVM's RPC servers and trackers as processes on this machine.

Loading TVM takes seconds, and `python -m tvm.exec.rpc_server` loads it twice. So one process,
`python rpc_processes.py`, loads it, and each server or tracker is a fork of that process. With a
port and a request, such as `server`, the script itself is the server or tracker. It then starts no
other program, which emulators need.
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
    """Servers and trackers that run on this machine."""

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
        """Start `server`, `tracker`, or `board` with the port of its tracker and a key.

        A server or a tracker listens when this returns. A board may not have reached its tracker.
        """
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        port = free_port()
        self._parent.stdin.write(" ".join((str(port), *request)) + "\n")
        self._parent.stdin.flush()
        process = Process(int(self._parent.stdout.readline()), port)
        self._started.append(process)
        # A board that gets a connection without a request leaves its tracker, and registers again.
        if request[0] != "board":
            process.wait()
        return process

    def end(self) -> None:
        for process in self._started:
            process.kill()
        self._parent.kill()
        self._parent.wait()


class Process:
    """A server, a tracker or a board."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid, self.port = pid, port

    def wait(self) -> None:
        """Wait until the process listens."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            assert time.monotonic() < deadline
            time.sleep(0.02)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Kill the process and its children, one of which may serve a session and outlive it."""
        with suppress(psutil.NoSuchProcess):
            for process in self._with_children():
                process.kill()

    def freeze(self) -> None:
        """Stop the process and its children; they may be killed, but do nothing else."""
        for process in self._with_children():
            process.suspend()

    def _with_children(self) -> list[psutil.Process]:
        parent = psutil.Process(self.pid)
        return [parent, *parent.children(recursive=True)]


def _serve(port: int, kind: str, *tracker: str) -> None:
    from tvm.rpc.server import PopenRPCServerState

    address = ("127.0.0.1", port, port + 1)
    if kind == "tracker":
        from tvm.rpc.tracker import PopenTrackerServerState

        state = PopenTrackerServerState(*address)
    elif kind == "board":
        tracker_port, key = tracker
        state = PopenRPCServerState(
            *address, tracker_addr=("127.0.0.1", int(tracker_port)), key=key
        )
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
