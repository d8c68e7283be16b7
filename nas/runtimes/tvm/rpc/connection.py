"""Finding a board and opening a session with it, without ever waiting for long.

TVM's own client waits as long as the system does for a machine that is off, and for ever for one
that is busy. Here every step has a limit, and what does not answer is a `BoardLostError`.
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
"""For a server or tracker to answer; an idle one takes milliseconds."""

T = TypeVar("T")


class Connection(NamedTuple):
    """A board that answers.

    Args:
        session: ends when the last object that came from it is gone.
        where: the board, for a person; a tracker may have several.
    """

    session: rpc.RPCSession
    where: str


def connect(target: RpcTarget) -> Connection:
    """A session with a board.

    Raises BoardLostError for a server or tracker that does not answer, one that is no TVM RPC
    server or tracker, and for a tracker that has no free board.
    """
    if not target.key:
        return Connection(_session(target.address, target.host, target.port, ""), target.address)
    with closing(_tracker(target)) as tracker:
        known = _keys(tracker, target)
        if target.key not in known:
            _refuse_key(target, known)
        try:
            host, port, matching = _asked(tracker, [base.TrackerCode.REQUEST, target.key, "", 1])
        except TimeoutError as error:
            raise BoardLostError(
                f"No board '{target.key}' of the tracker {target.host}:{target.port} became free "
                f"in {ANSWER_SECONDS:.0f} s.",
                remedy="Wait until whoever uses it is done, or start another board.",
            ) from error
        except (OSError, ValueError) as error:
            _no_tracker(target, error)
    where = f"{host}:{port} (board '{target.key}' of the tracker {target.host}:{target.port})"
    return Connection(_session(where, host, port, matching), where)


def count(target: RpcTarget) -> int:
    """How many boards a target has: all that the tracker knows by its key, busy ones included.

    Raises BoardLostError as `connect` does.
    """
    if not target.key:
        return 1
    known = keys(target)
    found = known.count(target.key)
    if not found:
        _refuse_key(target, known)
    return min(found, target.boards or found)


def keys(target: RpcTarget) -> list[str]:
    """The key of every board that a tracker knows. Raises BoardLostError as `connect` does."""
    with closing(_tracker(target)) as tracker:
        return _keys(tracker, target)


def answers(session: rpc.RPCSession) -> bool:
    """Whether the board at the other end is still there."""
    try:
        # Any function does: it is looked up at the other end.
        _within(lambda: session.get_function("tvm.rpc.server.upload"))
    except (RuntimeError, OSError, AttributeError, TimeoutError):
        return False
    return True


def _session(where: str, host: str, port: int, key: str) -> rpc.RPCSession:
    try:
        return _within(lambda: rpc.connect(host, port, key))
    except TimeoutError as error:
        raise BoardLostError(
            f"The TVM RPC server {where} does not answer within {ANSWER_SECONDS:.0f} s.",
            remedy="It serves one session at a time: end the other one, or start it again.",
        ) from error
    except (RuntimeError, OSError) as error:
        raise BoardLostError(
            f"There is no TVM RPC server at {where} ({first_line(error)}).",
            remedy="Start one on the board with `python -m tvm.exec.rpc_server`; see "
            "docs/remote-boards.md.",
        ) from error


def _within(action: Callable[[], T]) -> T:
    """What `action` returns or raises; TimeoutError if it takes more than `ANSWER_SECONDS`."""
    found: list[T] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            found.append(action())
        # It is raised again in the thread that asked.
        except Exception as error:
            raised.append(error)

    # TVM's client cannot be told to stop waiting; a daemon does not keep the process alive.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if raised:
        try:
            raise raised[0]
        finally:
            # Or the error would hold itself, and the session with it.
            raised.clear()
    if not found:
        raise TimeoutError
    return found[0]


def _tracker(target: RpcTarget) -> socket.socket:
    """A connection to a tracker, whose every answer has `ANSWER_SECONDS`."""
    try:
        found = socket.create_connection((target.host, target.port), timeout=ANSWER_SECONDS)
        try:
            found.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            (magic,) = struct.unpack("<i", base.recvall(found, 4))
        except OSError:
            found.close()
            raise
    except OSError as error:
        _no_tracker(target, error)
    if magic != base.RPC_TRACKER_MAGIC:
        found.close()
        _no_tracker(target, RuntimeError("something else answers"))
    return found


def _no_tracker(target: RpcTarget, error: Exception) -> NoReturn:
    raise BoardLostError(
        f"There is no TVM RPC tracker at {target.host}:{target.port} ({first_line(error)}).",
        remedy="Start one with `python -m tvm.exec.rpc_tracker`; a server without a tracker is a "
        "target without a key. See docs/remote-boards.md.",
    ) from error


def _asked(tracker: socket.socket, message: list[Any]) -> Any:
    base.sendjson(tracker, message)
    code, value = base.recvjson(tracker)
    if code != base.TrackerCode.SUCCESS:
        raise ValueError(f"the tracker says {value!r}")
    return value


def _keys(tracker: socket.socket, target: RpcTarget) -> list[str]:
    try:
        found = _asked(tracker, [base.TrackerCode.SUMMARY])
    except (OSError, ValueError) as error:
        _no_tracker(target, error)
    return [each["key"].removeprefix("server:") for each in found["server_info"]]


def _refuse_key(target: RpcTarget, known: list[str]) -> NoReturn:
    others = ", ".join(sorted(set(known)))
    raise BoardLostError(
        f"The tracker {target.host}:{target.port} has no board '{target.key}'"
        + (f", only: {others}." if others else ", and no other either."),
        remedy=f"Start one with `python -m tvm.exec.rpc_server --tracker "
        f"{target.host}:{target.port} --key {target.key}`.",
    )
