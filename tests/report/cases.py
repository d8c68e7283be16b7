"""Reports that are hard to draw: many networks, one, none, unfinished runs, strange names.

Tests, screenshots and benchmarks use the same `CASES`.
"""

import base64
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas.graph import DIGEST_LETTERS
from nas.opened_run import open_run
from nas.report import comparison, page
from nas.run import candidates
from nas.run.answers import Answers, ConfusedPair, Mistake
from nas.run.candidates import Candidate
from nas.run.front import with_trained
from nas.run.measurements import Measurement
from nas.run.record import read_run
from nas.run.trained import SplitAccuracy, read_trained
from nas.space import Architecture, load_space
from nas.space.records import ArchitectureRecord

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "results" / "example"

FAMILIES = {"mobilenet_32": 1.0, "shufflenet": 0.3, "squeezenet": 0.4}
"""Spaces of the large runs, with their latency relative to their multiply-accumulates."""

PUBLISHED = ("shufflenet_v2_0.5", "squeezenet_1.1")
"""Published networks of the second and third space, which the large runs have trained."""

DISTINCT_ARCHITECTURES = 600
"""Networks that are lowered for a large run; further ones are these with other digests."""

LATE_STAGES = ("measure the front", "train the finalists", "export")
"""Stages after the search."""

MARKUP = "<script>alert(1)</script> \"&' <img src=x onerror=alert(2)>"
"""A text that harms where it is taken for markup."""


def report_path(name: str, folder: Path) -> Path:
    """Return the path of the report of a case that is written below a folder."""
    if name == COMPARISON:
        return folder / "compare.html"
    return folder / ("it's-<b>&amp;" if name == "markup" else name) / "report.html"


def write_case(name: str, folder: Path) -> Path:
    """Write the runs of a case into new folders below one, and return the path of the report."""
    report = report_path(name, folder)
    if name == COMPARISON:
        _example(folder / "example")
        _other_device(folder / "board")
        return comparison.build([open_run(folder / run) for run in ("example", "board")], report)
    RUNS[name](report.parent)
    return page.build(open_run(report.parent))


def _example(folder: Path) -> None:
    """Copy the example: a quickstart with trained networks, their files, and a ranking."""
    ignored = shutil.ignore_patterns("*.safetensors", "*.so", "*.onnx", "study.journal")
    shutil.copytree(EXAMPLE, folder, ignore=ignored)


def _single(folder: Path) -> None:
    """Make a run whose limit only its fastest network meets."""
    _example(folder)
    fastest, second = open_run(folder).front["measured_us"][:2]
    change_record(folder, {"job.search.max_latency_ms": (fastest + second) / 2000})


def _empty(folder: Path) -> None:
    """Make a run whose limit no network meets."""
    _example(folder)
    change_record(folder, {"job.search.max_latency_ms": 1e-6})


def _interrupted(folder: Path) -> None:
    """Make a run that was stopped while it searched, with 120 candidates."""
    _begun(folder)
    shutil.copy(EXAMPLE / "hypervolume.csv", folder)
    rows = open_run(EXAMPLE).trials[:120]
    late = ["measured_us", "holdout_accuracy", "trained_accuracy", "test_accuracy", "dominated_by"]
    rows[late] = None
    candidates.write(rows, folder / "trials.csv")
    change_record(folder, {"remaining": ["search", *LATE_STAGES]})


def _begun(folder: Path) -> None:
    """Make a run that was stopped while it trained its second supernet."""
    _example(folder)
    for name in ("models", "supernets/shufflenet_tiny", "supernets/squeezenet_tiny"):
        shutil.rmtree(folder / name)
    for name in ("trials.csv", "measurements.jsonl", "hypervolume.csv", "ranking.json"):
        (folder / name).unlink()
    record = json.loads((folder / "run.json").read_text())
    supernets = ["supernet shufflenet_tiny", "supernet squeezenet_tiny"]
    for name in (*supernets[1:], "search", *LATE_STAGES):
        del record["stages"][name]
    changes: dict[str, Any] = {
        "stages": record["stages"],
        "supernets": {"mobilenet_tiny": record["supernets"]["mobilenet_tiny"]},
        "remaining": [*supernets, "search", *LATE_STAGES],
        "search": None,
        "correction": None,
        "finalists": None,
    }
    change_record(folder, changes)


