"""The home folder of this process, without which some packages cannot be imported."""

from __future__ import annotations

import atexit
import os
from contextlib import suppress
from pathlib import Path

_PREFIX = "nas-home-"
"""Start of the name of a temporary home folder."""


def ensure_home() -> None:
    """Give this process and its children a temporary home folder if there is no other.

    A container may run a process for a user who has no account, without the variable HOME. TVM, for
    one, looks for its cache below the home folder when it is imported, and then raises an error.
    The folder is removed when this process ends. It is private: TVM trusts what is in its cache.
    """
    if _has_home():
        return
    import shutil
    import tempfile

    # Without any folder for temporary files, what needs a home says so where it is used.
    with suppress(OSError):
        folder = os.environ["HOME"] = tempfile.mkdtemp(prefix=_PREFIX)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def lasting_home() -> Path | None:
    """Return the home folder, or None if there is none or only one that `ensure_home` made."""
    if not _has_home() or Path.home().name.startswith(_PREFIX):
        return None
    return Path.home()


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True
