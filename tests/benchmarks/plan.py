"""Compare what `nas run --plan` says with what the job then does.

    python -m tests.benchmarks.plan [JOB ...] [--out FOLDER]

Plans each job, runs it with a latency table of its own, and prints the planned and the real seconds
of each stage. Where the job decides how much it does while it runs, the ratio per architecture or
per epoch is what the plan can know. Without arguments, the jobs are the quickstart and `unseen`,
which has another space, runtime and budget. Run it on an idle machine.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from nas.job import JobSettings, SilentProgress, job_path, load_job, plan_job, run_job
from nas.job.stages import EXPORT_STAGE, FINALISTS_STAGE
from nas.records import JobPlan, RunRecord, read_run
from nas.report import candidates

MAX_ERROR = 0.25
"""Largest error of a plan that is good enough, as a fraction of what happened."""

STAGES = {
    "prepare": "prepare",
    "table": "latency table",
    "anchors": "anchors",
    "search": "search",
    "measure": "measure the front",
    "finalists": FINALISTS_STAGE,
    "export": EXPORT_STAGE,
}
"""Stages in `run.json` by their names in a plan; a supernet's stage has the name of its space."""

UNSEEN = {
    "name": "unseen",
    "seed": 1,
    "budget": "5m",
    "data": {"source": "digits", "validation_fraction": 0.4},
    "device": {"runtime": "onnxruntime"},
    "training": {"batch_size": 128},
    "space": [{"name": "mobilenet_tiny"}, {"name": "squeezenet_tiny"}],
    "finish": {"measure": 12, "retrain": 1, "export": ["onnx", "openvino"]},
}


class Sections(SilentProgress):
    """Prints when each part of a job begins, for the parts that are no stages of `run.json`."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def begin(self, stage: str, unit: str) -> None:
        print(f"  {time.monotonic() - self._start:7.1f} s  {stage}", flush=True)

    def note(self, text: str) -> None:
        print(f"  {time.monotonic() - self._start:7.1f} s  ({text})", flush=True)


def real_seconds(run: RunRecord) -> dict[str, float]:
    """Return the seconds of each stage of a run by its name in a plan."""
    seconds = {name: run.stages[s].seconds for name, s in STAGES.items() if s in run.stages}
    names = [name for name in run.stages if name.startswith("supernet ")]
    return {**seconds, "supernets": sum(run.stages[name].seconds for name in names)}


def units(plan: JobPlan, architectures: int) -> dict[str, int]:
    """Return how much of a stage a plan or a run does, for stages that decide it on the way."""
    return {"search": architectures, "finalists": plan.retrain * plan.retrain_epochs}


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, as a command would: what it imports takes time."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def run(settings: JobSettings, folder: Path) -> None:
    """Run a job."""
    run_job(settings, folder, progress=Sections())


def compare(settings: JobSettings, folder: Path) -> None:
    """Plan a job, run it, and print the ratios."""
    device = settings.device.model_copy(update={"tables": str(folder / "tables")})
    settings = settings.model_copy(update={"device": device})
    print(f"\n{settings.name}", flush=True)
    start = time.monotonic()
    plan = in_new_process(plan_job, settings)
    print(f"  planned in {time.monotonic() - start:.1f} s", flush=True)
    in_new_process(run, settings, folder / settings.name)
    record = read_run(folder / settings.name)
    expected = plan.expected_trials
    assert record.plan is not None
    assert record.table is not None
    assert expected is not None
    rows = candidates.read(folder / settings.name / "trials.csv")
    done, happened = int((rows["state"] == "complete").sum()), real_seconds(record)
    planned_units, real_units = units(plan, expected), units(record.plan, done)
    print(f"  {'':<18}{'planned':>9}{'happened':>10}{'ratio':>7}")
    for name in dict.fromkeys((*plan.seconds, *happened)):
        report(f"{name}, s", plan.seconds.get(name, 0.0), happened.get(name, 0.0))
        if real_units.get(name) and planned_units[name]:
            each = plan.seconds[name] / planned_units[name], happened[name] / real_units[name]
            report(f"  each of {real_units[name]}", *each)
    report("all, s", sum(plan.seconds.values()), sum(happened.values()))
    report("kernels", plan.kernels, record.table.built)
    report("architectures", expected, done)


def report(name: str, planned: float, happened: float) -> None:
    """Print a row of the table, marked if the plan is off by more than `MAX_ERROR`."""
    ratio = planned / happened if happened else float("nan")
    mark = "" if abs(ratio - 1) <= MAX_ERROR else "  off"
    print(f"  {name:<18}{planned:>9.4g}{happened:>10.4g}{ratio:>7.2f}{mark}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="job files, or packaged jobs")
    parser.add_argument("--out", type=Path, help="folder of the runs, kept; by default none is")
    arguments = parser.parse_args()
    unseen = JobSettings.model_validate(UNSEEN)
    jobs = [unseen if name == "unseen" else load_job(job_path(name)) for name in arguments.jobs]
    with tempfile.TemporaryDirectory() as temporary:
        for settings in jobs or [load_job(job_path("quickstart")), unseen]:
            compare(settings, arguments.out or Path(temporary))


if __name__ == "__main__":
    main()
