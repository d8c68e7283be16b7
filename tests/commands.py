"""Runs the command line in a process of its own, and reads what a command prints."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WITHOUT_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Variables with which Python reads the names of files as ASCII."""


def run_nas(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `nas` in a process of its own; the `invoke` fixture runs it in this process."""
    return subprocess.run(
        [sys.executable, "-m", "nas", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the JSON document that a successful command printed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
