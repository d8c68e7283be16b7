"""Folders that take long to make, so that one process of a test run makes them for all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder with a name, which `make` fills while it is the current folder.

    Tests that change files need a copy.
    """
    temporary = factory.getbasetemp()
    folder = (temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary) / name
    folder.mkdir(exist_ok=True)
    done = folder.with_name(f"{name}.done")
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        if not done.exists():
            patch.chdir(folder)
            make(folder)
            done.touch()
    return folder
