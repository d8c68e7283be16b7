"""`JobSettings`: what a run was asked to do, its tables and keys.

A job file (`nas.job.settings`) is read into it, and the record of a run holds it. Each field
declares a key, and the docstring below it is the meaning of the key, see `nas.run.keys`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    field_serializer,
    field_validator,
    model_validator,
)

from nas.errors import shortened_text
from nas.figures import COUNTS, SEARCH_LIMITS
from nas.files.documents import Document
from nas.graph import DEFAULT_DTYPE, Graph
from nas.run.keys import (
    MAX_MINUTES,
    MAX_SEED,
    Duration,
    FigureName,
    FilePath,
    Line,
    NameText,
    Shares,
    SpaceName,
    StorageAddress,
    check_dtype,
    check_switch,
    free_key,
    key,
    keys_of,
    limit_key,
    number_or_auto,
    run_from_job_folder,
    search_key,
    seconds_of,
    takes_place_of,
)

if TYPE_CHECKING:
    from nas.search.budget import Stall
    from nas.supernet.recipe import Recipe


MAX_REFIT_IMAGES = 10_000
"""Images, of all parts but the test, below which networks are refitted by default. With more, those
that search and hold-out add to a training change little."""

MAX_STATEMENT = 10_000
"""Most characters of a statement for the cards of models, two pages."""


class _Table(BaseModel):
    """A TOML table that refuses unknown keys and values of another type."""

    # Errors hide the input: it may be the address of a storage, with a password. Commands start
    # with the descriptions of their options alone, so the validators are built when they are used.
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,
    )


class DataOptions(Document):
    """How the images of a source are read and split, beside their size and the seed."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    validation_fraction: float | None = key(None, gt=0, lt=1)
    """Fraction of the training images that is used for validation; by default as many as accuracies
    need.
    """

    on_bad_image: Literal["fail", "skip"] = key("fail")
    """What an unreadable image does: fail, or skip with a message."""

    class_folders: Literal["auto", "top", "lowest"] = key("auto")
    """Which folders are the classes: top, lowest, or auto, see docs/data.md."""

    group: str = key("", max_length=1000)
    """What tells images of one object: a regular expression with one group, searched in the path,
    or a column of parquet files.
    """

    on_duplicate: Literal["warn", "group", "fail"] = key("warn")
    """What duplicates do: warn, group (all on one side of every split), or fail."""

    metric: Literal["auto", "accuracy", "balanced_accuracy"] = key("auto")
    """What judges networks: accuracy, balanced_accuracy (the mean over the classes), or auto, which
    is the latter from a ratio of 3 between classes on.
    """

    background: str = key("white", max_length=100)
    """Colour behind transparent pixels and of borders: a name of CSS such as "white", or
    "#rrggbb".
    """

    resize: Literal["cover", "contain"] = key("cover")
    """How oblong images become squares: cover crops them to the centre, contain adds borders."""

    extra: tuple[FilePath, ...] = free_key((), strict=False)
    """Further folders of images of these classes, such as labelled ones from the field: all of them
    are for training, and judge nothing.
    """

    @property
    def load_options(self) -> dict[str, Any]:
        """The options as arguments of `nas.data.load_dataset`."""
        return self.model_dump(include=set(DataOptions.model_fields))


class DataSettings(DataOptions, _Table):
    """The table `[data]`: where the images are and how they are split."""

    source: FilePath = free_key(...)
    """The images: "digits", parquet files, or a folder with one folder for each class."""

    image_size: Annotated[int | Literal["auto"] | None, number_or_auto("pixels", 8, 512)] = key(
        None
    )
    """Height and width of the images in pixels; by default that of the source, such as 32 for
    photos, or "auto" with published weights, see docs/pretrained.md.
    """

    license: str = free_key("", max_length=100_000)
    """License of the data, which the report names."""

    unknown: FilePath | None = free_key(None)
    """Folder of images of no class: a confident answer to one of them is wrong."""

    @field_validator("background")
    @classmethod
    def _is_a_colour(cls, background: str) -> str:
        from nas.data.loading import hex_colour  # Imports Pillow.

        hex_colour(background)
        return background


