"""`Recipe`: how supernets and networks alone are trained.

It holds what a job sets or a benchmark varies. What nobody varies is a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from nas.errors import RequestError
from nas.space import SearchSpace

if TYPE_CHECKING:
    import torch

    from nas.data import ImageDataset

MOMENTUM = 0.9
"""Nesterov momentum."""

WARMUP = 0.1
"""Share of the steps in which the learning rate rises."""

GRADIENT_RATIO = 0.05
"""Largest norm of the gradient of a weight tensor, divided by the norm of the tensor."""

TEACHER_SHARE = 0.5
"""Share of a teacher's output in the loss; the labels have the rest."""

LEARNING_RATE_FLOOR = 0.05
"""Smallest learning rate of a supernet after the warm-up, as a fraction of the peak.

Supernets rank worse if it decays to zero, as that of networks that are trained standalone does.
"""

MAX_EPOCHS = 200
"""Most epochs that a training with a time budget does, if these are more than `MIN_MOST_STEPS`.
A recipe can ask for more."""

MIN_MOST_STEPS = 5000
"""Steps that a training with a time budget may do in any case. With a hundred photos, 200 epochs
are 400 steps, a minute of a job of hours."""

ROLLBACK_LEARNING_RATE_FACTOR = 0.5
"""Factor by which the learning rate falls each time that a training diverged."""

MAX_ROLLBACKS = 3
"""How often a training that diverges goes back to its last checkpoint.

The learning rate is then an eighth of what was asked for; a training that still diverges has
another cause.
"""

MIN_RESIZED_SIZE = 24
"""Image size in pixels from which progressive resizing is the default."""

MIN_RESIZED_MACS = 3_000_000
"""Multiply-accumulates of a space's largest network from which progressive resizing is the default.

Steps of smaller networks take much of their time for other things than pixels: smaller images then
allow 1.2 times as many steps instead of 1.6 times, and the supernet ranks no better.
"""

GPU_BATCH_SIZE = 256
"""Images of a step that a job chooses on a GPU.

A step of 64 images takes as long there: the host launches its kernels more slowly than they run.
"""


def most_steps(steps_per_epoch: float) -> int:
    """Return the most steps of a training whose length a time budget decides."""
    return max(MIN_MOST_STEPS, round(MAX_EPOCHS * steps_per_epoch))


def default_batch_size(device: torch.device) -> int:
    """Return the number of images of a step that suits a device."""
    return GPU_BATCH_SIZE if device.type == "cuda" else Recipe.batch_size


def scaled_learning_rate(batch_size: int) -> float:
    """Return the default peak of the learning rate for a batch size.

    It grows in proportion to the batch (Goyal et al. 2017, "Accurate, large minibatch SGD").
    """
    return Recipe.learning_rate * batch_size / Recipe.batch_size


WEIGHT_DECAY = 1e-4
"""Default weight decay of supernets, and of networks that start from weights of others.

Supernets rank worse with more.
"""

WEIGHT_DECAY_FROM_SCRATCH = 5e-4
"""Default weight decay of a network that is trained alone from newly drawn weights.

`python -m tests.benchmarks.recipes` compares it with other values.
"""

FINE_TUNING_RATE = 0.4
"""Learning rate of a training that starts from published weights, over that of another one.

With that of the others they are lost in the first steps.
"""

FULL_RATE_IMAGES = 500
"""Training images from which published weights may change as much as `FINE_TUNING_RATE` lets them.

With fewer, the rate is lower in proportion. After 40 epochs of 150 or 250 hand signs, networks were
2.5 to 4.1 points better than with a quarter of that rate, and with 220 cats and dogs 0.2 points.
Supernets have the same rate: the largest network of the hand signs had 92% with a quarter of it.
"""

