"""Records of an architecture and of the sizes of a space, in files of several kinds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nas.files.documents import Document, Name


class ArchitectureRecord(Document):
    """An architecture: the choices that make one network of a space.

    Attributes:
        space: name of the space.
        choices: chosen value by name of the choice.
    """

    space: Name
    choices: dict[str, int | float | str]

    @property
    def dtype(self) -> str | None:
        """Type of weights and activations, if it is a choice of the space; else None."""
        dtype = self.choices.get("dtype")
        return None if dtype is None else str(dtype)


class SpaceSettings(Document):
    """What the spaces of a run are adapted to: arguments of `nas.space.load_space`.

    Attributes:
        image_size: height and width of the images, in pixels.
        channels: number of channels of the images.
        classes: number of classes.
    """

    image_size: Annotated[int, Field(ge=1, le=1 << 16)]
    channels: Annotated[int, Field(ge=1, le=1 << 16)]
    classes: Annotated[int, Field(ge=1, le=1 << 24)]

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments, without what a later version may have added."""
        return self.model_dump(include=set(type(self).model_fields))
