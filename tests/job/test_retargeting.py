"""A run for another device, compared with the run whose supernets and scores it has."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from nas import job as jobs
from nas.errors import RunFolderError
from nas.files import jsonl
from nas.job import load_job, objectives, retarget, retargeting
from nas.job.settings import with_options
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable
from nas.opened_run import open_run
from nas.run import candidates
from nas.run.record import read_run
from nas.run.short_trainings import SHORT_TRAININGS_FILE, ShortTraining
from nas.run.trained import read_trained
from tests.job.runs import OUT, front_digests, read_completed_trials, read_trials
from tests.latency.fake_runtime import FakeRuntime, device, use_fake_device

NEW = OUT.with_name("mini-tvm-float32")
RETAINED = ["space", "macs", "params", "validation_accuracy", "corrected_accuracy"]


def other_latency_us(kernel: Kernel) -> float:
    """Return the latency on a device for which large kernels are the fast ones."""
    return round(1 + 5000 / (100 + kernel.macs), 1)


pytestmark = pytest.mark.slow
"""All need a finished run, which takes some seconds."""


def use_other_device(patch) -> None:
    use_fake_device(patch)
    patch.setattr("tests.latency.fake_runtime.latency_us", other_latency_us)


@pytest.fixture
def source(copy_of_fake_folder, monkeypatch) -> Path:
    """Make a copy of the source's folder the working directory, where other devices are timed."""
    use_other_device(monkeypatch)
    return copy_of_fake_folder


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def new_run(**options):
    return retarget(open_run(OUT), threads=2, **{"trials": 4, "retrain": 1, **options})


@pytest.fixture(scope="module")
def retargeted(fake_folder, tmp_path_factory) -> SimpleNamespace:
    """Return the folder of a source and a retargeted run, and what the second one scored."""
    folder = shutil.copytree(fake_folder, tmp_path_factory.mktemp("retargeted") / "run")
    scored, score = [], objectives.evaluate_in_rounds

    def record(supernet, architecture, *arguments, **options):
        scored.append(architecture.digest)
        return score(supernet, architecture, *arguments, **options)

    def refuse(*arguments):
        pytest.fail("a supernet was trained, or a finalist was tested again")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_other_device(patch)
        patch.setattr(objectives, "evaluate_in_rounds", record)
        patch.setattr("nas.supernet.training.run_steps", refuse)
        patch.setattr("nas.deploy.retrain._split_accuracy", refuse)
        before = files_of(OUT)
        assert new_run(command="nas retarget results/mini --threads 2").run.path == NEW
        assert files_of(OUT) == before, "the source has changed"
    return SimpleNamespace(folder=folder, scored=scored)


@pytest.fixture
def scored(retargeted, monkeypatch) -> list[str]:
    """Make the folder of both runs the working directory, and return the scored digests."""
    monkeypatch.chdir(retargeted.folder)
    use_other_device(monkeypatch)
    return retargeted.scored


def test_short_trainings_of_the_source_correct_the_new_front(source):
    rows = read_completed_trials(OUT)
    worst = rows.sort_values("validation_accuracy")["digest"].iloc[:2].tolist()
    for digest, accuracy in zip(worst, (0.9, 0.2), strict=True):
        row = ShortTraining(schema=1, digest=digest, epochs=2, accuracy=accuracy)
        jsonl.append(OUT / SHORT_TRAININGS_FILE, row.model_dump(mode="json", by_alias=True))
    before = (OUT / SHORT_TRAININGS_FILE).read_text()
    new = new_run(retrain=0, trials=1).run
    assert (new.path / SHORT_TRAININGS_FILE).read_text() == before
    corrected = new.trials.set_index("digest")["corrected_accuracy"][worst]
    assert corrected.iloc[0] > rows["validation_accuracy"].min() > corrected.iloc[1]


def test_nothing_is_scored_again(scored):
    old, new = read_trials(OUT).set_index("digest"), read_trials(NEW).set_index("digest")
    known = old[old["state"] == "complete"]
    assert len(known) == 12
    pd.testing.assert_frame_equal(new.loc[known.index, RETAINED], known[RETAINED])
    assert not set(scored) & set(known.index)
    assert len(scored) == len(set(scored)) == 4
    assert (new["state"] == "complete").sum() == 16


