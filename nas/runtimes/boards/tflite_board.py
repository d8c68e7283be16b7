"""`TfliteBoard`: a board that times TensorFlow Lite files with an interpreter of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from nas.errors import BoardLostError, DeviceError, MeasurementError
from nas.latency import timing
from nas.latency.runtime import CompiledNetwork
from nas.runtimes.boards import connection
from nas.runtimes.boards.address import BoardDescription
from nas.runtimes.boards.connection import Board, Connection
from nas.runtimes.boards.tflite_protocol import FUNCTION, LIMIT_SECONDS, PROTOCOL

SLOWEST_BYTES_PER_SECOND = 1e6
"""How fast a file reaches a board, at least."""


class TfliteBoard(Board):
    """A board that times TensorFlow Lite files, or any board of a tracker that does.

    Every method that needs the board raises MeasurementError with what the board says if it cannot
    do what it should, and DeviceError if its server does not time files, or is of another version
    of this project. See `Board` for the arguments.
    """

    def timing_context(self) -> AbstractContextManager[None]:
        """Return a context of timings on the board, in which the speed of its core is read."""
        return timing.reading(self._speed)

    def read_speed(self) -> float:
        """See `Board.read_speed`."""
        return float(self.request({"speed": 1})["seconds"])

    def load(self, data: bytes, threads: int = 1, batch: int = 1) -> FileOnBoard:
        """Send a file to the board, and prepare it there.

        Args:
            data: contents of the file.
            threads: number of threads that run one operator.
            batch: number of images that run at once.
        """
        return FileOnBoard(self, data, threads, batch)

    def request(self, request: Mapping[str, Any], data: bytes = b"") -> dict[str, Any]:
        """Return the board's answer to a request, see `tflite_protocol`."""
        answer = self._ask(self.connection(), request, data)
        if "error" in answer:
            raise MeasurementError(f"{self.address.address}: {answer['error']}")
        return answer

    def set_up(self, connection: Connection) -> BoardDescription:
        """See `Board.set_up`."""
        answer = self._ask(connection, {"describe": True}, b"")
        if answer.get("protocol") != PROTOCOL:
            raise DeviceError(
                f"The server of {connection.board} is of another version.",
                remedy="Install the same version of hardware-nas there and here.",
            )
        return BoardDescription.from_json(answer)

    def _ask(self, current: Connection, request: Mapping[str, Any], data: bytes) -> dict[str, Any]:
        """Return the answer of a connected board."""

        def call() -> str:
            try:
                function = current.session.get_function(FUNCTION)
            except (AttributeError, RuntimeError) as error:
                if not connection.is_alive(current.session):
                    raise
                raise DeviceError(
                    f"The TVM RPC server {current.board} does not time TensorFlow Lite files.",
                    remedy="Start the server for boards with LiteRT; docs/remote-boards.md has "
                    "its command.",
                ) from error
            text: str = function(json.dumps(request), data)
            return text

        limit_s = LIMIT_SECONDS + connection.ANSWER_SECONDS + len(data) / SLOWEST_BYTES_PER_SECOND
        with self.detecting_loss():
            try:
                answer: dict[str, Any] = json.loads(connection.call_with_limit(call, limit_s))
            except TimeoutError as error:
                current.end()
                self.release()
                raise BoardLostError(
                    f"The board {current.board} did not answer within {limit_s:.0f} s.",
                    remedy="Check its power and network, and start its server again.",
                ) from error
        return answer


class FileOnBoard(CompiledNetwork):
    """A file that a board has loaded, such as a whole network.

    Args:
        board: the board.
        data: contents of the file, which are sent again when the board has forgotten them.
        threads: number of threads that run one operator.
        batch: number of images that run at once.

    Attributes:
        operators: number of operators of the file by name.
        delegated: number of those operators that the board's delegate runs.
    """

    def __init__(self, board: TfliteBoard, data: bytes, threads: int, batch: int) -> None:
        self._board, self._data = board, data
        digest = hashlib.sha256(data).hexdigest()
        self._request = {"file": digest, "threads": threads, "batch": batch}
        answer = self._time(0, 0)
        self.operators: Mapping[str, int] = answer["operators"]
        self.delegated: Mapping[str, int] = answer["delegated"]

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """See `CompiledNetwork.evaluate`. The board repeats samples that were disturbed."""
        seconds: list[float] = self._time(calls, samples)["seconds"]
        return seconds

    def _time(self, calls: int, samples: int) -> dict[str, Any]:
        request = {**self._request, "calls": calls, "samples": samples}
        answer = self._board.request(request)
        return self._board.request(request, self._data) if "unknown" in answer else answer
