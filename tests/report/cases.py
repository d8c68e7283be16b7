"""Reports that are hard to draw: many networks, one, none, unfinished runs, strange names.

Tests, screenshots and benchmarks use the same `CASES`.
"""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nas.opened_run import open_run
from nas.report import comparison, page
from nas.run import candidates
from nas.run.record import read_run
from nas.run.trained import read_trained

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "results" / "example"

PUBLISHED, PUBLISHED_DIGEST = "mobilenet_v2_0.35", f"z{15 * 'f'}"
"""Name and digest of the published network that a case has trained."""

LARGE_TRIALS = 10_000
"""Trials of the large case."""

MEASURED_COLUMNS = [
    "measured_us", "measured_low_us", "measured_high_us", "disturbed", "holdout_accuracy",
    "trained_accuracy", "test_accuracy", "recipe", "dominated_by",
]  # fmt: skip
"""Columns of `trials.csv` that are filled after the search."""

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
    rows[MEASURED_COLUMNS] = None
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
    """Make a run of 100 classes with long names, of each of which an image is classified wrongly.

    One of its trained networks is a published one.
    """
    _example(folder)
    names = [f"{label:02}, a class of things whose name is rather long" for label in range(100)]
    counts = {part: [5] * len(names) for part in ("train", "search", "holdout", "test")}
    change_record(folder, {"data.classes": names, "data.class_counts": counts})
    right = np.arange(sum(counts["holdout"])) % 5 > 0
    changes = {
        "classes": names,
        "counts": counts["holdout"],
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
        "confidences": base64.b64encode(np.linspace(0.2, 1, len(right), dtype="<f4")).decode(),
        "confused": [
            {"label": label, "predicted": (label + 1) % len(names), "images": 1}
            for label in range(len(names))
        ],
    }
    for path in folder.glob("models/*/answers.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    model = min(folder.glob("models/*"))
    path = model.rename(model.with_name(PUBLISHED)) / "trained.json"
    published = {"id": PUBLISHED, "digest": PUBLISHED_DIGEST, "supernet_accuracy": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | published))
    with (folder / "measurements.jsonl").open("r+") as log:
        timing = json.loads(log.readline()) | {"digest": PUBLISHED_DIGEST}
        log.seek(0, 2)
        log.write(f"{json.dumps(timing)}\n")
    run = open_run(folder)
    run.write_trials(run.trials)


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
    """Make a run of many trials: those of the example, and others like them."""
    _example(folder)
    rows, rng = open_run(folder).trials, np.random.default_rng(0)
    others = rows.sample(LARGE_TRIALS - len(rows), replace=True, random_state=0)
    digests = [f"{letter}{rng.integers(16**15):015x}" for letter in others["digest"].str[0]]
    others = others.assign(**dict.fromkeys(MEASURED_COLUMNS), digest=digests)
    others["id"] = others["digest"].str[:9]
    others["predicted_us"] *= rng.uniform(0.9, 1.5, len(others)).round(3)
    others["validation_accuracy"] *= rng.uniform(0.9, 1.0, len(others)).round(3)
    candidates.write(pd.concat([rows, others], ignore_index=True), folder / "trials.csv")


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
