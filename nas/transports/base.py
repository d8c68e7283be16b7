"""`Transport`: starts programs on a device, and copies files there and home.

The command of a transport (`ssh`, `adb`) runs one line of the device's shell. Everything else
follows from that: a file is what `cat` reads or writes.
"""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Self

from nas.errors import BoardLostError, DeviceError, printable
from nas.files import replace

ANSWER_SECONDS = 30.0
"""Longest time that a device may take for a short command, or say nothing while files travel."""

MAX_OUTPUT_BYTES = 16 << 20
"""Largest output of a short command."""

_SHOWN_BYTES = 4096
"""How much of the end of a program's error output messages may use."""

_CHUNK_BYTES = 1 << 16

MAX_FILE_BYTES = 1 << 30
"""Largest file that is read from a device."""

_BEGIN = b"nas begins\n"
"""What a device writes before a program: start-up files of its shell may have written something."""

_SCRIPT = """echo "nas begins"; cd "$0" && "$@"; status=$?; exit $((status - (status == 255)))"""
"""Runs a program in a folder. The shell stays, so that a program that a signal ends is none that
lost its connection; nor is one that ends with the status of a lost connection."""

_MAX_BANNER_BYTES = 1 << 16

_SIGNAL_STATUS = 128
"""Exit status, in a shell, of a program that a signal ends, less the number of the signal."""

_END_SECONDS = 5.0
"""How long a program may take to end after its connection was closed."""


class EndedProgramError(DeviceError):
    """A program on a device ended before it did what it should."""


class Transport(ABC):
    """A device that can be reached.

    Its methods raise BoardLostError if the device does not answer; it may come back, and every
    method connects again. They raise DeviceError for what the device refuses.

    Args:
        address: the address, see `nas.transports`.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The next use opens another one."""
        return

    @abstractmethod
    def client(self, line: str) -> list[str]:
        """Return the command of this machine that runs a line of the device's shell.

        It passes on standard input, output, error output and the exit status. Connects first.
        """

    @abstractmethod
    def loss(self, status: int, error: str) -> str | None:
        """Return why a command of `client` lost the device, or None if it did not.

        Args:
            status: exit status of the command.
            error: end of its error output.
        """

    @property
    @abstractmethod
    def remedy(self) -> str:
        """What a user does about a device that does not answer, in sentences."""

    def start(self, command: Sequence[str], *, folder: str | None = None) -> Program:
        """Start a program on the device.

        Args:
            command: the program and its arguments; no character is special to a shell.
            folder: folder of the device to start it in; by default where the connection begins.
        """
        line = shlex.join(["sh", "-c", _SCRIPT, folder or ".", *command])
        return Program(self, command[0], self.client(line))

    def run(
        self, command: Sequence[str], *, data: bytes = b"", limit_s: float = ANSWER_SECONDS
    ) -> bytes:
        """Return the output of a short command.

        Args:
            command: see `start`.
            data: its standard input.
            limit_s: how long it may say nothing.

        Raises:
            DeviceError: it failed; the message has the end of its error output.
        """
        with self.start(command) as program:
            program.write(data, limit_s=limit_s)
            program.end_input()
            output = b""
            while chunk := program.read_some(limit_s=limit_s):
                output += chunk
                if len(output) > MAX_OUTPUT_BYTES:
                    raise DeviceError(
                        f"{command[0]} on {self.address} writes more than {MAX_OUTPUT_BYTES} bytes."
                    )
            program.require_success()
        return output

    def send(self, path: Path, to: str, *, executable: bool = False) -> None:
        """Copy a file to the device, where it replaces another one at once.

        Raises:
            DeviceError: it cannot be written there, for example because the disk is full.
        """
        mode = "700" if executable else "600"
        # After a lost connection, the input ends too early, and `cat` does not know.
        script = 'umask 077; cat > "$1.part" && [ "$(wc -c < "$1.part")" -eq "$3" ]'
        script += ' && chmod "$2" "$1.part" && mv -f "$1.part" "$1"'
        script += ' || { status=$?; rm -f "$1.part"; exit $status; }'
        arguments = [to, mode, str(path.stat().st_size)]
        with self.start(["sh", "-c", script, "sh", *arguments]) as program:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    program.write(chunk)
            program.end_input()
            program.require_success()

    def fetch(self, path: str, to: Path) -> None:
        """Copy a file of the device to this machine, where it replaces another one at once.

        Raises:
            DeviceError: it is not there.
        """
        replace(to, self.read(path))

    def size(self, path: str) -> int | None:
        """Return the size of a file of the device in bytes; None if it is not there."""
        script = 'if [ -f "$1" ]; then wc -c < "$1"; fi'
        text = self.run(["sh", "-c", script, "sh", path]).strip()
        return int(text) if text else None

    def read(self, path: str) -> bytes:
        """Return the content of a file of the device. Raises DeviceError if it is not there."""
        with self.start(["cat", path]) as program:
            content = bytearray()
            while some := program.read_some():
                content += some
                if len(content) > MAX_FILE_BYTES:
                    raise DeviceError(
                        f"{path} on {self.address} has more than {MAX_FILE_BYTES} bytes."
                    )
            program.require_success()
        return bytes(content)

    @contextmanager
    def private_folder(self) -> Iterator[str]:
        """Yield a new folder of the device that only its user reads, and remove it at the end."""
        script = 'umask 077; mktemp -d "${TMPDIR:-/tmp}/nas-XXXXXXXX" 2> /dev/null'
        script += " || mktemp -d /data/local/tmp/nas-XXXXXXXX"
        folder = self.run(["sh", "-c", script]).decode().strip()
        try:
            yield folder
        finally:
            with suppress(DeviceError):
                self.remove(folder)

    def lasting_folder(self, name: str) -> str:
        """Return a folder of the device that only its user reads, and that stays until `remove`.

        It is the same one for the same name, so that what was begun there goes on.
        """
        script = """umask 077
        for at in "${HOME:-/}/.cache" "${TMPDIR:-/tmp}" /data/local/tmp; do
            mkdir -p "$at/nas" 2> /dev/null && [ -O "$at/nas" ] && mkdir -p "$at/nas/$1" \\
                && [ -w "$at/nas/$1" ] && echo "$at/nas/$1" && exit
        done
        echo "no folder can be written" >&2; exit 1"""
        return self.run(["sh", "-c", script, "sh", name]).decode().strip()

    def remove(self, folder: str) -> None:
        """Remove a folder of the device, if it is there."""
        self.run(["rm", "-rf", folder])


