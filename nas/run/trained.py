"""Records of networks with trained weights of their own: their training log and `trained.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field, JsonValue, model_validator

from nas.errors import CheckpointError
from nas.files.documents import (
    Count,
    Document,
    Format,
    Fraction,
    Name,
    Positive,
    Seconds,
)
from nas.space.records import RunNetwork

if TYPE_CHECKING:
    from nas.pretrained import PublishedWeights
    from nas.run.settings import PretrainedSettings

TRAINED_FILE = "trained.json"
"""Name of the file with the record of a training, in a model's folder."""

MODELS_FOLDER = "models"
"""Name of the folder with a folder for each trained model, in a run folder."""


_STARTS = {"supernet": "the supernet", "published": "published weights", "scratch": "scratch"}
"""Where a training starts, in words."""


class TrainedBy(NamedTuple):
    """How a network was trained. Accuracies are compared only among networks of equal recipe.

    Attributes:
        text: length and start, such as "6 epochs from the supernet".
        details: what else may differ between the trainings of one run: learning rate, share of the
            training with smaller images, teacher, and file of published weights.
    """

    text: str
    details: str

    def __str__(self) -> str:
        return f"{self.text}; {self.details}"


class PretrainedSummary(Document):
    """The weights from which a supernet or a network starts: published ones, or those of a run.

    Attributes:
        file: name of the file.
        sha256: digest of the file.
        network: the published network, or a name for that of the run.
        conventions: what the file does not say, a name in `nas.pretrained.CONVENTIONS`.
        source: where the file comes from, or the run and its network; None if the user does not
            state it.
        license: license of the weights, likewise.
        file_license: license that the file or its digest tells; None if it is not known.
        data: data set that the network was trained on; None if the user does not state it.
        restriction: how the space of a supernet was restricted; empty if it was not.
    """

    file: Name
    sha256: str
    network: Name
    conventions: str
    source: str | None
    license: str | None
    file_license: str | None
    data: str | None
    restriction: str

    @classmethod
    def of(
        cls,
        weights: PublishedWeights,
        stated: PretrainedSettings | None = None,
        *,
        restriction: str = "",
    ) -> PretrainedSummary:
        """Return the summary of some weights, with what a user states of them."""
        statements = ("source", "license", "data")
        return cls(
            file=weights.file.path.name,
            sha256=weights.file.sha256,
            network=weights.reference.name,
            conventions=weights.conventions.name,
            file_license=weights.license,
            restriction=restriction,
            **{name: getattr(stated or weights.origin, name, None) for name in statements},
        )

    @property
    def summary(self) -> str:
        """The weights in one line."""
        terms = self.license or self.file_license or "unknown"
        if self.file_license not in (None, terms):
            terms += f" as stated, {self.file_license} by the file"
        return (
            f"{self.network} from {self.file}, SHA-256 {self.sha256}, source "
            f"{self.source or 'unknown'}, license {terms}, trained on "
            f"{self.data or 'unknown data'}{self.restriction and '; '}{self.restriction}"
        )


class SplitAccuracy(Document):
    """The accuracy of a network on one split of the data.

    Attributes:
        accuracy: share of the images that the network classifies correctly.
        images: number of images.
        class_accuracy: the same share of the images of each class; None for a class without any.
    """

    accuracy: Fraction
    images: Count
    class_accuracy: dict[str, Fraction | None]


class CoverageRow(Document):
    """How a network that answers only when it is confident does on some images.

    Attributes:
        min_confidence: smallest confidence, the largest probability, of an answer.
        answered: share of the images that are answered.
        accuracy: share of these whose answer is right; None if none is answered.
    """

    min_confidence: Fraction
    answered: Fraction
    accuracy: Fraction | None


class Calibration(Document):
    """The temperature of a network, and its confidence on the hold-out images.

    Attributes:
        temperature: what its logits were divided by; the weights have it.
        images: number of validation images that it was fitted on; 0 if it was not fitted.
        error_before: expected calibration error with a temperature of 1.
        error: expected calibration error with the temperature.
        coverage: images answered and their accuracy, by threshold.
    """

    temperature: Positive
    images: Count
    error_before: Fraction
    error: Fraction
    coverage: tuple[CoverageRow, ...]


