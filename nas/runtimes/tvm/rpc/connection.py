"""Connections to boards, with a time limit on every step.

TVM's client waits for minutes for a machine that is off, and for ever for one that is busy. Here a
server or tracker that does not answer in time is a `BoardLostError`.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple, NoReturn, TypeVar

from tvm import rpc
from tvm.rpc import base

from nas.errors import BoardLostError, first_line
from nas.runtimes.tvm.rpc.address import RpcTarget

ANSWER_SECONDS = 10.0
"""Longest time that a server or tracker may take to answer. An idle one takes milliseconds."""

T = TypeVar("T")


class Connection(NamedTuple):
    """A board that answers.

    Args:
        session: session, which ends when the last object that came from it is gone.
        board: address of the board for messages; a tracker may have several boards.
    """

    session: rpc.RPCSession
    board: str


def connect(target: RpcTarget) -> Connection:
    """Open a session with a board.

    Raises:
        BoardLostError: there is no TVM RPC server or tracker at the address, it does not answer,
            or the tracker has no free board.
    """
    if not target.key:
        session = _open_session(target.address, target.host, target.port, "")
        return Connection(session, target.address)
    with closing(_connect_to_tracker(target)) as tracker:
        known = _request_keys(tracker, target)
        if target.key not in known:
            _refuse_key(target, known)
        try:
            host, port, matching = _request(tracker, [base.TrackerCode.REQUEST, target.key, "", 1])
        except TimeoutError as error:
            raise BoardLostError(
                f"No board '{target.key}' of the tracker {target.host}:{target.port} became free "
                f"in {ANSWER_SECONDS:.0f} s.",
                remedy="Wait until another user releases one, or start another board.",
            ) from error
        except (OSError, ValueError) as error:
            _refuse_tracker(target, error)
    board = f"{host}:{port} (board '{target.key}' of the tracker {target.host}:{target.port})"
    return Connection(_open_session(board, host, port, matching), board)


def count_boards(target: RpcTarget) -> int:
    """Return the number of boards of a target, including busy ones.

    Raises:
        BoardLostError: see `connect`.
    """
    if not target.key:
        return 1
    known = tracker_keys(target)
    count = known.count(target.key)
    if not count:
        _refuse_key(target, known)
    return min(count, target.boards or count)


def tracker_keys(target: RpcTarget) -> list[str]:
    """Return the key of every board of a tracker. Raises BoardLostError like `connect`."""
    with closing(_connect_to_tracker(target)) as tracker:
        return _request_keys(tracker, target)


def is_alive(session: rpc.RPCSession) -> bool:
    """Return whether the board of a session still answers."""
    try:
        # Any function would do: it is looked up on the board.
        _call_with_limit(lambda: session.get_function("tvm.rpc.server.upload"))
    except (RuntimeError, OSError, AttributeError, TimeoutError):
        return False
    return True


def _open_session(board: str, host: str, port: int, key: str) -> rpc.RPCSession:
    try:
        return _call_with_limit(lambda: rpc.connect(host, port, key))
    except TimeoutError as error:
        raise BoardLostError(
            f"The TVM RPC server {board} does not answer within {ANSWER_SECONDS:.0f} s.",
            remedy="It serves one session at a time: end the other one, or start it again.",
        ) from error
    except (RuntimeError, OSError) as error:
        raise BoardLostError(
            f"There is no TVM RPC server at {board} ({first_line(error)}).",
            remedy="Start one on the board with `python -m tvm.exec.rpc_server`; see "
            "docs/remote-boards.md.",
        ) from error


def _call_with_limit(action: Callable[[], T]) -> T:
    """Call `action`. Raises TimeoutError if it takes longer than `ANSWER_SECONDS`."""
    returned: list[T] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            returned.append(action())
        # The error is raised again in the calling thread.
        except Exception as error:
            raised.append(error)

    # TVM's client cannot be interrupted. A daemon thread does not keep the process alive.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if raised:
        try:
            raise raised[0]
        finally:
            # Break the reference cycle through the error, which would keep the session open.
            raised.clear()
    if not returned:
        raise TimeoutError
    return returned[0]


def _connect_to_tracker(target: RpcTarget) -> socket.socket:
    """Connect to a tracker. Every answer may take `ANSWER_SECONDS`."""
    try:
        tracker = socket.create_connection((target.host, target.port), timeout=ANSWER_SECONDS)
        try:
            tracker.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            (magic,) = struct.unpack("<i", base.recvall(tracker, 4))
        except OSError:
            tracker.close()
            raise
    except OSError as error:
        _refuse_tracker(target, error)
    if magic != base.RPC_TRACKER_MAGIC:
        tracker.close()
        _refuse_tracker(target, RuntimeError("another service answers"))
    return tracker


def _refuse_tracker(target: RpcTarget, error: Exception) -> NoReturn:
    raise BoardLostError(
        f"There is no TVM RPC tracker at {target.host}:{target.port} ({first_line(error)}).",
        remedy="Start one with `python -m tvm.exec.rpc_tracker`. The target of a server without a "
        "tracker has no key. See docs/remote-boards.md.",
    ) from error


def _request(tracker: socket.socket, message: list[Any]) -> Any:
    base.sendjson(tracker, message)
    code, value = base.recvjson(tracker)
    if code != base.TrackerCode.SUCCESS:
        raise ValueError(f"the tracker says {value!r}")
    return value


def _request_keys(tracker: socket.socket, target: RpcTarget) -> list[str]:
    try:
        summary = _request(tracker, [base.TrackerCode.SUMMARY])
    except (OSError, ValueError) as error:
        _refuse_tracker(target, error)
    return [each["key"].removeprefix("server:") for each in summary["server_info"]]


def _refuse_key(target: RpcTarget, known: list[str]) -> NoReturn:
    others = ", ".join(sorted(set(known)))
    raise BoardLostError(
        f"The tracker {target.host}:{target.port} has no board '{target.key}'"
        + (f", only: {others}." if others else ", and no other either."),
        remedy=f"Start one with `python -m tvm.exec.rpc_server --tracker "
        f"{target.host}:{target.port} --key {target.key}`.",
    )
