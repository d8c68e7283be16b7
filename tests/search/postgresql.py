"""A PostgreSQL server for tests, with its data and its socket in a temporary folder."""

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


def find_binaries() -> Path | None:
    """Return the folder with initdb and pg_ctl, which Debian does not put on the PATH, or None."""
    on_path = shutil.which("pg_ctl")
    if on_path:
        return Path(on_path).resolve().parent
    programs = Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")
    newest = max(programs, key=lambda path: float(path.parts[-3]), default=None)
    return newest.parent if newest else None


class Server:
    """A running server, which can be stopped and started again. Clients need `PASSWORD`.

    Args:
        folder: an empty folder for its data and its socket.
        bin_folder: folder of PostgreSQL's programs, see `find_binaries`.
    """

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self._folder, self._bin_folder = folder, bin_folder
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user:
            os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)
        password_file = folder / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        self._run(
            "initdb",
            "--no-sync",
            "--username=nas",
            "--auth=scram-sha-256",
            f"--pwfile={password_file}",
            "--encoding=UTF8",
            "--locale=C",
        )
        self.start()

    def start(self) -> None:
        # Without fsync, data are lost only if the machine itself crashes. Storages of ended tests
        # hold their connections until they are collected as garbage.
        options = (
            f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c fsync=off "
            "-c max_connections=400"
        )
        log = self._folder / "log"
        self._run("pg_ctl", "start", "--wait", f"--log={log}", f"--options={options}")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server.

        Args:
            mode: with "fast" the server informs its clients, with "immediate" it ends as in a
                crash.
        """
        self._run("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def address(self, database: str, password: str = PASSWORD) -> str:
        """Return the SQLAlchemy address of a database."""
        return f"postgresql://nas:{quote(password, safe='')}@/{database}?host={self._folder}"

    def new_database(self) -> str:
        """Create a database and return its address."""
        name = f"d{uuid4().hex[:12]}"
        self.run_sql("postgres", f"CREATE DATABASE {name}")
        return self.address(name)

    def run_sql(self, database: str, command: str) -> None:
        with psycopg.connect(self.address(database), autocommit=True) as connection:
            connection.execute(command)

    def _run(self, program: str, *arguments: str) -> None:
        data = self._folder / "data"
        process = subprocess.run(
            [self._bin_folder / program, *arguments, f"--pgdata={data}"],
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            text=True,
        )
        if process.returncode:
            log = self._folder / "log"
            raise RuntimeError(
                f"{program}: {process.stderr or ''}{log.read_text() if log.exists() else ''}"
            )


@contextmanager
def running_server(bin_folder: Path) -> Iterator[Server]:
    """Start a server with empty databases, and stop and delete it at the end of the context."""
    folder = Path(tempfile.mkdtemp(prefix="nas-postgresql-"))
    try:
        server = Server(folder, bin_folder)
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder)
