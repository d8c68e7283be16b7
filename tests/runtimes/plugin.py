"""The plug-in of docs/runtimes.md, installed as a package of its own with a stand-in profiler."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests import markdown

PAGE = "docs/runtimes.md"


def example() -> str:
    """Return the module of the plug-in."""
    (code,) = re.findall(
        r"```python\n(\"\"\"A runtime behind.*?)```", markdown.read(PAGE), re.DOTALL
    )
    return code


def install(folder: Path) -> tuple[Path, Path]:
    """Install the package and the profiler; return the folders for PYTHONPATH and PATH."""
    site, programs = folder / "site", folder / "bin"
    info = site / "profiler_runtime-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "profiler_runtime.py").write_text(example())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: profiler-runtime\nVersion: 1.0\n")
    (entry_point,) = re.findall(r'^profiler = "(.*)"$', markdown.read(PAGE), re.MULTILINE)
    (info / "entry_points.txt").write_text(f"[nas.runtimes]\nprofiler = {entry_point}\n")
    programs.mkdir()
    script = programs / "layer-profiler"
    profiler = Path(__file__).with_name("layer_profiler.py")
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{profiler}" "$@"\n')
    script.chmod(0o755)
    return site, programs
