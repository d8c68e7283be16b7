"""`TfliteBoardRuntime`: what runtimes on boards that time TensorFlow Lite files have in common.

Importing this imports no TVM.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from nas.latency.device import Fingerprint
from nas.latency.runtime import Runtime
from nas.runtimes.boards import address as board_address
from nas.runtimes.boards.address import BoardAddress, refuse, target_text

if TYPE_CHECKING:
    from nas.runtimes.boards.tflite_board import TfliteBoard

_DELEGATE = "delegate"
"""Setting in the header of a table: the file name of the delegate, which the board reports."""


class TfliteBoardRuntime(Runtime):
    """A runtime whose target is a board; a base class beside another one.

    `nas.runtimes.boards.address` describes addresses of boards.

    Attributes:
        target_settings: settings that a target has to have.
        target_example: a correct target, for messages.
    """

    target_settings: ClassVar[tuple[str, ...]] = ()
    target_example: ClassVar[str]

    @property
    def is_remote(self) -> bool:
        """The device is another machine."""
        return True

    @classmethod
    def at_address(cls, target: str, address: str | None) -> str:
        """See `Runtime.at_address`. Settings of the address override those of the table."""
        of_table, own = cls.settings_of(target), (cls.target_settings, cls.target_example)
        return board_address.at_address(target, of_table, address, *own)

    @classmethod
    def settings_of(cls, target: str) -> dict[str, str]:
        """Return the settings of a target, with or without an address. Raises RequestError."""
        known = (*cls.target_settings, _DELEGATE)
        _, settings = board_address.parse(target, known, cls.target_example)
        return {name: value for name, value in settings.items() if name != _DELEGATE}

    @property
    def address(self) -> BoardAddress:
        """The address in the target.

        Raises:
            RequestError: the target has none, or lacks a setting.
        """
        at, settings = board_address.parse(self.target, self.target_settings, self.target_example)
        if not at.host:
            refuse(self.target, "it needs a host and a port", self.target_example)
        for name in self.target_settings:
            if name not in settings:
                refuse(self.target, f"it has no {name}", self.target_example)
        return at

    def check_target(self) -> None:
        """See `Runtime.check_target`."""
        _ = self.address

    @cached_property
    def board(self) -> TfliteBoard:
        """The board; the first use imports TVM, but connects to nothing."""
        from nas.runtimes.boards.tflite_board import TfliteBoard

        return TfliteBoard(self.address)

    def open(self) -> None:
        """Connect to the board. See `TfliteBoard.describe` for the errors."""
        self.board.describe()

    def release(self) -> None:
        """Let others use the board; the next use connects again."""
        if "board" in self.__dict__:
            self.board.release()

    def timing_context(self) -> AbstractContextManager[None]:
        """See `Runtime.timing_context`."""
        return self.board.timing_context()

    @property
    def device_count(self) -> int:
        """Number of equal boards. Raises BoardLostError if their tracker is gone."""
        from nas.runtimes.boards import connection

        return connection.count_boards(self.address)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The board with its software and the settings, without its address."""
        board = self.board.describe()
        settings = {**self.settings_of(self.target), _DELEGATE: board.delegate}
        return self.describe(
            board.processor,
            board.features,
            versions=board.versions,
            target=target_text(None, settings),
            recorded=board.recorded,
        )
