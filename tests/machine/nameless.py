"""Runs Python for a user who has no account and no home folder, as many containers do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

USER_ID = 12345

REMOVED = ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR")

NO_ACCOUNTS = "import pwd\npwd.getpwuid = lambda user: {}[user]\n"
"""What Python meets where no user has an account."""


def run_nameless(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder for temporary files.

    The super-user becomes another one, who can read everything. For others, and in the processes
    that this one starts, Python's list of accounts is empty.

    Args:
        arguments: arguments of Python.
        variables: variables of the environment, beside those of this process.
    """
    environment = {name: value for name, value in os.environ.items() if name not in REMOVED}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "sitecustomize.py").write_text(NO_ACCOUNTS)
        path = os.pathsep.join([folder, *filter(None, sys.path)])
        return subprocess.run(
            [*_other_user(), sys.executable, *map(str, arguments)],
            env={**environment, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **variables},
            cwd=tempfile.gettempdir(),
            capture_output=True,
            text=True,
            check=False,
        )


@cache
def _other_user() -> tuple[str, ...]:
    """Return the start of a command that another user runs; empty where that is not possible."""
    if shutil.which("setpriv") is None or os.getuid() != 0:
        return ()
    ids = (f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups")
    rights = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    command = ("setpriv", *ids, *rights)
    tried = subprocess.run([*command, sys.executable, "-c", ""], capture_output=True, check=False)
    return () if tried.returncode else command
