"""The files that `nas` reads, the commands that read them, and the checks of their results."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas.cli import main
from tests.fuzz import damages
from tests.fuzz.damages import Damage

MAX_SECONDS = 60
"""Time limit of a command: most take a fraction of a second, on a busy machine a few seconds."""

MAX_SLOW_SECONDS = 240
"""Time limit of a command that may repeat work, such as timing networks."""

MAX_GROWTH_BYTES = 1 << 30
"""Largest increase of memory that a damaged file may cause."""

MAX_MESSAGE_CHARACTERS = 2500

_DAMAGES = {
    ".jsonl": damages.of_json_lines,
    ".journal": damages.of_json_lines,
    ".json": damages.of_json,
    ".csv": damages.of_text,
    ".toml": damages.of_text,
    ".py": damages.of_text,
}
"""How files are damaged, by their suffix; others in their bytes."""

SECRET = "SECRET"
"""Password in damaged job files, which no command may print."""


@dataclass(frozen=True)
class Outcome:
    """The result of a command.

    Attributes:
        status: exit status.
        out, err: text on stdout and stderr.
    """

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON document on stdout."""
        return json.loads(self.out)


Check = Callable[[Path, Outcome], None]
"""Function that raises AssertionError for a wrong outcome of a successful command in a folder."""


@dataclass(frozen=True)
class Target:
    """A file and a command that reads it.

    Args:
        name: name of the target.
        file: damaged file, relative to the folder.
        command: arguments of `nas`, with blanks between them.
        check: check of a successful command.
        writes: files that a successful command may change, and folders, with a slash at the end, in
            which a failed one may leave unfinished work. A log in such a folder may only grow.
        named: word that every error message must contain, to identify the file; by default its
            name. Empty if the message may be about something else that the file names.
        is_slow: whether the command takes seconds.
    """

    name: str
    file: str
    command: str
    check: Check = lambda folder, outcome: None
    writes: tuple[str, ...] = ()
    named: str | None = None
    is_slow: bool = False

    @property
    def damage(self) -> Damage:
        """The way in which the file is damaged, which its suffix tells."""
        return _DAMAGES.get(Path(self.file).suffix, damages.of_bytes)

    def filled(self, names: Mapping[str, str]) -> Target:
        """Return the target with names in place of `{digest}` and `{space}`."""
        named = Path(self.file).name if self.named is None else self.named
        texts = {"file": self.file, "command": self.command, "named": named}
        return replace(self, **{key: text.format_map(names) for key, text in texts.items()})


def try_target(target: Target, folder: Path, content: bytes) -> Outcome:
    """Run the command of a target while its file has another content.

    Args:
        target: file and command.
        folder: folder with whole files; all are restored afterwards.
        content: content of the target's file.

    Raises AssertionError if the command does what no command may do: end in a traceback, take too
    long, print a password, change other files, or succeed with a wrong result.
    """
    path = folder / target.file
    whole = path.read_bytes()
    path.write_bytes(content)
    before = _states(folder)
    peak = _peak_bytes()
    seconds = MAX_SLOW_SECONDS if target.is_slow else MAX_SECONDS
    try:
        with _restored(folder, target.writes), _limited(seconds):
            status, out, err = run(folder, target.command.split())
            after = _states(folder)
            changed = {n for n in {**before, **after} if before.get(n) != after.get(n)}
            outcome = Outcome(status, out, err)
            _check_message(target, outcome)
            strange = {name for name in changed if not _may_change(target, name, status)}
            if target.file.startswith(target.writes) and _has_grown(path, content):
                strange.discard(target.file)
            assert not strange, f"it changed {sorted(strange)}"
            if status == 0:
                target.check(folder, outcome)
    finally:
        path.write_bytes(whole)
    assert _peak_bytes() - peak < MAX_GROWTH_BYTES, "it needed more than a GiB of memory"
    return outcome


