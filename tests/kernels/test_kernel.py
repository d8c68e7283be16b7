from __future__ import annotations

import pytest

from nas.errors import KernelError
from nas.kernels.kernel import Kernel, batched, group_by_kind
from nas.kernels.kernel_text import Operand

TEXTS = [
    "conv2d 32x28x28 -> 192x28x28 k1 s1 p0 g1 bias relu6",
    "conv2d 116x14x14[58:116] -> 58x14x14 k1 s1 p0 g1 bias relu",
    "conv2d 192x28x28 -> 32x28x28 k1 s1 p0 g1 bias add",
    "conv2d 192x28x28 -> 32x28x28 k1 s1 p0 g1 bias add:64x28x28[0:32] relu",
    "conv2d 58x28x28 -> 58x14x14 k3 s2 p1 g58 bias",
    "concat 116x14x14[0:58] 58x14x14 -> 116x14x14 shuffle2",
    "max_pool 64x31x31 -> 64x16x16 k3 s2 p1 g1",
    "global_pool 576x7x7 -> 576x1x1",
    "linear 576x1x1 -> 10x1x1 bias",
    "copy 24x6x6 -> 24x6x6 shuffle3",
    "conv2d 240x7x7 -> 60x7x7 k1 s1 p0 g3 bias relu",
    "conv2d 3x224x224 -> 96x109x109 k7 s2 p0 g1 bias relu",
    "conv2d 72x1x1 -> 24x1x1 k1 s1 p0 g1 bias hard_swish",
    "conv2d 24x1x1 -> 72x1x1 k1 s1 p0 g1 bias hard_sigmoid",
    "copy 72x28x28 -> 72x28x28 multiply",
    "copy 72x28x28[0:36] -> 36x28x28 multiply:72x1x1[36:72] relu6 add:72x28x28[0:36]",
    "max_pool 96x110x110 -> 96x55x55 k3 s2 p0 g1",
    "avg_pool 240x28x28 -> 240x14x14 k3 s2 p1 g1",
    "conv2d 116x7x7[58:116] expanded bias relu -> 58x4x4 k3 s2 p1 g58 bias",
    "conv2d 9x6x6 expanded bias -> 18x6x6 k3 s1 p1 g18",
    "conv2d int8 40x7x7 -> 72x7x7 k1 s1 p0 g1 bias",
    "linear int8 576x1x1 -> 10x1x1 bias",
    "quantize int8 3x32x32 -> 3x32x32",
    "dequantize int8 10x1x1 -> 10x1x1",
    "copy batch4 24x6x6 -> 24x6x6 shuffle2",
    "concat batch16 116x14x14[0:58] 58x14x14 -> 116x14x14 shuffle2",
    "view batch32 int8 8x1x1 -> 8x1x1",
]


