"""The published networks of a job: which it chooses, how they are trained, and what may fail."""

from pathlib import Path

import pytest
import torch

from nas import job as jobs
from nas.errors import ExportError, SpaceError, TrainingError
from nas.job import finalists, load_job, planning, references
from nas.job.folder import claim
from nas.job.references import affordable, rivals
from nas.opened_run import open_run
from nas.run.run import Run
from tests.job.runs import Notes
from tests.latency.fake_runtime import latency_us, use_fake_device

torch.set_num_threads(1)

SPACE = """
from nas.space import Reference, SearchSpace, Stage

def row(name, stem, body, kernel=3):
    return Reference(name, {"stem.width": stem, "body.width": body, "body.kernel": kernel}, "")

SPACE = SearchSpace(
    "small",
    (
        Stage("stem", "conv", (4, 8, 12), per_stage={"kernel": 3}),
        Stage("body", "inverted_residual", (8, 16, 24), 1, 2,
              per_block={"kernel": (3, 5), "expand": (1, 2, 3)}),
        Stage("head", "linear_classifier"),
    ),
    references=(row("wide", 12, 24, 5), row("narrow", 4, 8), row("middle", 8, 16),
                row("middle_again", 8, 16)),
)
"""

JOB = """
budget = "1h"

[data]
source = "digits"
validation_fraction = 0.5

[training]
epochs = 1
device = "cpu"

[[space]]
name = "small.py"

[search]
trials = 12

[finish]
measure = 6
retrain = 1
export = []
"""

RUN = Path("results/job")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return a folder with a job that has trained a finalist, and no published network."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_fake_device(patch)
        Path("small.py").write_text(SPACE)
        run_job("references = []")
    return folder


@pytest.fixture
def run(finished, enter_copy, fake_device) -> Run:
    """Make a copy of the finished folder the working directory, and return its run."""
    enter_copy(finished)
    return open_run(RUN)


def run_job(extra: str = "", progress=None):
    Path("job.toml").write_text(JOB + extra)
    return jobs.run_job(load_job(Path("job.toml")), RUN, progress=progress)


def predicted_us(run: Run, name: str) -> float:
    return run.table.predict(run.space("small").reference(name), 1).latency_us


def test_job_that_names_none_has_none(run):
    assert len(run.trained) == 1
    assert "published networks" not in run.record.stages


@pytest.mark.slow
def test_references_as_fast_as_the_front_are_timed_and_trained_like_the_finalists(run):
    (finalist,) = run.trained.values()
    notes = Notes()
    run_job(progress=notes)
    chosen = run.record.finalists.references
    latencies = run.front["measured_us"]
    expected = {
        name
        for name in ("wide", "narrow", "middle")
        if latencies.min() / 1.25 <= predicted_us(run, name) <= 1.25 * latencies.max()
    }
    assert expected
    assert chosen == sorted(expected, key=lambda name: predicted_us(run, name))
    own = {each.id: each for each in run.trained.values()}
    trained = set(own) - {finalist.id}
    assert trained | {"middle"} >= expected, "a finalist may be one of them"
    for name in trained:
        network = run.space("small").reference(name)
        assert own[name].recipe == finalist.recipe
        assert own[name].recipe.text == "1 epoch from the supernet"
        expected_us = 1.1 * sum(map(latency_us, run.runtime.kernels(network.graph)))
        assert run.measured_us[network.digest] == pytest.approx(expected_us, rel=1e-3)
    assert run.record.stages["published networks"].seconds > 0
    before = run.record.model_dump(exclude={"stages"})
    weights = {path: path.stat().st_mtime_ns for path in RUN.glob("models/*/weights.safetensors")}
    run_job()
    assert run.record.model_dump(exclude={"stages"}) == before
    assert {path: path.stat().st_mtime_ns for path in weights} == weights


def test_references_beyond_the_limits_of_a_job_are_left_out(run):
    def found(limit: str) -> list[str]:
        Path("job.toml").write_text(JOB.replace("trials = 12", f"trials = 12\n{limit}"))
        with claim(RUN, load_job(Path("job.toml"))) as claimed:
            return list(rivals(claimed))

    *within, slowest = found("")
    assert within
    assert found(f"max_latency_ms = {0.999 * predicted_us(run, slowest) / 1000}") == within
    params = run.space("small").reference(slowest).graph.params
    assert found(f"max_params = {params - 1}") == within
    assert found(f"max_params = {params}") == [*within, slowest]


def test_as_many_are_chosen_as_a_tenth_of_the_budget_trains(run, monkeypatch):
    """Each takes so many seconds an epoch; the epochs shrink as more networks share the time."""
    costs = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0, "e": 16.0}
    monkeypatch.setattr(references, "rivals", lambda run: dict.fromkeys(costs))
    monkeypatch.setattr(references, "untrained", lambda run, networks: networks)

    def choose(left_s: float, own_s: float) -> list[str]:
        return affordable(
            run,
            lambda networks: sum(costs[name] for name in networks),
            lambda published_s: int(left_s / (own_s + published_s)),
        )

    assert run.settings.budget_s == 3600
    assert choose(300, 10) == list("abcde"), "all together have less than a tenth"
    assert choose(1000, 10) == ["a", "c"], "66 epochs; of a, b and c it would be 58 * 7 s"
    assert choose(3600, 20) == ["a"]
    assert choose(3600, 2) == []


@pytest.mark.slow
def test_named_references_are_trained_wherever_they_lie(run):
    run_job('references = ["narrow", "mobilenet_v1_0.25", "narrow"]')
    own = {each.id: each for each in run.trained.values()}
    assert own["narrow"].start == "supernet"
    assert own["mobilenet_v1_0.25"].start == "scratch", "its space was not searched"
    assert own["mobilenet_v1_0.25"].epochs == own["narrow"].epochs
    assert own["mobilenet_v1_0.25"].teacher == own["narrow"].teacher
    assert {model.latency_us is None for model in run.models} == {False}


def test_unknown_reference_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.py").write_text(SPACE)
    with pytest.raises(SpaceError, match=r"no reference network 'mobilenet_v2_0.3'.*_0.35") as e:
        run_job('references = ["wide", "mobilenet_v2_0.3"]')
    assert e.value.exit_status == 2
    assert not RUN.exists()
    with pytest.raises(SpaceError, match="no reference network"):
        jobs.plan_job(load_job(Path("job.toml")))


@pytest.mark.slow
def test_stopped_job_continues_with_the_same_networks(run, monkeypatch):
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(references, "measure_references", stop)
        with pytest.raises(KeyboardInterrupt):
            run_job()
    decided = open_run(RUN).record.finalists
    assert decided.references
    assert len(run.trained) == 1
    for module, name in ((finalists, "affordable"), (planning, "decide_finalists")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it was decided before"))
    run_job()
    assert open_run(RUN).record.finalists == decided
    assert len(run.trained) > 1


@pytest.mark.slow
def test_reference_that_cannot_be_trained_is_named(run, monkeypatch):
    from nas.deploy import retrain

    train_model = retrain.train_model

    def fail(setup, name, *arguments):
        if name == "narrow":
            raise TrainingError("It diverged.")
        return train_model(setup, name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(retrain, "train_model", fail)
        with pytest.raises(ExportError, match="narrow was not trained: It diverged"):
            run_job('references = ["narrow", "wide"]')
    record = open_run(RUN).record
    assert record.training_errors == {"narrow": "It diverged."}
    assert "wide" in [each.id for each in run.trained.values()]
    assert "narrow was not trained" in (RUN / "report.html").read_text()
    run_job('references = ["narrow", "wide"]')
    assert open_run(RUN).record.training_errors == {}
