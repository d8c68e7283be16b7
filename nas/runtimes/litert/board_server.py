"""The server of a board: it times TensorFlow Lite files with LiteRT, and is called over TVM RPC.

    python -m nas.runtimes.litert.board_server --delegate /usr/lib/libethosu_delegate.so

`nas.runtimes.boards.tflite_protocol` has the requests and answers. Each session of TVM's server is
a fork of this process, so the function that is registered here exists in all of them; a function
that a client registers is lost with its session. In a session, files run in a further process,
which a delegate may crash or block: the request gets an error, and the next one another process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nas.errors import DeviceError, MeasurementError, NasError, RequestError
from nas.machine.processes import ChildProcess
from nas.runtimes.boards.tflite_protocol import FUNCTION, LIMIT_SECONDS
from nas.runtimes.litert import timed_files
from nas.runtimes.litert.timed_files import Delegate, error_answer

RESTART_SECONDS = 1.0
"""Pause before the server listens again after the process of a session has died."""


class FileTimer:
    """Times files with LiteRT in a process of its own, which is started again when it dies.

    Args:
        delegate: delegate for all files; None for none.
        limit_s: seconds that an answer may take.
    """

    def __init__(self, delegate: Delegate | None, limit_s: float = LIMIT_SECONDS) -> None:
        self._delegate, self._limit_s = delegate, limit_s
        self._process = ChildProcess()

    def answer(self, request: Mapping[str, Any], data: bytes = b"") -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            MeasurementError: the file cannot be timed, or its process died or ran out of time.
        """
        try:
            answer: dict[str, Any] = self._process.call(
                timed_files.answer, self._delegate, request, data, limit_s=self._limit_s
            )
        except (ChildProcessError, TimeoutError) as error:
            raise MeasurementError(f"LiteRT {error}.") from error
        return answer

    def stop(self) -> None:
        """End the process; the next request starts another."""
        self._process.close()


def answering(timer: FileTimer, description: Mapping[str, Any]) -> Callable[[str, bytes], str]:
    """Return the function that is called over TVM RPC.

    Args:
        timer: answers the requests.
        description: the description of this board.
    """

    def answer(request_text: str, data: bytes) -> str:
        try:
            request = json.loads(request_text)
            answer = description if "describe" in request else timer.answer(request, bytes(data))
        # An error that ends the session would look like a lost board.
        except Exception as error:
            answer = error_answer(error)
        return json.dumps(answer)

    return answer


def serve(
    host: str,
    port: int,
    timer: FileTimer,
    description: Mapping[str, Any],
    **tracker: Any,
) -> NoReturn:
    """Serve sessions, one at a time, until this process is stopped.

    Args:
        host, port: address to listen at.
        timer: answers the requests; it has no process yet.
        description: the description of this board.
        tracker: options of TVM's server for a tracker.

    Raises:
        DeviceError: the address cannot be listened at.
    """
    import time

    import tvm_ffi
    from tvm.rpc.server import PopenRPCServerState

    tvm_ffi.register_global_func(FUNCTION, answering(timer, description), override=True)
    # A session has what is registered here only if it is a fork.
    multiprocessing.set_start_method("fork", force=True)
    folder = os.getcwd()
    while True:
        try:
            server = PopenRPCServerState(host, port, port + 1, **tracker)
        except (OSError, ValueError) as error:  # TVM says by ValueError that the port is taken.
            raise DeviceError(
                f"The server cannot listen at {host}:{port}: {error}.",
                remedy="Choose another --host or --port.",
            ) from error
        server.thread.join()
        # TVM's server stops listening when the process of a session dies, and leaves its folder.
        server.sock.close()
        os.chdir(folder)
        time.sleep(RESTART_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m nas.runtimes.litert.board_server",
        description="Time TensorFlow Lite files on this board, for `nas` on another machine. "
        "TVM RPC knows no passwords: whoever reaches the port can run any code here.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=9090, help="port to listen at")
    parser.add_argument("--delegate", help="library of an external delegate, such as an NPU's")
    parser.add_argument(
        "--delegate-option", action="append", default=[], metavar="NAME=VALUE", help="its option"
    )
    parser.add_argument("--tracker", metavar="HOST:PORT", help="tracker to register with")
    parser.add_argument("--key", default="", help="key of this board at the tracker")
    parser.add_argument("--custom-addr", help="address of this board for clients of the tracker")
    given = parser.parse_args(arguments)
    try:
        delegate = _delegate(given.delegate, given.delegate_option)
        timer = FileTimer(delegate)
        description = timer.answer({"describe": True})
        timer.stop()
        if "error" in description:
            raise DeviceError(description["error"])
        print(f"{given.host}:{given.port}: {json.dumps(description)}", flush=True)
        serve(given.host, given.port, timer, description, **_tracker_options(given))
    except NasError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        os._exit(130)  # TVM's thread, which accepts sessions, would keep this process alive.


def _delegate(path: str | None, options: Sequence[str]) -> Delegate | None:
    """Return the delegate of the command line. Raises RequestError if there is no such file."""
    if path is None:
        if options:
            raise RequestError("--delegate-option needs a --delegate.", remedy="Name its library.")
        return None
    if not Path(path).is_file():
        raise RequestError(
            f"There is no delegate {path}.",
            remedy="Name the library of the board's vendor, such as /usr/lib/libNAME_delegate.so.",
        )
    pairs = [option.partition("=") for option in options]
    for option, (name, separator, _) in zip(options, pairs, strict=True):
        if not name or not separator:
            raise RequestError(
                f"'{option}' is no option of a delegate.", remedy="Write it as NAME=VALUE."
            )
    return Delegate(str(Path(path).absolute()), tuple((name, value) for name, _, value in pairs))


def _tracker_options(given: argparse.Namespace) -> dict[str, Any]:
    if given.tracker is None:
        return {}
    host, separator, port = given.tracker.rpartition(":")
    if not separator or not port.isdecimal() or not given.key:
        raise RequestError(
            f"'{given.tracker}' with key '{given.key}' is no tracker with a key.",
            remedy="For example --tracker 127.0.0.1:9190 --key imx93.",
        )
    return {
        "tracker_addr": (host, int(port)),
        "key": given.key,
        "custom_addr": given.custom_addr,
    }


if __name__ == "__main__":
    sys.exit(main())