@pytest.mark.parametrize("text", TEXTS)
def test_parse_reads_canonical_texts(text: str) -> None:
    kernel = Kernel.parse(text)
    assert kernel.text == str(kernel) == text
    assert Kernel.parse(text) == kernel
    assert hash(Kernel.parse(text)) == hash(kernel)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "conv3d 3x8x8 -> 8x8x8 k1 s1 p0 g1",
        "conv2d 3x8x8 -> 8x8x8",
        "conv2d 3x8 -> 8x8x8 k1 s1 p0 g1",
        "conv2d -> 8x8x8 k1 s1 p0 g1",
        "conv2d 3x8x8 -> 8x8x8 k1 s1 p0 g1 gelu",
        "conv2d 3x8x8 -> 8x8x8 k1 s1 p0 g1 bias  relu",
        "conv2d 3x8x8[0:3] -> 8x8x8 k1 s1 p0 g1",
        "conv2d 3x8x8[2:5] -> 8x8x8 k1 s1 p0 g1",
        "copy 3x8x8 -> 3x8x8 add:what",
        "copy 3x8x8 -> 3x8x8 add:6x8x8[0:4]",
        "copy 3x8x8 -> 3x8x8 multiply:6x1x1[0:4]",
        "copy 3x8x8 -> 3x8x8 multiplying",
        "copy 3x8x8 -> 3x8x8 k1 s1 p0 g1",
        "conv2d 9x6x6 expanded relu -> 18x6x6 k3 s1 p1 g18",
        "conv2d 9x6x6 expanded bias add -> 18x6x6 k3 s1 p1 g18",
        "conv2d 9x6x6 expanded bias -> 18x6x6 k3 s1 p1 g1",
        "conv2d 9x6x6 9x6x6 expanded bias -> 18x6x6 k3 s1 p1 g18",
        "copy float32 3x8x8 -> 3x8x8",
        "copy int4 3x8x8 -> 3x8x8",
        "copy nhwc int8 3x8x8 -> 3x8x8",
        "copy batch1 3x8x8 -> 3x8x8",
        "copy batch0 3x8x8 -> 3x8x8",
        "copy batch4 -> 3x8x8",
        "copy int8 batch4 3x8x8 -> 3x8x8",
        "conv2d 3x8x8 -> 8x8x8 k1 s1 p0 g0",
        "conv2d 3x8x8 -> 8x8x8 k1 s0 p0 g1",
        "conv2d 3x8x8 -> 0x8x8 k1 s1 p0 g1",
        "conv2d batch999999999 3x8x8 -> 8x8x8 k1 s1 p0 g1",
        "conv2d 3x8x8 -> 8x8x8 k9999 s1 p4999 g1",
        "conv2d 5x8x8 -> 8x8x8 k1 s1 p0 g2",
        "conv2d 8x8x8 -> 5x8x8 k1 s1 p0 g2",
        "conv2d 3x8x8 3x8x8 -> 8x8x8 k1 s1 p0 g1",
        "conv2d 3x8x8 -> 8x9x8 k1 s1 p0 g1",
        "conv2d 3x2x2 -> 8x1x1 k3 s1 p0 g1",
        "max_pool 3x8x8 -> 4x4x4 k2 s2 p0 g1",
        "max_pool 3x8x8 -> 3x6x6 k2 s2 p0 g1",
        "max_pool 4x8x8 -> 4x4x4 k2 s2 p0 g4",
        "global_pool 3x8x8 -> 3x2x2",
        "global_pool 3x8x8 -> 4x1x1",
        "linear 3x8x8 -> 10x1x1 bias",
        "linear 8x1x1 -> 10x2x1 bias",
        "concat 3x8x8 4x8x8 -> 8x8x8",
        "concat 3x8x8 5x8x4 -> 8x8x8",
        "copy 3x8x8 -> 4x8x8",
        "copy 8x8x8 -> 8x8x8 shuffle3",
        "view 8x1x1 -> 9x1x1",
        "to_nhwc int8 nhwc 3x32x32 -> 3x32x31",
        "copy 3x8x8 -> 3x8x" + "8" * 5000,
    ],
)
def test_parse_refuses_other_texts_by_name(text: str) -> None:
    with pytest.raises(KernelError, match="is no kernel") as caught:
        Kernel.parse(text)
    assert repr(text)[1:25].rstrip("'") in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "weight_shape", "weight_bytes", "macs"),
    [
        (TEXTS[0], (192, 32, 1, 1), 4 * 192 * 32, 28 * 28 * 32 * 192),
        (TEXTS[1], (58, 58, 1, 1), 4 * 58 * 58, 14 * 14 * 58 * 58),
        (TEXTS[4], (58, 1, 3, 3), 4 * 58 * 9, 14 * 14 * 58 * 9),
        ("linear 576x1x1 -> 10x1x1 bias", (10, 576), 4 * 5760, 5760),
        ("linear int8 576x1x1 -> 10x1x1 bias", (10, 576), 5760, 5760),
        (TEXTS[10], (60, 80, 1, 1), 4 * 60 * 80, 7 * 7 * 60 * 80),
        (TEXTS[11], (96, 3, 7, 7), 4 * 96 * 3 * 49, 109 * 109 * 96 * 3 * 49),
        (
            "conv2d 116x8x8[58:116] expanded bias relu -> 60x4x4 k3 s2 p1 g60 bias",
            (60, 1, 3, 3),
            4 * (60 * 9 + 60 * 58),
            60 * 4 * 4 * 9 + 60 * 58 * 8 * 8,
        ),
    ],
)
def test_weights_and_macs_match_hand_computed_values(
    text: str, weight_shape: tuple[int, ...], weight_bytes: int, macs: int
) -> None:
    kernel = Kernel.parse(text)
    sizes = kernel.weight_shape, kernel.weight_bytes, kernel.macs
    assert sizes == (weight_shape, weight_bytes, macs)


def test_kernels_without_weights_have_no_macs() -> None:
    for text in ("max_pool 64x31x31 -> 64x16x16 k3 s2 p1 g1", "copy 72x28x28 -> 72x28x28 multiply"):
        assert Kernel.parse(text).weight_bytes == Kernel.parse(text).macs == 0


