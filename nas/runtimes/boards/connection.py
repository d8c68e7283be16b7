"""Connections to boards, with a time limit on every step.

TVM's client waits for minutes for a machine that is off, and for ever for one that is busy. Here a
server or tracker that does not answer in time is a `BoardLostError`.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import stat
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from tvm import rpc
from tvm.rpc import base

from nas.errors import BoardLostError, DeviceError, NasError, first_line
from nas.latency.core_speed import CoreSpeed
from nas.runtimes.boards.address import BoardAddress, BoardDescription

ANSWER_SECONDS = 10.0
"""Longest time that a server or tracker may take to answer. An idle one takes milliseconds."""

SILENCE_SECONDS = 300.0
"""Longest time in which a board may say nothing while it works: twelve runs of 25 s each."""

T = TypeVar("T")


class Connection(NamedTuple):
    """A board that answers.

    Args:
        session: session, which ends when the last object that came from it is gone.
        board: address of the board for messages; a tracker may have several boards.
        sockets: descriptors of its sockets by their inodes.
    """

    session: rpc.RPCSession
    board: str
    sockets: Mapping[int, int]

    def end(self) -> None:
        """End the session at once.

        What belongs to it then fails, and its destruction too, instead of waiting for the board.
        """
        for inode, descriptor in self.sockets.items():
            with suppress(OSError):  # TVM has closed it.
                if os.fstat(descriptor).st_ino == inode:
                    with _copy(descriptor) as own:
                        own.shutdown(socket.SHUT_RDWR)


class Board(ABC):
    """A board, or any board of a tracker, with a session that its first use opens.

    A server has one session at a time, and a tracker gives a board to one session, so `release` the
    board for others. Every method that needs the board raises BoardLostError if it does not answer.

    Args:
        address: address of the board or tracker.
    """

    def __init__(self, address: BoardAddress) -> None:
        self.address = address
        self._connection: Connection | None = None
        self._description: BoardDescription | None = None
        self._speed = CoreSpeed(self.read_speed)

    @abstractmethod
    def set_up(self, connection: Connection) -> BoardDescription:
        """Prepare a new session, and return the description of its board.

        Raises:
            DeviceError: the board cannot be used.
        """

    @abstractmethod
    def read_speed(self) -> float:
        """Return a reading of the speed of the board's core, in seconds."""

    def connection(self) -> Connection:
        """Return the connection, after opening a session if there is none.

        Raises:
            DeviceError: the board cannot be used, or differs from that of an earlier session.
        """
        if self._connection is None:
            opened = self._connection = connect(self.address)
            try:
                with self.detecting_loss():
                    description = self.set_up(opened)
                before = self._description
                if before and before.summary != description.summary:
                    raise DeviceError(
                        f"{opened.board} is a {description.summary}, but the board before was a "
                        f"{before.summary}.",
                        remedy="Boards behind one address or tracker key must be equal; use "
                        "another.",
                    )
            except BaseException:
                self.release()
                raise
            self._description = description
        return self._connection

    def describe(self) -> BoardDescription:
        """Return the description of the board. See `connection` for the errors."""
        if self._description is None:
            self.connection()
        assert self._description is not None
        return self._description

    def release(self) -> None:
        """End the session when all objects that came from it are gone; the next use opens one."""
        self._connection = None
        gc.collect()  # Networks, tensors and errors refer to the session in cycles.

    @contextmanager
    def detecting_loss(self) -> Iterator[None]:
        """Turn an error inside into a BoardLostError if the board no longer answers."""
        try:
            yield
        except NasError:
            raise
        except Exception as error:
            lost, is_silent = self._connection, os.strerror(errno.EAGAIN) in str(error)
            # The answer to an earlier request may still come from a board that was silent.
            if lost is None or (not is_silent and is_alive(lost.session)):
                raise
            lost.end()
            self.release()
            reason = f"it said nothing for {SILENCE_SECONDS:g} s" if is_silent else None
            raise BoardLostError(
                f"The board {lost.board} was lost ({reason or error_line(error)}).",
                remedy="Check its power and network, and that its RPC server runs.",
            ) from error


def connect(target: BoardAddress) -> Connection:
    """Open a session with a board.

    Raises:
        BoardLostError: there is no TVM RPC server or tracker at the address, it does not answer,
            or the tracker has no free board.
    """
    if not target.key:
        return _open_session(target.address, target.host, target.port, "")
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
    return _open_session(board, host, port, matching)


