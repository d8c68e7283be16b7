"""Mounts file systems of a given size, which a job can fill."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_INSIDE = "NAS_IN_OWN_NAMESPACE"


def mount(folder: Path, options: str) -> subprocess.CompletedProcess[str]:
    """Mount an empty tmpfs at a folder; `options` are those of `mount`."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount an empty tmpfs at a folder for the block; `options` are those of `mount`."""
    done = mount(folder, options)
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def change(folder: Path, options: str) -> None:
    """Change the options of a mounted tmpfs."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def rerun_where_mounting_is_allowed(request: pytest.FixtureRequest, folder: Path) -> bool:
    """Run the calling test again in a namespace of its own if this process may not mount.

    If no namespace may mount either, the test is skipped, or fails if NAS_REQUIRE_MOUNT is 1.

    Args:
        request: fixture of the calling test.
        folder: a folder at which a file system may be mounted.

    Returns:
        Whether the test ran again; the calling test then has nothing left to do.
    """
    refused = mount(folder, "size=64k")
    if refused.returncode == 0:
        subprocess.run(["umount", folder], check=True)
        return False
    if _INSIDE not in os.environ:
        test = f"{request.node.path}::{request.node.name}"
        done = subprocess.run(
            ["unshare", "-rm", sys.executable, "-m", "pytest", "-p", "no:xdist", test],
            env={**os.environ, _INSIDE: "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if "1 passed" in done.stdout:
            return True
        if "cannot mount" not in done.stdout and "unshare failed" not in done.stderr:
            pytest.fail(done.stdout + done.stderr)
    reason = f"cannot mount a file system here: {refused.stderr.strip()}"
    if os.environ.get("NAS_REQUIRE_MOUNT") == "1" or _INSIDE in os.environ:
        pytest.fail(f"{reason}, and NAS_REQUIRE_MOUNT=1 asks for it")
    pytest.skip(reason)