MANY_IMAGES = 2000
"""Training images from which networks may be narrower than the published one."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Recipe:
    """How `nas.train` and `train_standalone` train.

    The defaults suit a training of a few minutes to an hour. docs/measurements.md compares other
    values by how well the supernet then ranks networks.

    Attributes:
        epochs: passes over the training images.
        seconds: time budget of a training, which takes the place of `epochs`. The number of steps
            is decided anew as the training goes; see `nas.supernet.schedule`.
        longest_seconds: time within which a training has to end. A training that is too slow for
            all its epochs does fewer steps. None for no limit.
        batch_size: images in a step, at least 2; every step trains several subnets on them.
        learning_rate: peak of the learning rate, reached after the warm-up and followed by a cosine
            decay. The default ranks best; small spaces get higher accuracies with 0.3.
        weight_decay: decay of the weights of convolutions and linear layers; biases and batch norms
            have none. None is `WEIGHT_DECAY_FROM_SCRATCH` for a network that is trained alone from
            newly drawn weights, and `WEIGHT_DECAY` otherwise.
        decays_depthwise: whether weights of depthwise convolutions decay, too; None is yes for
            supernets, and no for networks that are trained alone.
        label_smoothing: label smoothing of the largest subnet's loss, in [0, 1); the others learn
            from its output. The default is 0, because supernets ranked worse with 0.1.
        random_subnets: number of random subnets in a step, beside the largest and the smallest.
        progressive_resizing: share of the steps of a supernet's training, from the first, that have
            smaller images, in [0, 1); see `nas.supernet.optimization.resized_image_size`. None is
            2/3 for images of `MIN_RESIZED_SIZE` pixels and more and networks of up to
            `MIN_RESIZED_MACS` and more, and 0 otherwise.
        shift: largest shift of the random crop in pixels; None is an eighth of the image size.
        flip: whether images are mirrored at random; None is yes unless mirrored images of the data
            are known to be of no class. `nas.supernet.mirroring` finds that out.
        alternating: whether an image that may be mirrored is so in every other epoch, instead of at
            random; None is no for supernets, and yes for networks that are trained alone.
        colour: largest relative change of brightness, contrast and saturation, in [0, 1).
        precision: "float32", "bfloat16", or "auto": bfloat16 on a GPU that supports it.
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        checkpoint_seconds: seconds between checkpoints.

    Raises:
        RequestError: a value is outside its range.
    """

    epochs: float = Field(default=60, gt=0)
    seconds: float | None = Field(default=None, gt=0)
    longest_seconds: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float = Field(default=0.1, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    decays_depthwise: bool | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    random_subnets: int = Field(default=2, ge=0)
    progressive_resizing: float | None = Field(default=None, ge=0, lt=1)
    shift: int | None = Field(default=None, ge=0)
    flip: bool | None = None
    alternating: bool | None = None
    colour: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    checkpoint_seconds: float = Field(default=30.0, ge=0)

    @model_validator(mode="wrap")
    @classmethod
    def _in_words(cls, values: Any, check: Callable[[Any], Recipe]) -> Recipe:
        try:
            return check(values)
        except ValidationError as error:
            problem = error.errors()[0]
            raise RequestError(
                f"In a recipe, {problem['loc'][0]} cannot be {problem['input']!r}.",
                remedy="See nas.Recipe for the values that are allowed.",
            ) from None

    def identity(self, *, from_scratch: bool = False) -> dict[str, Any]:
        """Return the fields that decide the trained weights.

        Training resumes only from a checkpoint with equal ones. The device, the time between
        checkpoints and the longest duration are not among them.

        Args:
            from_scratch: whether a network is trained alone from newly drawn weights.
        """
        left_out = {"device", "checkpoint_seconds", "longest_seconds"}
        left_out.add("seconds" if self.seconds is None else "epochs")
        # None is what supernets, or networks, have by default.
        left_out |= {
            name for name in ("alternating", "decays_depthwise") if getattr(self, name) is None
        }
        record = {name: value for name, value in asdict(self).items() if name not in left_out}
        record["weight_decay"] = self.resolve_weight_decay(from_scratch=from_scratch)
        if float(self.epochs).is_integer() and self.seconds is None:
            record["epochs"] = int(self.epochs)
        return record

    def steps(self, steps_per_epoch: float) -> int:
        """Return the fewest steps, at least one, in which each image is used in all `epochs`.

        Args:
            steps_per_epoch: number of steps of a whole epoch, see `TrainingBatches`.
        """
        # The product of two rounded numbers may be a little above a whole one.
        return max(1, math.ceil(round(self.epochs * steps_per_epoch, 6)))

    def resolve_weight_decay(self, *, from_scratch: bool = False) -> float:
        """Return the weight decay.

        Args:
            from_scratch: whether a network is trained alone from newly drawn weights.
        """
        default = WEIGHT_DECAY_FROM_SCRATCH if from_scratch else WEIGHT_DECAY
        return default if self.weight_decay is None else self.weight_decay

    def resolve_shift(self, data: ImageDataset) -> int:
        """Return the largest shift of the random crop in pixels."""
        return data.image_size // 8 if self.shift is None else self.shift

    def resolve_flip(self, data: ImageDataset) -> bool:
        """Return whether training images are mirrored at random."""
        return data.flip_preserves_class is not False if self.flip is None else self.flip

    def resolve_progressive_resizing(self, space: SearchSpace) -> float:
        """Return the share of the steps that have smaller images."""
        if self.progressive_resizing is not None:
            return self.progressive_resizing
        is_large = space.image_size >= MIN_RESIZED_SIZE and space.largest.macs >= MIN_RESIZED_MACS
        return 2 / 3 if is_large else 0.0

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context manager in which networks compute with `precision`."""
        import torch  # Here, so that who reads settings does not wait for it.

        enabled = self.precision == "bfloat16"
        if self.precision == "auto":
            enabled = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
