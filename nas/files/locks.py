"""`Lock`: keeps other processes out, by a lock of the system that ends with its process."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

POLL_SECONDS = 0.01
"""How often a lock is tried that another process holds."""

_HELD = (errno.EAGAIN, errno.EACCES)
"""Errors of the system for a lock that another process holds."""


class LockHeldError(Exception):
    """Another process or thread holds a lock."""


class Lock:
    """A lock between processes, and between threads. A thread may acquire it several times.

    Args:
        path: file of the lock, made when it is acquired.
        is_removed: whether the file is removed when the lock is released.
    """

    def __init__(self, path: Path | str, *, is_removed: bool = False) -> None:
        self.path = Path(path)
        self._is_removed = is_removed
        self._own = threading.local()

    @property
    def is_held(self) -> bool:
        """Whether this thread holds the lock."""
        return bool(getattr(self._own, "depth", 0))

    def acquire(self, timeout_s: float = math.inf) -> None:
        """Acquire the lock.

        Args:
            timeout_s: how long to wait for it.

        Raises:
            LockHeldError: it is held elsewhere.
            OSError: the file cannot be made, or its file system has no locks.
        """
        if not self.is_held:
            end = time.monotonic() + timeout_s
            while (descriptor := self._try()) is None:
                if time.monotonic() >= end:
                    raise LockHeldError(str(self.path))
                time.sleep(POLL_SECONDS)
            self._own.descriptor, self._own.depth = descriptor, 0
        self._own.depth += 1

    def release(self) -> None:
        """Release the lock as often as it was acquired."""
        self._own.depth -= 1
        if not self._own.depth:
            if self._is_removed and self._is_file(self._own.descriptor):
                with suppress(OSError):  # The folder may be one where only its owner removes files.
                    self.path.unlink()
            # A child that was forked in the meantime has the descriptor open, too.
            fcntl.flock(self._own.descriptor, fcntl.LOCK_UN)
            os.close(self._own.descriptor)

    def is_held_elsewhere(self) -> bool:
        """Return whether somebody holds the lock. No file is made, and none needs to be written."""
        with suppress(OSError):  # There is no file, or nobody can lock it.
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                # Two who look do not see each other, and NFS has no other lock for readers.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                return error.errno in _HELD
            finally:
                os.close(descriptor)
        return False

    def _try(self) -> int | None:
        """Return a descriptor of the locked file; None if the lock is held elsewhere."""
        is_new = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held the lock may have removed the file in the meantime.
            if self._is_file(descriptor):
                return descriptor
        except OSError as error:
            if error.errno not in _HELD:
                os.close(descriptor)
                # NFS may have no locks for a moment: an older file may be that of a holder.
                if is_new:
                    with suppress(OSError):
                        self.path.unlink()
                reason = f"it cannot be locked: {os.strerror(error.errno or 0)}"
                raise OSError(error.errno, reason, str(self.path)) from None
        os.close(descriptor)
        return None

    def _is_file(self, descriptor: int) -> bool:
        """Return whether the file of the lock is the one with a descriptor."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self.path), os.fstat(descriptor))
        return False
