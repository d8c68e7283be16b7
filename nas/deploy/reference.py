"""`reference.json`: what a model sees and answers on images like those of its training.

`nas drift` compares the log of a deployed model with it. It has no images.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from nas.data import Images
from nas.deploy.confidence import largest_probabilities
from nas.deploy.model import TrainedModel
from nas.deploy.script_log import FIGURES, image_figures
from nas.deploy.verify import sample_images
from nas.errors import CheckpointError
from nas.files.documents import Count, Digest, Document, Format, Fraction

REFERENCE_FILE = "reference.json"

MAX_IMAGES = 2000
"""Most images of a reference: as many as a device sees in some days."""

Values = Annotated[tuple[Fraction, ...], Field(min_length=1, max_length=MAX_IMAGES)]


class FieldReference(Document):
    """What a model sees and answers on images that it did not learn.

    They are those that judged it. A model that was refitted has learned these, and answers surer
    than the weights that were judged: its reference is of test images.

    Attributes:
        weights_digest: digest of the weights.
        accuracy: share of right answers to these images, by whatever metric the model is judged:
            the mean of confidences estimates no other one.
        predicted: number of images that got each class.
        confidence, brightness, contrast, sharpness: of each image, see
            `nas.deploy.script_log.image_figures`; each sorted by itself.
    """

    schema_version: Literal[2] = Field(default=2, alias="schema")
    weights_digest: Digest
    accuracy: Fraction
    predicted: tuple[Count, ...]
    confidence: Values
    brightness: Values
    contrast: Values
    sharpness: Values

    @model_validator(mode="after")
    def _is_of_the_same_images(self) -> FieldReference:
        own = (self.confidence, *(getattr(self, name) for name in FIGURES))
        if {sum(self.predicted)} != {len(each) for each in own}:
            raise ValueError("each image needs a class, a confidence and three figures")
        return self


REFERENCE = Format(
    FieldReference,
    "the reference of a model",
    CheckpointError,
    "Export the model again with `nas export`.",
)


def field_reference(model: TrainedModel, images: Images, weights_digest: str) -> FieldReference:
    """Return what a model sees and answers on at most `MAX_IMAGES` images.

    Args:
        model: the model.
        images: images that it did not learn.
        weights_digest: digest of its weights.
    """
    images = sample_images(images, MAX_IMAGES)
    pixels = np.asarray(images.pixels[: len(images)])
    logits = model.pixel_logits(pixels)
    classes = logits.argmax(1)
    columns = np.column_stack([largest_probabilities(logits), image_figures(pixels)])
    in_order = np.sort(np.round(np.clip(columns.astype(float), 0, 1), 6), axis=0)
    values: list[Any] = [tuple(column) for column in in_order.T.tolist()]
    return FieldReference(
        weights_digest=weights_digest,
        accuracy=float((classes == images.labels).mean()),
        predicted=tuple(np.bincount(classes, minlength=logits.shape[1]).tolist()),
        confidence=values[0],
        **dict(zip(FIGURES, values[1:], strict=True)),
    )