def count_boards(target: BoardAddress) -> int:
    """Return the number of boards of a target, including busy ones.

    Raises:
        BoardLostError: see `connect`.
    """
    if not target.key:
        return 1
    with closing(_connect_to_tracker(target)) as tracker:
        known = _request_keys(tracker, target)
    count = known.count(target.key)
    if not count:
        _refuse_key(target, known)
    return min(count, target.boards or count)


def is_alive(session: rpc.RPCSession) -> bool:
    """Return whether the board of a session still answers."""
    try:
        # Any function would do: it is looked up on the board.
        call_with_limit(lambda: session.get_function("tvm.rpc.server.upload"))
    except (RuntimeError, OSError, AttributeError, TimeoutError):
        return False
    return True


def error_line(error: Exception) -> str:
    """Return the last line of an error of the board, which may be a compiler's, with "error"."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    error_lines = [line for line in lines if "error" in line.lower()] or lines or [repr(error)]
    return error_lines[-1][:300]


def _open_session(board: str, host: str, port: int, key: str) -> Connection:
    before = _sockets_to(port)
    try:
        session = call_with_limit(lambda: rpc.connect(host, port, key))
    except TimeoutError as error:
        raise BoardLostError(
            f"The TVM RPC server {board} does not answer within {ANSWER_SECONDS:.0f} s.",
            remedy="It serves one session at a time: end the other one, or start it again.",
        ) from error
    except (RuntimeError, OSError) as error:
        raise BoardLostError(
            f"There is no TVM RPC server at {board} ({first_line(error)}).",
            remedy="Start one on the board; docs/remote-boards.md has the commands.",
        ) from error
    sockets = {inode: own for inode, own in _sockets_to(port).items() if inode not in before}
    for descriptor in sockets.values():
        _limit_silence(descriptor)
    return Connection(session, board, sockets)


def _sockets_to(port: int) -> dict[int, int]:
    """Return the descriptors of the connections of this process to a port, by their inodes.

    TVM does not say which socket it uses.
    """
    sockets = {}
    folder = Path("/dev/fd")
    for name in os.listdir(folder) if folder.is_dir() else ():
        with suppress(OSError):  # It is closed by now, or not connected.
            status = os.fstat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                with _copy(int(name)) as own:
                    if own.family != socket.AF_UNIX and own.getpeername()[1] == port:
                        sockets[status.st_ino] = int(name)
    return sockets


def _limit_silence(descriptor: int) -> None:
    """Let TVM's client, which would wait for ever, fail when a board says or takes nothing."""
    limit = struct.pack("ll", int(SILENCE_SECONDS), int(SILENCE_SECONDS % 1 * 1e6))
    with _copy(descriptor) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _copy(descriptor: int) -> socket.socket:
    return socket.socket(fileno=os.dup(descriptor))


def call_with_limit(action: Callable[[], T], limit_s: float | None = None) -> T:
    """Return what a function returns, which is called in another thread.

    Args:
        action: the function; it waits for a board.
        limit_s: seconds that it may take; `ANSWER_SECONDS` by default.

    Raises:
        TimeoutError: it took longer.
    """
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
    thread.join(ANSWER_SECONDS if limit_s is None else limit_s)
    if raised:
        try:
            raise raised[0]
        finally:
            # Break the reference cycle through the error, which would keep the session open.
            raised.clear()
    if not returned:
        raise TimeoutError
    return returned[0]


def _connect_to_tracker(target: BoardAddress) -> socket.socket:
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


def _refuse_tracker(target: BoardAddress, error: Exception) -> NoReturn:
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


def _request_keys(tracker: socket.socket, target: BoardAddress) -> list[str]:
    try:
        summary = _request(tracker, [base.TrackerCode.SUMMARY])
    except (OSError, ValueError) as error:
        _refuse_tracker(target, error)
    return [each["key"].removeprefix("server:") for each in summary["server_info"]]


def _refuse_key(target: BoardAddress, known: list[str]) -> NoReturn:
    others = ", ".join(sorted(set(known)))
    raise BoardLostError(
        f"The tracker {target.host}:{target.port} has no board '{target.key}'"
        + (f", only: {others}." if others else ", and no other either."),
        remedy=f"Start the server of a board with --tracker {target.host}:{target.port} "
        f"--key {target.key}.",
    )