def _many_classes(folder: Path) -> None:
    """Make a run of 100 classes with long names."""
    names = [f"{label:02}, a class of things whose name is rather long" for label in range(100)]
    _synthetic(folder, trials=60, classes=names)


def _markup(folder: Path) -> None:
    """Make a run in which every text that a user chooses, or a library writes, has markup."""
    _example(folder)
    classes = [f"{label} {MARKUP}" for label in range(10)]
    trained = list(read_trained(folder).values())
    change_record(
        folder,
        {
            "command": f"nas quickstart --out {MARKUP}",
            "data.source": MARKUP,
            "data.license": MARKUP,
            "data.summary": MARKUP,
            "data.problems": [MARKUP],
            "data.classes": classes,
            "device.summary": MARKUP,
            "device.must_match.processor": MARKUP,
            "device.recorded.system": MARKUP,
            "search.ended": MARKUP,
            "versions.torch": MARKUP,
            "export_errors": {trained[0].id: {"tvm": MARKUP, "all": MARKUP}},
            "training_errors": {"z0000": MARKUP},
        },
    )
    for path in folder.glob("models/*/answers.json"):
        answers = json.loads(path.read_text())
        for mistake in answers["mistakes"]:
            mistake["file"] = MARKUP
        path.write_text(json.dumps({**answers, "classes": classes}))
    run = open_run(folder)
    rows = run.trials
    rows.loc[rows.index[-3:], ["state", "error"]] = "failed", MARKUP
    candidates.write(rows, folder / "trials.csv")


def _other_device(folder: Path) -> None:
    """Make the run of the example on another device, which is slower for some networks."""
    _example(folder)
    change_record(folder, {"name": "board", "device.must_match.processor": "A board"})
    rows, rng = open_run(folder).trials, np.random.default_rng(0)
    for column in ("predicted_us", "measured_us"):
        rows[column] *= rng.uniform(2, 3, len(rows)).round(3)
    candidates.write(rows, folder / "trials.csv")


def _large(folder: Path) -> None:
    """Make a run of 10,000 trials."""
    _synthetic(folder, trials=10_000)


RUNS: dict[str, Callable[[Path], None]] = {
    "example": _example,
    "single": _single,
    "empty": _empty,
    "begun": _begun,
    "interrupted": _interrupted,
    "classes": _many_classes,
    "markup": _markup,
    "large": _large,
}
"""What writes the run of each case into a folder, by the name of the case."""

COMPARISON = "comparison"
"""The case of a page that compares two runs, of the example on two devices."""

CASES = (*RUNS, COMPARISON)
"""Names of the cases."""


def change_record(folder: Path, changes: dict[str, Any]) -> None:
    """Set values of `run.json` by their dotted keys, and check the result."""
    path = folder / "run.json"
    record = json.loads(path.read_text())
    for key, value in changes.items():
        *tables, last = key.split(".")
        table = record
        for name in tables:
            table = table[name]
        table[last] = value
    path.write_text(json.dumps(record))
    read_run(folder)


