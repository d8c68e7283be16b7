"""The short trainings that choose the finalists of a job, with networks whose accuracy is known."""

import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from nas.deploy import short_training
from nas.deploy.retrain import Retraining
from nas.deploy.short_training import train_shortly
from nas.errors import TrainingError
from nas.job import planning
from nas.job.folder import claim
from nas.job.halving import halve_candidates
from nas.job.settings import load_job
from nas.opened_run import open_run
from nas.run import candidates
from nas.run.selection import Selection, member_options
from nas.run.short_trainings import ShortTraining
from nas.supernet.evaluation import evaluate_network
from nas.supernet.standalone import TrainedNetwork, train_network
from tests.deploy.example_run import change_record, shared_run
from tests.job.runs import Notes
from tests.job.test_planning import make_settings

EPOCH_S = 1.0

IMAGES = SimpleNamespace(train=range(64 * 11))
"""Eleven steps an epoch: the shortest trainings have two epochs."""


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    return shared_run(tmp_path_factory)


@pytest.fixture
def run(example, tmp_path) -> Path:
    """Return a run of six networks that are timed as fast as they were predicted to be."""
    run = shutil.copytree(example, tmp_path / "run")
    rows = open_run(run).trials
    candidates.write(rows.assign(measured_us=rows["predicted_us"]), run / "trials.csv")
    change_record(run, finalists=None)
    return run


