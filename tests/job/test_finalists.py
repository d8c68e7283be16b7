"""The finalists of a job: which are chosen, trained and exported."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from nas.deploy.networks import load_trained
from nas.deploy.refit import REFIT_FOLDER
from nas.deploy.retrain import finalist
from nas.errors import RequestError
from nas.job import finalists, planning, timed_training
from nas.job.finalists import ship_finalists
from nas.job.folder import JobRun, claim
from nas.job.settings import load_job
from nas.opened_run import open_run
from nas.run import candidates
from nas.run.progress import SilentProgress
from nas.run.selection import Selection
from nas.run.trained import read_trained
from nas.statistics import wilson_interval
from nas.supernet import checkpoint
from nas.supernet.training import CHECKPOINT_FILE
from tests.deploy.example_run import change_record, front_ids, shared_run
from tests.job.runs import OUT, Notes, count_lines, start_process

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    return shared_run(tmp_path_factory)


@pytest.fixture
def run(example, tmp_path) -> Path:
    return shutil.copytree(example, tmp_path / "run")


def ship_finalists_of(folder: Path, progress: SilentProgress) -> list[str]:
    """Do the stages of a job that train and export its finalists, and return their names."""
    with claim(folder, load_job(folder / "job.toml"), progress=progress) as claimed:
        names, untrained, unexported = ship_finalists(claimed)
        assert names[0] == claimed.selection().choose().member.id
        assert untrained == unexported == {}
        return names


@pytest.fixture
def without_exports(monkeypatch) -> list[str]:
    """Export nothing, and return the names of the networks of which exports were asked for."""
    asked: list[str] = []
    monkeypatch.setattr(
        finalists, "export_networks", lambda run, names, *_, **__: asked.extend(names) or {}
    )
    return asked


def test_stage_trains_the_planned_number_of_finalists_and_writes_their_accuracies(
    run, without_exports
):
    progress = Notes()
    ship_finalists_of(run, progress)
    records = {record.id: record for record in read_trained(run).values()}
    members = open_run(run).members
    best = max(member.score for member in members)
    low = wilson_interval(best, [len(open_run(run).data.holdout)]).low
    lowest = best - (best - low) / 1.96
    picked = next(member.id for member in members if member.score >= lowest)
    assert len(records) == 2
    assert picked in records, "the fastest within a standard error of the most accurate one"
    assert open_run(run).pick().id in records
    assert {record.epochs for record in records.values()} == {1}
    shares = [done / total for done, total in progress.steps]
    assert shares == sorted(set(shares)), "a refit has more steps than what is judged"
    assert shares[-1] == 1
    rows = candidates.read(run / "trials.csv").set_index("id")
    for name, record in records.items():
        assert rows["trained_accuracy"][name] == pytest.approx(record.holdout.accuracy)
        assert rows["test_accuracy"][name] == pytest.approx(record.test.accuracy)
    others = rows.drop(index=list(records))
    assert others["trained_accuracy"].isna().all()
    assert others["test_accuracy"].isna().all()
    weights = {path: path.stat().st_mtime_ns for path in run.glob("models/*/weights.safetensors")}
    again = Notes()
    ship_finalists_of(run, again)
    assert again.steps == []
    assert {path: path.stat().st_mtime_ns for path in weights} == weights


def test_folder_that_a_killed_export_moved_away_is_put_back_after_the_budget(run, without_exports):
    ship_finalists_of(run, SilentProgress())
    records = read_trained(run)
    assert len(records) == 2
    for record in records.values():
        models = run / "models"
        (models / f".{record.id}.export").mkdir()
        (models / record.id).rename(models / f".{record.id}.export" / "old")
    change_record(run, stages={planning.SEARCH: {"seconds": 1e6}})
    notes = Notes()
    ship_finalists_of(run, notes)
    assert read_trained(run) == records
    assert not [each for each in notes.notes if "not trained" in each]


def test_wrong_requests_are_refused_before_anything_is_trained(run):
    with pytest.raises(RequestError, match=r"nothing to train\. Give --pick"):
        open_run(run).retrain()
    with pytest.raises(RequestError, match=r"0 architectures .*most accurate of the front"):
        open_run(run).retrain(front_ids(run)[-1], "zzzz")
    assert not (run / "models").exists()


EPOCH_S, EXPORT_S = 1.0, 20.0
"""What the fake trainer below says beforehand of an epoch and of an export."""


class FakeTrainer:
    """Trains and exports nothing, in a time that is known.

    Attributes:
        now: the time in seconds.
        paces: duration of each training over the expected one, the last for all further ones.
        probes: the numbers of the trainings after which a linear probe is better.
        export_pace: the same of exports.
        trained: records of the networks that were trained, by digest.
        epochs: what each network was trained for, in the order of the trainings.
        exported: names of the exported networks.
    """

    def __init__(self, paces=(1.0,), export_pace=1.0, probes=()):
        self.now, self.paces, self.export_pace = 0.0, list(paces), export_pace
        self.probes, self.refit = probes, 0.0
        self.trained, self.epochs, self.exported = {}, {}, []

    def train(self, setup, networks, progress):
        records = []
        for name, architecture in networks.items():
            if architecture.digest in self.trained:
                continue
            number = len(self.epochs)
            pace = self.paces[min(number, len(self.paces) - 1)]
            is_probe, longest_s = number in self.probes, setup.longest_seconds or 1e9
            own_s = min(setup.epochs * EPOCH_S * pace, longest_s)
            epochs = max(1, round(own_s / (EPOCH_S * pace)))
            self.now += own_s * (1 if is_probe else 1 + self.refit)
            records.append(
                SimpleNamespace(
                    id=name, digest=architecture.digest, is_probe=is_probe, epochs=epochs
                )
            )
            self.trained[architecture.digest] = records[-1]
            self.epochs[name] = setup.epochs
        return records, {}

    def export(self, run, names, *_, **__):
        self.now += len(names) * EXPORT_S * self.export_pace
        self.exported += names
        return {}


@pytest.fixture
def ship(run, monkeypatch):
    """Return a function that ships the finalists of a run with a fake trainer.

    Its arguments are those of `FakeTrainer`, the seconds that were spent before, and the budget. It
    returns the trainer, the messages and the record of the run.
    """

    def ship_with(*, spent_s=100.0, budget="10m", retrain=3, trainer=None, refit=False, **fake):
        trainer, notes = trainer or FakeTrainer(**fake), Notes()
        monkeypatch.setattr("nas.job.folder.time.perf_counter", lambda: trainer.now)
        monkeypatch.setattr(timed_training, "measure_network_epoch", lambda *_: EPOCH_S)
        monkeypatch.setattr(timed_training, "train_networks", trainer.train)
        monkeypatch.setattr(planning, "export_s", lambda *_: EXPORT_S)
        monkeypatch.setattr(finalists, "export_networks", trainer.export)
        everything = open_run(run).trials["digest"].tolist()
        monkeypatch.setattr(finalists, "representatives", lambda *_: everything)
        monkeypatch.setattr(JobRun, "trained", property(lambda _: trainer.trained))
        settings = load_job(run / "job.toml")
        finish = settings.finish.model_copy(update={"retrain": retrain, "refit": refit})
        training = settings.training.model_copy(update={"epochs": None})
        update = {"budget": budget, "finish": finish, "training": training}
        change_record(
            run,
            stages={planning.SEARCH: {"seconds": spent_s}},
            job=settings.model_copy(update=update).model_dump(mode="json"),
        )
        with claim(run, settings.model_copy(update=update), progress=notes) as claimed:
            trainer.refit = planning.refit_share(claimed.settings, claimed.data)
            names, *errors = ship_finalists(claimed)
            assert errors == [{}, {}]
            assert set(names) == set(trainer.exported)
            return trainer, notes.notes, claimed.record

    return ship_with


def test_finalists_fill_the_budget_with_one_recipe(ship):
    trainer, notes, record = ship()
    assert len(trainer.exported) == len(set(trainer.exported)) == 3
    assert set(trainer.epochs.values()) == {record.finalists.epochs}
    assert 0.95 * 500 <= trainer.now <= 500, "100 seconds of ten minutes were spent before"
    assert record.finalists.shortened == {}
    assert not any("budget of 10m" in each for each in notes)
    stages = record.stages
    assert stages[planning.EXPORT].seconds == 3 * EXPORT_S
    assert stages[planning.FINALISTS].seconds == trainer.now - 3 * EXPORT_S


@pytest.mark.parametrize("export_pace", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(
    "paces", [(0.5,), (1.0,), (1.05,), (1.4,), (3.0,), (1.0, 1.3), (1.0, 1.0, 3.0), (3.0, 1.0)]
)
def test_job_ends_with_its_budget_however_long_its_parts_take(ship, paces, export_pace):
    trainer, notes, record = ship(paces=paces, export_pace=export_pace)
    assert trainer.exported, "one network is shipped in any case"
    assert 100 + trainer.now <= 1.05 * 600 + (export_pace - 1) * EXPORT_S * (export_pace > 1)
    said = [each for each in notes if "budget of 10m" in each]
    unequal = [name for name, n in trainer.epochs.items() if n != record.finalists.epochs]
    assert sorted(record.finalists.shortened) == sorted(unequal)
    assert len(said) == len(unequal) + 3 - len(trainer.exported)
    assert all(2 * trainer.epochs[name] >= record.finalists.epochs for name in unequal)


@pytest.mark.parametrize("pace", [1.0, 1.8, 2.0, 2.2])
def test_linear_probe_does_not_make_others_seem_fast(ship, pace):
    """The second training ends sooner, because a probe has no refit; the third one has one."""
    trainer, *_ = ship(paces=(pace,), probes=(1,), refit=True)
    assert len(trainer.exported) >= 2
    assert 100 + trainer.now <= 600


def test_network_of_an_earlier_front_does_not_keep_the_pick_from_being_trained(ship, run):
    members = open_run(run).members
    picked = open_run(run).pick().id
    slow = next(each for each in members if each.id != picked)
    trainer = FakeTrainer()
    trainer.trained["an earlier one"] = SimpleNamespace(id=slow.id, digest="an earlier one")
    ship(trainer=trainer, spent_s=5000.0, retrain=1)
    assert trainer.exported == [picked]


def test_exports_of_an_earlier_start_do_not_make_others_seem_fast(ship, monkeypatch):
    trainer, *_ = ship(retrain=1, budget="3m")
    done = list(trainer.exported)
    quick = trainer.export

    def export(run, names, *rest, **options):
        before = trainer.now
        result = quick(run, names, *rest, **options)
        if names == done:  # Its files are there.
            trainer.now = before
        return result

    trainer.export = export
    trainer.now, trainer.paces = 0.0, [1.0, 2.0]
    ship(trainer=trainer, spent_s=200.0, budget="10m", retrain=3)
    assert len(trainer.epochs) >= 2
    assert 200 + trainer.now <= 600


def test_the_first_export_tells_how_long_the_others_take(ship):
    """Three exports of 20 s were planned, and each takes 40 s: the third network has 40 s less."""
    trainer, notes, record = ship(export_pace=2.0)
    assert len(trainer.exported) == 3
    *_, third = trainer.epochs
    assert record.finalists.shortened == {third: trainer.epochs[third]}
    fewer_s = EPOCH_S * (record.finalists.epochs - trainer.epochs[third])
    left_free_s = planning.SLACK * 600
    assert fewer_s == pytest.approx(3 * 20 - left_free_s, abs=3 * EPOCH_S), "whole epochs"
    assert f"{third} gets {trainer.epochs[third]} epochs: with " in " ".join(notes)
    assert 100 + trainer.now == 600


def test_network_that_would_get_half_of_the_epochs_is_not_trained(ship):
    trainer, notes, record = ship(export_pace=4.0)
    assert len(trainer.exported) == 2
    assert record.finalists.shortened == {}
    assert sum("is not trained: it would end" in each for each in notes) == 1


@pytest.mark.parametrize("spent_s", [595.0, 600.0, 5000.0])
def test_spent_budget_still_ships_the_pick(ship, run, spent_s):
    picked = open_run(run).pick().id
    trainer, notes, _ = ship(spent_s=spent_s)
    assert trainer.epochs == {picked: 1}
    assert trainer.exported == [picked]
    assert sum("is not trained: it would end" in each for each in notes) == 2


def test_later_start_with_more_time_trains_what_was_left_out(ship):
    trainer, *_ = ship(spent_s=5000.0)
    done = list(trainer.epochs)
    ship(trainer=trainer, spent_s=5000.0, budget="3h")
    assert len(trainer.epochs) == 3
    assert list(trainer.epochs)[:1] == done


def test_training_that_an_earlier_start_began_goes_on_with_its_epochs(ship, run, monkeypatch):
    trainer, _, record = ship(paces=(1.0, 1.0, 9.0))
    third = list(trainer.epochs)[2]
    del trainer.trained[next(each for each in trainer.trained if each.startswith(third))]
    del trainer.epochs[third]
    begun = run / "models" / third / CHECKPOINT_FILE
    facts = {"space": "any", "space_digest": "any", "training": {"epochs": 7}}
    checkpoint.write(begun, {"weight": torch.zeros(1)}, facts)
    change_record(run, finalists=record.finalists.model_dump() | {"shortened": {third: 7}})
    monkeypatch.setattr(planning, "decide_finalists", lambda *_: pytest.fail("it was decided"))
    ship(trainer=trainer, spent_s=5000.0)
    assert trainer.epochs[third] == 7


def test_training_begun_with_other_epochs_is_begun_anew_after_the_budget_changed(ship, run):
    picked = open_run(run).pick().id
    begun = run / "models" / picked / CHECKPOINT_FILE
    facts = {"space": "any", "space_digest": "any", "training": {"epochs": 7}}
    checkpoint.write(begun, {"weight": torch.zeros(1)}, facts)
    (begun.parent / REFIT_FOLDER).mkdir()
    _, notes, record = ship()
    assert record.finalists.epochs > 7
    assert f"{picked} is trained anew: it was begun with 7 epochs" in notes
    assert not begun.exists()
    assert not (begun.parent / REFIT_FOLDER).exists(), "it would say that no probe was better"


def plan_finalists(folder: Path, count: int, epochs: int) -> None:
    """Let a finished job train finalists when it is run again."""
    shutil.rmtree(folder / "models", ignore_errors=True)
    job = folder.parents[1] / "job.toml"
    job.write_text(job.read_text().replace("retrain = 0", f"retrain = {count}"))
    record = json.loads((folder / "run.json").read_text())
    record["finalists"] = {"budget": record["job"]["budget"], "count": count, "epochs": epochs}
    (folder / "run.json").write_text(json.dumps(record))


def read_candidates(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "trials.csv").drop(columns=["seconds"])


@pytest.mark.long
def test_job_killed_while_it_trains_a_finalist_ends_like_an_undisturbed_one(
    copy_of_finished_job, tmp_path, invoke, monkeypatch
):
    plan_finalists(copy_of_finished_job / OUT, 2, 3)
    other = shutil.copytree(copy_of_finished_job, tmp_path / "other")
    monkeypatch.chdir(other)

    def is_training() -> bool:
        return any(count_lines(log) > 3 for log in OUT.glob("models/*/training.jsonl"))

    process = start_process(is_training, "-m", "nas", "run", "job.toml", "--out", OUT)
    process.kill()
    process.wait()
    assert not list(OUT.glob("models/*/trained.json"))
    for folder in (other, copy_of_finished_job):
        monkeypatch.chdir(folder)
        done = invoke("run", "job.toml", "--out", OUT)
        assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(
        read_candidates(other / OUT), read_candidates(copy_of_finished_job / OUT)
    )
    weights = [
        {name: load_trained(open_run(folder / OUT), name).network.state_dict() for name in names}
        for folder in (other, copy_of_finished_job)
        for names in [sorted(path.name for path in (folder / OUT / "models").iterdir())]
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, state in weights[0].items():
        assert all(torch.equal(tensor, weights[1][name][key]) for key, tensor in state.items())


@pytest.mark.slow
def test_network_that_trainings_make_the_pick_is_trained_too(run, monkeypatch, without_exports):
    first, *_, last = open_run(run).members
    let_trainings_pick(last.digest, first.digest, monkeypatch, run)
    progress = Notes()
    with claim(run, load_job(run / "job.toml"), progress=progress) as claimed:
        shipped = ship_finalists(claimed)
    assert shipped == ([last.id, first.id], {}, {})
    assert without_exports == [first.id, last.id]
    assert {record.id for record in read_trained(run).values()} == {first.id, last.id}
    said = f"{last.id} is trained, too: after these trainings, nas select picks it"
    assert said in progress.notes


def let_trainings_pick(last: str, first: str, monkeypatch, run: Path) -> None:
    """Let a network be the only finalist, and another one the pick after its training."""

    def choose(selection):
        return next(each for each in selection.options if each.member.digest == last)

    monkeypatch.setattr(finalists, "_finalists", lambda run, _: dict([finalist(run, first)]))
    monkeypatch.setattr(Selection, "choose", choose)


def test_new_pick_is_not_trained_after_the_budget(ship, run, monkeypatch):
    first, *_, last = open_run(run).members
    let_trainings_pick(last.digest, first.digest, monkeypatch, run)
    trainer, notes, _ = ship(retrain=1)
    assert trainer.exported == [first.id]
    assert f"{last.id} is not trained: it would end" in " ".join(notes)
    assert "is trained, too" not in " ".join(notes)
