"""What tests need of the processor that they run on."""

import platform

import pytest

needs_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="an x86 processor is needed"
)
