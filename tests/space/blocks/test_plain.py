import pytest


@pytest.mark.parametrize(
    ("stride", "padding", "size"), [(1, "same", 9), (2, "same", 5), (2, "valid", 4)]
)
def test_convolution_pads_as_it_is_told(place, stride, padding, size):
    graph = place("conv", (3, 9, 9), width=8, stride=stride, kernel=3, padding=padding)
    assert graph.output_shape == (8, size, size)
    assert graph.params == 3 * 8 * 9 + 2 * 8
    assert graph.macs == 3 * 8 * 9 * size * size
    assert [op.kind for op in graph.ops] == ["input", "conv", "norm", "relu"]


def test_padding_is_same_where_the_stride_is_dropped(place):
    """Small images drop strides; a map that is not to shrink keeps its border."""
    graph = place("conv", (3, 9, 9), width=8, stride=1, kernel=7, padding="valid")
    assert graph.output_shape == (8, 9, 9)


# 3x3 windows at stride 2 over n pixels: ceil(n / 2), and ceil((n - 3) / 2) + 1 without padding.
@pytest.mark.parametrize(
    ("padding", "size", "pooled"),
    [("same", 9, 5), ("same", 8, 4), ("valid", 9, 4), ("valid", 8, 4), ("valid", 111, 55)],
)
def test_pooling_has_the_output_size_of_its_padding(place, padding, size, pooled):
    graph = place("max_pool", (4, size, size), stride=2, kernel=3, padding=padding)
    assert graph.output_shape == (4, pooled, pooled)
    assert graph.params == graph.macs == 0


def test_pooling_without_stride_adds_nothing(place):
    assert len(place("max_pool", (4, 9, 9), stride=1, kernel=3, padding="valid").ops) == 1


def test_heads_end_with_the_classes(place):
    graph = place("pool_classifier", (4, 5, 5), width=16)
    assert graph.output_shape == (10, 1, 1)
    assert graph.params == 4 * 16 + 2 * 16 + 16 * 10 + 10
    assert graph.macs == 4 * 16 * 25 + 16 * 10
    graph = place("linear_classifier", (4, 5, 5))
    assert (graph.params, graph.macs) == (4 * 10 + 10, 4 * 10)
    graph = place("conv_classifier", (4, 5, 5))
    assert (graph.params, graph.macs) == (4 * 10 + 10, 4 * 10 * 25)
