"""`AdbTransport`: a phone or tablet behind the Android Debug Bridge."""

from __future__ import annotations

import shutil
import subprocess

from nas.errors import BoardLostError, DeviceError, RequestError
from nas.transports.base import ANSWER_SECONDS, Transport

_SHELL = "shell_v2"
"""Feature of devices whose shell passes on the exit status and the error output (Android 7)."""

_LOST = ("error: device", "error: closed", "error: no devices", "adb: device", "adb: no devices")
"""How the client begins what it says about a device that is gone."""

_CUT_STATUS = 255
"""Exit status of the client when the stream of a program breaks off."""


class AdbTransport(Transport):
    """A device behind adb, with its programs below `/data/local/tmp`.

    Args:
        address: `adb:`, the only device, or `adb:SERIAL`.
        serial: its serial number; empty for the only device.
    """

    def __init__(self, address: str, serial: str) -> None:
        super().__init__(address)
        self._client = ["adb", *(["-s", serial] if serial else [])]
        self._is_checked = False

    @property
    def remedy(self) -> str:
        """See `Transport.remedy`."""
        return "`adb devices` should list it as `device`; the same command then goes on."

    def client(self, line: str) -> list[str]:
        """See `Transport.client`."""
        if not self._is_checked:
            self._require_shell()
            self._is_checked = True
        return [*self._client, "shell", "-T", line]

    def loss(self, status: int, error: str) -> str | None:
        """See `Transport.loss`."""
        last = (error.strip().splitlines() or [""])[-1]
        if status == _CUT_STATUS:
            return last or "the connection was lost"
        return last if status == 1 and last.startswith(_LOST) else None

    def close(self) -> None:
        """See `Transport.close`. The device may be another one afterwards."""
        self._is_checked = False

    def _require_shell(self) -> None:
        """Raise an error for a device that is not there, or whose shell hides errors."""
        if shutil.which("adb") is None:
            raise RequestError(
                f"{self.address} needs the program `adb`, which is not installed here.",
                remedy="Install Android's platform tools (Debian: adb).",
            )
        try:
            done = subprocess.run(
                [*self._client, "features"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=ANSWER_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise BoardLostError(f"{self.address} does not answer.", remedy=self.remedy) from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
            message = f"{self.address} does not answer: {reason.rstrip('.')}."
            if "more than one" in done.stderr:
                remedy = "`adb devices` lists them: name one as adb:SERIAL."
                raise RequestError(message, remedy=remedy)
            remedy = self.remedy
            if "unauthorized" in done.stderr:
                remedy = "Unlock it, and allow USB debugging for this computer."
            raise BoardLostError(message, remedy=remedy)
        if _SHELL not in done.stdout.split():
            raise DeviceError(
                f"The shell of {self.address} does not pass on errors: it has no {_SHELL}.",
                remedy="Use a device with Android 7 or later, or carry a kit there (`nas kit`).",
            )
