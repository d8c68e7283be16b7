"""`EqualDevices`: several equal devices, of which one that answers is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from nas.errors import BoardLostError
from nas.transports.base import Transport


class EqualDevices(Transport):
    """Several equal devices, of which the first one that answers is used until it is lost.

    The error of a lost device is raised, as what was begun there is not on the next one. What is
    started after that begins on the next device that answers. Whoever needs equal devices compares
    what they say of themselves: a transport does not.

    Args:
        transports: the transports to each device, in the order in which they are tried.
    """

    def __init__(self, transports: Sequence[Transport]) -> None:
        self._transports = deque(transports)
        self._is_chosen = False
        self._is_lost = False

    @property
    def _used(self) -> Transport:
        return self._transports[0]

    @property
    def address(self) -> str:  # type: ignore[override]
        """The address of the device that is used now."""
        return self._used.address

    @property
    def remedy(self) -> str:
        """See `Transport.remedy`."""
        return self._used.remedy

    def close(self) -> None:
        """Close the connection. The next use begins with the same device, if it answers."""
        self._used.close()
        self._is_chosen = False

    def client(self, line: str) -> list[str]:
        """See `Transport.client`. Connects to a device that answers, if none is used."""
        if not self._is_chosen:
            self._choose()
        try:
            return self._used.client(line)
        except BoardLostError:
            self._is_lost = True
            self.close()
            raise

    def loss(self, status: int, error: str) -> str | None:
        """See `Transport.loss`."""
        reason = self._used.loss(status, error)
        if reason is not None and self._is_chosen:
            self._is_lost = True
            self.close()
        return reason

    def _choose(self) -> None:
        """Use the next device that answers. Raises BoardLostError, with the reasons, if none."""
        if self._is_lost:
            self._transports.rotate(-1)
            self._is_lost = False
        reasons = []
        for _ in range(len(self._transports)):
            try:
                self._used.run(["true"])
            except BoardLostError as error:
                reasons.append(error.message.rstrip("."))
                self._transports.rotate(-1)
            else:
                self._is_chosen = True
                return
        raise BoardLostError(f"{'; '.join(reasons)}.", remedy=self.remedy)
