"""A real OpenSSH server on the loopback address, with keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class SshServer:
    """A server that this user may log in to, from the test's environment alone.

    Args:
        folder: an empty folder for keys and configuration.
        command: command that runs instead of the user's shell, with the line in
            `SSH_ORIGINAL_COMMAND`; by default the shell.
    """

    def __init__(self, folder: Path, command: str = "") -> None:
        self.folder = folder
        self.port = _free_port()
        self.address = f"ssh://127.0.0.1:{self.port}"
        for name in ("host", "user"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(keygen, check=True)
        public = (folder / "host.pub").read_text()
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {public}")
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {folder / 'host'}",
            f"AuthorizedKeysFile {folder / 'authorized'}",
            f"PidFile {folder / 'pid'}",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "MaxSessions 20",
        ]
        if command:
            lines.append(f"ForceCommand {command}")
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")
        # `ssh` reads the configuration of the user's home from the password database.
        (folder / "config").write_text(
            f"IdentityFile {folder / 'user'}\nIdentitiesOnly yes\n"
            f"UserKnownHostsFile {folder / 'known'}\nUser {getpass.getuser()}\n"
        )
        client = folder / "bin" / "ssh"
        client.parent.mkdir()
        real = shutil.which("ssh")
        client.write_text(f'#!/bin/sh\nexec {real} -F {folder / "config"} "$@"\n')
        client.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and wait until it listens."""
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        assert sshd is not None
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        command = [sshd, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, process_group=0)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def share_client(self, other: SshServer) -> None:
        """Let the client of this server log in to another one, too."""
        shutil.copy(self.folder / "authorized", other.folder / "authorized")
        with (self.folder / "known").open("a") as known:
            known.write((other.folder / "known").read_text())

    def stop(self) -> None:
        """Stop the server and cut all connections."""
        if self._process is None:
            return
        self.cut()
        self._process.kill()
        self._process.wait()
        self._process = None

    def cut(self) -> None:
        """Kill the processes of all connections."""
        assert self._process is not None
        subprocess.run(["pkill", "-9", "-P", str(self._process.pid)], check=False)


def require_sshd() -> None:
    """Skip a test without an OpenSSH server, unless `NAS_REQUIRE_SSHD` demands it."""
    if shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") is None:
        if os.environ.get("NAS_REQUIRE_SSHD"):
            pytest.fail("sshd is not installed")
        pytest.skip("sshd is not installed")


@contextmanager
def loopback() -> Iterator[str]:
    """Yield a target, this machine behind ssh with this Python, for a fixture of any scope."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ssh-", dir="/tmp") as folder,
        ssh_server(Path(folder), patch) as server,
    ):
        yield f"{server.address}?python={sys.executable}"


@contextmanager
def emulated() -> Iterator[str]:
    """Yield a target, the arm64 board of `.ci/arm64-board` behind ssh, with its own Python."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ssh-", dir="/tmp") as folder,
        ssh_server(Path(folder), patch, f"{os.environ['NAS_ARM64_BOARD']}/enter") as server,
    ):
        yield server.address


@contextmanager
def equal_servers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SshServer]]:
    """Yield two running servers, to both of which the `ssh` of `PATH` may log in."""
    (folder / "other").mkdir()
    with ssh_server(folder / "other", monkeypatch) as other:
        (folder / "first").mkdir()
        with ssh_server(folder / "first", monkeypatch) as first:
            first.share_client(other)
            yield [first, other]


@contextmanager
def ssh_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str = ""
) -> Iterator[SshServer]:
    """Yield a running server whose client is the `ssh` of `PATH`."""
    require_sshd()
    server = SshServer(folder, command)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    server.start()
    try:
        yield server
    finally:
        server.stop()
