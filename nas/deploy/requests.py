"""What is asked of a training to the end and of an export: made once, checked, and passed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nas.errors import RequestError
from nas.run.model_card import ModelCard
from nas.run.settings import JobSettings

if TYPE_CHECKING:
    from nas.quantisation.network import WeightBits


_FRACTIONS = {
    "max_accuracy_drop": "0.005 for half a point",
    "min_confidence": "0.9",
    "min_accuracy": "0.98",
}
"""Settings from 0 to 1, with an example of each."""


@dataclass(frozen=True)
class ExportRequest:
    """The settings of an export. None leaves a setting to what `or_else` adds.

    Attributes:
        formats: names of the formats; by default those of `nas.deploy.exporting.default_formats`.
        max_accuracy_drop: largest accuracy that int8 may lose on validation images, as a fraction;
            by default that of an earlier export, or `nas.deploy.int8.MAX_DROP`.
        weight_bits: bits of a weight in int8, 7 or 8; by default what this processor needs. Files
            for x86 processors without VNNI instructions need 7.
        min_confidence: confidence below which the model answers unsure, 0 for none; by default that
            of an earlier export, also 0, or what the job says, as for `min_accuracy`.
        min_accuracy: share of answers to hold-out images that must be right, as a fraction, from
            which the confidence follows.
        example: "cpp" for C++ programs that classify an image with the exported files. Those that a
            folder has are renewed anyway.

    Raises:
        RequestError: a value is out of its range, or both the confidence and the accuracy of the
            answers are given.
    """

    formats: Sequence[str] | None = None
    max_accuracy_drop: float | None = None
    weight_bits: WeightBits | None = None
    min_confidence: float | None = None
    min_accuracy: float | None = None
    example: str | None = None

    def __post_init__(self) -> None:
        for name, example in _FRACTIONS.items():
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise RequestError(
                    f"{name} is {value}.", remedy=f"Give a fraction, such as {example}."
                )
        if self.weight_bits not in (None, 7, 8):
            raise RequestError(
                f"An int8 weight cannot have {self.weight_bits} bits.",
                remedy="Use 8, or 7 for x86 processors without VNNI instructions.",
            )
        if None not in (self.min_confidence, self.min_accuracy):
            raise RequestError(
                "Both the confidence and the accuracy of answers are given.",
                remedy="Give min_confidence, or min_accuracy, from which it follows.",
            )

    @classmethod
    def of_job(cls, settings: JobSettings) -> ExportRequest:
        """Return what a job says of the exports of its run, beside the formats."""
        finish = settings.finish
        return cls(min_confidence=finish.min_confidence, min_accuracy=finish.min_accuracy)

    @classmethod
    def of_card(cls, card: ModelCard) -> ExportRequest:
        """Return what decided an earlier export, beside its formats."""
        int8, threshold = card.int8, card.threshold
        min_accuracy = threshold.min_accuracy if threshold else None
        min_confidence = threshold.min_confidence if threshold else None
        return cls(
            max_accuracy_drop=int8.max_drop if int8 else None,
            # The files may be for a processor that needs 7 bits, which this one is not.
            weight_bits=7 if int8 and int8.weight_bits == 7 else None,
            min_confidence=min_confidence if min_accuracy is None else None,
            min_accuracy=min_accuracy,
        )

    @property
    def without_threshold(self) -> ExportRequest:
        """The request, which leaves the threshold to what `or_else` adds."""
        return replace(self, min_confidence=None, min_accuracy=None)

    def or_else(self, other: ExportRequest) -> ExportRequest:
        """Return the request with what another one says where this one says nothing."""
        own = {name: value for name, value in vars(self).items() if value is not None}
        values = {**vars(other), **own}
        if own.keys() & {"min_confidence", "min_accuracy"}:  # One of them excludes the other.
            values |= {name: getattr(self, name) for name in ("min_confidence", "min_accuracy")}
        return ExportRequest(**values)


@dataclass(frozen=True)
class RetrainRequest:
    """The settings of a training to the end.

    Attributes:
        references: names of published networks to train beside the others. They start with newly
            drawn weights unless the run has a supernet of their space.
        pretrained: file of published weights from which the one reference starts.
        conventions: conventions of that file, see `nas.read_weights`.
        epochs: passes over the training images; by default those of the run's finalists.
        from_scratch: whether all networks start with newly drawn weights.

    Raises:
        RequestError: the settings contradict each other.
    """

    references: Sequence[str] = ()
    pretrained: Path | str | None = None
    conventions: str | None = None
    epochs: int | None = None
    from_scratch: bool = False

    def __post_init__(self) -> None:
        file, count = self.pretrained, len(set(self.references))
        if file is None and self.conventions is not None:
            raise RequestError(
                "There is no file of weights that the conventions could be of.",
                remedy="Give the file with --pretrained, or leave --conventions out.",
            )
        if file is not None and self.from_scratch:
            raise RequestError(
                f"All networks start from scratch, and {file} would be a start.",
                remedy="Leave --from-scratch or --pretrained out.",
            )
        if file is not None and count != 1:
            raise RequestError(
                f"{file} has the weights of one published network, and {count} are asked for.",
                remedy="Give the network's name with --reference, and others in a command of "
                "their own. `nas weights` says of which network a file is.",
            )
