"""Records of an architecture and of the sizes of a space, in files of several kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from nas.figures import COUNTS
from nas.files.documents import Count, Document, Name, NetworkDigest

if TYPE_CHECKING:
    from nas.space.architecture import Architecture


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


class NetworkFacts(Document):
    """Base class of the records of a network.

    Attributes:
        digest: digest of the network's graph.
        architecture: the architecture.
    """

    digest: NetworkDigest
    architecture: ArchitectureRecord

    @classmethod
    def of_architecture(cls, architecture: Architecture, **fields: Any) -> Self:
        """Return the record of a network with the facts that the class has.

        Args:
            architecture: the network.
            fields: further fields of the record.
        """
        graph = architecture.graph
        facts = {
            "space": architecture.space.name,
            "digest": graph.digest,
            "architecture": ArchitectureRecord.model_validate(architecture.to_json()),
            **{name: getattr(graph, name) for name in COUNTS},
        }
        known = {name: fact for name, fact in facts.items() if name in cls.model_fields}
        return cls(**known, **fields)

    @model_serializer(mode="wrap")
    def _schema_first(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields as other records have them: a schema before all others."""
        fields: dict[str, Any] = serialize(self)
        return {name: fields[name] for name in sorted(fields, key=lambda name: name != "schema")}


class RunNetwork(NetworkFacts):
    """Base class of the records of a network of a run.

    Attributes:
        id: the network's ID in the run, the shortest beginning of its digest that is unique there;
            or a published network's name.
        space: name of its space.
    """

    id: Name
    space: Name

    @model_validator(mode="after")
    def _is_of_its_space(self) -> Self:
        if self.architecture.space != self.space:
            raise ValueError(
                f"its architecture is of space {self.architecture.space!r}, not {self.space!r}"
            )
        return self


class CountedNetwork(RunNetwork):
    """Base class of the records of a network of a run that have the counts of its graph.

    Attributes:
        macs: multiply-accumulates for one image.
        params: number of trainable parameters.
        peak_memory_bytes: largest number of bytes of float32 activations alive at once.
    """

    macs: Count
    params: Count
    peak_memory_bytes: Count


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
