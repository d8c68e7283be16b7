"""`SshTransport`: a device behind OpenSSH, with the user's own configuration, keys and agent."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from nas.errors import BoardLostError, DeviceError, RequestError, printable
from nas.transports.base import Transport

CONNECT_SECONDS = 20
"""Longest time in which a connection is made, through all of the user's jump hosts."""

_OPTIONS = (
    "-T",
    "-oBatchMode=yes",  # Nothing is asked in a job.
    f"-oConnectTimeout={CONNECT_SECONDS}",
    "-oServerAliveInterval=5",
    "-oServerAliveCountMax=6",
    "-oRemoteCommand=none",
    "-oClearAllForwardings=yes",
)

_numbers = itertools.count()
"""Numbers of the connections of this process."""

_LOST_STATUS = 255
"""Exit status of `ssh` when the connection cannot be made, or is lost."""


class SshTransport(Transport):
    """A device behind ssh. All programs share one connection.

    Args:
        address: `ssh://[USER@]HOST[:PORT]`.
        host, user, port: its parts; the user's configuration has the ones that are missing.
    """

    def __init__(self, address: str, host: str, user: str | None, port: int | None) -> None:
        super().__init__(address)
        self._destination = [*(["-l", user] if user else []), *(["-p", str(port)] if port else [])]
        self._destination += ["--", host]
        self._shown = f"ssh {f'-p {port} ' if port else ''}{f'{user}@' if user else ''}{host}"
        self._master: subprocess.Popen[bytes] | None = None
        self._socket = Path()

    @property
    def remedy(self) -> str:
        """See `Transport.remedy`."""
        return f"`{self._shown}` should connect without a question; the same command then goes on."

    def client(self, line: str) -> list[str]:
        """See `Transport.client`."""
        self._connect()
        return ["ssh", *_OPTIONS, "-oControlMaster=no", *self._shared, *self._destination, line]

    def loss(self, status: int, error: str) -> str | None:
        """See `Transport.loss`."""
        if status != _LOST_STATUS:
            return None
        return error.strip().splitlines()[-1] if error.strip() else "the connection was lost"

    def close(self) -> None:
        """See `Transport.close`."""
        if self._master is not None:
            assert self._master.stdin
            self._master.stdin.close()
            self._master.kill()
            self._master.wait()
            self._master = None
            self._socket.unlink(missing_ok=True)

    @property
    def _shared(self) -> list[str]:
        return [f"-oControlPath={self._socket}"]

    def _connect(self) -> None:
        """Open the connection unless it is there."""
        if self._master is not None and self._master.poll() is None:
            return
        self.close()
        if shutil.which("ssh") is None:
            raise RequestError(
                f"{self.address} needs the program `ssh`, which is not installed here.",
                remedy="Install OpenSSH's client (Debian: openssh-client).",
            )
        self._socket = _sockets() / f"{os.getpid()}-{next(_numbers)}"
        # A killed process of the same number may have left it.
        self._socket.unlink(missing_ok=True)
        # `cat` ends with the pipe from here, so that no connection outlives this process.
        command = ["ssh", *_OPTIONS, "-oControlMaster=yes", "-oControlPersist=no", *self._shared]
        with tempfile.TemporaryFile() as errors:
            self._master = subprocess.Popen(
                [*command, *self._destination, "exec cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                process_group=0,
            )
            deadline = time.monotonic() + 2 * CONNECT_SECONDS
            while not self._socket.is_socket():
                if self._master.poll() is not None or time.monotonic() > deadline:
                    errors.seek(0)
                    text = printable(errors.read().decode(errors="replace"))
                    reason = self.loss(_LOST_STATUS, text)
                    self.close()
                    raise BoardLostError(
                        f"{self.address} does not answer: {reason}.", remedy=self._how(text)
                    )
                time.sleep(0.02)

    def _how(self, error: str) -> str:
        """Return what to do about a connection that cannot be made."""
        if "Host key verification failed" in error:
            return f"Run `{self._shown}` once, and compare the key that it shows with the device's."
        if "Permission denied" in error:
            return f"Copy a key there: `{self._shown.replace('ssh', 'ssh-copy-id', 1)}`."
        return self.remedy


def _sockets() -> Path:
    """Return this user's folder for the sockets of connections, which only the user reads.

    Raises DeviceError if there can be none.
    """
    # The path of a socket may have 100 characters, so TMPDIR may be too long.
    places = [Path("/tmp"), Path(tempfile.gettempdir())]
    for place in places:
        folder = place / f"nas-ssh-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            about = folder.stat()
        except OSError:
            continue
        is_own = about.st_uid == os.getuid() and not about.st_mode & 0o077
        if is_own and os.access(folder, os.W_OK):
            return folder
    raise DeviceError(
        "No connection can be made: its socket needs a folder for temporary files that only this "
        f"user reads, and {' and '.join(map(str, dict.fromkeys(places)))} cannot have one.",
        remedy="Set TMPDIR to a folder with a short path.",
    )
