"""The plug-in of docs/runtimes.md, installed as a package of its own with a stand-in profiler."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from nas.latency import installed_runtimes
from nas.latency.runtime import Runtime
from nas.plugins import PlugInPoint, is_subclass_of
from tests import markdown

PAGE = "docs/runtimes.md"


def example() -> str:
    """Return the module of the plug-in."""
    (code,) = re.findall(
        r"```python\n(\"\"\"A runtime behind.*?)```", markdown.read(PAGE), re.DOTALL
    )
    return code


def use(folder: Path, patch: pytest.MonkeyPatch, more: str = "") -> None:
    """Install the package and the profiler for this process and those that it starts.

    Args:
        folder: folder for both.
        patch: undoes it.
        more: text that is appended to the module of the plug-in.
    """
    site, programs = folder / "site", folder / "bin"
    info = site / "profiler_runtime-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "profiler_runtime.py").write_text(example() + more)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: profiler-runtime\nVersion: 1.0\n")
    (entry_point,) = re.findall(r'^profiler = "(.*)"$', markdown.read(PAGE), re.MULTILINE)
    (info / "entry_points.txt").write_text(f"[nas.runtimes]\nprofiler = {entry_point}\n")
    programs.mkdir()
    script = programs / "layer-profiler"
    profiler = Path(__file__).with_name("layer_profiler.py")
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{profiler}" "$@"\n')
    script.chmod(0o755)
    patch.syspath_prepend(site)
    patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    patch.setenv("PATH", str(programs), os.pathsep)
    patch.delitem(sys.modules, "profiler_runtime", raising=False)
    anew = PlugInPoint("nas.runtimes", "runtime", is_subclass_of(Runtime), "runtime")
    patch.setattr(installed_runtimes, "RUNTIMES", anew)