def test_front_is_that_of_the_other_device_and_trained_networks_on_it_stay(scored):
    run, rows = open_run(NEW), read_completed_trials(NEW)
    for row in rows.itertuples():
        predicted = run.table.predict(run.architecture(row.digest)).latency_us
        assert row.predicted_us == pytest.approx(predicted)
    measured = rows.dropna(subset=["measured_us"]).assign(error=1 - candidates.score(rows))
    assert len(measured) == 4
    for row in measured.itertuples():
        kernels = run.runtime.kernels(run.architecture(row.digest).graph)
        assert row.measured_us == pytest.approx(1.1 * sum(map(other_latency_us, kernels)), rel=1e-3)
    members = front_digests(measured, "measured_us", "error")
    assert set(run.front["digest"]) == members
    ((digest, trained),) = read_trained(OUT).items()
    assert digest in members, "the most accurate network is on every front"
    files = ("trained.json", "weights.safetensors", "judged.safetensors", "answers.json")
    for name in (*files, "refit/training.jsonl"):
        old, new = (folder / "models" / trained.id / name for folder in (OUT, NEW))
        assert new.read_bytes() == old.read_bytes()
    assert run.front.set_index("digest")["trained_accuracy"][digest] == trained.holdout.accuracy
    weights = NEW / "supernets" / "mobile" / "supernet.safetensors"
    assert weights.samefile(OUT / "supernets" / "mobile" / "supernet.safetensors")


def test_report_and_record_say_where_the_run_comes_from(scored):
    record, before = read_run(NEW), read_run(OUT)
    assert record.name == "mini-tvm-float32"
    assert (record.source.folder, record.source.started) == (str(OUT), before.started)
    assert record.source.scores == 12
    assert record.source.models == [each.id for each in read_trained(OUT).values()]
    page = (NEW / "report.html").read_text()
    for text in (str(OUT), before.device.summary, "12 scores"):
        assert text in page
    assert load_job(NEW / "job.toml").device.threads == 2


def test_only_new_finalists_are_trained_for_as_many_epochs(source):
    new_run(retrain=2)
    (old,) = read_trained(OUT).values()
    new = read_trained(NEW)
    assert len(new) == 2
    assert {record.epochs for record in new.values()} == {old.epochs}
    assert new[old.digest] == old


def test_trained_network_off_the_front_is_left_behind(source):
    """A limit on the latency rules it out."""
    ((digest, _),) = read_trained(OUT).items()
    new_run(folder=(out := NEW.with_name("first")), retrain=0)
    latency_us = read_trials(out).set_index("digest")["predicted_us"]
    assert latency_us.min() < latency_us[digest]
    new_run(max_latency_ms=(latency_us[digest] - 0.01) / 1000, retrain=0)
    assert read_trained(NEW) == {}
    row = read_trials(NEW).set_index("digest").loc[digest]
    assert row["state"] == "infeasible"
    assert not pd.isna(row["validation_accuracy"]), "its score is known for other limits"


class KilledError(BaseException):
    """Stands for a signal that ends a process before a write is on the disk."""


def test_retarget_killed_at_many_writes_equals_an_undisturbed_one(source, monkeypatch):
    undisturbed = new_run(folder=(out := NEW.with_name("undisturbed")), retrain=2).run.path
    for path in (source / "latency_tables").glob("*.2t.*"):
        path.unlink()
    sync, left = os.fsync, 0

    def sync_or_die(descriptor):
        nonlocal left
        left -= 1
        if left == 0:
            raise KilledError
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_or_die)
    kills = 0
    for patience in (1, 3, 6, 12, 25, 50, 75, 100, 10_000):
        left = patience
        try:
            new_run(retrain=2)
        except KilledError:
            kills += 1
    assert kills >= 5
    for name in ("trials.csv", "front.csv"):
        frames = [pd.read_csv(f / name).drop(columns="seconds") for f in (undisturbed, NEW)]
        pd.testing.assert_frame_equal(*frames)
    assert read_run(out).source == read_run(NEW).source.model_copy(
        update={"study": read_run(out).source.study}
    )


def test_run_stands_alone_once_it_has_begun(source):
    new_run(retrain=0)
    shutil.rmtree(OUT)
    shutil.rmtree(NEW / "models")
    settings = with_options(load_job(NEW / "job.toml"), finish={"retrain": 1})
    jobs.run_job(settings, NEW)
    assert len(read_trained(NEW)) == 1


