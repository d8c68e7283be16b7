from __future__ import annotations

import pytest

from nas.latency.kernel import Kernel
from nas.latency.kinds import by_kind, kind_of


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
def test_convolutions_are_told_apart(text: str, kind: str) -> None:
    assert kind_of(Kernel.parse(text)) == kind


def test_items_by_kind() -> None:
    texts = ["linear 8x1x1 -> 10x1x1 bias", "copy 3x1x1 -> 3x1x1 relu", "copy 4x1x1 -> 4x1x1 relu"]
    assert by_kind(texts, Kernel.parse) == {"copy": texts[1:], "linear": texts[:1]}
