"""Runs the examples in the docstrings of the public modules."""

import doctest
import importlib
import pkgutil

import pytest

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
