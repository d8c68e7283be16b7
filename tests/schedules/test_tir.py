"""Functions written with `nas.schedules.tir` run, and buffers have a limit."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from nas.schedules import tir


def test_buffer_larger_than_offsets_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="2147483648 elements"):
        tir.Buffer("x", 2**31)


def test_function_runs_on_views_vectors_and_conditions() -> None:
    """Copies the second half of eight numbers where an index is below six, and zeros elsewhere."""
    x, y = tir.Buffer("x", 8), tir.Buffer("y", 4)
    half = x.starting_at(4)

    def element(i: tir.Expr) -> list[tir.Stmt]:
        return tir.run_if(i + 4 < 6, [y.store(i, half.load(i))])

    body = [y.store(0, tir.broadcast(0.0, 4), 4), *tir.loop(4, element)]
    function = tir.function([x, y], body, "main")
    library = tvm.tirx.build(tvm.IRModule({"main": function}), tvm.target.Target("llvm"), "tirx")
    output = tvm.runtime.tensor(np.ones(4, np.float32))
    library["main"](tvm.runtime.tensor(np.arange(8, dtype=np.float32)), output)
    assert output.numpy().tolist() == [4, 5, 0, 0]
