"""Published networks against torchvision's and timm's own: parameters, order and outputs.

Neither is a dependency: `.ci/run` installs them in a folder of their own and sets
NAS_REQUIRE_TORCHVISION, which turns a missing one from a skip into an error.
"""

import os
import sys
from types import ModuleType

import pytest
import torch

from nas.space import load_definition, space_names
from nas.torch_network import NORM_EPS, Network

# torchvision's wheel is built for CUDA. Beside a torch without it the compiled operators do not
# load, which its models can do without, but one module describes them and fails: so an empty one.
sys.modules.setdefault(
    "torchvision._meta_registrations", ModuleType("torchvision._meta_registrations")
)
try:
    from timm.models import efficientnet
    from torchvision import models
except ImportError as error:
    if os.environ.get("NAS_REQUIRE_TORCHVISION") == "1":
        raise
    pytest.skip(f"torchvision and timm are not installed ({error})", allow_module_level=True)


def timm_mobilenet(version, multiplier):
    make = getattr(efficientnet, f"_gen_mobilenet_v{version}")
    return make(f"mobilenetv{version}_100", multiplier)


OTHERS = {
    "mobilenet_v3_large": models.mobilenet_v3_large,
    "mobilenet_v3_small": models.mobilenet_v3_small,
    "shufflenet_v2_0.5": models.shufflenet_v2_x0_5,
    "shufflenet_v2_1.0": models.shufflenet_v2_x1_0,
    "shufflenet_v2_1.5": models.shufflenet_v2_x1_5,
    "shufflenet_v2_2.0": models.shufflenet_v2_x2_0,
    "squeezenet_1.0": models.squeezenet1_0,
    "squeezenet_1.1": models.squeezenet1_1,
}
for m in (0.25, 0.5, 0.75, 1.0):
    OTHERS[f"mobilenet_v1_{m}"] = lambda m=m: timm_mobilenet(1, m)
for number in range(5):
    OTHERS[f"efficientnet_lite{number}"] = getattr(efficientnet, f"efficientnet_lite{number}")
for m in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4):
    OTHERS[f"mobilenet_v2_{m}"] = lambda m=m: models.mobilenet_v2(width_mult=m)


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_parameters_in_the_same_order_compute_the_same(name):
    ours, theirs = network(name), OTHERS[name]().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = NORM_EPS
    if name.startswith("squeezenet"):
        # The ReLU behind the last convolution, which the space leaves out.
        theirs.classifier[2] = torch.nn.Identity()

    own = [*ours.parameters(), *ours.buffers()]
    counted = [t for key, t in theirs.named_buffers() if not key.endswith("num_batches_tracked")]
    other = [*theirs.parameters(), *counted]
    assert [tuple(t.shape) for t in own] == [tuple(t.shape) for t in other]

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for mine, its in zip(own, other, strict=True):
            if mine.dim() == 1:
                mine.copy_(torch.rand(mine.shape, generator=generator) + 0.5)
            its.copy_(mine)
        x = torch.randn(2, *ours.graph.input_shape, generator=generator)
        logits, expected = ours(x), theirs(x)
    # The two images' difference: what they have in common could hide a block that does nothing.
    for a, b in [(logits, expected), (logits.diff(dim=0), expected.diff(dim=0))]:
        scale = b.std()
        torch.testing.assert_close(a / scale, b / scale, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("multiplier", [0.35, 0.5, 0.75, 1.0, 1.4])
def test_timm_has_the_same_mobilenet_v2(multiplier):
    theirs = timm_mobilenet(2, multiplier)
    own = [tuple(p.shape) for p in network(f"mobilenet_v2_{multiplier}").parameters()]
    assert own == [tuple(p.shape) for p in theirs.parameters()]


def network(name):
    for space in map(load_definition, space_names()):
        if any(reference.name == name for reference in space.references):
            graph = space.published(name).graph
            return Network(graph, torch.Generator().manual_seed(0)).eval()
    raise KeyError(name)