class DeviceSettings(_Table):
    """The table `[device]`: the device that the networks are for, and how they run on it.

    The installed runtimes define the allowed values of `runtime`, `target` and `dtype`, see
    `nas.latency.open_runtime`. All latencies are those of `batch` images at once.
    """

    runtime: str = key("tvm", min_length=1, max_length=64)
    """Runtime that compiles and times: tvm, onnxruntime, litert, or a plug-in's; by default tvm, or
    the one that alone has the target.
    """

    target: Line = key("cpu")
    """Device: cpu, cuda (an NVIDIA GPU), ssh://USER@HOST or adb: for another device, several of
    these for equal devices that share the work, or kit:NAME?triple=T&cpu=C for one that only you
    reach; cpu?mcpu=znver3 has TVM write code for a lesser processor than this one.
    """

    threads: int = key(1, ge=1, le=4096)
    """Number of threads that run one network."""

    dtype: Annotated[str | tuple[str, ...], BeforeValidator(check_dtype)] = key(
        DEFAULT_DTYPE, min_length=1, max_length=64
    )
    """Type of weights and activations: float32, float16 or int8, if the runtime has it, by default
    float32 or the only one; with ["float32", "int8"], the search chooses one for each network.
    """

    batch: int = key(1, ge=1, le=1 << 20)
    """Number of images that run at once; latencies are those of the whole batch."""

    tables: FilePath = key("latency_tables", validate_default=True)
    """Folder of latency tables, or one .jsonl file."""

    @model_validator(mode="before")
    @classmethod
    def _may_leave_out_what_follows(cls, value: Any) -> Any:
        """Add the runtime of a target that one alone has, and its only target and dtype.

        The targets of equal devices become one.
        """
        if not isinstance(value, dict) or value.keys().isdisjoint({"runtime", "target"}):
            return value
        from nas.transports.address import joined_targets

        several = value.get("target")
        if isinstance(several, list | tuple) and all(isinstance(each, str) for each in several):
            value = {**value, "target": joined_targets(several)}
        defaults = {name: cls.model_fields[name].default for name in ("runtime", "target", "dtype")}
        given = {name: value[name] for name in defaults if name in value}
        if len(given) == len(defaults) or not all(isinstance(v, str) for v in given.values()):
            return value
        from nas.latency.installed_runtimes import completed_device

        return {**value, **completed_device(given, defaults)}

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The type of weights and activations, or `BOTH_DTYPES` if networks differ in it."""
        return (self.dtype,) if isinstance(self.dtype, str) else self.dtype

    def dtype_of(self, graph: Graph) -> str:
        """Return the type of weights and activations in which a network runs."""
        return graph.dtype if len(self.dtypes) > 1 else self.dtypes[0]

    def runtime_options(self, dtype: str | None = None) -> dict[str, Any]:
        """Return the arguments of `open_runtime` beside the name; by default of the first dtype."""
        dtype = dtype or self.dtypes[0]
        return {"target": self.target, "threads": self.threads, "dtype": dtype}


class TrainingOptions(_Table):
    """The table `[training]`: how the supernets are trained, and on which device."""

    device: Line = free_key("auto")
    """Device that trains the supernets: cpu, cuda, or auto."""

    epochs: int | None = key(None, ge=1, le=1_000_000)
    """Most passes over the images, of a supernet and of a finalist; by default what the budget
    allows.
    """

    minutes: float | None = key(None, gt=0, le=1_000_000)
    """Minutes of training for each supernet, instead of epochs."""

    batch_size: int | None = key(None, ge=2, le=1_000_000)
    """Number of images of one training step; by default 64, on a GPU 256."""

    learning_rate: float | None = key(None, gt=0, le=1000)
    """Peak learning rate; by default 0.1 for a batch of 64, in proportion to the batch."""

    random_subnets: int | None = key(None, ge=0, le=1000)
    """Number of random subnets of one step."""

    progressive_resizing: float | None = key(None, ge=0, lt=1)
    """Fraction of the training, from its start, that has smaller images; by default 2/3, but 0 for
    images below 24 pixels and for networks of up to 3 million multiply-accumulates.
    """

    label_smoothing: float | None = key(None, ge=0, lt=1)
    """Label smoothing."""

    weight_decay: float | None = key(None, ge=0, le=1000)
    """Weight decay."""

    flip: Annotated[bool | Literal["auto"], BeforeValidator(check_switch)] = key("auto")
    """Whether half of the training images are mirrored: true, false, or "auto": an experiment at
    the start finds out whether mirrored images keep their class.
    """

    shift: Annotated[int | Literal["auto"], number_or_auto("pixels", 0, 512)] = key("auto")
    """Largest random shift of a training image in pixels, or "auto": an eighth of its side."""

    colour: float | None = key(None, ge=0, lt=1)
    """Strength of random changes of colour."""

    precision: Literal["auto", "float32", "bfloat16"] = key("auto")
    """Precision of training: float32, bfloat16, or auto."""

    def recipe(
        self,
        flip: bool | None = None,
        *,
        batch_size: int | None = None,
        epochs: float | None = None,
        seconds: float | None = None,
    ) -> Recipe:
        """Return the recipe of a training.

        Args:
            flip: what an experiment decided about mirroring; None if it decided nothing.
            batch_size: batch size if the job sets none.
            epochs: number of epochs in place of the length that the job sets.
            seconds: time budget of a supernet in place of that length.
        """
        from nas.supernet.recipe import Recipe, scaled_learning_rate  # Imports numpy.

        given = {name: value for name, value in self if value not in (None, "auto")}
        if batch_size is not None:
            given.setdefault("batch_size", batch_size)
        if "batch_size" in given:
            given.setdefault("learning_rate", scaled_learning_rate(given["batch_size"]))
        minutes = given.pop("minutes", None)
        if seconds is None and epochs is None and minutes is not None:
            seconds = 60 * minutes
        decided = {"flip": flip, "epochs": epochs}
        given |= {name: value for name, value in decided.items() if value is not None}
        return Recipe(**given, seconds=seconds)

    def fine_tuned(self, recipe: Recipe, images: int) -> Recipe:
        """Return the recipe of a training that starts from published weights.

        Its learning rate is lower, again with few training images, and its images have their size
        from the first step, unless the job sets these. Published weights know images of that size:
        with 2,000 photos, the largest network was 4 points worse after as much time with
        progressive resizing.

        Args:
            recipe: that of a training that starts from random weights.
            images: number of training images.
        """
        from nas.supernet.recipe import FINE_TUNING_RATE, FULL_RATE_IMAGES

        if self.learning_rate is None:
            factor = FINE_TUNING_RATE * min(1.0, images / FULL_RATE_IMAGES)
            recipe = replace(recipe, learning_rate=factor * recipe.learning_rate)
        if recipe.progressive_resizing is None:
            recipe = replace(recipe, progressive_resizing=0.0)
        return recipe

    @property
    def length(self) -> dict[str, float] | None:
        """The length of a training, `epochs` or `minutes`; None if the budget decides it."""
        return self.model_dump(include={"epochs", "minutes"}, exclude_none=True) or None

    _minutes_or_epochs = field_validator("minutes")(takes_place_of("training.epochs"))


class PretrainedSettings(_Table):
    """The table `pretrained` of a space: a file of published weights, and where it comes from.

    A path stands for a table with the file alone.
    """

    file: FilePath = key(...)
    """Path of a file with the weights of a published network of the space, from which its supernet
    starts; the space is restricted to the networks that this one contains. pretrained = FILE says
    the same.
    """

    conventions: Literal["torch", "torchvision_v3", "tensorflow"] | None = key(None)
    """What that file does not say, where its names do not tell: torch, torchvision_v3 or
    tensorflow; see docs/pretrained.md.
    """

    source: Line | None = free_key(None)
    """Where that file comes from, which the report names."""

    license: Line | None = free_key(None)
    """License of these weights, which the report names."""

    data: Line | None = free_key(None)
    """Data set that the published network was trained on, which the report names."""

    @model_validator(mode="before")
    @classmethod
    def _may_be_a_path(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"file": value}
        if not isinstance(value, dict | cls):
            raise ValueError('write the path of a file, or a table such as { file = "PATH" }')
        return value


class JobSpace(_Table):
    """One `[[space]]`: a search space, its resolutions, and where its supernet starts from."""

    name: SpaceName = key(...)
    """Name of a search space, or path of a Python file that defines SPACE."""

    resolutions: Shares | None = key(None, strict=False)
    """Shares of the image size at which networks can run, such as 0.6, 0.8 and 1.0; by default
    those of the space's file, which is 1.0 alone for most spaces.
    """

    pretrained: PretrainedSettings | None = None

    within: Annotated[Line, AfterValidator(run_from_job_folder)] | None = key(None)
    """Trained network of a run, "RUN:ID", from whose weights the supernet starts: the space is
    restricted to the networks that are left of it when channels, blocks and kernels are pruned.
    """

    exit: Line | None = key(None)
    """Stage behind which finalists have a second classifier, which can answer easy images early:
    nas cascade then compares it with chains of networks.
    """

    @property
    def starts_from_weights(self) -> bool:
        """Whether its supernet starts from published weights, or from those of a run."""
        return self.pretrained is not None or self.within is not None

    _within_or_pretrained = field_validator("within")(takes_place_of("space.pretrained"))


class SearchDevice(_Table):
    """One `[[search.device]]`: a further device that the networks are for, by its latency table."""

    table: FilePath = search_key(...)
    """Latency table of another device that the networks are for, made by `nas table build`."""

    max_latency_ms: float | None = limit_key(None, gt=0)
    """Largest latency on that device in milliseconds."""

    @property
    def name(self) -> str:
        """The name of its table's file, without the suffix."""
        return Path(self.table).stem


