from __future__ import annotations

import numpy as np
import pytest

from nas.runtimes.litert.micro import planned_bytes
from nas.runtimes.memory_plan import Buffer, place


def test_a_chain_takes_two_buffers_and_a_residual_three() -> None:
    chain = [Buffer(160, at, at + 1) for at in range(9)]
    assert planned_bytes(chain) == 2 * 160
    assert planned_bytes([*chain, Buffer(160, 2, 7)]) == 3 * 160


def test_gaps_are_used_and_large_buffers_go_first() -> None:
    # The largest at 0, the next above it; the last fits below it once the largest is gone.
    assert planned_bytes([Buffer(100, 0, 1), Buffer(60, 1, 3), Buffer(50, 2, 3)]) == 160


@pytest.mark.parametrize("seed", range(5))
def test_buffers_that_are_alive_at_once_do_not_overlap(seed: int) -> None:
    sizes, firsts, lives = np.random.default_rng(seed).integers(1, 30, (3, 40)).tolist()
    buffers = [Buffer(s, f, f + n) for s, f, n in zip(sizes, firsts, lives, strict=True)]
    offsets = place(buffers)
    for moment in range(60):
        owners = np.zeros(sum(sizes), int)
        for offset, (size, first, last) in zip(offsets, buffers, strict=True):
            owners[offset : offset + size] += first <= moment <= last
        assert owners.max() <= 1
