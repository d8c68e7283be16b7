"""Records of a model folder: `preprocessing.json`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nas.documents import Document, Format
from nas.errors import CheckpointError
from nas.records.fields import Name

Side = Annotated[int, Field(ge=1, le=1 << 16)]
"""Height or width of an image in pixels."""


class Preprocessing(Document):
    """`preprocessing.json`: how an image becomes the input of a network, and what its output means.

    An image is resized so that its shorter side has `image_size` pixels, cropped to the centre,
    divided by 255, reduced by `mean` and divided by `std`.

    Attributes:
        image_size: height and width of the input, in pixels.
        channels: 1 for grey images, 3 for RGB.
        mean: mean by channel, of pixels in [0, 1].
        std: standard deviation by channel, of pixels in [0, 1].
        classes: names of the classes in the order of the logits.
        input_name: name of the input in files that name it.
        output_name: name of the output, the logits.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    image_size: Side
    channels: Annotated[int, Field(ge=1)]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    classes: tuple[str, ...]
    input_name: Name = "image"
    output_name: Name = "logits"

    @property
    def embedded(self) -> str:
        """All fields as one line of JSON, which travels inside the files of a model."""
        return self.model_dump_json(by_alias=True)

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Preprocessing:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("mean and std need one value for each channel")
        return self


PREPROCESSING = Format(
    Preprocessing,
    "the preprocessing of a model",
    CheckpointError,
    "Export the model again with `nas export`.",
)
