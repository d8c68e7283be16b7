from __future__ import annotations

import pytest

from nas.errors import KernelError
from nas.kernels.kernel import Kernel

CONV = (
    "node com.microsoft.nchwc.Conv f32[2,16,14,14] f32*[48,16,3,3] f32*[48] f32[2,48,7,7] -> "
    'f32[2,48,7,7] activation="Relu" activation_params=[0.0,6.0] group=1 kernel_shape=[3,3] '
    "pads=[1,1,1,1] strides=[2,2]"
)
TEXTS = [
    CONV,
    "node Add f32[1,8] f32[1,8] -> f32[1,8]",
    "node Split f32[1,8,4,4] i64[2]=4,4 -> f32[1,4,4,4] f32[1,4,4,4] axis=1",
    "node Clip f32[1,8] f32*[] - -> f32[1,8]",
    'node Cast u8[] -> f32[] name="a\\u0020b" to=1',
]


@pytest.mark.parametrize("text", TEXTS)
def test_parse_reads_canonical_texts(text: str) -> None:
    kernel = Kernel.parse(text)
    assert kernel.text == str(kernel) == text
    assert kernel.node
    assert kernel.node.text == text


@pytest.mark.parametrize(
    "text",
    [
        "node ",
        "node Add f32[1,8]",
        "node Add f32[1,8] ->",
        "node Add f32[1,8] -> ",
        "node Add f33[1,8] -> f32[1,8]",
        "node Add f32[1,0] -> f32[1,8]",
        "node Add f32[1,8 -> f32[1,8]",
        "node Add f32[9999999999] -> f32[1,8]",
        "node Add f32[1,8]  f32[1,8] -> f32[1,8]",
        "node Add f32[1,8] -> f32[1,8] b=1 a=2",
        "node Add f32[1,8] -> f32[1,8] a=NaN",
        "node Add f32[1,8] -> f32[1,8] a=[[1]]",
        "node Add f32[1,8] -> f32[1,8] a={}",
        "node Split f32[1,8] i64[2]=4 -> f32[1,4]",
        "node Split f32[1,8] i64*[2]=4,4 -> f32[1,4]",
        "node  f32[1,8] -> f32[1,8]",
        "node \n f32[1,8] -> f32[1,8]",
        "node Add " + "f32[1,8] " * 10_000 + "-> f32[1,8]",
        "node Conv f32[1,8,4,4] f32*[8,8,1,1] -> f32[1,8,4,4] group=0",
        "node MaxPool f32[1,8,4,4] -> f32[1,8,4,4] kernel_shape=[0,0]",
        "node MaxPool f32[1,8,4,4] -> f32[1,8,4,4] kernel_shape=[9999999,3]",
        "node MaxPool f32[1,8,4,4] -> f32[1,8,4,4] pads=[-1,-1,0,0]",
    ],
)
def test_parse_refuses_what_is_not_canonical(text: str) -> None:
    with pytest.raises(KernelError, match="is no kernel"):
        Kernel.parse(text)


def test_a_convolution_is_described() -> None:
    kernel = Kernel.parse(CONV)
    assert (kernel.detailed_kind, kernel.batch) == ("conv 3x3 batch2", 2)
    assert (kernel.inputs[0].shape, kernel.output) == ((16, 14, 14), (48, 7, 7))
    assert kernel.epilogue == ("relu", "add")
    assert kernel.macs == 2 * 48 * 7 * 7 * 16 * 9
    assert kernel.weight_bytes == 4 * (48 * 16 * 9 + 48)


@pytest.mark.parametrize(
    ("text", "kind", "macs", "weight_bytes"),
    [
        ("node Gemm f32[4,64] f32*[10,64] f32*[10] -> f32[4,10] transB=1",
         "linear batch4", 4 * 640, 2600),
        ("node Gemm f32[4,64] f32*[64,10] f32*[10] -> f32[4,10]", "linear batch4", 4 * 640, 2600),
        ("node com.microsoft.FusedConv f32[1,8,4,4] f32*[8,1,5,5] -> f32[1,8,4,4] group=8 "
         "kernel_shape=[5,5]", "depthwise 5x5", 8 * 16 * 25, 800),
        ("node com.microsoft.QLinearConv u8[1,5,5,8] f32*[] u8*[] i8*[4,8,1,1] f32*[4] i8*[4] "
         "f32*[] u8*[] i32*[4] -> u8[1,5,5,4] channels_last=1", "pointwise", 4 * 8 * 25, 78),
        ("node com.microsoft.nchwc.ReorderInput f32[1,32,4,4] -> f32[1,32,4,4]", "layout", 0, 0),
        ("node com.microsoft.QLinearGlobalAveragePool u8[1,8,4,4] f32*[] u8*[] f32*[] u8*[] -> "
         "u8[1,8,1,1]", "global_pool", 0, 10),
        ("node com.microsoft.NhwcMaxPool u8[1,4,4,8] -> u8[1,2,2,8]", "max_pool", 0, 0),
        ("node HardSigmoid f32[1,8] -> f32[1,8] alpha=0.2", "hard_sigmoid", 0, 0),
    ],
)  # fmt: skip
def test_kind_and_size(text: str, kind: str, macs: int, weight_bytes: int) -> None:
    kernel = Kernel.parse(text)
    assert (kernel.detailed_kind, kernel.macs, kernel.weight_bytes) == (kind, macs, weight_bytes)
