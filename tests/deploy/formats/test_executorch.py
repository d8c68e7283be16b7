"""ExecuTorch programs against torch."""

from __future__ import annotations

import json

import pytest

from nas.deploy.formats import model_format
from nas.errors import ExportError
from tests.deploy.formats.models import (
    FAMILIES,
    assert_computes_the_same,
    digits_images,
    digits_model,
    write,
)

pytest.importorskip("executorch")


@pytest.mark.slow
@pytest.mark.parametrize("space", FAMILIES)
def test_program_computes_what_torch_computes(space, tmp_path):
    model = digits_model(space)
    executorch = model_format("executorch")
    loaded = executorch.load(write(executorch, model, tmp_path))
    assert_computes_the_same(loaded, model, digits_images(), executorch.tolerance)
    loaded.runner(digits_images()[:1])()
    assert list(loaded.versions) == ["executorch"]
    assert json.loads(loaded.text("preprocessing")) == json.loads(model.preprocessing.embedded)


@pytest.mark.slow
def test_layers_run_in_xnnpack(tmp_path):
    from executorch.exir._serialize._program import deserialize_pte_binary

    path = write(model_format("executorch"), digits_model("shufflenet_tiny"), tmp_path)
    program = deserialize_pte_binary(path.read_bytes()).program
    forward = next(plan for plan in program.execution_plan if plan.name == "forward")
    assert [delegate.id for delegate in forward.delegates] == ["XnnpackBackend"]
    assert not [operator.name for operator in forward.operators if "conv" in operator.name]


def test_damaged_program_is_refused(tmp_path):
    path = tmp_path / "model.pte"
    path.write_bytes(b"no program" * 100)
    with pytest.raises(ExportError, match="ExecuTorch refuses"):
        model_format("executorch").load(path)
