"""Our kernels of training ops against torch's in float64."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nas import torch_kernels
from nas.schedules.cpu import batch_norm as batch_norm_kernels
from nas.torch_kernels import ACTIVATIONS, batch_norm, depthwise_conv, pointwise_conv

EPS = 1e-5


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Run our kernels for maps of any size, on one thread."""
    monkeypatch.setattr(torch_kernels, "MIN_ELEMENTS", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape, seed=0):
    tensor = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor


OURS = ("_BatchNormBackward", "_DepthwiseConvBackward")


def is_ours(output):
    """Return whether our kernel computed a tensor, or what its activation read."""
    before = [node for node, _ in output.grad_fn.next_functions if node is not None]
    return output.grad_fn.name() in OURS or before[0].name() in OURS


def assert_near(actual, expected):
    """Compare with a float64 result, by the largest element of a tensor."""
    assert actual.dtype == torch.float32
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5 * scale)


@pytest.fixture
def leaky_relu(monkeypatch):
    """An activation that is new to torch's table, and unknown to our kernels."""
    monkeypatch.setitem(ACTIVATIONS, "leaky_relu", F.leaky_relu)


SHAPES = [(8, 16, 8), (3, 24, 5), (2, 96, 16), (5, 58, 7), (2, 124, 9), (1, 33, 3), (2, 288, 4)]
"""Images, channels and side of maps that the kernel divides in different ways."""