class RefitRecord(Document):
    """The training of a network on all images but the test images, whose weights are shipped.

    Attributes:
        images: number of its images.
        epochs: number of passes over them; 0 of a linear probe.
        seconds: its duration, over all starts.
    """

    images: Count
    epochs: Count
    seconds: Seconds

    def text(self, judges: str) -> str:
        """Return in a clause which accuracy belongs to which weights.

        Args:
            judges: what the images that judge networks are called, see `JudgedImages.judging_name`.
        """
        return (
            f"{judges} accuracies are of weights that did not learn these images, test accuracies "
            f"of the shipped weights, which learned all {self.images:,} other images"
        )


class TrainedRecord(RunNetwork):
    """`trained.json`: how a network was trained to the end, and what it then reached.

    Attributes:
        start: initial weights: those of the supernet, published ones, or newly drawn ones.
        published: the published weights from which it started; None for another start.
        is_probe: whether its weights are published ones with a linear probe, which was right on
            more images than what was trained; see `nas.deploy.retrain.Retraining.better_probe`.
        supernet_accuracy: accuracy on the images of `holdout` with the supernet's weights, before
            the training; None for a network without a supernet. Of a network that was chosen in
            int8, it is less the expected loss.
        float32_accuracy: accuracy on the images of `holdout` before it was quantised, of a network
            that was chosen in int8; its other accuracies are those of the quantised network.
        expected_int8_loss: what the search expected it to lose thereby.
        holdout: accuracy on the images that judge trained networks, of weights that did not learn
            them. These are the hold-out images, and those of the search if they are few:
            `nas.run.judged.JudgedImages.judging_parts`.
        test: accuracy of the shipped weights on the test images, which are read this once.
        calibration: the temperature and the confidence of the weights of `holdout`; those of a
            refit have the same temperature.
        refit: the training of the shipped weights; None if they are those of `holdout`.
        epochs: number of passes over the training images.
        seed: seed of the order of the images, of the augmentation and of newly drawn weights.
        training: settings of the training.
        teacher: network whose output was learned as well; None without one.
        data_digest: digest of the data.
        seconds: duration of the training, over all starts.
        versions: versions of the packages that trained it, by name.
    """

    schema_version: Literal[4] = Field(alias="schema")
    start: Literal["supernet", "published", "scratch"]
    published: PretrainedSummary | None = None
    is_probe: bool = False
    supernet_accuracy: Fraction | None
    float32_accuracy: Fraction | None = None
    expected_int8_loss: float | None = None
    holdout: SplitAccuracy
    test: SplitAccuracy
    calibration: Calibration
    refit: RefitRecord | None = None
    epochs: Annotated[int, Field(ge=1, lt=1 << 31)]
    seed: Count
    training: dict[str, JsonValue]
    teacher: str | None
    data_digest: str
    seconds: Seconds
    versions: dict[str, str]

    @property
    def recipe(self) -> TrainedBy:
        """How the network was trained, in words."""
        rate, resizing = map(self.training.get, ("learning_rate", "progressive_resizing"))
        details = [
            "" if rate is None else f"learning rate {rate}",
            "" if resizing is None else f"smaller images for {resizing} of it",
            f"taught by the {self.teacher}" if self.teacher else "without a teacher",
            f"weights with SHA-256 {self.published.sha256}" if self.published else "",
        ]
        epochs = f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"
        return TrainedBy(f"{epochs} from {_STARTS[self.start]}", ", ".join(filter(None, details)))

    @property
    def int8_loss(self) -> float | None:
        """What the network lost when it was quantised; None if it was not chosen in int8."""
        before = self.float32_accuracy
        return None if before is None else before - self.holdout.accuracy

    @model_validator(mode="after")
    def _names_published_weights(self) -> TrainedRecord:
        if (self.start == "published") != (self.published is not None):
            raise ValueError('it names published weights exactly if start is "published"')
        return self


TRAINED = Format(
    TrainedRecord,
    "the record of a trained network",
    CheckpointError,
    "Copy it again from where it was written, or move the model's folder away and train it again "
    "with `nas retrain`.",
)


def read_trained(run: Path) -> dict[str, TrainedRecord]:
    """Return the records of all trained models of a run folder, by the digest of their networks.

    Raises CheckpointError for a damaged record.
    """
    paths = sorted((run / MODELS_FOLDER).glob(f"*/{TRAINED_FILE}"))
    return {record.digest: record for record in map(TRAINED.read, paths)}
