"""A PostgreSQL server of the tests' own: empty, on a socket in a temporary folder."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psycopg

PASSWORD = "pass/word: 100%"


def binaries() -> Path | None:
    """The folder with initdb and pg_ctl, which Debian does not put on the PATH."""
    found = shutil.which("pg_ctl")
    if found:
        return Path(found).resolve().parent
    folders = Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")
    newest = max(folders, key=lambda path: float(path.parts[-3]), default=None)
    return newest.parent if newest else None


class Server:
    """A server that can be stopped and started again; clients need its password."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self._folder, self._bin = folder, bin_folder
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user:
            os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run(
            "initdb",
            "--no-sync",
            "--username=nas",
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "--encoding=UTF8",
            "--locale=C",
        )
        self.start()

    def start(self) -> None:
        # Only the machine's own crash is not survived without fsync.
        options = f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c fsync=off"
        log = self._folder / "log"
        self._run("pg_ctl", "start", "--wait", f"--log={log}", f"--options={options}")

    def stop(self, mode: str = "fast") -> None:
        """With "fast", clients are told; with "immediate", all processes end at once."""
        self._run("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def address(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql://nas:{quote(password, safe='')}@/{database}?host={self._folder}"

    def new_database(self) -> str:
        """The address of a database without any tables."""
        name = f"d{uuid4().hex[:12]}"
        self.run_sql("postgres", f"CREATE DATABASE {name}")
        return self.address(name)

    def run_sql(self, database: str, command: str) -> None:
        with psycopg.connect(self.address(database), autocommit=True) as connection:
            connection.execute(command)

    def _run(self, program: str, *arguments: str) -> None:
        data = self._folder / "data"
        done = subprocess.run(
            [self._bin / program, *arguments, f"--pgdata={data}"],
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            text=True,
        )
        if done.returncode:
            log = self._folder / "log"
            raise RuntimeError(
                f"{program}: {done.stderr or ''}{log.read_text() if log.exists() else ''}"
            )


@contextmanager
def serving(bin_folder: Path) -> Iterator[Server]:
    """A server while this lasts."""
    folder = Path(tempfile.mkdtemp(prefix="nas-postgresql-"))
    try:
        server = Server(folder, bin_folder)
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder)
