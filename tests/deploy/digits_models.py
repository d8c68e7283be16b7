"""Small networks of each family, trained on digits in seconds."""

from functools import cache

from nas.data import load_dataset
from nas.deploy.model import TrainedModel, preprocessing_of
from nas.graph import Graph
from nas.space import load_space
from nas.space.builder import Builder
from nas.supernet.recipe import Recipe
from nas.supernet.standalone import train_standalone

SETTINGS = Recipe(epochs=12, learning_rate=0.2)


def _mobilenet_v3() -> Graph:
    """Return a network with the blocks and the last stage of MobileNetV3."""
    build = Builder((1, 8, 8), norm=True, activation="hard_swish", classes=10)
    x = build.conv_unit(build.input, "stem", 16, kernel=3)
    y = build.depthwise_unit(build.conv_unit(x, "expand", 48), "depthwise", kernel=5)
    gate = build.activate(build.conv(build.global_pool(y), "reduce", 12, bias=True), "relu")
    gate = build.activate(build.conv(gate, "restore", 48, bias=True), "hard_sigmoid")
    x = build.add(x, build.conv_unit(build.multiply(y, gate), "project", 16, activate=False))
    x = build.global_pool(build.conv_unit(x, "last", 64, kernel=3, stride=2))
    build.linear(build.activate(build.linear(x, "hidden", 32)), "classes", 10)
    return build.graph()


def _squeezenet_without_norm() -> Graph:
    """Return a network of fire modules with a bypass, without batch norm as it was published."""
    build = Builder((1, 8, 8), norm=False, activation="relu", classes=10)
    x = build.conv_unit(build.input, "stem", 16, kernel=3)
    for number in (1, 2):
        squeezed = build.conv_unit(x, f"squeeze{number}", 8)
        small = build.conv_unit(squeezed, f"small{number}", 8)
        large = build.conv_unit(squeezed, f"large{number}", 8, kernel=3)
        x = build.add(build.concat(small, large), x)
    x = build.max_pool(x, "pool", kernel=3, stride=2)
    build.global_pool(build.conv(x, "classes", 10, bias=True))
    return build.graph()


def _largest(name: str) -> Graph:
    return load_space(name, image_size=8, channels=1).largest.graph


GRAPHS = {
    "mobilenet": lambda: _largest("mobilenet_tiny"),
    "mobilenet_v3": _mobilenet_v3,
    "shufflenet": lambda: _largest("shufflenet_tiny"),
    "squeezenet": lambda: _largest("squeezenet_tiny"),
    "squeezenet_without_norm": _squeezenet_without_norm,
}


@cache
def digits():
    """Return the digits, with half of the training images for validation."""
    return load_dataset("digits", validation_fraction=0.5)


@cache
def digits_model(name: str) -> TrainedModel:
    """Return a trained network of `GRAPHS`; its architecture is None."""
    network = train_standalone(GRAPHS[name](), digits(), SETTINGS, seed=0)
    return TrainedModel(None, network, preprocessing_of(digits()))