def test_other_device_in_the_same_folder_is_taken_until_the_search(source, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(retargeting, "run_job", lambda *_, **__: None)
        new_run()
    retarget(open_run(OUT), NEW, threads=4, trials=4, retrain=0)
    assert read_run(NEW).job.device.threads == 4
    with pytest.raises(RunFolderError, match=r"\[device\] threads was 4 and is now 2"):
        new_run()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda: shutil.rmtree(OUT / "supernets" / "squeeze"), "no trained supernet of squeeze"),
        (lambda: (OUT / "study.journal").unlink(), "no trials of a search"),
        (lambda: (OUT / "run.json").unlink(), "is not a run"),
        (lambda: shutil.copytree(OUT.parent.parent / "latency_tables", NEW), "holds other files"),
    ],
)
def test_run_that_cannot_be_retargeted_is_refused(source, invoke, damage, words):
    damage()
    done = invoke("retarget", OUT, "--threads", 2)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (NEW / "run.json").exists()


def test_running_run_is_refused(source, invoke):
    with open_run(OUT).locked():
        done = invoke("retarget", OUT, "--threads", 2)
    assert done.returncode == 2
    assert "Another process is running a job" in done.stderr
    assert not NEW.exists()


def test_folder_of_another_run_and_wrong_options_are_refused(source, invoke):
    for out in ("results/other", OUT):
        shutil.copytree(OUT, "results/other", dirs_exist_ok=True)
        assert invoke("retarget", OUT, "--out", out).returncode == 2
    done = invoke("retarget", OUT, "--batch", 0)
    assert (done.returncode, "--batch is 0" in done.stderr) == (2, True)
    done = invoke("retarget", OUT, "--runtime", "onnxruntime", "--dtype", "float16")
    assert done.returncode == 2
    assert "float16" in done.stderr


def test_device_is_that_of_the_options_the_table_or_the_run(source, monkeypatch):
    begun = []
    monkeypatch.setattr(retargeting, "run_job", lambda *_, **__: None)
    monkeypatch.setattr(retargeting, "_begin", lambda run, *arguments: begun.append(arguments))

    def settings_of(**options):
        retarget(open_run(OUT), **options)
        return begun[-1][0], begun[-1][1]

    folder, settings = settings_of(runtime="onnxruntime", dtype="int8", batch=4)
    assert folder == OUT.with_name("mini-onnxruntime-int8")
    assert settings.device.model_dump() == {
        "runtime": "onnxruntime",
        "target": "cpu",
        "threads": 1,
        "dtype": "int8",
        "batch": 4,
        "tables": "latency_tables",
    }
    assert (settings.budget, settings.search.trials) == ("30m", None)
    chosen = settings_of(target="ethos-u55-128")[1].device
    assert (chosen.runtime, chosen.dtype) == ("ethos_u", "int8"), "what has the target"
    path = Path("mine.jsonl")
    LatencyTable.open_or_create(path, FakeRuntime(device(threads=8)))
    _, settings = settings_of(table=path)
    assert (settings.device.threads, settings.device.tables) == (8, "mine.jsonl")
    job = with_options(open_run(OUT).settings, finish={"export": ("onnx", "tvm")})
    document = json.loads((OUT / "run.json").read_text())
    document["job"] = job.model_dump(mode="json")
    (OUT / "run.json").write_text(json.dumps(document))
    _, settings = settings_of(runtime="onnxruntime")
    assert settings.finish.export == ("onnx",), "a library of TVM is no file of this device"


def test_mini_job_for_another_runtime(finished_job, tmp_path, monkeypatch, invoke):
    shutil.copytree(finished_job, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nas.supernet.training.run_steps", lambda *_: pytest.fail("trained"))
    done = invoke("retarget", OUT, "--runtime", "onnxruntime", "--dtype", "int8", "--trials", 5)
    assert done.returncode == 0, done.stderr
    new = OUT.with_name("mini-onnxruntime-int8")
    old_rows, rows = (read_completed_trials(run).set_index("digest") for run in (OUT, new))
    assert len(rows) == 35
    pd.testing.assert_frame_equal(rows.loc[old_rows.index, RETAINED], old_rows[RETAINED])
    assert (rows["measured_us"].dropna() > 0).all()
    assert "onnxruntime int8" in read_run(new).device.summary