def run(folder: Path, arguments: Sequence[str]) -> tuple[int, str, str]:
    """Run a command in this process, and return its exit status, stdout and stderr.

    Raises AssertionError with the traceback if the command ends in one.
    """
    out, err = io.StringIO(), io.StringIO()
    argv, here = sys.argv, Path.cwd()
    sys.argv = ["nas", *arguments]
    os.chdir(folder)
    status: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as error:
        status = error.code or 0
    except Exception as error:
        raise AssertionError(f"a traceback: {traceback.format_exc()}") from error
    finally:
        sys.argv = argv
        os.chdir(here)
    return status, out.getvalue(), err.getvalue()


def _has_grown(path: Path, content: bytes) -> bool:
    """Return whether a log has kept all its whole lines; a half-written last line may be gone."""
    return path.read_bytes().startswith(content[: content.rfind(b"\n") + 1])


def _may_change(target: Target, name: str, status: int) -> bool:
    is_new = name != target.file and name.startswith(target.writes)
    return is_new and (status == 0 or name not in target.writes)


def _check_message(target: Target, outcome: Outcome) -> None:
    assert outcome.status in (0, 1, 2), f"exit status {outcome.status}"
    for text in (outcome.out, outcome.err):
        assert "Traceback" not in text
        assert SECRET not in text, "a password was printed"
        assert "\x1b" not in text, "a control sequence reached the terminal"
    if outcome.status == 0:
        return
    assert not outcome.out.strip(), "a failed command printed a result"
    _, error, message = outcome.err.rpartition("error: ")
    assert error, f"no message: {outcome.err!r}"
    assert len(message) < MAX_MESSAGE_CHARACTERS, f"a message of {len(message)} characters"
    assert (target.named or "") in outcome.err, f"it does not name {target.named}: {outcome.err}"


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Raise AssertionError if the block takes longer."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _restored(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Restore the files that a command writes in the block, and remove those that it makes."""
    contents = {
        path: path.read_bytes()
        for name in names
        for path in [folder / name, *(folder / name).rglob("*")]
        if path.is_file()
    }
    existing = set(folder.rglob("*"))
    try:
        yield
    finally:
        for path, content in contents.items():
            path.write_bytes(content)
        for path in sorted(set(folder.rglob("*")) - existing, reverse=True):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of every file, empty locks excepted."""
    return {
        str(path.relative_to(folder)): (status.st_size, status.st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
        for status in [path.stat()]
        if not (path.name.endswith(".lock") and status.st_size == 0)
    }


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# Checks of successful commands


def _is_a_latency(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def chosen_is_in_trials(folder: Path, outcome: Outcome) -> None:
    """Check that `nas select --json` printed a row of `trials.csv`, with possible latencies."""
    _require_in_trials(folder, outcome.document)


def front_is_in_trials(folder: Path, outcome: Outcome) -> None:
    """Check that all numbers of `nas report` are those of `trials.csv`."""
    front = json.loads((folder / "run/front.json").read_text())["front"]
    assert front, "a front without members"
    for member in front:
        _require_in_trials(folder, member)


def _require_in_trials(folder: Path, member: dict[str, Any]) -> None:
    with (folder / "run/trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert any(
        row["digest"] == member["digest"]
        and float(row["validation_accuracy"]) == member["validation_accuracy"]
        and all(
            row[name] == "" if member[name] is None else float(row[name]) == member[name]
            for name in ("predicted_us", "measured_us")
        )
        for row in rows
    ), f"{member['id']} is not in trials.csv"
    assert _is_a_latency(member["measured_us"] or member["predicted_us"])


def kernels_are_in_table(folder: Path, outcome: Outcome) -> None:
    """Check that `nas predict --json` added up the latest latencies of the table."""
    latencies: dict[str, float] = {}
    for line in (folder / "table.jsonl").read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and record.get("record") == "kernel":
                latencies[record["kernel"]] = record["latency_us"]
    prediction = outcome.document
    total = 0.0
    for row in prediction["kernels"]:
        latency = latencies[row["kernel"]]
        assert _is_a_latency(latency)
        assert math.isclose(row["latency_us"], row["launches"] * latency, rel_tol=1e-9)
        total += row["latency_us"]
    assert prediction["predicted_us"] >= 0.999 * total


def is_finite_document(folder: Path, outcome: Outcome) -> None:
    """Check that stdout is a JSON document without NaN and infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no finite number")

    assert json.loads(outcome.out, parse_constant=refuse) is not None


