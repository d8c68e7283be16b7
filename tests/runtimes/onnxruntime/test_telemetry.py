"""ONNX Runtime writes nothing about the user to the disk and queues nothing to be sent."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import nas

PACKAGE = Path(nas.__file__).parent
RUNTIME_PACKAGE = PACKAGE / "runtimes" / "onnxruntime"
SCRIPT = PACKAGE / "deploy" / "script_steps.py"
"""The steps of `run.py` of model folders, which disable telemetry themselves."""

TIME_AND_QUANTISE = """
import numpy as np
from nas import onnx_model, space
from nas.latency import open_runtime
tiny = space.load_space("squeezenet_tiny", image_size=8, channels=1, classes=3)
graph = tiny.smallest.graph
for dtype in ("float32", "int8"):
    runtime = open_runtime("onnxruntime", dtype=dtype)
    runtime.compile(graph, {}).evaluate(1, 1)
"""


def test_running_and_quantising_writes_nothing_below_the_home_folder(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    removed = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in removed}
    completed = subprocess.run(
        [sys.executable, "-c", TIME_AND_QUANTISE],
        env={**environment, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert list(home.rglob("*")) == []


def test_only_the_package_that_disables_telemetry_imports_onnxruntime() -> None:
    importers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            if any(name.split(".")[0] == "onnxruntime" for name in names):
                importers.add(path)
    importers.remove(SCRIPT)
    assert importers
    assert all(path.is_relative_to(RUNTIME_PACKAGE) for path in importers), importers
