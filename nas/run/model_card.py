"""Records of a model folder: `preprocessing.json`, the weights' metadata and `card.json`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from nas.display.formatting import format_count, format_latency
from nas.errors import CheckpointError
from nas.files.documents import (
    Count,
    Digest,
    Document,
    Format,
    Fraction,
    Name,
    Positive,
    Seconds,
)
from nas.latency.rounds import Latency, round_to_four_digits
from nas.latency.timing import MEASURED
from nas.run.judged import JudgedImages
from nas.run.settings import CardSettings, DataOptions
from nas.run.trained import Calibration, RefitRecord
from nas.space.records import CountedNetwork, NetworkFacts, SpaceSettings

Side = Annotated[int, Field(ge=1, le=1 << 16)]
"""Height or width of an image in pixels."""


MAX_LATENCY_DIFFERENCE = 0.1
"""Largest difference of two latencies of a network that is not worth a sentence, as a fraction."""

NOTABLE_LATENESS = 0.05
"""Smallest delay of a benchmark, as a fraction of the median latency, that is worth a sentence."""


class ImageReading(Document):
    """How an image file becomes pixels. The fields are in the order in which they apply.

    A field that has one value only states what `nas.data.image_reading` does.

    Attributes:
        formats: formats that are read, by Pillow's names.
        frame: which image of an animation is read.
        max_pixels: largest number of pixels of an image; larger ones are refused.
        jpeg_draft: a JPEG is decoded at the smallest of 1/8, 1/4 and 1/2 of its size at which both
            sides have at least `jpeg_draft` times `decoded_size` pixels, if there is one.
        exif_orientation: whether an image is turned and mirrored as its EXIF orientation says.
        icc_profile: what is done about colour profiles.
        bit_depth: how pixels of 16 bits a channel get 8. Grey pixels of 32 bits, with a sign or of
            floating-point numbers are refused.
        transparency: what happens to it, before the image is resized.
        background: colour that is seen through transparent pixels and of borders, as `#rrggbb`.
        grey: how colours become grey where `channels` is 1: 0.299 R + 0.587 G + 0.114 B.
        resize: "cover" means that the shorter side gets `decoded_size` pixels; "contain" that the
            longer one does, and that the image is in the centre between borders.
        crop: which part of the longer side stays with "cover".
        interpolation: kind of interpolation, that of `PIL.Image.Resampling.BILINEAR`.
        antialias: whether the triangle of the interpolation is as wide as the scale demands.
        decoded_size: height and width of the resized image, in pixels.
    """

    formats: tuple[str, ...]
    frame: Literal["first"]
    max_pixels: Annotated[int, Field(ge=1)]
    jpeg_draft: Literal[2]
    exif_orientation: Literal[True]
    icc_profile: Literal["ignored"]
    bit_depth: Literal["upper 8 bits"]
    transparency: Literal["composited on background"]
    background: Annotated[str, Field(pattern="^#[0-9a-f]{6}$")]
    grey: Literal["ITU-R 601-2"]
    resize: Literal["cover", "contain"]
    crop: Literal["centre"]
    interpolation: Literal["bilinear"]
    antialias: Literal[True]
    decoded_size: Side


class Preprocessing(Document):
    """`preprocessing.json`: how an image becomes the input of a network, and what its output means.

    An image file is read as `reading` says. Its pixels are divided by 255, reduced by `mean` and
    divided by `std`. If `image_size` is not `reading.decoded_size`, they are then resized with
    bilinear interpolation and antialiasing.

    Attributes:
        reading: how an image file becomes pixels.
        image_size: height and width of the input, in pixels.
        channels: 1 for grey images, 3 for RGB.
        mean: mean by channel, of pixels in [0, 1].
        std: standard deviation by channel, of pixels in [0, 1].
        classes: names of the classes in the order of the logits.
        input_name: name of the input in files that name it.
        output_name: name of the output, the logits.
        min_confidence: confidence below which `run.py` answers "unsure"; None if it always answers.
    """

    schema_version: Literal[3] = Field(default=3, alias="schema")
    reading: ImageReading
    image_size: Side
    channels: Annotated[int, Field(ge=1)]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    classes: tuple[str, ...]
    input_name: Name = "image"
    output_name: Name = "logits"
    min_confidence: Fraction | None = None

    @property
    def embedded(self) -> str:
        """The fields as one line of JSON, which travels inside the files of a model.

        They are without `min_confidence`, which can change while the files stay.
        """
        return self.model_dump_json(by_alias=True, exclude={"min_confidence"})

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


class NetworkRecord(NetworkFacts):
    """The metadata of `network.safetensors`: which network the weights are of, and its images.

    Attributes:
        settings: what the space is adapted to.
        preprocessing: how images become the input, and what the output means.
    """

    schema_version: Literal[3] = Field(alias="schema")
    settings: SpaceSettings
    preprocessing: Preprocessing


NETWORK = Format(
    NetworkRecord,
    "the record of a network",
    CheckpointError,
    "Export the model again with `nas export`.",
)


class ModelData(JudgedImages, DataOptions):
    """The images that a model was trained and tested on, and how to load them again.

    Attributes:
        source: name or path of the data source; as in `extra`, the last part of an absolute path,
            which says much about a machine and its users.
        digest: digest of all images and labels.
        judging_digest: digest of those that judge it.
        license: license of the data; empty if it is not stated.
        class_counts: number of images of each class by part: `train`, `search`, `holdout` and
            `test`.
        seed: seed of the random splits.
    """

    source: str
    digest: str
    judging_digest: str
    license: str = ""
    class_counts: dict[str, list[Count]]
    seed: Count


class LatencyRecord(Document):
    """The latency of an exported file for one image, on the device that the card names.

    Attributes:
        fastest_us, typical_us: see `nas.latency.rounds.Latency`.
        threads: number of threads that the runtime may use.
        rounds_us: latency in each round.
        first_us: first sample of each round, at whatever speed of the core.
        is_disturbed: whether the core never ran at full speed, as far as its readings tell.
    """

    fastest_us: Positive
    typical_us: Positive
    threads: Annotated[int, Field(ge=1)]
    rounds_us: tuple[Positive, ...]
    first_us: tuple[Positive, ...]
    is_disturbed: bool = False

    @classmethod
    def of(cls, latency: Latency, threads: int) -> LatencyRecord:
        """Return the record of a latency."""
        return cls(
            fastest_us=latency.fastest_us,
            typical_us=latency.typical_us,
            threads=threads,
            rounds_us=tuple(each.latency_us for each in latency.rounds),
            first_us=tuple(each.typical_us for each in latency.rounds),
            is_disturbed=latency.is_disturbed,
        )

    @property
    def slowest_us(self) -> float:
        """The slowest sample that is known; a 95% quantile would need more of them.

        The first sample of a round may be faster than the others.
        """
        return max(*self.first_us, *self.rounds_us)


class ExportedFile(Document):
    """An exported file, and what its own runtime computed with it.

    Attributes:
        format: name of the format on the command line.
        file: name of the file, or of the folder, in the model folder.
        companions: names of the files that belong to it.
        precision: type of weights and activations.
        size_bytes: size of the file, or of all files in the folder.
        runtime: runtime, as `[device] runtime` names it, with which a search chooses networks for
            such files, with `precision` as its dtype; empty if there is none.
        runs_here: whether it runs on the machine that exported it. Most further fields are empty if
            it does not.
        emulator: emulator that ran it for `images`, `agreement`, `difference` and `tolerance`, if
            it does not run there; empty without one.
        versions: versions of the packages that ran the file, by name.
        images: number of test images whose logits were compared.
        accuracy: accuracy on all test images.
        holdout_accuracy: accuracy on the images that judge trained networks, see
            `nas.run.judged.JudgedImages.judging_parts`. The file of a model that was refitted has
            learned them: it has the accuracy, in torch, of the weights that did not, in its
            precision.
        agreement: share of the compared images that got the class that torch gives them.
        difference: largest difference from the reference logits, as a share of their standard
            deviation. The reference is torch, or for int8 the quantised network simulated in torch;
            the largest of 99% of the images counts then.
        tolerance: largest `difference` that is allowed.
        peak_memory_bytes: memory that importing the runtime, loading the file and classifying one
            image add to a Python process; None if the system does not say.
        quantised_layers: number of convolutions and linear layers that run in int8, and of all;
            None if the runtime does not show them.
        latency: latency for one image; None if it was not measured.
    """

    format: str
    file: Name
    companions: tuple[Name, ...] = Field(default=(), strict=False)
    precision: Literal["float32", "int8"]
    size_bytes: Count
    runtime: str = ""
    runs_here: bool = True
    emulator: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    images: Count = 0
    accuracy: Fraction | None = None
    holdout_accuracy: Fraction | None = None
    agreement: Fraction | None = None
    difference: Annotated[float, Field(ge=0)] | None = None
    tolerance: Annotated[float, Field(ge=0)] | None = None
    peak_memory_bytes: Count | None = None
    quantised_layers: tuple[Count, Count] | None = Field(default=None, strict=False)
    latency: LatencyRecord | None = None

    @property
    def latency_us(self) -> float | None:
        """Latency for one image in microseconds; None if it was not measured."""
        return None if self.latency is None else self.latency.fastest_us

    @property
    def elsewhere(self) -> str:
        """What ran it in place of the machine that exported it, in words; empty for itself."""
        if self.runs_here:
            return ""
        if self.emulator:
            return f"run by {self.emulator} on {self.images} images"
        return "not run here"

    @property
    def float32_format(self) -> str:
        """Name of the format of the same runtime in float32. Latencies of one compare."""
        return self.format.removesuffix("-int8")


class DeviceResults(Document):
    """What the device of the search computed with exported files.

    Attributes:
        device: the device, in words.
        files: the files that ran there, with what was measured there.
        errors: why another file did not run there, by its format.
    """

    device: str
    files: tuple[ExportedFile, ...] = Field(default=(), strict=False)
    errors: dict[str, str] = Field(default_factory=dict)


def load_text(processes: int, rate: float | None) -> str:
    """Return a load in words: "full", "full, 2 processes" or "30 a second"."""
    if rate is not None:
        return f"{rate:g} a second"
    return "full" if processes == 1 else f"full, {processes} processes"


MIN_SHARE_ABOVE_IDLE = 0.01
"""Smallest power above the idle power that counts, as a share of it: less is noise."""


class EnergyRecord(Document):
    """The energy of a file under a load.

    Attributes:
        source: what measured it, such as "RAPL (package-0)".
        idle_w: power of the machine before the load, in watts.
        watts: mean power under the load, with the idle power in it.
        joules_per_image: energy of one image above the idle power; None if the power under the load
            was not above it by more than `MIN_SHARE_ABOVE_IDLE`.
    """

    source: str
    idle_w: float
    watts: float
    joules_per_image: Positive | None = None

    @classmethod
    def of(
        cls, source: str, *, idle_w: float, joules: float, seconds: float, images: int
    ) -> EnergyRecord:
        """Return the record of a load.

        Args:
            source, idle_w: see the attributes.
            joules: energy above that of the idle machine.
            seconds: duration of the load.
            images: number of images.
        """
        has_energy = images > 0 and joules / seconds > MIN_SHARE_ABOVE_IDLE * idle_w
        return cls(
            source=source,
            idle_w=round_to_four_digits(idle_w),
            watts=round_to_four_digits(idle_w + joules / seconds),
            joules_per_image=round_to_four_digits(joules / images) if has_energy else None,
        )


class SustainedWindow(Document):
    """A part of a load in which images were classified.

    Attributes:
        end_s: end of the window in seconds after the start of the load.
        images: number of images.
        median_us, high_us: median and 95% of the latencies; the latter needs 20 images.
        temperature_c: temperature of the hottest thermal zone at the end; None if the system does
            not say.
        clock_mhz: mean clock of the cores at the end; None if the system does not say.
    """

    end_s: Positive
    images: Count
    median_us: Positive
    high_us: Positive | None
    temperature_c: float | None = None
    clock_mhz: Positive | None = None


class SustainedLoad(Document):
    """What was measured of a file under a load of some minutes.

    Attributes:
        format: name of the format.
        processes: number of processes that run the file at the same time.
        rate: images a second that are due; None if one image follows the other.
        seconds: duration of the load.
        images_by_process: number of images of each process.
        images_per_second: number of images a second of all processes together.
        median_us, high_us, p99_us: median, 95% and 99% of the latencies of all images; None of
            fewer than 20 and 100 images.
        slowdown: median in the last minute over that in the first one; of a load below ten minutes,
            of the last and the first tenth. None if it is not known.
        slowdowns_against_one: of each of several processes that had time for an image, images a
            second of a process alone over its own.
        waited: number of images that were due while one before them was running.
        unserved: number of images that were due, and not begun at the end of the load.
        busy_s: time in which images were running, of all processes together.
        late_us: time by which the benchmark was late with an image that waited for no other one, on
            average over all images.
        windows: the course of the load; windows without images are left out.
        energy: the energy; None if it was not measured.
    """

    format: str
    processes: Annotated[int, Field(ge=1)]
    rate: Positive | None
    seconds: Positive
    images_by_process: tuple[Count, ...]
    images_per_second: Positive
    median_us: Positive
    high_us: Positive | None
    p99_us: Positive | None
    slowdown: Positive | None
    slowdowns_against_one: tuple[Positive, ...] = ()
    waited: Count = 0
    unserved: Count = 0
    busy_s: Positive
    late_us: Annotated[float, Field(ge=0)] = 0.0
    windows: tuple[SustainedWindow, ...]
    energy: EnergyRecord | None = None

    @property
    def text(self) -> str:
        """The load in words, see `load_text`."""
        return load_text(self.processes, self.rate)

    @property
    def rate_notes(self) -> tuple[str, ...]:
        """Sentences about a load at a fixed rate: what limited it, the file or the benchmark."""
        if self.rate is None:
            return ()
        notes = []
        possible = sum(self.images_by_process) / self.busy_s
        if self.unserved and possible < self.rate:
            notes.append(
                f"{self.format} does not keep up with {self.text}: {self.unserved:,} images were "
                "not begun at the end."
            )
        elif self.unserved:
            notes.append(
                f"{self.format}, {self.text}: {self.unserved:,} images were not begun at the end, "
                "because this machine, or the process of the benchmark, was late at times. The "
                f"file was not the limit: an image took it {format_latency(1e6 / possible)}, which "
                f"is {format_count(possible)} a second."
            )
        if self.late_us > NOTABLE_LATENESS * self.median_us:
            notes.append(
                f"{self.format}, {self.text}: on average, {format_latency(self.late_us)} of a "
                "latency is the delay of the benchmark's own process, and not of the file."
            )
        return tuple(notes)


class SustainedRecord(Document):
    """What `nas benchmark --minutes` measured of the files of a model.

    Attributes:
        device: the processor.
        measured: date and time of the end.
        minutes: duration of each load that was asked for.
        threads: number of threads of each process.
        loads: the files under each load.
        skipped: why other files were not run, by format.
        stopped: why the rest was not measured; empty if everything was.
    """

    device: str
    measured: str
    minutes: Positive
    threads: Annotated[int, Field(ge=1)]
    loads: tuple[SustainedLoad, ...]
    skipped: dict[str, str] = Field(default_factory=dict)
    stopped: str = ""


class ScriptCheck(Document):
    """What `run.py` computed for image files, compared with torch.

    Attributes:
        file: file of the network that the script ran.
        images: number of images of the data that it read as PNG files of their decoded pixels.
        kinds: number of images in the data by kind of file, such as "JPEG RGB, decoded at 1/4". The
            script read one file of each.
        unchecked: kinds whose files are too large for a model folder, or too rare.
        difference: largest difference from the reference logits, see `ExportedFile`.
        tolerance: largest `difference` that is allowed.
    """

    file: Name
    images: Count
    kinds: dict[str, Count]
    unchecked: tuple[str, ...] = ()
    difference: Annotated[float, Field(ge=0)]
    tolerance: Annotated[float, Field(ge=0)]


class Int8Attempt(Document):
    """One method of quantising a model to int8, and what it reached.

    Attributes:
        method: the method.
        accuracy: accuracy of the quantised network on validation images of the search.
        drop: accuracy of the float32 network on these images, less this accuracy.
        agreement: share of these images that got the class that float32 gives them.
        seconds: time of the method with its evaluation.
    """

    method: str
    accuracy: Fraction
    drop: Annotated[float, Field(ge=-1, le=1)]
    agreement: Fraction
    seconds: Seconds


class Int8Summary(Document):
    """How a model was quantised to int8.

    Attributes:
        method: the method whose network was exported.
        weight_bits: bits of a weight: 8, or 7 for x86 processors without VNNI instructions.
        calibration_images: number of training images that the ranges of activations come from.
        calibration_digest: digest of these images.
        validation_images: number of images of the search that compare float32 with int8; no others
            choose the method.
        float_accuracy: accuracy of the float32 network on these images.
        accuracy: accuracy of the quantised network that was exported on the same images.
        max_drop: largest difference of the two that was asked for.
        attempts: methods in the order in which they were tried; the last or the best was exported.
    """

    method: str
    weight_bits: Literal[7, 8]
    calibration_images: Count
    calibration_digest: Digest
    validation_images: Count
    float_accuracy: Fraction
    accuracy: Fraction
    max_drop: Fraction
    attempts: tuple[Int8Attempt, ...]

    @property
    def drop(self) -> float:
        """The accuracy that the quantised network loses on the validation images."""
        return self.float_accuracy - self.accuracy


class RobustnessRow(Document):
    """The accuracy on images that were changed or attacked in one way.

    Attributes:
        change: what was done to the images, with its strength.
        accuracy: accuracy on the changed images.
    """

    change: str
    accuracy: Fraction


class ConfidenceRow(Document):
    """The confidence of a model in its answers for images of one kind.

    Attributes:
        images: what the images are.
        count: number of these images.
        mean: mean of the largest softmax value.
        above_90_percent: share of the images whose largest softmax value is above 0.9.
        answered: share of the images that are answered at the threshold; None without a threshold.
    """

    images: str
    count: Count
    mean: Fraction
    above_90_percent: Fraction
    answered: Fraction | None = None


class Threshold(Document):
    """The confidence from which on a model answers, and what that means for the hold-out images.

    Attributes:
        min_confidence: smallest confidence of an answer; 0 if every image is to be answered; None
            if none reaches `min_accuracy`, so that every image is answered.
        min_accuracy: share of right answers that was asked for; None if the confidence was.
        images: number of hold-out images.
        answered: number of these that are answered.
        right: number of these whose answer is right.
        unknown: number of images of no class, of the folder `[data] unknown`.
        unknown_answered: number of these that are answered, which is wrong.
    """

    min_confidence: Fraction | None
    min_accuracy: Fraction | None
    images: Count
    answered: Count
    right: Count
    unknown: Count
    unknown_answered: Count

    @property
    def accuracy(self) -> float | None:
        """Share of right answers; None if no image is answered."""
        answers = self.answered + self.unknown_answered
        return self.right / answers if answers else None

    @property
    def summary(self) -> str:
        """What a person should know, a sentence without a full stop."""
        if self.min_confidence is None:
            text = f"no threshold makes {self.min_accuracy:.4g} of the answers right on "
            text += f"{self.images} hold-out images"
            if self.unknown:
                text += f" and {self.unknown} images of no class"
            return f"{text}, so every image is answered"
        if not self.min_confidence and self.min_accuracy is None:
            return "every image is answered, as was asked"
        text = (
            f"answers from a confidence of {self.min_confidence:.7g} on: {self.answered} of "
            f"{self.images} hold-out images"
        )
        if self.unknown:
            text += f" and {self.unknown_answered} of {self.unknown} images of no class"
        if self.accuracy is not None:
            text += f"; {self.accuracy:.1%} of these answers are right"
        return text


class ModelAccuracy(Document):
    """The accuracy of a model in torch, in float32.

    If the model was refitted, the first two are those of the weights before the refit.

    Attributes:
        search: on the validation images that the search used.
        holdout: on the images that judge trained networks, see `ExportedFile`.
        test: on the test images, which decided nothing.
        by_class: on the test images of each class; None for a class without any.
    """

    search: Fraction
    holdout: Fraction
    test: Fraction
    by_class: dict[str, Fraction | None]


class ModelCard(CountedNetwork):
    """`card.json`: what a model is, what it was trained on, and what was measured of it.

    Attributes:
        weights_digest: digest of the trained weights.
        image_size: height and width of the images, in pixels.
        channels: number of channels of the images.
        classes: names of the classes in the order of the logits.
        statements: what the job file says for the card.
        data: the images.
        recipe: settings of the training.
        image_changes: how training images were mirrored and shifted, and why; empty if the run
            does not say.
        accuracy: accuracy in torch.
        robustness: accuracy on changed images; `robustness_images` of the hold-out images.
        robustness_images: number of images of each row of `robustness`.
        attacks: accuracy without and under attacks of an adversary who knows the network;
            `attack_images` of the images that judge trained networks.
        attack_images: number of images of each row of `attacks`.
        confidence: confidence on inputs like the data and unlike it.
        calibration: its temperature and its confidence; None if that was not measured.
        refit: the training of its weights, on all images but the test images. What the card says of
            other images is of the weights before the refit, which did not learn the search and the
            hold-out images. None if the model was not refitted.
        threshold: from which confidence on it answers, as was asked; None if nobody asked.
        files: the exported files.
        on_device: what the device of the search, if it is another one, computed with them.
        preprocessing: how an image becomes the input, as in `preprocessing.json`.
        script: what `run.py` computed; None without a script.
        int8: how the model was quantised; None if no int8 file was exported.
        latencies_us: latency by what the search knew: `predicted` and `measured`.
        search_device: device that these latencies are for; empty if there are none.
        search_runtime, search_dtype: settings of the device of the search; empty if `latencies_us`
            cannot be compared with those of the files, because they are not of one image, are
            estimated, or belong to another device.
        device: processor that exported and timed the files.
        sustained: latencies under a load of some minutes; None if that was not measured.
        versions: versions of Python and the libraries by name.
        exported: date and time of the export.
        limits: what the figures do not say.
    """

    schema_version: Literal[10] = Field(default=10, alias="schema")
    weights_digest: Digest
    image_size: Side
    channels: Literal[1, 3]
    classes: tuple[str, ...]
    statements: CardSettings
    data: ModelData
    recipe: dict[str, JsonValue]
    image_changes: str = ""
    accuracy: ModelAccuracy
    robustness: tuple[RobustnessRow, ...]
    robustness_images: Count
    attacks: tuple[RobustnessRow, ...]
    attack_images: Count
    confidence: tuple[ConfidenceRow, ...]
    calibration: Calibration | None = None
    refit: RefitRecord | None = None
    threshold: Threshold | None = None
    files: tuple[ExportedFile, ...]
    on_device: DeviceResults | None = None
    preprocessing: Preprocessing
    script: ScriptCheck | None = None
    int8: Int8Summary | None = None
    latencies_us: dict[str, Positive] = Field(default_factory=dict)
    search_device: str = ""
    search_runtime: str = ""
    search_dtype: str = ""
    device: str
    sustained: SustainedRecord | None = None
    versions: dict[str, str]
    exported: str
    limits: tuple[str, ...]

    @property
    def script_file(self) -> ExportedFile | None:
        """The file of the network that `run.py` runs by default; None without a script."""
        if self.script is None:
            return None
        return next((file for file in self.files if file.file == self.script.file), None)

    @property
    def latency_notes(self) -> tuple[str, ...]:
        """Sentences on files whose latency is disturbed, or other than the search measured.

        The latter differ by more than `MAX_LATENCY_DIFFERENCE`.
        """
        own = [
            f"The core was slowed whenever {file.file} was timed: its latency is an upper limit."
            for file in self.files
            if file.latency is not None and file.latency.is_disturbed
        ]
        measured_us = self.latencies_us.get(MEASURED)
        if measured_us is None or not self.search_runtime:
            return tuple(own)
        others = []
        for file in self.files:
            ratio = (file.latency_us or measured_us) / measured_us
            if abs(ratio - 1) <= MAX_LATENCY_DIFFERENCE:
                continue
            if (file.runtime, file.precision) == (self.search_runtime, self.search_dtype):
                own.append(
                    f"{file.file} takes {ratio:.2g} times as long as the search measured: the "
                    "device has another speed now."
                )
            else:
                others.append((file, f"as {file.file} {ratio:.2g} times as long"))
        if others:
            note = (
                f"The network was chosen for {self.search_runtime} in {self.search_dtype}. It "
                f"takes {', '.join(text for _, text in others)}."
            )
            runtimes = [file for file, _ in others if file.runtime]
            if runtimes and self.architecture.dtype is None:
                options = f"--runtime {runtimes[0].runtime} --dtype {runtimes[0].precision}"
                note += f" To choose for such a file: nas retarget RUN {options}"
            own.append(note)
        return tuple(own)


CARD_FILE = "card.json"
"""Name of the file with the card of an exported model, in the model's folder."""

CARD = Format(
    ModelCard,
    "the card of a model",
    CheckpointError,
    "Export the model again with `nas export`.",
)
