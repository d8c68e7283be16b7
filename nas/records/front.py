"""The Pareto front of a run, `front.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from nas.documents import Count, Document, Format, Fraction, Positive
from nas.errors import RunFolderError
from nas.formatting import format_latency
from nas.records.fields import MAX_DISPATCH_SHARE, MEASURED, Name, NetworkDigest


class ArchitectureRecord(Document):
    """An architecture: the choices that make one network of a space.

    Attributes:
        space: name of the space.
        choices: chosen value by name of the choice.
    """

    space: Name
    choices: dict[str, int | float | str]


class FrontMember(Document):
    """A network of a Pareto front, as `nas select` prints it.

    Attributes:
        id: shortest beginning of the digest that is unique in the run.
        space: name of the space.
        digest: digest of the network's graph.
        architecture: the architecture.
        validation_accuracy: accuracy on the search's validation images, by the supernet.
        corrected_accuracy: this accuracy after its correction for size; None if the search did not
            correct it.
        holdout_accuracy: accuracy on validation images that the search did not use.
        trained_accuracy: accuracy on the same images after the network was trained to the end.
        test_accuracy: accuracy on the test images after that training.
        dominated_by: id of a trained network that is, after training, not worse in any objective;
            None for a network that stays on the front.
        predicted_us: latency predicted by the table, in microseconds.
        device_predicted_us: the same on each further device of the search, by its name.
        measured_us: latency of the whole network, in microseconds. At least one of both latencies
            is known.
        unstable_launches: number of launches predicted from timings that did not agree.
        estimated_launches: number of launches predicted from estimates.
        dispatch_share: share of launches and the start of the network in the predicted latency.
        basis: `measured`, or `estimated: <by what>` on a device that only a model knows.
        macs: multiply-accumulates for one image.
        params: number of trainable parameters.
        peak_memory_bytes: largest number of bytes of activations alive at once.
        sram_kib, flash_kib: largest use of fast memory at a time, and size of the constants as they
            are stored, if the search asked the runtime for them.
        dram_traffic_kib, flash_traffic_kib: what is read from and written to slow memory, likewise.
        mac_utilisation: used multiply-accumulates as a fraction of the possible ones, likewise.
    """

    id: NetworkDigest
    space: Name
    digest: NetworkDigest
    architecture: ArchitectureRecord
    validation_accuracy: Fraction
    corrected_accuracy: Fraction | None = None
    holdout_accuracy: Fraction | None = None
    trained_accuracy: Fraction | None = None
    test_accuracy: Fraction | None = None
    dominated_by: NetworkDigest | None = None
    predicted_us: Positive | None = None
    device_predicted_us: dict[Name, Positive] = Field(default_factory=dict)
    measured_us: Positive | None = None
    unstable_launches: Count | None = None
    estimated_launches: Count | None = None
    dispatch_share: Fraction | None = None
    basis: str = MEASURED
    macs: Count
    params: Count
    peak_memory_bytes: Count
    sram_kib: float | None = None
    flash_kib: float | None = None
    dram_traffic_kib: float | None = None
    flash_traffic_kib: float | None = None
    mac_utilisation: float | None = None

    @model_validator(mode="after")
    def _has_latency(self) -> FrontMember:
        if self.measured_us is None and self.predicted_us is None:
            raise ValueError("it has neither a measured nor a predicted latency")
        return self

    @property
    def score(self) -> float:
        """The accuracy that the search maximised: the corrected one, if it was corrected."""
        corrected = self.corrected_accuracy
        return self.validation_accuracy if corrected is None else corrected

    @property
    def latency_us(self) -> float:
        """Measured latency if it is known, else predicted latency, in microseconds."""
        latency = self.predicted_us if self.measured_us is None else self.measured_us
        assert latency is not None
        return latency

    @property
    def latency_basis(self) -> str:
        """What `latency_us` is: `basis`, or `predicted` and what makes the prediction unsure."""
        if self.measured_us is not None:
            return self.basis if self.basis == MEASURED else f"({self.basis})"
        unsure = self.unsure_launches
        predicted = f"predicted, of its launches {unsure}" if unsure else "predicted"
        if self.is_rough:
            predicted += f", {self.dispatch_share:.0%} of it launches"
        return predicted if self.basis == MEASURED else f"{predicted} ({self.basis})"

    @property
    def is_rough(self) -> bool:
        """Whether the predicted latency is launches more than kernels, see `MAX_DISPATCH_SHARE`."""
        return self.dispatch_share is not None and self.dispatch_share > MAX_DISPATCH_SHARE

    @property
    def unsure_launches(self) -> str:
        """Number of unstable and estimated launches: `3 unstable, 1 estimated`; may be empty."""
        counts = {"unstable": self.unstable_launches, "estimated": self.estimated_launches}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)

    @property
    def summary(self) -> str:
        """The network in one line: id, space, accuracy, latency, MACs and parameters."""
        trained = "" if self.trained_accuracy is None else f", trained {self.trained_accuracy:.4f}"
        texts = {
            "{:.0f} KiB of SRAM": self.sram_kib,
            "{:.0f} KiB of flash": self.flash_kib,
            "{:.0f} KiB of DRAM traffic": self.dram_traffic_kib,
            "{:.0f} KiB of flash traffic": self.flash_traffic_kib,
            "{:.0%} MAC utilisation": self.mac_utilisation,
        }
        figures = "".join(f", {text.format(v)}" for text, v in texts.items() if v is not None)
        devices = "".join(
            f", {format_latency(latency_us)} predicted on {name}"
            for name, latency_us in self.device_predicted_us.items()
        )
        return (
            f"{self.id} ({self.space}): accuracy {self.validation_accuracy:.4f}{trained}, "
            f"{format_latency(self.latency_us)} {self.latency_basis}{devices}, {self.macs} MACs, "
            f"{self.params} parameters{figures}"
        )


class FrontRecord(Document):
    """`front.json`: the Pareto front of a run.

    It is over all objectives of the job, and within its limits.

    Attributes:
        run: name of the run.
        max_latency_ms: latency limit of the job, in milliseconds; None without one.
        fastest_us: latency of the fastest network of the run in microseconds, whether it meets the
            limit or not; None if no network was scored.
        front: members of the front, the fastest first.
    """

    schema_version: Literal[2] = Field(alias="schema")
    run: str
    max_latency_ms: Positive | None = None
    fastest_us: Positive | None = None
    front: tuple[FrontMember, ...]


FRONT = Format(
    FrontRecord, "a front", RunFolderError, "Write it again with `nas report` on the run folder."
)


def read_front(folder: Path) -> tuple[FrontMember, ...]:
    """Return the members in `front.json` of a run folder. Raises RunFolderError without any."""
    path = folder / "front.json"
    if not path.exists():
        raise RunFolderError(
            f"{folder} has no front: there is no {path.name} in it.",
            remedy="Run the job to its end first, or `nas report` to write it again.",
        )
    record = FRONT.read(path)
    if not record.front:
        reason, remedy = "no network met the limits of the job", "Raise the limits"
        if record.fastest_us is not None and record.max_latency_ms is not None:
            reason = (
                f"max_latency_ms is {record.max_latency_ms:g} ms, and the fastest of its networks "
                f"takes {format_latency(record.fastest_us)}"
            )
            remedy = "Raise max_latency_ms"
        raise RunFolderError(
            f"The front of {folder} is empty: {reason}.",
            remedy=f"{remedy} in the job file, and run it again: the run continues.",
        )
    return record.front