class Program:
    """A program that runs on a device.

    Use it as a context manager: at the end its connection is closed, and it should end by that.

    Args:
        transport: the transport.
        name: name of the program, for messages.
        command: command of this machine that runs it.
    """

    def __init__(self, transport: Transport, name: str, command: Sequence[str]) -> None:
        self._transport, self._name = transport, name
        # A group of its own: Ctrl-C belongs to this process, which ends the program itself.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            process_group=0,
        )
        assert self._process.stdin
        assert self._process.stderr
        os.set_blocking(self._process.stdin.fileno(), False)
        self._pending = b""
        self._has_begun = False
        self._error = b""
        self._reader = threading.Thread(
            target=self._drain, args=(self._process.stderr,), daemon=True
        )
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to the program."""
        self.end_input()
        assert self._process.stdout
        self._process.stdout.close()
        # Other signals are blocked in processes that children of this process start.
        self._process.kill()
        self._process.wait()

    def write(self, data: bytes, *, limit_s: float = ANSWER_SECONDS) -> None:
        """Send bytes to its standard input.

        Raises:
            BoardLostError: it read nothing for `limit_s` seconds, or the connection was lost.
            EndedProgramError: it ended.
        """
        stdin = self._process.stdin
        assert stdin
        left = memoryview(data)
        try:
            while left:
                if not self._is_ready(stdin, selectors.EVENT_WRITE, limit_s):
                    raise self._silent(limit_s)
                left = left[os.write(stdin.fileno(), left[:_CHUNK_BYTES]) :]
        except BrokenPipeError:
            raise self._ended() from None

    def end_input(self) -> None:
        """End its standard input."""
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.close()

    def read_some(self, *, limit_s: float = ANSWER_SECONDS) -> bytes:
        """Return some bytes of its output; none at the end. See `write` for the errors."""
        if not self._has_begun:
            self._skip_banner(limit_s)
        if self._pending:
            some, self._pending = self._pending, b""
            return some
        return self._read(limit_s)

    def _skip_banner(self, limit_s: float) -> None:
        """Read up to where the program begins."""
        content = b""
        while _BEGIN not in content:
            some = self._read(limit_s)
            content += some
            if not some or len(content) > _MAX_BANNER_BYTES:
                self._has_begun = True  # It never will.
                return
        self._has_begun, self._pending = True, content.partition(_BEGIN)[2]

    def _read(self, limit_s: float) -> bytes:
        stdout = self._process.stdout
        assert stdout
        if not self._is_ready(stdout, selectors.EVENT_READ, limit_s):
            raise self._silent(limit_s)
        return os.read(stdout.fileno(), _CHUNK_BYTES)

    def read_exactly(self, size: int, *, limit_s: float = ANSWER_SECONDS) -> bytes:
        """Return that many bytes of its output.

        Raises:
            BoardLostError: the connection was lost, or it said nothing for `limit_s` seconds.
            EndedProgramError: it ended before.
        """
        content = b""
        while len(content) < size:
            some = self.read_some(limit_s=limit_s)
            if not some:
                raise self._ended()
            content += some
        content, self._pending = content[:size], content[size:]
        return content

    def lines(self, *, limit_s: float = ANSWER_SECONDS) -> Iterator[bytes]:
        """Yield the whole lines of its output without their ends, until it ends.

        A last line without an end is left out. See `read_exactly` for the errors.
        """
        while (line := self.read_line(limit_s=limit_s)) is not None:
            yield line

    def read_line(self, *, limit_s: float = ANSWER_SECONDS) -> bytes | None:
        """Return the next whole line of its output without its end; None if there is none."""
        line = b""
        deadline = time.monotonic() + limit_s
        while True:
            some = self.read_some(limit_s=max(0, deadline - time.monotonic()))
            if not some:
                return None
            line += some
            if (end := line.find(b"\n")) >= 0:
                self._pending = line[end + 1 :]
                return line[:end]
            if len(line) > MAX_OUTPUT_BYTES:
                raise DeviceError(
                    f"{self._name} on {self._transport.address} writes a line of more than "
                    f"{MAX_OUTPUT_BYTES} bytes."
                )

    def require_success(self, *, limit_s: float = ANSWER_SECONDS) -> None:
        """Wait for its end.

        Raises:
            BoardLostError: the connection was lost.
            DeviceError: its exit status is not 0; the message has its last line.
        """
        if self.wait(limit_s=limit_s):
            reason = self.end_reason()
            raise DeviceError(f"{self._name} on {self._transport.address} failed: {reason}")

    def end_reason(self) -> str:
        """Return why it ended, in words: a signal, its last line, or its exit status.

        Raises BoardLostError if the connection was lost.
        """
        status = self.wait()
        with suppress(ValueError):
            return f"it was ended by {signal.Signals(status - _SIGNAL_STATUS).name}"
        return (self.error.strip().splitlines() or [f"exit status {status}"])[-1].rstrip(".")

    def _ended(self) -> EndedProgramError:
        """Return the error for its end. Raises BoardLostError if the connection was lost."""
        reason = self.end_reason()
        return EndedProgramError(f"{self._name} on {self._transport.address} ended: {reason}.")

    def wait(self, *, limit_s: float = ANSWER_SECONDS) -> int:
        """Return its exit status. Raises BoardLostError if the connection was lost."""
        try:
            status = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise self._silent(limit_s) from None
        self._reader.join(_END_SECONDS)
        if (reason := self._transport.loss(status, self.error)) is not None:
            raise BoardLostError(
                f"{self._transport.address} does not answer: {reason}.",
                remedy=self._transport.remedy,
            )
        return status

    @property
    def error(self) -> str:
        """The end of its error output."""
        return printable(self._error.decode(errors="replace"))

    def _drain(self, stream: IO[bytes]) -> None:
        while chunk := stream.read(_SHOWN_BYTES):
            self._error = (self._error + chunk)[-_SHOWN_BYTES:]

    def _is_ready(self, stream: IO[bytes], event: int, limit_s: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(stream, event)
            return bool(selector.select(limit_s))

    def _silent(self, limit_s: float) -> BoardLostError:
        return BoardLostError(
            f"{self._name} on {self._transport.address} said nothing for {limit_s:.0f} s.",
            remedy=self._transport.remedy,
        )
