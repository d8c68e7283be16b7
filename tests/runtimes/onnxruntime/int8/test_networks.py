"""Fusion rules against optimised models, for int8 networks that no space has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from nas.errors import MeasurementError
from nas.graph import Graph
from nas.latency import open_runtime
from nas.latency.runtime import Runtime
from nas.runtimes.onnxruntime.int8 import quantisation
from nas.runtimes.onnxruntime.int8.quantisation import calibration_images
from nas.space.builder import Builder


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime("onnxruntime", dtype="int8")


@pytest.fixture
def one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate with one image, because the kernels do not depend on the ranges."""
    monkeypatch.setattr(
        quantisation, "calibration_images", lambda shape: calibration_images(shape, count=1)
    )


def check(runtime: Runtime, graph: Graph, batch: int = 1) -> None:
    compiled = runtime.compile(graph, {}, batch=batch)
    assert Counter(compiled.launched) == Counter(runtime.kernels(graph, batch))


Block = Callable[[Builder], int]


def _consecutive_pools(build: Builder) -> int:
    x = build.conv_unit(build.input, "first", 16)
    return build.max_pool(build.avg_pool(x, "mean", kernel=3, stride=2), "most", kernel=3, stride=1)


def _shuffled_and_added(build: Builder) -> int:
    x = build.shuffle(build.conv_unit(build.input, "first", 16), 2)
    return build.add(x, build.conv_unit(x, "second", 16))


def _split_behind_a_convolution(build: Builder) -> int:
    untouched, x = build.split(build.conv_unit(build.input, "first", 16))
    return build.concat(untouched, build.conv_unit(x, "second", 8))


def _clipped_for_one_of_two_readers(build: Builder) -> int:
    x = build.conv_unit(build.input, "first", 16, activate=False)
    return build.add(x, build.conv_unit(build.activate(x, "relu6"), "second", 16))


def _hard_swish_of_a_sum(build: Builder) -> int:
    x = build.conv_unit(build.input, "first", 16)
    y = build.conv_unit(build.concat(x, build.conv_unit(x, "second", 16)), "third", 16)
    return build.conv_unit(build.activate(build.add(x, y), "hard_swish"), "fourth", 8)


@pytest.mark.usefixtures("one_image")
@pytest.mark.parametrize(
    "block",
    [
        _consecutive_pools,
        _shuffled_and_added,
        _split_behind_a_convolution,
        _clipped_for_one_of_two_readers,
        _hard_swish_of_a_sum,
    ],
)
@pytest.mark.parametrize("size", [8, 1])
@pytest.mark.parametrize("batch", [1, 2])
def test_fusion_rules_match_blocks_that_no_space_has(
    runtime: Runtime, block: Block, size: int, batch: int
) -> None:
    build = Builder((3, size, size), norm=True, activation="relu", classes=10)
    if size > 1 or "pool" not in block.__name__:
        build.linear(build.global_pool(block(build)), "linear", 7)
        check(runtime, build.graph(), batch)


def test_network_that_stays_partly_in_float32_is_refused(runtime: Runtime) -> None:
    build = Builder((3, 8, 8), norm=True, activation="relu", classes=10)
    x = build.conv_unit(build.input, "first", 16, activate="hard_swish")
    x = build.avg_pool(x, "pool", kernel=3, stride=2)
    build.conv_unit(x, "second", 8)
    with pytest.raises(
        MeasurementError, match="to which no kernel of a table corresponds"
    ) as caught:
        runtime.compile(build.graph(), {})
    assert caught.value.remedy
