"""Puts this folder on the import path, and runs tests marked `gpu` only where there is a GPU."""

from __future__ import annotations

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    import tvm

    if not tvm.cuda().exist:
        pytest.skip("needs an NVIDIA GPU, and TVM finds none on this machine")
