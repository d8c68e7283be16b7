"""What commands print, read back."""

import json
import subprocess


def document(done: subprocess.CompletedProcess[str]):
    """The one JSON document on stdout."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