if TYPE_CHECKING:
    _SearchLimits = _Table
else:
    _SearchLimits = create_model(
        "_SearchLimits",
        __base__=_Table,
        **{
            each.limit_name: (
                int | None if each.is_whole else float | None,
                limit_key(
                    None,
                    gt=0,
                    lt=2**63 if each.is_whole else None,
                    description=each.limit_meaning,
                ),
            )
            for each in SEARCH_LIMITS
        },
    )


class SearchSettings(_SearchLimits):
    """The table `[search]`: length, sampler, objectives, limits, workers and storage."""

    trials: int | None = free_key(None, ge=1, le=100_000_000)
    """Number of distinct architectures to score, in all starts together; by default what the model
    and the budget say.
    """

    minutes: float | None = free_key(None, gt=0, le=MAX_MINUTES)
    """Longest time of the search in minutes."""

    stall: Annotated[int | Literal["auto"] | None, number_or_auto("trials", 1, 100_000_000)] = (
        free_key(None)
    )
    """Number of trials without an improvement of the front after which the search ends, or "auto":
    it ends when the model of its sampler expects too little. "auto" is the default unless trials is
    set.
    """

    sampler: Literal["auto", "guided", "tpe", "nsga2", "nsga3", "gp", "random"] = search_key("auto")
    """Sampler: auto, guided, tpe, nsga2, nsga3, gp or random."""

    also_minimize: tuple[FigureName, ...] = search_key((), strict=False)
    """Further objectives: macs, params, peak_memory_bytes, and figures that the runtime knows, such
    as sram_kib.
    """

    also_maximize: tuple[FigureName, ...] = search_key((), strict=False, validate_default=True)
    """Further objectives to maximise: figures that the runtime knows, such as mac_utilisation."""

    limits: dict[FigureName, float] = limit_key({})
    """Largest values of figures that the runtime knows, such as sram_kib = 256; the smallest ones
    of figures that are maximised.
    """

    device: Annotated[tuple[SearchDevice, ...], Field(strict=False, max_length=100)] = ()
    correct_scores: bool = search_key(True)
    """Whether the scores of supernets are corrected for size."""

    anchors: Annotated[int | Literal["auto"], number_or_auto("networks", 0, 1000)] = search_key(
        "auto"
    )
    """Number of networks of each space that are trained standalone before the search, so that the
    scores of all supernets have one scale: 0 or at least 4. The default is 4 for several spaces and
    0 for one.
    """

    workers: int = free_key(1, ge=1, le=1024)
    """Number of processes of this machine that search."""

    storage: StorageAddress = search_key("journal")
    """Storage of the trials: journal, or postgresql://USER@HOST/DATABASE."""

    @field_validator("anchors")
    @classmethod
    def _suffice_for_a_correction(
        cls, anchors: int | Literal["auto"], info: ValidationInfo
    ) -> int | Literal["auto"]:
        if anchors == "auto":
            return anchors
        from nas.supernet.records import MIN_ANCHORS  # Imports numpy.

        if 0 < anchors < MIN_ANCHORS:
            raise ValueError(f"allowed are 0 and {MIN_ANCHORS} or more")
        if anchors and not info.data.get("correct_scores"):
            raise ValueError("search.correct_scores is false, and only a correction needs anchors")
        return anchors

    @field_validator("limits")
    @classmethod
    def _check_limits(cls, limits: dict[str, float]) -> dict[str, float]:
        for name, limit in limits.items():
            if name in COUNTS:
                raise ValueError(f"the limit of {name} is search.max_{name}")
            if limit < 0:
                raise ValueError(f"the limit of {name} is negative")
        return limits

    @field_validator("also_maximize")
    @classmethod
    def _check_directions(cls, maximised: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in maximised:
            if name in COUNTS:
                raise ValueError(f"less {name} is better; put it into search.also_minimize")
            if name in info.data.get("also_minimize", ()):
                raise ValueError(f"search.also_minimize has {name}, too; put it into one of them")
        return maximised

    @property
    def effective_stall(self) -> Stall | None:
        """What ends the search before its trials are done; None if nothing does.

        The trials of the job file are a wish, those that a budget gives are a limit.
        """
        from nas.search.proposals import default_stall

        return self.stall or default_stall(self.sampler, self.trials)

    @field_validator("sampler")
    @classmethod
    def _check_sampler_has_model(cls, sampler: str, info: ValidationInfo) -> str:
        if info.data.get("stall") == "auto" and sampler not in ("auto", "guided"):
            raise ValueError(
                "it has no model that could end the search; give search.stall as a number of "
                "trials, or leave it out"
            )
        return sampler

    @field_validator("device")
    @classmethod
    def _check_names_differ(cls, devices: tuple[SearchDevice, ...]) -> tuple[SearchDevice, ...]:
        names = [device.name for device in devices]
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise ValueError(
                f"two tables are called {shortened_text(repeated[0])}, and results are named by "
                "them"
            )
        return devices

    @field_serializer("storage")
    def _without_password(self, storage: str) -> str:
        """Return the address without its password, which must not be written to a run folder."""
        if storage == "journal":
            return storage
        from nas.files.storage_address import redact_address

        return redact_address(storage)


class FinishSettings(_Table):
    """The table `[finish]`: what is timed, trained and exported at the end."""

    measure: int = free_key(20, ge=0, le=100_000)
    """Number of candidates that are timed as whole networks."""

    retrain: int | None = free_key(None, ge=0, le=1000)
    """Number of networks of the front that are trained to the end; by default what the budget
    allows.
    """

    refit: Annotated[bool | Literal["auto"], BeforeValidator(check_switch)] = free_key("auto")
    """Whether networks are trained once more on all images but the test images after their
    accuracy is known: true, false, or "auto", which is true below 10,000 images.
    """

    references: tuple[NameText, ...] | None = free_key(None, strict=False, max_length=1000)
    """Published networks that are timed, and trained like the networks of the front; by default
    those of the spaces that are about as fast, as many as a tenth of the budget trains.
    """

    export: tuple[str, ...] | None = free_key(None, strict=False)
    """Formats that the trained networks are exported to; by default that of the device's runtime,
    onnx and onnx-int8.
    """

    min_confidence: float | None = free_key(None, gt=0, le=1)
    """Confidence below which an exported model answers unsure."""

    min_accuracy: float | None = free_key(None, gt=0, le=1)
    """Share of the answers of an exported model that must be right; chooses the confidence."""

    pictures: bool = free_key(True)
    """Whether the report and the cards show hold-out images that were classified wrongly."""

    _accuracy_or_confidence = field_validator("min_accuracy")(
        takes_place_of("finish.min_confidence")
    )

    def refits(self, images: int) -> bool:
        """Return whether networks are refitted, from the number of all images but the test's."""
        return images < MAX_REFIT_IMAGES if self.refit == "auto" else self.refit


class CardSettings(_Table):
    """The table `[card]`: what the cards of exported models repeat, and `nas` cannot know."""

    intended_use: str = free_key("", max_length=MAX_STATEMENT)
    """What the models are for, and by whom they are used."""

    misuse: str = free_key("", max_length=MAX_STATEMENT)
    """What the models must not be used for, though somebody may."""

    human_oversight: str = free_key("", max_length=MAX_STATEMENT)
    """Who checks the answers of the models, and can overrule or stop them."""

    monitoring: str = free_key("", max_length=MAX_STATEMENT)
    """Plan of what is watched after the shipment, how often, and what is done then."""

    contact: str = free_key("", max_length=MAX_STATEMENT)
    """Who answers questions and receives reports of errors."""

    data_origin: str = free_key("", max_length=MAX_STATEMENT)
    """Where the images come from, how they were chosen, and who labelled them."""


class JobSettings(_Table):
    """The settings of a whole job file; jobs/overnight.toml shows every key.

    `load_job` names a job without a name after its file.
    """

    name: NameText = free_key("job")
    """Name of the run, by default that of the job file; results are in results/<name>."""

    seed: int = key(0, ge=0, le=MAX_SEED)
    """Seed of everything that is drawn at random."""

    budget: Duration = free_key("8h")
    """Time of the whole job, such as "45m", "8h" or "1h30m"."""

    data: DataSettings
    """The table [data], with source = "digits" or a path."""

    device: DeviceSettings = Field({}, validate_default=True)
    training: TrainingOptions = Field(default_factory=TrainingOptions)
    space: tuple[JobSpace, ...] = Field(..., min_length=1, max_length=100, strict=False)
    """A table [[space]] with name = "mobilenet", once for each family."""

    search: SearchSettings = Field(default_factory=SearchSettings)
    finish: FinishSettings = Field(default_factory=FinishSettings)
    card: CardSettings = Field(default_factory=CardSettings)

    @property
    def chooses_image_size(self) -> bool:
        """Whether probes of published weights choose the image size: if "auto", or by default."""
        size = self.data.image_size
        return size == "auto" or (size is None and any(each.pretrained for each in self.space))

    @property
    def budget_s(self) -> float:
        """Time of the whole job in seconds."""
        return seconds_of(self.budget)

    @property
    def anchors(self) -> int:
        """Number of networks of each space that are trained alone before the search.

        Supernets of different spaces score on different scales, so several spaces need some.
        """
        if self.search.anchors != "auto":
            return self.search.anchors
        from nas.supernet.records import MIN_ANCHORS

        return MIN_ANCHORS if len(self.space) > 1 and self.search.correct_scores else 0

    def to_toml(self) -> str:
        """Return the text of a job file that names every key that has a value."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


KEYS = keys_of(JobSettings)
"""All keys of a job file by their path in it."""