def _synthetic(folder: Path, trials: int, classes: Sequence[str] = ()) -> None:
    """Make a run of `FAMILIES` with computed accuracies and latencies, and 5 trained networks.

    Args:
        folder: folder of the run.
        trials: number of trials.
        classes: names of the classes; none for those of the example.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    classes = list(classes or open_run(EXAMPLE).images.classes)
    counts = {
        part: [number] * len(classes)
        for part, number in {"train": 400, "search": 50, "holdout": 50, "test": 100}.items()
    }
    (folder / "run.json").write_text((EXAMPLE / "run.json").read_text())
    record = read_run(folder)
    change_record(
        folder,
        {
            "name": "overnight",
            "command": "nas run overnight.toml",
            "job.name": "overnight",
            "job.space": [{"name": name, "pretrained": None} for name in FAMILIES],
            "job.search.trials": trials,
            "data.source": "photos",
            "data.classes": classes,
            "data.class_counts": counts,
            "data.summary": f"{600 * len(classes)} images of {len(classes)} classes",
            "settings": {"image_size": 32, "channels": 3, "classes": len(classes)},
            "spaces": dict.fromkeys(FAMILIES, "8a08e23b4d8786f3"),
            "supernets": dict(zip(FAMILIES, _dumped(record.supernets), strict=True)),
            "correction": None,
        },
    )
    (folder / "spaces").mkdir()
    own_log = EXAMPLE / "supernets" / "mobilenet_tiny" / "training.jsonl"
    for name in FAMILIES:
        shutil.copy(ROOT / "search_spaces" / f"{name}.py", folder / "spaces")
        (folder / "supernets" / name).mkdir(parents=True)
        shutil.copy(own_log, folder / "supernets" / name)
    spaces = [load_space(name, image_size=32, classes=len(classes)) for name in FAMILIES]
    pool = [
        spaces[seed % len(spaces)].sample(seed=seed)
        for seed in range(min(trials, DISTINCT_ARCHITECTURES))
    ]
    rows = candidates.table(_candidates([pool[at % len(pool)] for at in range(trials)], rng))
    rows = _measured(folder, rows, rng)
    candidates.write(rows, folder / "trials.csv")
    run = open_run(folder)
    members = candidates.of_table(run.front)
    for member in members[:: max(1, len(members) // 5)]:
        own = (member.space, member.digest, member.architecture)
        _train(folder, member.id, *own, member.score + 0.04, classes, rng)
    for space, name in zip(spaces[1:], PUBLISHED, strict=True):
        network = space.reference(name)
        own = (space.name, network.digest, _record(network))
        _train(folder, name, *own, 0.9, classes, rng)
        latency_us = FAMILIES[space.name] * (20 + network.macs / 30e3)
        with (folder / "measurements.jsonl").open("a") as log:
            log.write(_timings(network.digest, _record(network), latency_us, latency_us))
    candidates.write(with_trained(rows, run.trained, run.settings.search), folder / "trials.csv")


def _dumped(documents: dict[str, Any]) -> list[dict[str, Any]]:
    return [each.model_dump(mode="json") for each in documents.values()]


def _candidates(networks: Sequence[Architecture], rng: np.random.Generator) -> list[Candidate]:
    """Return candidates with computed scores, of which some are infeasible or failed."""
    digests = {}
    for position, network in enumerate(networks):
        is_first = position < DISTINCT_ARCHITECTURES
        letter = DIGEST_LETTERS[position % len(DIGEST_LETTERS)]
        digest = network.digest if is_first else f"{letter}{rng.integers(16**15):015x}"
        digests.setdefault(digest, network)
    ids = candidates.short_ids(list(digests))
    found = []
    for digest, network in digests.items():
        graph = network.graph
        costly = math.log(graph.macs / 5e6)
        latency_us = FAMILIES[network.space.name] * (20 + graph.macs / 30e3)
        logit = 1.5 + 0.5 * costly - 0.04 * costly**2 + 0.2 * rng.standard_normal()
        fields: dict[str, Any] = {
            "state": "complete",
            "validation_accuracy": round(1 / (1 + math.exp(-logit)), 6),
            "dispatch_share": 0.1,
        }
        draw = rng.random()
        if draw < 0.06:
            fields = {"state": "infeasible", "error": "latency is above the limit"}
        elif draw < 0.07:
            fields = {"state": "failed", "error": "a kernel could not be compiled"}
        found.append(
            Candidate(
                id=ids[digest],
                digest=digest,
                space=network.space.name,
                predicted_us=latency_us * math.exp(0.1 * rng.standard_normal()),
                macs=graph.macs,
                params=graph.params,
                peak_memory_bytes=graph.peak_memory_bytes,
                seconds=0.02,
                architecture=_record(network),
                **fields,
            )
        )
    return found


def _measured(folder: Path, rows: Any, rng: np.random.Generator) -> Any:
    """Return rows with latencies of whole networks near their front, and write their log."""
    complete = rows[rows["state"] == "complete"]
    gain = complete["validation_accuracy"] - 0.12 * np.log(complete["predicted_us"].astype(float))
    near = gain.sort_values().index[-60:]
    text = ""
    for index in near:
        row = rows.loc[index]
        latency_us = row["predicted_us"] * math.exp(0.03 * rng.standard_normal())
        rows.loc[index, "measured_us"] = latency_us
        rows.loc[index, "holdout_accuracy"] = row["validation_accuracy"]
        architecture = ArchitectureRecord.model_validate_json(row["architecture"])
        text += _timings(row["digest"], architecture, row["predicted_us"], latency_us)
    (folder / "measurements.jsonl").write_text(text)
    return rows


def _timings(
    digest: str, architecture: ArchitectureRecord, predicted_us: float, measured_us: float
) -> str:
    """Return the lines of three timings of a network."""
    lines = ""
    for slowdown in (1, 1.01, 1.05):
        latency_us = float(f"{measured_us * slowdown:.4g}")
        timing = Measurement(
            schema=3,
            digest=digest,
            architecture=architecture,
            status="ok",
            predicted_us=predicted_us,
            measured_us=latency_us,
            samples_us=(latency_us,),
            error=None,
        )
        lines += f"{timing.model_dump_json(by_alias=True)}\n"
    return lines


def _record(network: Architecture) -> ArchitectureRecord:
    return ArchitectureRecord.model_validate(network.to_json())


def _train(
    folder: Path,
    name: str,
    space: str,
    digest: str,
    architecture: ArchitectureRecord,
    accuracy: float,
    classes: Sequence[str],
    rng: np.random.Generator,
) -> None:
    """Write the record and the answers of a network that was trained to about an accuracy."""
    right = rng.random((len(classes), 50)) < accuracy
    made = next(iter(read_trained(EXAMPLE).values()))
    by_class = dict(zip(classes, right.mean(1).tolist(), strict=True))
    reached = float(right.mean())
    record = made.model_copy(
        update={
            "id": name,
            "space": space,
            "digest": digest,
            "architecture": architecture,
            "supernet_accuracy": reached - 0.04,
            "holdout": SplitAccuracy(accuracy=reached, images=right.size, class_accuracy=by_class),
            "test": SplitAccuracy(accuracy=reached, images=2 * right.size, class_accuracy=by_class),
        }
    )
    wrong = [
        ConfusedPair(label=label, predicted=(label + 1) % len(classes), images=int(missed))
        for label, missed in enumerate((~right).sum(1))
        if missed
    ]
    answers = Answers(
        classes=tuple(classes),
        counts=(50,) * len(classes),
        right=base64.b64encode(np.packbits(right).tobytes()).decode(),
        confused=tuple(sorted(wrong, key=lambda pair: -pair.images)),
        mistakes=tuple(
            Mistake(label=pair.label, predicted=pair.predicted, confidence=0.9, file="photo.jpg")
            for pair in wrong[:20]
        ),
        has_pictures=False,
    )
    model = folder / "models" / name
    model.mkdir(parents=True)
    (model / "trained.json").write_text(record.model_dump_json(by_alias=True))
    (model / "answers.json").write_text(answers.model_dump_json(by_alias=True))
