from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nas.space
from nas.latency import LatencyTable, build_table, space_kernels
from tests.latency.fake_runtime import FakeRuntime


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_latency_imports_nothing_heavy() -> None:
    heavy = '{"tvm", "torch", "optuna", "matplotlib", "pandas"}'
    assert _run(f"import sys, nas.latency; print({heavy} & set(sys.modules))") == "set()\n"


def test_table_predicts_without_tvm_installed(tmp_path: Path) -> None:
    space = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
    runtime = FakeRuntime()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, space_kernels(space, "tvm"), runtime)
    expected = table.predict(space.largest.graph).latency_us
    code = f"""
import sys
sys.modules["tvm"] = None
import nas.space
from nas.latency import LatencyTable
space = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1, classes=10)
print(LatencyTable.open({str(table.path)!r}).predict(space.largest.graph).latency_us)
"""
    assert float(_run(code)) == expected
