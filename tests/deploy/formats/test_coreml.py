"""The structure of Core ML packages, which run on macOS only."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nas.deploy.formats import model_format
from nas.errors import ExportError
from nas.graph import Graph, Op
from nas.run.model_card import Preprocessing
from tests.deploy.formats.models import (
    assert_computes_the_same,
    digits_images,
    every_op_model,
    write,
)

coremltools = pytest.importorskip("coremltools")

on_a_mac = sys.platform == "darwin"

OPS = {
    "conv": ["conv"],
    "linear": ["linear"],
    "relu": ["relu"],
    "relu6": ["clip"],
    "hard_sigmoid": ["sigmoid_hard"],
    "hard_swish": ["thresholded_relu", "sigmoid_hard", "mul"],
    "add": ["add"],
    "multiply": ["mul"],
    "concat": ["concat"],
    "slice": ["slice_by_index"],
    "shuffle": ["reshape", "transpose", "reshape"],
    "max_pool": ["max_pool"],
    "avg_pool": ["avg_pool"],
    "global_pool": ["reduce_mean"],
}
"""Core ML's ops for each kind of op."""


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Return the package of a network with an op of each kind."""
    return write(model_format("coreml"), every_op_model(), tmp_path_factory.mktemp("model"))


def spec(path: Path) -> Any:
    return coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()


def test_package_has_the_ops_of_the_network(path):
    (function,) = spec(path).mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    written = Counter(op.type for op in block.operations if op.type != "const")
    ops = every_op_model().graph.ops
    expected = Counter(
        name
        for op in ops[1:]
        for name in OPS[op.kind]
        # coremltools turns a concatenation with a shuffle behind it into one that interleaves.
        if not (op.kind == "shuffle" and ops[op.inputs[0]].kind == "concat")
    )
    expected["reshape"] += 1  # the logits
    assert written == expected


def test_package_has_the_weights_and_shapes_of_the_network(path):
    model, description = every_op_model(), spec(path).description
    (image,), (logits,) = description.input, description.output
    assert (image.name, list(image.type.multiArrayType.shape)) == ("image", [1, 1, 8, 8])
    assert (logits.name, list(logits.type.multiArrayType.shape)) == ("logits", [1, 10])
    metadata = description.metadata.userDefined
    assert json.loads(metadata["preprocessing"]) == json.loads(model.preprocessing.embedded)
    weights = (path / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()
    for name in ("stem", "classes"):
        assert np.ascontiguousarray(model.weights[name]).tobytes() in weights


@pytest.mark.skipif(on_a_mac, reason="Core ML runs here")
def test_package_does_not_run_here(path):
    coreml = model_format("coreml")
    assert not coreml.runs_here
    loaded = coreml.open(path)
    with pytest.raises(ExportError, match="macOS only"):
        loaded.logits(digits_images(1))


@pytest.mark.skipif(not on_a_mac, reason="needs macOS")
def test_package_computes_what_torch_computes(path):
    coreml = model_format("coreml")
    loaded = coreml.open(path)
    assert_computes_the_same(loaded, every_op_model(), digits_images(), coreml.tolerance)


@pytest.mark.parametrize(
    "op",
    [
        Op("avg_pool", (0,), (1, 4, 4), kernel=3, stride=2, padding=1),
        Op("spectral", (0,), (1, 6, 6)),
    ],
    ids=lambda op: op.kind,
)
def test_op_without_counterpart_is_named(op, tmp_path):
    graph = Graph((Op("input", (), (1, 6, 6)), op))
    model = SimpleNamespace(graph=graph, weights={}, preprocessing=Preprocessing.model_construct())
    with pytest.raises(ExportError, match=f"has no counterpart of op '{op.kind}'"):
        model_format("coreml").write(model, None, tmp_path)


def test_package_of_another_network_is_refused(path, tmp_path):
    package = coremltools.models.MLModel(str(path), skip_model_load=True)
    preprocessing = every_op_model().preprocessing.model_copy(update={"image_size": 9})
    package.user_defined_metadata["preprocessing"] = preprocessing.embedded
    other = tmp_path / "other.mlpackage"
    package.save(str(other))
    with pytest.raises(ExportError, match="its preprocessing says"):
        model_format("coreml").open(other)
