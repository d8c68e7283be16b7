"""The keys of a job file, each declared once: its meaning, its bounds, and how long it may change.

`nas.run.settings` validates a job by them, `nas.job.changes` compares the job file of a
run with an earlier one, and the options of the commands that repeat a key take their help from
them. Importing this imports nothing heavy, because every command does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

MAX_SEED = 2**32 - 1
"""The largest seed that numpy's `RandomState`, which Optuna's samplers use, accepts."""

MAX_MINUTES = 366 * 24 * 60.0
"""Longest search, one year."""


Stage = Literal["training", "search"]
"""A part of a run from whose beginning on a key may not change: supernets, or the search."""


@dataclass(frozen=True)
class Key:
    """One key of a job file.

    Args:
        meaning: what the key means, as a phrase with its unit.
        bounds: constraints as pydantic names them: `ge`, `gt`, `le`, `lt`.
        fixed_from: stage of a run from whose beginning on the key may not change; None if a run
            can always be continued with another value.
        is_limit: whether it decides which trials are feasible, so that a change judges them again.
    """

    meaning: str
    bounds: dict[str, float]
    fixed_from: Stage | None = "training"
    is_limit: bool = False


def _key(meaning: str, **bounds: float) -> Key:
    """Return a key by which a run trains, so that it does not change afterwards."""
    return Key(meaning, bounds)


def _search_key(meaning: str, **bounds: float) -> Key:
    """Return a key on which the trials of a search depend."""
    return Key(meaning, bounds, fixed_from="search")


def _free_key(meaning: str, **bounds: float) -> Key:
    """Return a key that changes nothing of what a run has done, but perhaps how much it does."""
    return Key(meaning, bounds, fixed_from=None)


def _limit_key(meaning: str, **bounds: float) -> Key:
    """Return a limit of the search; the values of the trials stay."""
    return Key(meaning, bounds, fixed_from=None, is_limit=True)


KEYS: dict[str, Key] = {
    "name": _free_key(
        "Name of the run, by default that of the job file; results are in results/<name>."
    ),
    "seed": _key("Seed of everything that is drawn at random.", ge=0, le=MAX_SEED),
    "budget": _free_key('Time of the whole job, such as "45m", "8h" or "1h30m".'),
    "data.source": _free_key(
        '"digits", parquet files, or a folder with one folder for each class.'
    ),
    "data.validation_fraction": _key(
        "Fraction of the training images that is kept for validation; by default as many as "
        "accuracies need.",
        gt=0,
        lt=1,
    ),
    "data.image_size": _key(
        "Height and width of the images in pixels; by default those of the data.", ge=8, le=512
    ),
    "data.on_bad_image": _key("What an unreadable image does: fail, or skip with a message."),
    "data.class_folders": _key(
        "Which folders are the classes: top, lowest, or auto, see docs/data.md."
    ),
    "data.group": _key(
        "What tells images of one object: a regular expression with one group, searched in the "
        "path, or a column of parquet files."
    ),
    "data.on_duplicate": _key(
        "What duplicates do: warn, group (kept on one side of every split), or fail."
    ),
    "data.metric": _key(
        "What judges networks: accuracy, balanced_accuracy (the mean over the classes), or auto, "
        "which is the latter from a ratio of 3 between classes on."
    ),
    "data.background": _key(
        'Colour behind transparent pixels: a name of CSS such as "white", or "#rrggbb".'
    ),
    "data.unknown": _free_key(
        "Folder of images of no class: a confident answer to one of them is wrong."
    ),
    "data.license": _free_key("License of the data, which the report names."),
    "device.runtime": _key(
        "Runtime that compiles and times: tvm, onnxruntime, litert, or a plug-in's."
    ),
    "device.target": _key(
        "Device: cpu, cuda (an NVIDIA GPU), or rpc://HOST:PORT?triple=T&cpu=C for a board; "
        "cpu?mcpu=znver3 has TVM write code for a lesser processor than this one."
    ),
    "device.threads": _key("Number of threads that run one network.", ge=1, le=4096),
    "device.dtype": _key(
        "Type of weights and activations: float32, float16 or int8, if the runtime has it; with "
        '["float32", "int8"], the search chooses one for each network.'
    ),
    "device.batch": _key(
        "Number of images that run at once; latencies are those of the whole batch.",
        ge=1,
        le=1 << 20,
    ),
    "device.tables": _key("Folder of latency tables, or one .jsonl file."),
    "training.device": _free_key("Device that trains the supernets: cpu, cuda, or auto."),
    "training.epochs": _key(
        "Most passes over the images, of a supernet and of a finalist; by default what the budget "
        "allows.",
        ge=1,
        le=1_000_000,
    ),
    "training.minutes": _key(
        "Minutes of training for each supernet, instead of epochs.", gt=0, le=1_000_000
    ),
    "training.batch_size": _key(
        "Number of images of one training step; by default 64, on a GPU 256.", ge=2, le=1_000_000
    ),
    "training.learning_rate": _key(
        "Peak learning rate; by default 0.1 for a batch of 64, in proportion to the batch.",
        gt=0,
        le=1000,
    ),
    "training.random_subnets": _key("Number of random subnets of one step.", ge=0, le=1000),
    "training.progressive_resizing": _key(
        "Fraction of the training, from its start, that has smaller images; by default 2/3, but 0 "
        "for images below 24 pixels and for networks of up to 3 million multiply-accumulates.",
        ge=0,
        lt=1,
    ),
    "training.label_smoothing": _key("Label smoothing.", ge=0, lt=1),
    "training.weight_decay": _key("Weight decay.", ge=0, le=1000),
    "training.flip": _key(
        'Whether half of the training images are mirrored: true, false, or "auto": an experiment '
        "at the start finds out whether mirrored images keep their class."
    ),
    "training.shift": _key(
        'Largest random shift of a training image in pixels, or "auto": an eighth of its side.',
        ge=0,
        le=512,
    ),
    "training.colour": _key("Strength of random changes of colour.", ge=0, lt=1),
    "training.randaugment": _key("Number of RandAugment operations on an image.", ge=0, le=100),
    "training.magnitude": _key("Magnitude of RandAugment operations.", ge=0, le=1),
    "training.cutout": _key("Side of the erased square as a fraction of the image.", ge=0, lt=1),
    "training.precision": _key("Precision of training: float32, bfloat16, or auto."),
    "space.name": _key("Name of a search space, or path of a Python file that defines SPACE."),
    "space.resolutions": _key(
        "Shares of the image size at which networks can run, such as 0.6, 0.8 and 1.0; by default "
        "those of the space's file, which is 1.0 alone for most spaces."
    ),
    "space.pretrained.file": _key(
        "Path of a file with the weights of a published network of the space, from which its "
        "supernet starts; the space is restricted to the networks that this one contains. "
        "pretrained = FILE says the same."
    ),
    "space.pretrained.conventions": _key(
        "What that file does not say, where its names do not tell: torch, torchvision_v3 or "
        "tensorflow; see docs/pretrained.md."
    ),
    "space.pretrained.source": _free_key("Where that file comes from, which the report names."),
    "space.pretrained.licence": _free_key("Licence of these weights, which the report names."),
    "space.pretrained.data": _free_key(
        "Data set that the published network was trained on, which the report names."
    ),
    "search.trials": _free_key(
        "Number of distinct architectures to score, in all starts together; by default what the "
        "model and the budget say.",
        ge=1,
        le=100_000_000,
    ),
    "search.minutes": _free_key("Longest time of the search in minutes.", gt=0, le=MAX_MINUTES),
    "search.stall": _free_key(
        "Number of trials without an improvement of the front after which the search ends, or "
        '"auto": it ends when the model of its sampler expects too little. "auto" is the default '
        "unless trials is set.",
        ge=1,
        le=100_000_000,
    ),
    "search.sampler": _search_key("Sampler: auto, guided, tpe, nsga2, nsga3, gp or random."),
    "search.also_minimize": _search_key(
        "Further objectives: macs, params, peak_memory_bytes, and figures that the runtime knows, "
        "such as sram_kib."
    ),
    "search.also_maximize": _search_key(
        "Further objectives to maximise: figures that the runtime knows, such as mac_utilisation."
    ),
    "search.max_latency_ms": _limit_key("Largest latency in milliseconds.", gt=0),
    "search.max_macs": _limit_key("Largest number of multiply-accumulates.", gt=0, lt=2**63),
    "search.max_params": _limit_key("Largest number of parameters.", gt=0, lt=2**63),
    "search.max_peak_memory_bytes": _limit_key(
        "Largest size of the activations that are alive at once, in bytes.", gt=0, lt=2**63
    ),
    "search.limits": _limit_key(
        "Largest values of figures that the runtime knows, such as sram_kib = 256; the smallest "
        "ones of figures that are maximised."
    ),
    "search.device.table": _search_key(
        "Latency table of another device that the networks are for."
    ),
    "search.device.max_latency_ms": _limit_key(
        "Largest latency on that device in milliseconds.", gt=0
    ),
    "search.correct_scores": _search_key("Whether the scores of supernets are corrected for size."),
    "search.anchors": _search_key(
        "Number of networks of each space that are trained standalone before the search, so that "
        "the scores of all supernets have one scale: 0 or at least 4. The default is 4 for several "
        "spaces and 0 for one.",
        ge=0,
        le=1000,
    ),
    "search.workers": _free_key("Number of processes of this machine that search.", ge=1, le=1024),
    "search.storage": _search_key(
        "Storage of the trials: journal, or postgresql://USER@HOST/DATABASE."
    ),
    "finish.measure": _free_key(
        "Number of candidates that are timed as whole networks.", ge=0, le=100_000
    ),
    "finish.retrain": _free_key(
        "Number of networks of the front that are trained to the end; by default what the budget "
        "allows.",
        ge=0,
        le=1000,
    ),
    "finish.references": _free_key(
        "Published networks that are timed, and trained like the networks of the front; by default "
        "those of the spaces that are about as fast, as many as a tenth of the budget trains."
    ),
    "finish.export": _free_key(
        "Formats that the trained networks are exported to; by default that of the device's "
        "runtime, onnx and onnx-int8."
    ),
    "finish.min_confidence": _free_key(
        "Confidence below which an exported model answers unsure.", gt=0, le=1
    ),
    "finish.min_accuracy": _free_key(
        "Share of the answers of an exported model that must be right; chooses the confidence.",
        gt=0,
        le=1,
    ),
    "finish.pictures": _free_key(
        "Whether the report and the cards show hold-out images that were classified wrongly."
    ),
    "study.finalists": _free_key(
        "Number of networks of the front that a study trains from newly drawn weights.",
        ge=1,
        le=1000,
    ),
    "study.random": _free_key(
        "Number of random networks of the same space, at the latency of each finalist.",
        ge=0,
        le=1000,
    ),
    "study.references": _free_key(
        "Published networks of a study; by default those of the spaces that these images allow."
    ),
    "study.epochs": _free_key(
        "Passes over the images of each training of a study.", ge=1, le=1_000_000
    ),
    "study.seeds": _free_key("Number of trainings of each network of a study.", ge=1, le=1000),
    "study.workers": _free_key(
        "Number of processes of this machine that train the networks of a study.", ge=1, le=1024
    ),
}
"""All keys by their path in the job file."""


def constraints(path: str) -> dict[str, Any]:
    """Return the arguments of pydantic's `Field` for a key: its description and its bounds."""
    key = KEYS[path]
    return {"description": key.meaning, **key.bounds}