@pytest.mark.usefixtures("leaky_relu")
@pytest.mark.parametrize(
    ("shape", "activation"),
    [
        *((SHAPES[0], activation) for activation in (None, *ACTIVATIONS, "leaky_relu")),
        *((shape, "relu6") for shape in SHAPES[1:]),
    ],
)
def test_batch_norm_equals_torch(shape, activation):
    images, channels, side = shape
    # The mean of a channel is up to a thousand times its deviation.
    offset = torch.linspace(-300, 1000, channels)[:, None, None]
    x = (random(images, channels, side, side) + offset).requires_grad_()
    scale, shift = random(channels, seed=1).requires_grad_(), random(channels, seed=2)
    shift = (3 * shift).requires_grad_()
    mean, variance = torch.zeros(channels), torch.zeros(channels)
    output = batch_norm(x, mean, variance, scale, shift, 1.0, EPS, activation)
    assert is_ours(output)
    gradient = random(*output.shape, seed=3)
    output.backward(gradient)

    own = [each.detach().double().requires_grad_() for each in (x, scale, shift)]
    expected = F.batch_norm(own[0], None, None, *own[1:], True, 0.0, EPS)
    if activation:
        expected = ACTIVATIONS[activation](expected)
    expected.backward(gradient.double())
    pixels = own[0].detach()
    torch.testing.assert_close(mean.double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(variance.double(), pixels.var((0, 2, 3)), rtol=1e-4, atol=0)
    torch.testing.assert_close(output.double(), expected, rtol=1e-3, atol=1e-3)
    # Where rounding moves a value across a corner of the activation, its gradient is another one.
    near = x.grad.double() - own[0].grad
    assert (near.abs() > 1e-3 * own[0].grad.abs().max()).float().mean() < 1e-3
    for actual, wanted in ((scale, own[1]), (shift, own[2])):
        assert (actual.grad.double() - wanted.grad).abs().max() < 2e-3 * wanted.grad.abs().max()


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_torch_normalises_what_our_kernels_cannot(activation):
    x, ones, zeros = random(4, 6, 5, 5), torch.ones(6), torch.zeros(6)
    output = batch_norm(x.requires_grad_(), None, None, ones, zeros, 0.0, EPS, activation)
    assert not is_ours(output), "six channels are too few"
    expected = F.batch_norm(x, None, None, ones, zeros, True, 0.0, EPS)
    torch.testing.assert_close(
        output, ACTIVATIONS[activation](expected) if activation else expected
    )


def test_unknown_activation_is_an_error():
    x, ones = random(2, 16, 8, 8), torch.ones(16)
    with pytest.raises(KeyError, match="gelu"):
        batch_norm(x, None, None, ones, ones, 0.0, EPS, "gelu")
    with pytest.raises(KeyError, match="gelu"):
        batch_norm_kernels.forward(16, "gelu", EPS, 16)


def normalised(x):
    ones, zeros = torch.ones(x.shape[1]), torch.zeros(x.shape[1])
    return batch_norm(x, None, None, ones, zeros, 0.0, EPS)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_what_is_not_a_number_stays_so(activation):
    x, ones, zeros = random(2, 16, 8, 8), torch.ones(16), torch.zeros(16)
    x[1, 3, 4, 5] = math.nan
    output = batch_norm(x.requires_grad_(), None, None, ones, zeros, 0.0, EPS, activation)
    assert is_ours(output)
    output.sum().backward()
    for tensor in (output, x.grad):
        assert tensor[:, 3].isnan().all()
        assert not tensor[:, [0, 1, 2, 4]].isnan().any()


def test_running_statistics_are_those_of_torch():
    x, ones, zeros = random(4, 16, 8, 8).requires_grad_(), torch.ones(16), torch.zeros(16)
    own, expected = ([random(16, seed=1), random(16, seed=2).square()] for _ in range(2))
    for _ in range(3):
        assert is_ours(batch_norm(x, *own, ones, zeros, 0.1, EPS))
        F.batch_norm(x, *expected, ones, zeros, True, 0.1, EPS)
    torch.testing.assert_close(own, expected)


def test_threads_may_ask_for_a_new_kernel_at_once():
    x = random(2, 40, 3, 5).requires_grad_()
    ones, zeros = torch.ones(40), torch.zeros(40)

    def run(_):
        torch.set_num_threads(1)
        return batch_norm(x, None, None, ones, zeros, 0.0, 0.012345)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(run, range(8))
    assert is_ours(first)
    assert all(torch.equal(first, other) for other in others)


def test_ops_of_several_threads_and_other_layouts_are_torchs(monkeypatch):
    x = random(4, 16, 8, 8).requires_grad_()
    weight = random(16, 1, 5, 5).requires_grad_()
    planes = x.detach().contiguous().requires_grad_()
    for inputs in (x, planes):
        torch.set_num_threads(2 if inputs is x else 1)
        assert not is_ours(normalised(inputs))
        assert not is_ours(depthwise_conv(inputs, weight, 1, 2))
    torch.set_num_threads(1)
    assert is_ours(normalised(x))
    assert is_ours(depthwise_conv(x, weight, 1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_ours(normalised(x))
    monkeypatch.setattr(torch_kernels, "MIN_ELEMENTS", x.numel() + 1)
    assert not is_ours(normalised(x))


@pytest.mark.parametrize(
    ("images", "channels", "height", "width", "kernel", "stride"),
    [
        (9, 16, 8, 8, 5, 1), (2, 24, 5, 7, 5, 2), (1, 58, 4, 4, 7, 1), (3, 40, 3, 11, 7, 2),
        (17, 96, 2, 2, 5, 1),
    ],
)  # fmt: skip
def test_depthwise_gradients_equal_those_of_torch(images, channels, height, width, kernel, stride):
    x = random(images, channels, height, width).requires_grad_()
    weight = random(channels, 1, kernel, kernel, seed=1).requires_grad_()
    output = depthwise_conv(x, weight, stride, kernel // 2)
    assert is_ours(output)
    gradient = random(*output.shape, seed=2)
    output.backward(gradient)
    own = [each.detach().double().requires_grad_() for each in (x, weight)]
    expected = F.conv2d(*own, None, stride, kernel // 2, 1, channels)
    expected.backward(gradient.double())
    assert_near(output, expected)
    assert_near(x.grad, own[0].grad)
    assert_near(weight.grad, own[1].grad)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("images", "inputs", "outputs", "height", "width"),
    [(3, 5, 7, 4, 6), (3, 24, 40, 2, 3), (1, 16, 1, 1, 1)],
)
def test_pointwise_convolutions_equal_those_of_torch(
    images, inputs, outputs, height, width, has_bias
):
    leaves = [random(images, inputs, height, width), random(outputs, inputs, 1, 1, seed=1)]
    leaves += [random(outputs, seed=2)] * has_bias
    own, expected = ([each.double().requires_grad_() for each in leaves] for _ in range(2))
    x, weight, *bias = own
    result, reference = pointwise_conv(x, weight, *(bias or [None])), F.conv2d(*expected)
    torch.testing.assert_close(result, reference)
    gradient = random(*result.shape, seed=3).double()
    result.backward(gradient)
    reference.backward(gradient)
    for mine, torchs in zip(own, expected, strict=True):
        torch.testing.assert_close(mine.grad, torchs.grad)


def test_depthwise_convolution_of_images_has_no_gradient_of_them():
    weight = random(16, 1, 5, 5).requires_grad_()
    depthwise_conv(random(2, 16, 6, 6), weight, 1, 2).sum().backward()
    assert weight.grad is not None


def test_gradients_that_are_not_channels_last_are_taken():
    x = random(2, 16, 8, 8).requires_grad_()
    scale, shift = torch.ones(16, requires_grad=True), torch.zeros(16, requires_grad=True)
    weight = random(16, 1, 5, 5).requires_grad_()
    gradient = random(2, 16, 8, 8, seed=1)
    results = []
    for each in (gradient, gradient.contiguous()):
        for leaf in (x, scale, shift, weight):
            leaf.grad = None
        batch_norm(x, None, None, scale, shift, 0.0, EPS, "relu").backward(each)
        depthwise_conv(x, weight, 1, 2).backward(each)
        results.append([leaf.grad.clone() for leaf in (x, scale, shift, weight)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2)])
def test_depthwise_gradients_on_a_gpu_equal_those_of_torch(kernel, stride):
    """The function itself runs on any device; only a GPU needs it."""
    function = torch_kernels._DepthwiseConvWithoutCudnn
    x = torch.randn(2, 3, 7, 6, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 1, kernel, kernel, dtype=torch.double, requires_grad=True)
    ours = function.apply(x, weight, stride, kernel // 2)
    torch.testing.assert_close(ours, F.conv2d(x, weight, None, stride, kernel // 2, 1, 3))
    assert torch.backends.cudnn.enabled
    assert torch.autograd.gradcheck(
        lambda *inputs: function.apply(*inputs, stride, kernel // 2), (x, weight)
    )
