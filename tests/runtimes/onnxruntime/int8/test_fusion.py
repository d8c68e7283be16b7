from __future__ import annotations

from nas.runtimes.onnxruntime.int8.fusion import QuantisedFusion
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from tests.latency.example_graphs import GRAPHS

FUSION = QuantisedFusion()

HIDDEN_CLASSIFIER = [
    "quantize int8 10x5x5 -> 10x5x5",
    "to_nhwc int8 nhwc 10x5x5 -> 10x5x5",
    "conv2d int8 nhwc 10x5x5 -> 70x5x5 k1 s1 p0 g1 bias",
    # Nothing behind the hard swish needs channels last, so the conversion comes before it.
    "to_plain int8 nhwc 70x5x5 -> 70x5x5",
    "copy int8 70x5x5 -> 70x5x5 hard_swish",
    "global_pool int8 70x5x5 -> 70x1x1",
    "view int8 70x1x1 -> 70x1x1",
    "linear int8 70x1x1 -> 33x1x1 bias",
    "copy int8 33x1x1 -> 33x1x1 hard_swish",
    "linear int8 33x1x1 -> 11x1x1 bias",
    "dequantize int8 11x1x1 -> 11x1x1",
]


def test_kernels_of_a_classifier() -> None:
    kernels = FUSION.kernels(GRAPHS["hidden_classifier"]())
    assert [kernel.text for kernel in kernels] == HIDDEN_CLASSIFIER


def test_block_kernels_cover_all_surroundings() -> None:
    block = GRAPHS["hidden_classifier"]()
    kernels = {kernel.text for kernel in FUSION.block_kernels(block)}
    assert set(HIDDEN_CLASSIFIER) - kernels == {"quantize int8 10x5x5 -> 10x5x5"}
    first = {kernel.text for kernel in FUSION.block_kernels(block, first=True)}
    assert first - kernels == {"quantize int8 10x5x5 -> 10x5x5"}
    unit = {kernel.text for kernel in FUSION.block_kernels(GRAPHS["shuffle_unit"]())}
    assert unit >= {
        "split int8 116x7x7[0:58] 116x7x7[58:116] -> 116x7x7",
        "split int8 nhwc 116x7x7[0:58] 116x7x7[58:116] -> 116x7x7",
    }


def test_weights_have_a_quarter_of_the_float32_size() -> None:
    graph = GRAPHS["classifier"]()
    floats = OnnxRuntime().kernels(graph)
    assert sum(kernel.weight_bytes for kernel in floats) == 4 * sum(
        kernel.weight_bytes for kernel in FUSION.kernels(graph)
    )
