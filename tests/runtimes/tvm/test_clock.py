from __future__ import annotations

import pytest
import tvm

from nas.runtimes.tvm.clock import clock_of


@pytest.mark.parametrize(
    ("triple", "clock"),
    [
        ("x86_64-unknown-linux-gnu", 1),
        ("aarch64-linux-gnu", 1),
        ("arm64-apple-darwin", 6),
        ("armv7l-linux-gnueabihf", None),
        ("x86_64-pc-windows-msvc", None),
    ],
)
def test_processors_of_64_bits_have_a_clock_on_known_systems(
    triple: str, clock: int | None
) -> None:
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    assert clock_of(target) == clock


def test_gpus_have_no_clock() -> None:
    assert clock_of(tvm.target.Target({"kind": "cuda", "arch": "sm_80"})) is None
