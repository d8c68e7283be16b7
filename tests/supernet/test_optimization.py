import math

import pytest
import torch

from nas.supernet.optimization import (
    GRADIENT_RATIO,
    adaptive_clip_grad,
    resized_image_size,
)


def test_adaptive_clip_grad_limits_each_gradient_by_its_tensor():
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 4, 3, 3), (10, 8), (8,), (8,)]
    parameters = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    parameters[3].data.zero_()  # The scale of a norm that starts at zero must be able to grow.
    parameters.append(torch.nn.Parameter(torch.randn(5)))  # No gradient: not in this subnet.
    scales = [1e-3, 100.0, 100.0, 100.0]
    for parameter, scale in zip(parameters, scales, strict=False):
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    before = [p.grad.clone() for p in parameters[:4]]
    clipped = adaptive_clip_grad(iter(parameters))
    assert clipped.share.item() == 3 / 4
    assert clipped.norm.item() == pytest.approx(
        math.sqrt(sum(g.square().sum().item() for g in before))
    )
    for parameter, gradient in zip(parameters[:4], before, strict=True):
        own = parameter.detach().norm().item()
        limit = GRADIENT_RATIO * (max(own, 1.0) if parameter.dim() == 1 else own)
        length = min(gradient.norm().item(), limit)
        torch.testing.assert_close(parameter.grad, gradient / gradient.norm() * length)
    assert parameters[4].grad is None


def test_first_steps_have_smaller_images():
    assert [resized_image_size(28, 2 / 3, step, 6) for step in range(6)] == [28, 14, 21, 21, 28, 28]
    assert [resized_image_size(8, 0.8, step, 5) for step in range(5)] == [8, 4, 6, 6, 8]
    assert [resized_image_size(28, 0.8, step, 1000) for step in (399.9, 400.0)] == [14, 21]
    assert [resized_image_size(28, 0.8, step, 1000) for step in (799.9, 800.0)] == [21, 28]
    assert {resized_image_size(28, 0.0, step, 6) for step in range(6)} == {28}
