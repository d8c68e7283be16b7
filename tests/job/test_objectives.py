"""Limits, further objectives and further devices of a search."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from nas import job as jobs
from nas.errors import InfeasibleError, MissingKernelError, TableError
from nas.figures import Figure
from nas.graph import Graph
from nas.job import load_job, stages
from nas.job.folder import claim
from nas.job.objectives import JobObjectives
from nas.job.settings import with_options
from nas.kernels import fusion
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.opened_run import open_run
from nas.run import candidates
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.supernet import evaluation
from tests.capabilities import change
from tests.job.runs import (
    OUT,
    all_networks,
    front_digests,
    load_study,
    open_spaces,
    read_completed_trials,
    read_trials,
)
from tests.latency.fake_runtime import FakeRuntime, latency_us
from tests.mini_job import write_job

ENERGY = Figure("energy_uj", "energy, uJ")

LIMITS = {"max_latency_ms": "predicted_us", "max_params": "params"}


def limit_setting(limit: str, value: float) -> dict[str, float]:
    """Return the setting that limits a column of the trials to a value."""
    return {limit: value / 1000 if limit == "max_latency_ms" else int(value)}


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_every_completed_trial_meets_the_limit(folder_with_supernets, job, limit):
    name = LIMITS[limit]
    value = read_trials(Path("searched"))[name].quantile(0.5, interpolation="lower")
    jobs.search_job(with_options(job, search={"trials": 8, **limit_setting(limit, value)}), OUT)
    rows = read_trials(OUT)
    done = rows[rows["state"] == "complete"]
    assert len(done) == 8
    assert done[name].max() <= value
    others = rows[rows["state"] == "infeasible"]
    assert (others[name] > value).all()
    assert others["validation_accuracy"].isna().all()


@pytest.mark.parametrize("limit", LIMITS)
def test_limit_that_nothing_meets_is_refused_before_training(job_folder_with_table, job, limit):
    name = LIMITS[limit]
    if name == "predicted_us":
        (path,) = Path("latency_tables").glob("*.jsonl")
        table = LatencyTable.open(path)
        smallest = min(table.predict(network).latency_us for network in all_networks())
    else:
        smallest = min(getattr(network, name) for network in all_networks())
    impossible = with_options(job, search=limit_setting(limit, 0.99 * smallest))
    if name != "predicted_us":  # A limit on a count is checked before anything is timed.
        shutil.rmtree("latency_tables")
    words, text = name, f"{smallest:,.6g}"
    if name == "predicted_us":
        words, text = "predicted latency", f"{smallest / 1000:,.6g} ms"
    with pytest.raises(
        InfeasibleError, match=f"Nothing meets the limit {words} .* has {re.escape(text)} "
    ):
        jobs.search_job(impossible, OUT)
    with pytest.raises(InfeasibleError, match=f"has {re.escape(text)} ") as raised:
        jobs.run_job(impossible, OUT)
    assert raised.value.exit_status == 1
    assert not (OUT / "supernets").exists()
    for path in Path("latency_tables").glob("*.jsonl"):
        assert len(LatencyTable.open(path)) == 0 or name == "predicted_us"
    with claim(OUT, with_options(job, search=limit_setting(limit, 1.01 * smallest))) as run:
        assert "study" not in run.record, "the limit may still be raised"


def test_figure_of_a_plugin_is_an_objective_and_a_limit(folder_with_supernets, job, monkeypatch):
    def energy_uj(runtime, graph):
        return {"energy_uj": 0.5 * graph.params}

    monkeypatch.setattr(TvmRuntime, "figures", (ENERGY,))
    monkeypatch.setattr(TvmRuntime, "network_figures", energy_uj)
    smallest = min(0.5 * network.params for network in all_networks())
    figures = {"also_minimize": ("energy_uj",), "limits": {"energy_uj": 20 * smallest}}
    result = jobs.search_job(with_options(job, search={"trials": 8, **figures}), OUT)
    rows = read_trials(OUT)
    done = read_completed_trials(OUT).assign(error=lambda table: 1 - candidates.score(table))
    assert (done["energy_uj"] == 0.5 * done["params"]).all()
    assert done["energy_uj"].max() <= 20 * smallest
    beyond = rows[rows["state"] == "infeasible"]
    assert (0.5 * beyond["params"] > 20 * smallest).all()
    expected = front_digests(done, "predicted_us", "energy_uj", "error")
    assert {trial.digest for trial in result.front} == expected == front_of_report()


def test_figure_of_kernels_is_an_objective_and_a_limit(folder_with_supernets, job, monkeypatch):
    change(monkeypatch, TvmRuntime, kernel_figures=(ENERGY,))
    (path,) = Path("latency_tables").glob("*.jsonl")
    energies = {}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record.get("record") == "kernel":
            # A kernel's energy is no multiple of its latency.
            energies[record["kernel"]] = energy = 1 + len(energies) % 7
            record["schedule"]["energy_uj"] = energy
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))

    kernels_of = partial(fusion.kernels, fuse_expansions=True)  # Those of TVM.

    def energy_uj(network: Graph) -> float:
        return sum(energies[kernel.text] for kernel in kernels_of(network))

    every = sorted(map(energy_uj, all_networks()))
    limit = every[len(every) // 2]
    figures = {"also_minimize": ("energy_uj",), "limits": {"energy_uj": limit}}
    result = jobs.search_job(with_options(job, search={"trials": 8, **figures}), OUT)
    by_digest = {each.digest: energy_uj(each) for each in all_networks()}
    rows, done = read_trials(OUT), read_completed_trials(OUT)
    assert (done["energy_uj"] == done["digest"].map(by_digest)).all()
    assert done["energy_uj"].max() <= limit
    assert (rows[rows["state"] == "infeasible"]["digest"].map(by_digest) > limit).all()
    done = done.assign(error=lambda table: 1 - candidates.score(table))
    expected = front_digests(done, "predicted_us", "energy_uj", "error")
    assert {trial.digest for trial in result.front} == expected == front_of_report()


def test_figure_of_kernels_is_that_of_the_batch_of_the_job(job_folder, fake_device, monkeypatch):
    change(monkeypatch, TvmRuntime, kernel_figures=(ENERGY,))
    monkeypatch.setattr(FakeRuntime, "time_kernel", with_energy)
    monkeypatch.setattr(
        FakeRuntime, "retime_kernel", lambda own, kernel, _: own.time_kernel(kernel)[1]
    )
    path = write_job(job_folder, spaces=("squeeze",), extra="\n[device]\nbatch = 4\n")
    job = with_options(load_job(path), search={"also_minimize": ("energy_uj",)})
    with claim(OUT, job) as run:
        stages.open_data(run)
        stages.open_device(run)
        stages.build_latency_table(run)
        (energy,) = (each for each in JobObjectives(run, {}).all() if each.name == "energy_uj")
        network = run.spaces["squeeze"].largest
        # No kernel of single images is in the table.
        timed = [Kernel.parse(each.name) for each in run.table.records("kernel")]
        assert {kernel.batch for kernel in timed} == {4}
        kernels = fusion.kernels(network.graph, 4, fuse_expansions=True)
        assert energy.score([network]) == [sum(map(energy_of, kernels))]


def energy_of(kernel: Kernel) -> float:
    return 1.0 + kernel.macs % 97


def with_energy(runtime: FakeRuntime, kernel: Kernel) -> tuple[dict[str, object], Timing]:
    schedule = {"tile": 1, "energy_uj": energy_of(kernel)}
    return schedule, Timing((latency_us(kernel),) * 10)


def test_figure_that_a_kernel_lacks_is_an_error_that_names_it(
    folder_with_supernets, job, monkeypatch
):
    change(monkeypatch, TvmRuntime, kernel_figures=(ENERGY,))
    (path,) = Path("latency_tables").glob("*.jsonl")
    table = LatencyTable.open(path)
    network = all_networks()[0]
    with pytest.raises(MissingKernelError, match="has no energy_uj of kernel 'conv2d "):
        table.figures(network)


def front_of_report() -> set[str]:
    return {member.digest for member in open_run(OUT).members}


def test_scores_of_few_images_are_estimates_and_the_images_are_no_objective(
    folder_with_supernets, job, monkeypatch
):
    # The search has too few images for rounds, and too few networks that are hopeless for sure.
    monkeypatch.setattr(evaluation, "MIN_ROUND_IMAGES", 10)
    monkeypatch.setattr(evaluation, "ROUND_DEVIATIONS", 0.5)
    result = jobs.search_job(with_options(job, search={"trials": 16}), OUT)
    assert load_study(OUT).metric_names == ["predicted_us", "corrected_error"]
    record = open_run(OUT).record
    correction, images = record.correction, record.score_images
    rows = read_completed_trials(OUT).set_index("digest")
    in_part = [trial for trial in result.trials if rows["score_images"][trial.digest] < images]
    assert 0 < len(in_part) < len(result.trials) == 16
    assert not {trial.digest for trial in in_part} & {trial.digest for trial in result.front}
    for trial in result.trials:
        assert set(trial.values) == {"predicted_us", "corrected_error"}
        assert set(trial.recorded) == {"validation_error", "score_images"}
        assert bool(trial.variances) == (trial in in_part)
        right = 1 - trial.recorded["validation_error"]
        assert rows["validation_accuracy"][trial.digest] == pytest.approx(right, abs=1e-6)
    compared = 0
    for trial in in_part:
        right, used = 1 - trial.recorded["validation_error"], trial.recorded["score_images"]
        if 0.04 < right < 0.96:  # Beyond, the slope changes too much within a deviation.
            compared += 1
            corrected = 1 - trial.values["corrected_error"]
            # The slope of the correction, which is linear in logits.
            slope = correction.scale * corrected * (1 - corrected) / (right * (1 - right))
            expected = slope * (right * (1 - right) * (1 / used - 1 / images)) ** 0.5
            assert trial.variances["corrected_error"] ** 0.5 == pytest.approx(expected, rel=0.25)
    assert compared


def write_slow_device_table(path: Path, lacks=lambda record: False) -> Path:
    """Write the table of another device, on which the kernels of the smallest network are slow.

    Args:
        path: path of the table.
        lacks: whether a record is left out.
    """
    (source,) = Path("latency_tables").glob("*.jsonl")
    known = LatencyTable.open(source)
    mobile = open_spaces(load_job(Path("job.toml")))["mobile"]
    slow = {kernel.text for kernel in known.predict(mobile.smallest.graph).kernels}
    device = known.device.model_copy(update={"processor": "Cray-1"})
    table = LatencyTable.open_or_create(path, FakeRuntime(device))
    with table.writing():
        for each in (*known.records("dispatch"), *known.records("kernel")):
            if not lacks(each):
                factor = 50 if each.name in slow else 1
                timing = Timing(tuple(factor * sample for sample in each.samples_us))
                table.append(
                    Record.from_timings(each.kind, [timing], name=each.name, schedule=each.schedule)
                )
    return path


def load_job_with_device(path: Path, **limits: float):
    """Add a further device to the mini job and load it."""
    more = "".join(f"{name} = {value}\n" for name, value in limits.items())
    job = Path("job.toml")
    job.write_text(job.read_text() + f'\n[[search.device]]\ntable = "{path}"\n{more}')
    return load_job(job)


def test_further_device_adds_an_objective_and_its_own_front(folder_with_supernets):
    path = write_slow_device_table(Path("cray.jsonl"))
    table = LatencyTable.open(path)
    settings = load_job_with_device(path)
    result = jobs.search_job(with_options(settings, search={"trials": 12}), OUT)
    rows = pd.DataFrame(
        {
            "digest": trial.digest,
            "error": trial.values["corrected_error"],
            "here": trial.values["predicted_us"],
            "there": table.predict(trial.architecture.graph).latency_us,
        }
        for trial in result.trials
    )
    assert len(load_study(OUT).directions) == 3
    assert {trial.digest for trial in result.front} == front_digests(rows, "here", "there", "error")
    assert front_of_report() == {trial.digest for trial in result.front}
    there = rows.set_index("digest")["there"]
    read = read_completed_trials(OUT).set_index("digest")["predicted_us cray"]
    assert read.to_dict() == pytest.approx(there.to_dict())
    for member in open_run(OUT).members:
        assert member.device_predicted_us == {"cray": pytest.approx(there[member.digest])}
    assert "predicted on cray" in (OUT / "report.html").read_text()
    own = pd.read_csv(OUT / "front-cray.csv").set_index("digest")
    assert set(own.index) == front_digests(rows, "there", "error")
    assert own["predicted_us cray"].tolist() == pytest.approx(there.loc[own.index].tolist())
    assert own["corrected_accuracy"].is_monotonic_increasing


def test_limit_on_a_further_device_that_nothing_meets_is_refused(folder_with_supernets):
    path = write_slow_device_table(Path("cray.jsonl"))
    with pytest.raises(InfeasibleError, match="the limit predicted latency on cray 1e-06 ms: "):
        jobs.search_job(load_job_with_device(path, max_latency_ms=1e-6), OUT)


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        (
            lambda record: record.name.startswith("conv"),
            r"cray.jsonl lacks \d+ of \d+ kernels of mobile, .* Run `nas table build`",
        ),
        (lambda record: record.kind == "dispatch", "has no dispatch overhead. Run `nas"),
        (None, "There is no latency table cray.jsonl"),
    ],
)
def test_incomplete_table_of_a_further_device_is_refused(job_folder_with_table, lacks, words):
    path = Path("cray.jsonl")
    if lacks is not None:
        write_slow_device_table(path, lacks)
    with pytest.raises(TableError, match=words):
        jobs.search_job(load_job_with_device(path), OUT)
    assert not (OUT / "supernets").exists()
