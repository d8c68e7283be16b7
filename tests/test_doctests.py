"""Runs the examples in the docstrings of the public modules and in the documentation."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from nas.space import load_space

PACKAGES = ["nas.space"]
"""Modules and packages whose examples run; a package stands for all modules in it."""


def modules_in(package: str) -> list[str]:
    module = importlib.import_module(package)
    paths = getattr(module, "__path__", None)
    if paths is None:
        return [package]
    return [package, *(each.name for each in pkgutil.walk_packages(paths, f"{package}."))]


@pytest.mark.parametrize("name", [name for package in PACKAGES for name in modules_in(package)])
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_the_block_in_the_documentation_makes_a_space(tmp_path):
    page = Path(__file__).parent.parent / "docs" / "adding-a-block.md"
    path = tmp_path / "mine.py"
    path.write_text(re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[1])
    space = load_space(path, image_size=32)
    # Depths of 1 to 3 with four options a block, times the widths of the stem and the body.
    assert space.size == 2 * 2 * (4 + 16 + 64)
    assert space.largest.graph.output_shape == (10, 1, 1)