def accuracy_is_the_same(folder: Path, outcome: Outcome) -> None:
    """Check that `nas supernet evaluate --json` printed what it printed for the whole files."""
    assert outcome.document == json.loads((folder / "evaluation.json").read_text())


REPORT = ("run/front.csv", "run/front.json", "run/report.html")


PREDICT = "predict run:{digest} --table table.jsonl --json"
EVALUATE = "supernet evaluate run {digest} --json"
_TRAIN = "supernet train --space mobilenet_tiny --epochs 1 --json --image-size 8 --out new --data"

TARGETS = [
    Target("table, predict", "table.jsonl", PREDICT, kernels_are_in_table, named="table"),
    Target("table, show", "table.jsonl", "table show table.jsonl --json", is_finite_document),
    Target("table, diff", "table.jsonl", "table diff other.jsonl table.jsonl --json",
           is_finite_document),
    Target("table, merge", "table.jsonl",
           "table merge other.jsonl table.jsonl --out merged.jsonl --json",
           is_finite_document, ("merged.jsonl",)),
    *(Target(f"{file}, import", f"kit/{file}",
             "table import kit/results.jsonl --out imported.jsonl --json", is_finite_document,
             ("imported.jsonl",), named="kit") for file in ("results.jsonl", "kit.json")),
    Target("architecture, predict", "architecture.json",
           "predict architecture.json --table table.jsonl --space run/spaces/{space}.py "
           "--image-size 8 --channels 1 --classes 10 --json", kernels_are_in_table),
    Target("run, report", "run/run.json", "report run", front_is_in_trials, REPORT, named="run"),
    Target("run, predict", "run/run.json", PREDICT, kernels_are_in_table, named="run"),
    Target("trials, select", "run/trials.csv", "select run --json", chosen_is_in_trials),
    Target("trials, report", "run/trials.csv", "report run", front_is_in_trials, REPORT),
    Target("trials, predict", "run/trials.csv", PREDICT, kernels_are_in_table),
    Target("ranking, report", "run/ranking.json", "report run", front_is_in_trials, REPORT),
    Target("training log, report", "run/supernets/{space}/training.jsonl", "report run",
           front_is_in_trials, REPORT),
    Target("history, report", "run/hypervolume.csv", "report run", front_is_in_trials, REPORT),
    Target("weights, evaluate", "run/supernets/{space}/supernet.safetensors", EVALUATE,
           accuracy_is_the_same),
    Target("job of a run, evaluate", "run/job.toml", EVALUATE, named=""),
    Target("space of a run, evaluate", "run/spaces/{space}.py", EVALUATE, named="{space}"),
    Target("space, spaces", "space.py", "spaces space.py --no-estimate --json",
           is_finite_document),
    Target("image, train", "photos/one/0.png", f"{_TRAIN} photos", writes=("new/",)),
    Target("parquet, train", "rows.parquet", f"{_TRAIN} rows.parquet", writes=("new/",)),
    Target("measurements, run", "run/measurements.jsonl", "run run/job.toml --out run",
           front_is_in_trials, ("run/", "latency_tables/"), is_slow=True),
    Target("journal, search", "run/study.journal", "search run", front_is_in_trials, ("run/",),
           is_slow=True),
    Target("job, run", "job.toml", "run job.toml --plan --json", is_finite_document, named="",
           is_slow=True),
]  # fmt: skip
