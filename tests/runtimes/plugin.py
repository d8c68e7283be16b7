"""The plug-in of docs/runtimes.md, installed as a package beside a stand-in for the vendor's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nas.latency import installed_runtimes
from nas.latency.runtime import Runtime
from nas.plugins import PlugInPoint, is_subclass_of
from tests import markdown
from tests.made_once import made_once

PAGE = "docs/runtimes.md"

FIGURE = """

from nas.latency import Figure

AcmeRuntime.figures = (Figure("weights_kib", "weights, KiB"),)
AcmeRuntime.network_figures = lambda self, graph: {"weights_kib": graph.params / 256}
"""
"""What is added to the module of the plug-in, and nowhere else, to declare a figure."""


def example() -> str:
    """Return the module of the plug-in."""
    (code,) = re.findall(r'```python\n("""The accelerator.*?)```', markdown.read(PAGE), re.DOTALL)
    return code


def use(factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> None:
    """Install both packages, once, for this process and those that it starts.

    Args:
        factory: makes the folder of the packages.
        patch: undoes it.
    """
    site = made_once(factory, "acme", _install)
    patch.syspath_prepend(site)
    patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    for name in ("acme", "acme_runtime"):
        patch.delitem(sys.modules, name, raising=False)
    anew = PlugInPoint("nas.runtimes", "runtime", is_subclass_of(Runtime), "runtime")
    patch.setattr(installed_runtimes, "RUNTIMES", anew)


def _install(site: Path) -> None:
    """Install the package of the page by pip into a folder, and the vendor's beside it."""
    source = site.with_name("acme_source")
    source.mkdir()
    (source / "acme_runtime.py").write_text(example() + FIGURE)
    (project,) = re.findall(r"```toml\n(\[build-system\].*?)```", markdown.read(PAGE), re.DOTALL)
    (source / "pyproject.toml").write_text(project)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", site, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.copy(Path(__file__).with_name("acme.py"), site)
    info = site / "acme-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (info / "RECORD").write_text("acme.py,,\n")
