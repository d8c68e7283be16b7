"""How a supernet is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from nas.data import ImageDataset
from nas.errors import DeviceError, RequestError

SUBNETS = ("sandwich", "best_up", "worst_up", "single", "fair")
"""Names of the ways to choose the networks of a step."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of `nas.supernet.train`; the defaults suit a few minutes to an hour of training.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step; every step trains several subnets on them.
        learning_rate: at its peak, after the warm-up; then it falls to zero as a cosine. The
            default ranked best; spaces of a few blocks reach more with 0.3. See docs/supernets.md.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of convolutions and linear layers; norms and biases have none.
        label_smoothing: of the largest network's targets; the others learn from its output. With
            any, supernets ranked worse; see docs/supernets.md.
        subnets: which networks a step trains: "sandwich", "best_up", "worst_up", "single" or
            "fair"; see `nas.supernet.subnets`.
        random_subnets: sampled anew each step, beside the largest and the smallest.
        distil: whether all but the largest learn from its output; else from the labels.
        progressive: share of the steps in which networks shrink from the largest one.
        average: share of itself that the moving average of the weights keeps in a step; it is what
            is saved. 0 saves the weights themselves.
        gradient_ratio: largest gradient of a weight tensor, as a ratio of the tensor's own norm;
            see `nas.supernet.recipe.clip_adaptively`.
        shift: largest shift of the random crop in pixels; None is an eighth of the image.
        flip: whether images are mirrored; None is whatever suits the data.
        colour: largest change of brightness, contrast and saturation, as a share.
        randaugment: operations on every training image; see
            `nas.data.augmentation.apply_randaugment`.
        magnitude: of these operations, as a share of their ranges.
        cutout: side of the square that every training image loses, as a share of its own.
        precision: "float32", "bfloat16", or "auto": bfloat16 on a GPU that has it.
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        checkpoint_seconds: between checkpoints.

    Raises RequestError for a value that makes no training.
    """

    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 0.1
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    subnets: str = "sandwich"
    random_subnets: int = 2
    distil: bool = True
    progressive: float = 0.0
    average: float = 0.0
    gradient_ratio: float = 0.05
    shift: int | None = None
    flip: bool | None = None
    colour: float = 0.0
    randaugment: int = 0
    magnitude: float = 0.3
    cutout: float = 0.0
    precision: str = "auto"
    device: str = "auto"
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        limits = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 2,
            "learning_rate": self.learning_rate > 0,
            "warmup": 0 <= self.warmup < 1,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "subnets": self.subnets in SUBNETS,
            "progressive": 0 <= self.progressive < 1,
            "average": 0 <= self.average < 1,
            "random_subnets": self.random_subnets >= 0,
            "gradient_ratio": self.gradient_ratio > 0,
            "shift": self.shift is None or self.shift >= 0,
            "colour": 0 <= self.colour < 1,
            "randaugment": self.randaugment >= 0,
            "magnitude": 0 <= self.magnitude <= 1,
            "cutout": 0 <= self.cutout < 1,
            "precision": self.precision in ("auto", "float32", "bfloat16"),
            "checkpoint_seconds": self.checkpoint_seconds >= 0,
        }
        for name, fits in limits.items():
            if not fits:
                raise RequestError(
                    f"Training setting {name} cannot be {getattr(self, name)!r}.",
                    remedy="See the description of TrainingSettings for what is allowed.",
                )

    def identity(self) -> dict[str, Any]:
        """What decides the result; training resumes only where it is equal."""
        record = asdict(self)
        for name in ("device", "checkpoint_seconds"):
            del record[name]
        return record

    def shift_for(self, data: ImageDataset) -> int:
        """Pixels."""
        return data.image_size // 8 if self.shift is None else self.shift

    def flip_for(self, data: ImageDataset) -> bool:
        """Whether images of `data` are mirrored."""
        return data.flip_preserves_class if self.flip is None else self.flip

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which the networks run."""
        enabled = self.precision == "bfloat16"
        if self.precision == "auto":
            enabled = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def device_called(name: str, index: int | None = None) -> torch.device:
    """The torch device of a setting; "auto" is a GPU if there is one.

    Args:
        name: the setting.
        index: which of the GPUs, where the setting does not say; by default the first one.

    Raises DeviceError for a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and index is not None:
        name = f"cuda:{index}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(
            f"Torch cannot use the device {name!r}: {str(error).splitlines()[0]}",
            remedy='Use "cpu", "cuda" or "auto".',
        ) from error
    return device
