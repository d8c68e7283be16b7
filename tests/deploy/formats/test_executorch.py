"""ExecuTorch programs: what runs in XNNPACK. `test_formats` compares them with torch."""

from __future__ import annotations

import pytest

from nas.deploy.formats import model_format
from tests.deploy.formats.models import every_op_model, write

pytest.importorskip("executorch")


@pytest.mark.slow
def test_layers_run_in_xnnpack(tmp_path):
    from executorch.exir._serialize._program import deserialize_pte_binary

    path = write(model_format("executorch"), every_op_model(), tmp_path)
    program = deserialize_pte_binary(path.read_bytes()).program
    forward = next(plan for plan in program.execution_plan if plan.name == "forward")
    assert {delegate.id for delegate in forward.delegates} == {"XnnpackBackend"}
    assert not [operator.name for operator in forward.operators if "conv" in operator.name]
