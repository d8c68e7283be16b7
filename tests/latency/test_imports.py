from __future__ import annotations

import subprocess
import sys


def test_importing_latency_imports_nothing_heavy() -> None:
    heavy = '{"tvm", "torch", "optuna", "matplotlib", "pandas"}'
    code = f"import sys, nas.latency; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