@pytest.fixture
def halve(run, monkeypatch):
    """Return a function that halves the candidates of the run, and returns its short trainings.

    Each network has reached its true accuracy after any training. A training takes a second for
    each epoch, times `pace`; the one of a number is interrupted.
    """
    clock = [0.0]
    monkeypatch.setattr("nas.job.folder.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(planning, "steps_per_epoch", lambda *_: 11.0)

    def halve_with(truth, *, budget="20m", pace=1.0, interrupted=None, failing=None):
        clock[0] = 0.0
        trainings, notes = [], Notes()

        def train(architecture, data, folder, settings, **_):
            assert folder.is_dir()
            if len(trainings) == interrupted:
                raise KeyboardInterrupt
            if architecture.digest == failing:
                raise TrainingError("it diverged")
            trainings.append((architecture.digest, settings.epochs))
            clock[0] += settings.epochs * EPOCH_S * pace
            network = SimpleNamespace(architecture=architecture)
            return TrainedNetwork(network, 0.0, settings.epochs)

        monkeypatch.setattr(short_training, "train_network", train)
        monkeypatch.setattr(short_training, "part_of", lambda trained, graph: trained)
        monkeypatch.setattr(
            short_training,
            "evaluate_network",
            lambda trained, _: truth[trained.architecture.digest],
        )
        job = load_job(run / "job.toml")
        training = job.training.model_copy(update={"epochs": None})
        job = job.model_copy(update={"budget": budget, "training": training})
        change_record(run, job=job.model_dump(mode="json"))
        with claim(run, job, progress=notes) as claimed:
            options = member_options(claimed.members, (), claimed.settings.device)
            pick = Selection(options, claimed.images).choose().member
            setup = Retraining(claimed)
            monkeypatch.setattr(Retraining, "teacher", None)
            halve_candidates(claimed, setup, pick, EPOCH_S)
        halve_with.notes = notes.notes
        return trainings

    return halve_with


def test_short_trainings_put_the_truly_best_on_the_front(run, halve):
    rows = open_run(run).trials.sort_values("predicted_us")
    # The fourth fastest of six is better than all others, though its supernet says otherwise.
    best = rows["digest"].iloc[3]
    truth = {digest: 0.6 + 0.3 * (digest == best) for digest in rows["digest"]}
    trainings = halve(truth)
    assert [epochs for _, epochs in trainings] == [2.0] * 6 + [4.0] * 3
    assert {digest for digest, _ in trainings[:6]} == set(rows["digest"])
    assert best in {digest for digest, _ in trainings[6:]}
    corrected = open_run(run)
    assert corrected.trials.set_index("digest")["corrected_accuracy"].idxmax() == best
    assert best in set(corrected.front["digest"])
    slower = set(rows["digest"].iloc[4:])
    assert not slower & set(corrected.front["digest"]), "slower and worse"


def test_interrupted_halving_trains_what_is_missing(run, halve):
    truth = {digest: 0.5 + 0.01 * at for at, digest in enumerate(open_run(run).trials["digest"])}
    again = shutil.copytree(run, run.parent / "again")
    whole = halve(truth)
    expected = open_run(run).trials["corrected_accuracy"].tolist()
    shutil.rmtree(run)
    shutil.copytree(again, run)
    with pytest.raises(KeyboardInterrupt):
        halve(truth, interrupted=7)
    log = run / "short_trainings.jsonl"
    assert len(log.read_text().splitlines()) == 7
    assert halve(truth) == whole[7:]
    assert open_run(run).trials["corrected_accuracy"].tolist() == pytest.approx(expected)
    assert halve(truth) == []


def test_interrupted_halving_goes_on_around_the_pick_that_it_began_with(run, halve, monkeypatch):
    monkeypatch.setattr(planning, "halving_rounds", lambda *_: [(2, 2.0)])
    picked = open_run(run).pick().digest
    truth = dict.fromkeys(open_run(run).trials["digest"], 0.5)
    again = shutil.copytree(run, run.parent / "again")
    whole = halve(truth)
    assert whole[0][0] == picked
    shutil.rmtree(run)
    shutil.copytree(again, run)
    with pytest.raises(KeyboardInterrupt):
        halve(truth, interrupted=1)
    # The first training has made another network the pick.
    farthest = max(open_run(run).members, key=lambda each: abs(each.latency_us - _us(run, picked)))
    options = SimpleNamespace(choose=lambda: SimpleNamespace(member=farthest))
    monkeypatch.setattr(f"{__name__}.Selection", lambda *_: options)
    assert halve(truth) == whole[1:]


def _us(run: Path, digest: str) -> float:
    return open_run(run).candidate(digest).latency_us


def test_slow_machine_ends_the_short_trainings(run, halve):
    """A share of 24 seconds is paid for, and a training of 2 epochs takes 10 s instead of 2."""
    truth = dict.fromkeys(open_run(run).trials["digest"], 0.5)
    budget_s = 24 / planning.HALVING_SHARE / (1 - planning.SLACK)
    trainings = halve(truth, budget=f"{budget_s}s", pace=5.0)
    assert [epochs for _, epochs in trainings] == [2.0, 2.0], "a third one would end after 30 s"
    (said,) = [each for each in halve.notes if "correct the front" in each]
    assert said.startswith("2 candidates around ")
    assert "trained for 2 epochs: they" in said


def test_slow_machine_on_which_none_fits_is_not_said_to_have_trained(run, halve, monkeypatch):
    monkeypatch.setattr(planning, "halving_rounds", lambda *_: [(6, 1e6)])
    assert halve(dict.fromkeys(open_run(run).trials["digest"], 0.5)) == []
    assert not any("correct the front" in each for each in halve.notes)


def test_candidate_whose_training_fails_keeps_its_score(run, halve):
    rows = open_run(run).trials
    truth = dict.fromkeys(rows["digest"], 0.5)
    failing = open_run(run).pick().digest
    trainings = halve(truth, failing=failing)
    assert [epochs for _, epochs in trainings] == [2.0] * 5 + [4.0] * 3
    assert sum(each.endswith("failed: it diverged") for each in halve.notes) == 1
    before, after = (
        candidates.score(each)[each["digest"] == failing].item()
        for each in (rows, open_run(run).trials)
    )
    assert after == before


def test_budget_that_pays_for_too_few_trains_none(run, halve):
    truth = dict.fromkeys(open_run(run).trials["digest"], 0.5)
    before = (run / "trials.csv").read_text()
    assert halve(truth, budget="10s") == []
    assert (run / "trials.csv").read_text() == before


@pytest.mark.parametrize("budget", ["10m", "2h"])
@pytest.mark.parametrize("limit_s", [1e6, 700.0, 300.0, 100.0, 40.0, 1.0])
@pytest.mark.parametrize("networks", [3, 7, 20])
def test_rounds_halve_the_networks_within_their_share(budget, limit_s, networks):
    settings = make_settings(budget, training={"device": "cpu"})
    rounds = planning.halving_rounds(settings, IMAGES, networks, EPOCH_S, limit_s)
    spent_s = sum(count * epochs * EPOCH_S for count, epochs in rounds)
    assert spent_s <= 0.2 * limit_s
    for (count, epochs), (fewer, longer) in pairwise(rounds):
        assert (fewer, longer) == (count // 2, 2 * epochs)
    if rounds:
        assert rounds[0][1] == 2.0
        assert rounds[0][0] <= networks
        assert rounds[-1][0] > planning.fewest_finalists(settings) >= rounds[-1][0] // 2
    if limit_s == 1e6 and networks > 3:
        assert rounds[0][0] == (16 if networks == 20 else 6), "as many as there may be"
    if limit_s == 1.0 or networks == 3:
        assert rounds == []


def test_finalists_of_few_epochs_have_no_short_trainings():
    settings = make_settings(training={"epochs": 7, "device": "cpu"}, retrain=1)
    assert planning.halving_rounds(settings, IMAGES, 4, EPOCH_S, 1e6) == []
    longer = make_settings(training={"epochs": 8, "device": "cpu"}, retrain=1)
    assert planning.halving_rounds(longer, IMAGES, 4, EPOCH_S, 1e6) == [(4, 2.0), (2, 4.0)]


def test_record_of_a_short_training_is_read_again():
    record = ShortTraining(schema=1, digest="g123", epochs=2.5, accuracy=0.75)
    assert ShortTraining.model_validate(record.model_dump(by_alias=True)) == record


def test_short_training_is_that_of_a_finalist_judged_by_the_search_images(example, tmp_path):
    run = open_run(shutil.copytree(example, tmp_path / "run"))
    architecture = run.architecture(run.front["digest"].iloc[0])
    setup = Retraining(run)
    record = train_shortly(setup, architecture, 0.5)
    assert (record.digest, record.epochs) == (architecture.digest, 0.5)
    start, settings = Retraining(run, 0.5).start("", architecture)
    trained = train_network(
        architecture,
        run.data,
        tmp_path / "own",
        settings,
        seed=run.settings.seed,
        start=start,
        teacher=setup.teacher[1],
    )
    assert record.accuracy == evaluate_network(trained.network, run.data, "search")
    assert not (run.path / "models").exists()