def test_text_names_batch_only_above_1() -> None:
    one = Kernel.parse("conv2d int8 40x7x7 -> 72x7x7 k1 s1 p0 g1 bias")
    (four,) = batched([one], 4)
    assert four.text == "conv2d batch4 int8 40x7x7 -> 72x7x7 k1 s1 p0 g1 bias"
    assert four != one
    assert four == Kernel.parse(four.text)
    assert batched([four], 1) == [four], "1 leaves kernels as they are"
    assert batched([one], 4)[0] is four, "one object each"


def test_batch_multiplies_work_and_elements_but_not_weights() -> None:
    for text in TEXTS:
        one = Kernel.parse(text)
        if one.batch == 1:
            (three,) = batched([one], 3)
            assert three.macs == 3 * one.macs
            assert three.elements(three.output) == 3 * one.elements(one.output)
            assert three.weight_bytes == one.weight_bytes
            assert three.operands == one.operands
    assert Kernel.parse("linear batch5 8x1x1 -> 3x1x1 bias").macs == 5 * 8 * 3
    assert Kernel.parse("copy batch5 8x2x3 -> 8x2x3 relu").elements((8, 2, 3)) == 240


def test_operands_are_inputs_then_epilogue_operands() -> None:
    kernel = Kernel.parse(TEXTS[3])
    assert kernel.operands == (
        Operand((192, 28, 28), 0, 192),
        Operand((64, 28, 28), 0, 32),
    )
    assert Kernel.parse(TEXTS[2]).epilogue_operands == (Operand.whole((32, 28, 28)),)
    gated = Kernel.parse("copy 8x4x4 -> 8x4x4 multiply relu multiply:24x1x1[8:16] add hard_swish")
    assert gated.epilogue_operands == (
        Operand.whole((8, 1, 1)),
        Operand((24, 1, 1), 8, 16),
        Operand.whole((8, 4, 4)),
    )


def test_depthwise_has_one_group_per_channel() -> None:
    assert [Kernel.parse(text).is_depthwise for text in TEXTS].count(True) == 3
    assert Kernel.parse(TEXTS[4]).is_depthwise
    assert not Kernel.parse("conv2d 1x8x8 -> 4x8x8 k3 s1 p1 g1").is_depthwise
    assert not Kernel.parse("conv2d 8x8x8 -> 32x8x8 k1 s1 p0 g8").is_depthwise


def test_depthwise_and_pooling_are_channelwise() -> None:
    kinds = {text.split(" ")[0] for text in TEXTS if Kernel.parse(text).is_channelwise}
    assert kinds == {"conv2d", "max_pool", "avg_pool"}
    assert [Kernel.parse(text).is_channelwise for text in TEXTS].count(True) == 6


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("conv2d 8x4x4 -> 16x4x4 k1 s1 p0 g1 bias relu", "pointwise"),
        ("conv2d 8x4x4 -> 8x4x4 k3 s1 p1 g8 bias", "depthwise 3x3"),
        ("conv2d 8x4x4 expanded bias -> 9x4x4 k3 s1 p1 g9 bias", "expanded depthwise 3x3"),
        ("conv2d 8x4x4 -> 16x4x4 k5 s1 p2 g1 bias", "conv 5x5"),
        ("conv2d 8x4x4 -> 16x4x4 k1 s1 p0 g4 bias", "grouped 1x1"),
        ("conv2d 1x4x4 -> 1x4x4 k3 s1 p1 g1 bias", "conv 3x3"),
        ("max_pool 8x4x4 -> 8x2x2 k3 s2 p1 g1", "max_pool"),
        ("linear 8x1x1 -> 10x1x1 bias", "linear"),
        ("linear batch4 8x1x1 -> 10x1x1 bias", "linear batch4"),
        ("conv2d batch2 8x4x4 -> 16x4x4 k1 s1 p0 g1 bias", "pointwise batch2"),
    ],
)
def test_detailed_kind_tells_convolutions_apart(text: str, kind: str) -> None:
    assert Kernel.parse(text).detailed_kind == kind


def test_group_by_kind_sorts_groups_by_name() -> None:
    texts = ["linear 8x1x1 -> 10x1x1 bias", "copy 3x1x1 -> 3x1x1 relu", "copy 4x1x1 -> 4x1x1 relu"]
    assert group_by_kind(texts, Kernel.parse) == {"copy": texts[1:], "linear": texts[:1]}
