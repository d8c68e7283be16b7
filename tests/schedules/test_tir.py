"""Values that are known while a kernel is written leave no trace in its code."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import tirx

from nas.schedules import tir


def test_loop_of_one_iteration_is_its_body() -> None:
    assert tir.loop(1, lambda i: [i], start=7) == [7]
    assert tir.loop(0, lambda i: [i]) == []


def test_conditions_with_known_values_are_decided() -> None:
    open_condition = tir.in_range(tirx.Var("i", "int32"), 4)
    assert tir.in_range(3, 4) is True
    assert tir.in_range(-1, 4) is False
    assert tir.all_of(None, True) is None
    assert tir.all_of(open_condition, False) is False
    assert tir.run_if(None, ["body"]) == tir.run_if(True, ["body"]) == ["body"]
    assert tir.run_if(False, ["body"]) == []
    assert tir.select(None, "value", "otherwise") == "value"
    assert tir.select(False, "value", "otherwise") == "otherwise"


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
