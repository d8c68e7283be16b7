"""The structure of Core ML packages, which run on macOS only."""

from __future__ import annotations

import json
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from nas.deploy.formats import model_format
from nas.errors import ExportError
from nas.graph import Graph, Op
from nas.run.model_card import Preprocessing
from tests.deploy.formats.models import (
    FAMILIES,
    assert_computes_the_same,
    digits_images,
    digits_model,
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


@pytest.mark.parametrize("space", FAMILIES)
def test_package_has_the_ops_of_the_network(space, tmp_path):
    model = digits_model(space)
    coreml = model_format("coreml")
    loaded = coreml.load(write(coreml, model, tmp_path))
    ops = model.graph.ops
    expected = Counter(
        name
        for op in ops[1:]
        for name in OPS[op.kind]
        # coremltools turns a concatenation with a shuffle behind it into one that interleaves.
        if not (op.kind == "shuffle" and ops[op.inputs[0]].kind == "concat")
    )
    expected["reshape"] += 1  # the logits
    assert Counter(loaded.ops) == expected


def test_package_has_the_weights_and_shapes_of_the_network(tmp_path):
    model = digits_model("mobilenet_v3_small")
    path = write(model_format("coreml"), model, tmp_path)
    package = coremltools.models.MLModel(str(path), skip_model_load=True)
    (image,), (logits,) = (
        package.get_spec().description.input,
        package.get_spec().description.output,
    )
    assert (image.name, list(image.type.multiArrayType.shape)) == ("image", [1, 1, 8, 8])
    assert (logits.name, list(logits.type.multiArrayType.shape)) == ("logits", [1, 10])
    assert json.loads(package.user_defined_metadata["preprocessing"]) == json.loads(
        model.preprocessing.embedded
    )
    weights = (path / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()
    for name in ("stem", "head.linear"):
        assert np.ascontiguousarray(model.weights[name]).tobytes() in weights


@pytest.mark.skipif(on_a_mac, reason="Core ML runs here")
def test_package_does_not_run_here(tmp_path):
    coreml = model_format("coreml")
    assert not coreml.runs_here
    loaded = coreml.load(write(coreml, digits_model("squeezenet_tiny"), tmp_path))
    with pytest.raises(ExportError, match="macOS only"):
        loaded.logits(digits_images(1))


@pytest.mark.skipif(not on_a_mac, reason="needs macOS")
@pytest.mark.parametrize("space", FAMILIES)
def test_package_computes_what_torch_computes(space, tmp_path):
    model = digits_model(space)
    coreml = model_format("coreml")
    loaded = coreml.load(write(coreml, model, tmp_path))
    assert_computes_the_same(loaded, model, digits_images(), coreml.tolerance)


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


def test_package_of_another_network_is_refused(tmp_path):
    coreml = model_format("coreml")
    model = digits_model("squeezenet_tiny")
    path = write(coreml, model, tmp_path)
    package = coremltools.models.MLModel(str(path), skip_model_load=True)
    preprocessing = model.preprocessing.model_copy(update={"image_size": 9})
    package.user_defined_metadata["preprocessing"] = preprocessing.embedded
    other = tmp_path / "other.mlpackage"
    package.save(str(other))
    with pytest.raises(ExportError, match="its preprocessing says"):
        coreml.load(other)


def test_damaged_package_is_refused(tmp_path):
    coreml = model_format("coreml")
    path = write(coreml, digits_model("squeezenet_tiny"), tmp_path)
    (path / "Manifest.json").write_text("{}")
    with pytest.raises(ExportError, match="coremltools refuses"):
        coreml.load(path)
