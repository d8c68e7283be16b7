"""A stand-in for `adb`: this machine is the device, behind the client's arguments and messages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SERIAL = "0123456789ABCDEF"

SCRIPT = """#!/bin/sh
# What the real client says goes to its error output, with status 1.
state={state}
if [ "$1" = -s ]; then
    [ "$2" = {serial} ] || {{ echo "adb: device '$2' not found" >&2; exit 1; }}
    shift 2
fi
[ -f "$state/gone" ] && {{ echo "adb: no devices/emulators found" >&2; exit 1; }}
[ -f "$state/locked" ] && {{
    echo "adb: device unauthorized." >&2
    echo "This adb server's \\$ADB_VENDOR_KEYS is not set" >&2
    echo "Try 'adb kill-server' if that seems wrong." >&2
    echo "Otherwise check for a confirmation dialog on your device." >&2; exit 1; }}
case "$1" in
features) [ -f "$state/old" ] && echo cmd || printf 'shell_v2\\ncmd\\nstat_v2\\n' ;;
shell)
    [ "$2" = -T ] && [ $# = 3 ] || {{ echo "adb: unknown option" >&2; exit 1; }}
    exec 3<&0
    setsid sh -c "$3" <&3 &
    # A device that is unplugged takes the shell and its programs with it.
    child=$!
    while kill -0 $child 2> /dev/null; do
        [ -f "$state/gone" ] && {{ kill -9 -$child; exit 255; }}
        sleep 0.05
    done
    wait $child ;;
*) echo "adb: unknown command $1" >&2; exit 1 ;;
esac
"""


class FakeAdb:
    """The device, whose state are files in a folder: `gone`, `locked`, `old`.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = "adb:"
        client = folder / "bin" / "adb"
        client.parent.mkdir()
        client.write_text(SCRIPT.format(state=folder, serial=SERIAL))
        client.chmod(0o755)

    def cut(self) -> None:
        """Unplug the device."""
        (self.folder / "gone").touch()

    def come_back(self) -> None:
        """Plug the device in again."""
        (self.folder / "gone").unlink()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeAdb:
    """Return a device whose client is the `adb` of `PATH`."""
    device = FakeAdb(folder)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    return device
