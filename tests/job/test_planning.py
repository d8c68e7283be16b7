"""The shares of the stages of a job in its budget, and its plan."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from nas.deploy.exporting import job_formats
from nas.errors import InfeasibleError, JobFileError
from nas.job import JobSettings, int8_losses, planning
from nas.job import plan as plans
from nas.job.inputs import JobSpaces
from nas.job.planning import (
    ANCHORS,
    DISPATCH_S,
    EXPORT,
    EXPORT_FILE_S,
    FINALISTS,
    MAX_FINALISTS,
    MEASURE,
    MIN_SCORE_IMAGES,
    MIN_SCORES,
    NETWORK_S,
    PREPARE,
    PROPOSAL_S,
    REFERENCES,
    SEARCH,
    SLACK,
    SUPERNETS,
    TABLE,
    decide_finalists,
    fitting_images,
    planned_stages,
    score_images,
    share_s,
    spent_before,
    supernet_s,
)
from nas.latency.build_estimate import BuildEstimate
from nas.latency.correction import FITTED_NETWORKS
from nas.run.progress import SilentProgress
from nas.run.record import StageRecord
from nas.run.settings import KEYS, JobSpace
from tests.job.runs import open_spaces
from tests.latency.fake_runtime import FakeRuntime


def make_settings(budget="1h", *, dtype="float32", training=None, search=None, **finish):
    return JobSettings.model_validate(
        {
            "budget": budget,
            "data": {"source": "digits"},
            "space": [{"name": "mobilenet_tiny"}, {"name": "squeezenet_tiny"}],
            "device": {"tables": "no_tables", "dtype": dtype},
            "training": training or {},
            "search": search or {},
            "finish": {"refit": False, **finish},
        }
    )


def test_stages_that_use_their_shares_use_the_whole_budget():
    settings, spent_s = make_settings("1h"), 100.0
    for stage in (TABLE, SUPERNETS, SEARCH, MEASURE, FINALISTS):
        own_s = share_s(settings, stage, spent_s)
        assert own_s > 0
        spent_s += own_s
    assert spent_s == pytest.approx(3600)


def test_exports_of_the_fewest_finalists_are_kept_from_the_stages_before_them():
    few, many = (make_settings("1h", retrain=count) for count in (1, 5))
    own_s = 4 * len(job_formats(few)) * EXPORT_FILE_S
    measure_s = [share_s(each, MEASURE, 3000) for each in (few, many)]
    assert measure_s[0] - measure_s[1] == pytest.approx(own_s * 0.07 / 0.42)
    assert share_s(few, FINALISTS, 3000) == share_s(many, FINALISTS, 3000) == 600
    # Forty exports would take all of five minutes.
    shares = [share_s(make_settings("5m", retrain=n), SUPERNETS, 0) for n in (20, 40)]
    assert shares[0] == shares[1] == pytest.approx(300 * 0.65 * 0.45)


def test_time_that_a_stage_does_not_need_is_left_to_those_after_it():
    settings = make_settings("1h")
    assert share_s(settings, FINALISTS, 600) == 3000
    assert share_s(settings, SEARCH, 600) > share_s(settings, SEARCH, 1200) > 0
    assert share_s(settings, SEARCH, 4000) == 0


@pytest.mark.parametrize(("finish", "stage"), [({"retrain": 0}, MEASURE), ({"measure": 0}, SEARCH)])
def test_stage_that_does_nothing_has_no_share(finish, stage):
    assert share_s(make_settings(**finish), stage, 0) > share_s(make_settings(), stage, 0)
    assert share_s(make_settings(retrain=0, measure=0), SEARCH, 600) == 3000


def test_anchors_are_paid_by_the_supernets():
    without = make_settings(search={"anchors": 0})
    own_s = supernet_s(make_settings(search={"anchors": 8}), 0, 2)
    # A network costs a quarter of its supernet, and an anchor has a third of the epochs.
    assert (1 + 8 / 12) * own_s == pytest.approx(supernet_s(without, 0, 2))
    assert 2 * supernet_s(without, 0, 2) == pytest.approx(share_s(without, SUPERNETS, 0))


def test_seconds_of_all_supernets_are_spent_before_the_search():
    seconds = {PREPARE: 1, TABLE: 2, f"{SUPERNETS} a": 4, f"{SUPERNETS} b": 8, ANCHORS: 16}
    seconds |= {SEARCH: 32, MEASURE: 64, FINALISTS: 128, EXPORT: 256}
    stages = {name: StageRecord(seconds=float(each)) for name, each in seconds.items()}
    assert spent_before(stages, TABLE) == 1
    assert spent_before(stages, SUPERNETS) == 3
    assert spent_before(stages, SEARCH) == 31
    assert spent_before(stages, FINALISTS) == 127


def test_images_of_a_score_follow_from_the_time_of_the_search():
    own_s, image_s = cost = 0.5, 0.001
    assert fitting_images(cost, 1000.0, 300, 5000) == 2783
    assert 300 * (own_s + PROPOSAL_S + 2783 * image_s) == pytest.approx(1000, rel=0.001)
    assert fitting_images(cost, 10_000.0, 300, 5000) == 5000
    assert fitting_images(cost, 100.0, 300, 5000) == MIN_SCORE_IMAGES
    assert fitting_images(cost, 100.0, 300, 200) == 200, "there are no more"


@pytest.fixture
def plan(monkeypatch, tmp_path, digits):
    """Return a function that plans a job on a device whose costs are known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plans, "measure_losses_s", lambda *_: 7.0)
    monkeypatch.setattr(planning, "measure_score", lambda *_: (0.5, 0.001))

    def make(
        *arguments,
        build_s=30.0,
        epoch_s=2.0,
        has_device=True,
        runtime=None,
        published=None,
        data=digits,
        halves=False,
        **settings,
    ):
        if not halves:
            monkeypatch.setattr(planning, "halving_rounds", lambda *_: [])
        monkeypatch.setattr(plans, "_epoch_s", lambda *_, **__: epoch_s)
        estimate = BuildEstimate(8, build_s, first_seconds=10.0, slowest_us=2.0)
        monkeypatch.setattr(plans, "estimate_build_with", lambda *_: estimate)
        job = make_settings(*arguments, **settings)
        spaces = open_spaces(job)
        spaces = JobSpaces(spaces, spaces, published or {})
        runtimes = [(runtime or FakeRuntime)() for _ in job.device.dtypes] if has_device else []
        return plans.make_plan(job, data, spaces, runtimes, SilentProgress(), 10.0)

    return make


CHECK_S = FITTED_NETWORKS * NETWORK_S
"""Seconds in which a new table is compared with whole networks."""


def test_plan_fills_the_budget(plan):
    hour = plan("1h", epoch_s=8.0)
    used_s = (1 - SLACK) * 3600
    assert sum(hour.seconds.values()) == pytest.approx(used_s, abs=5 * 2.0), "whole epochs"
    assert (hour.seconds[PREPARE], hour.seconds[TABLE]) == (10, 60 + CHECK_S)
    assert hour.seconds[SUPERNETS] == pytest.approx(8.0 * sum(hour.epochs.values()), abs=0.1)
    assert hour.trials == MIN_SCORES
    assert (hour.kernels > 0, hour.measure) == (True, 20)
    # A supernet of a job ends with 5,000 steps of 64 of the 719 images, and so does a finalist.
    fast = plan("8h", epoch_s=1.0)
    assert set(fast.epochs.values()) == {round(5000 * 64 / 719, 2)}
    assert fast.finalist_epochs == 5000 * 64 // 719


def test_plan_has_the_finalists_of_the_job(plan):
    # A network costs a quarter of its supernet, a finalist gets 30 epochs before there are more.
    few = plan("10m", epoch_s=16.0)
    assert few.retrain == 1
    assert few.seconds[FINALISTS] == few.finalist_epochs * 4.0
    assert plan("1h", epoch_s=8.0).retrain == MAX_FINALISTS
    assert plan("1h", epoch_s=800.0).retrain == 3
    assert plan("10m", retrain=4).retrain == 4
    one_s = plan("1h", export=["onnx"]).seconds[EXPORT]
    two_s = plan("1h", export=["onnx", "torch"]).seconds[EXPORT]
    assert two_s == pytest.approx(2 * one_s, abs=0.16), "all are rounded to 0.1 s"


def test_the_pick_alone_is_trained_where_the_budget_pays_for_few_epochs():
    spaces = [{"name": "mobilenet_tiny", "pretrained": "weights.pth"}]
    for budget, count in (("12m", 1), ("2h", 3)):
        settings = make_settings(budget)
        settings = settings.model_copy(
            update={"space": [JobSpace.model_validate(each) for each in spaces]}
        )
        decided = decide_finalists(settings, 200, lambda count: 12 / count)
        assert decided == (count, 12 // count)
    assert decide_finalists(make_settings("12m", retrain=2), 200, lambda count: 12 / count)[0] == 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"retrain": 0},
        {"search": {"anchors": 0}},
        {"references": ["mobilenet_v2_0.5"]},
        {"dtype": ["float32", "int8"]},
    ],
)
def test_plan_has_the_stages_of_the_job(plan, settings):
    planned = list(plan("1h", **settings).seconds)
    job = make_settings("1h", **settings)
    names = planned_stages(job, open_spaces(job))
    assert planned == list(
        dict.fromkeys(name.partition(" mobile")[0] for name in names if "squeeze" not in name)
    )


CHANGES = {
    "budget": {"budget": "50m"},
    "device.dtype": {"dtype": ["float32", "int8"]},
    "training.epochs": {"training": {"epochs": 3}},
    "training.minutes": {"training": {"minutes": 0.5}},
    "search.trials": {"search": {"trials": 40}},
    "search.minutes": {"search": {"minutes": 0.5}},
    "search.workers": {"search": {"workers": 3}},
    "search.stall": {"search": {"stall": 50}},
    "search.sampler": {"search": {"sampler": "random"}},
    "search.anchors": {"search": {"anchors": 9}},
    "search.correct_scores": {"search": {"correct_scores": False}},
    "finish.measure": {"measure": 3},
    "finish.retrain": {"retrain": 1},
    "finish.references": {"references": ["mobilenet_v2_0.5"]},
    "finish.export": {"export": ["onnx"]},
}
"""A change of each key that decides how long a stage takes, beside those that change its costs."""


@pytest.mark.parametrize("key", CHANGES)
def test_plan_depends_on_each_key_that_decides_times(plan, key):
    usual = {"budget": "1h", "epoch_s": 8.0}
    assert key in KEYS
    assert plan(**usual).seconds != plan(**usual | CHANGES[key]).seconds


def test_plan_says_how_many_kernels_cannot_be_timed_until_they_agree(plan):
    assert plan("20m").uncertain == 0
    short = plan("20m", build_s=1010.0)
    time_s = 0.7 * share_s(make_settings("20m"), TABLE, 10.0)
    assert short.uncertain == pytest.approx(short.kernels * (1010 - time_s) / 1000, abs=1)
    table_s = time_s + DISPATCH_S + CHECK_S
    assert short.seconds[TABLE] == pytest.approx(table_s, abs=0.1)


def test_plan_follows_the_numbers_of_the_job_file(plan):
    chosen = plan("1h", training={"epochs": 5}, search={"trials": 40}, measure=4, retrain=0)
    assert set(chosen.epochs.values()) == {5}
    assert chosen.trials == 40
    assert chosen.seconds[MEASURE] == pytest.approx(4 * NETWORK_S)
    assert FINALISTS not in chosen.seconds
    assert sum(chosen.seconds.values()) < 600
    minutes = plan("1h", training={"minutes": 1.0})
    assert minutes.seconds[SUPERNETS] == 120
    too_many = plan("5m", training={"epochs": 10_000}, search={"trials": 10_000})
    assert sum(too_many.seconds.values()) == pytest.approx((1 - SLACK) * 300, abs=1)
    assert len(np.unique(list(too_many.epochs.values()))) == 1, "equal time"


def test_planned_search_has_the_time_and_the_workers_of_the_job(plan):
    wanted = {"trials": 10_000, "minutes": 2.0}
    trial_s = 0.5 + 300 * 0.001 + PROPOSAL_S
    alone = plan("1h", search=wanted)
    assert (alone.score_images, alone.trials) == (300, int(120 / trial_s))
    assert alone.seconds[SEARCH] == pytest.approx(120, abs=trial_s)
    four = plan("1h", search=wanted | {"workers": 4})
    # In four times the time, 300 scores fit in with all 479 images.
    trial_s = 0.5 + 479 * 0.001 + PROPOSAL_S
    assert (four.score_images, four.trials) == (479, int(4 * 120 / trial_s))
    assert four.seconds[SEARCH] == pytest.approx(120, abs=trial_s)
    # A job searches for 20 seconds although the stages before the search have used its budget.
    none_left = plan("5m", build_s=205.0, training={"minutes": 100.0}, search={"trials": 10_000})
    assert none_left.seconds[SEARCH] >= 20 - trial_s


@pytest.mark.parametrize(
    ("search", "seconds"),
    [({}, 900.0), ({"minutes": 2.0}, 120.0), ({"minutes": 2.0, "workers": 4}, 480.0)],
)
def test_images_of_a_score_suffice_for_the_scores_of_all_workers(search, seconds):
    cost, images = (0.5, 0.001), 5000
    settings = make_settings(search=search)
    limit_s = min(900.0, 60 * search.get("minutes", 60.0))
    assert score_images(settings, cost, limit_s, images) == fitting_images(
        cost, seconds, MIN_SCORES, images
    )
    few = make_settings(search=search | {"trials": 10})
    assert score_images(few, cost, limit_s, images) == images


def test_a_limit_that_excludes_nothing_is_said(plan):
    assert plan("1h").idle_limits == []
    limits = {"max_latency_ms": 1500, "max_params": 10**9, "max_macs": 10_000}
    params, latency = plan("1h", search=limits).idle_limits
    assert params.startswith(
        "the limit params 1,000,000,000 excludes nothing: the most that one of"
    )
    # A kernel takes 2 us at most, so a network of a few dozen kernels takes less than 1 ms.
    assert latency.startswith("the limit predicted latency 1,500 ms excludes nothing: the most")
    assert latency.endswith(" ms")
    assert float(latency.split()[-2]) < 1
    assert plan("1h", search={"max_latency_ms": 0.01}).idle_limits == []


def test_limits_that_nothing_meets_end_a_plan_as_they_end_the_job(plan):
    with pytest.raises(InfeasibleError, match="Nothing meets the limit params 10"):
        plan("1h", search={"max_params": 10})


def test_plan_without_a_device_knows_no_latencies(plan):
    """A job that trains its supernets elsewhere plans for its image size."""
    search = {"max_latency_ms": 0.001, "max_params": 10}
    with pytest.raises(InfeasibleError, match="params"):
        plan(has_device=False, search=search)
    trained = plan(has_device=False, search={"max_latency_ms": 0.001})
    assert trained.kernels == trained.seconds[TABLE] == 0
    assert trained.trials > 0
    assert trained.idle_limits == []


def test_latencies_in_each_dtype_are_those_of_its_own_runtime(plan):
    """Nothing says that a limit excludes nothing if it excludes networks in the first dtype."""

    class WithFewKernels(FakeRuntime):
        made = 0

        def __post_init__(self):
            type(self).made += 1
            self.has_few = self.made > 1

        def kernels(self, graph, batch=1):
            kernels = super().kernels(graph, batch)
            return kernels[:1] if self.has_few else kernels

    both = {"dtype": ["float32", "int8"], "search": {"max_latency_ms": 0.02}}
    assert plan("1h", runtime=WithFewKernels, **both).idle_limits == []


def test_losses_of_int8_take_longer_for_the_first_network_alone(monkeypatch):
    clock = [0.0]
    durations = iter([5.0, 1.0, 2.0, 0.5])

    def lose(*_):
        clock[0] += next(durations)

    monkeypatch.setattr(int8_losses, "_loss", lose)
    monkeypatch.setattr(int8_losses.time, "perf_counter", lambda: clock[0])
    spaces = open_spaces(make_settings()).values()
    supernets = [SimpleNamespace(space=space) for space in spaces]
    assert int8_losses.measure_losses_s(supernets, None, 0) == 5 + 9 * 1 + 2 + 9 * 0.5


def test_refit_has_an_epoch_of_all_images_but_the_test_images(plan, digits):
    length = {"training": {"epochs": 5}, "retrain": 2, "references": []}
    images = len(digits.train) + len(digits.search) + len(digits.holdout)
    without, refitted = plan("1h", **length), plan("1h", refit=True, **length)
    factor = 1 + images / len(digits.train)
    assert without.seconds[FINALISTS] == 2 * 5 * 0.5
    assert refitted.seconds[FINALISTS] == pytest.approx(2 * 5 * 0.5 * factor, abs=0.06)


def test_short_trainings_take_a_part_of_the_time_of_the_finalists(plan):
    halved = plan("2h", halves=True, epoch_s=8.0, references=[])
    without = plan("2h", epoch_s=8.0, references=[])
    # 16 networks have 22 steps, 8 have 44 and 4 have 88, of 64 of the 719 images each.
    halving_s = 3 * 16 * (22 * 64 / 719) * 2.0
    rest_s = halved.seconds[FINALISTS] - halving_s
    assert rest_s == pytest.approx(halved.retrain * halved.finalist_epochs * 2.0, abs=0.1)
    assert halved.finalist_epochs < without.finalist_epochs
    assert sum(halved.seconds.values()) == pytest.approx(sum(without.seconds.values()), abs=10.0)


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs"), [(115, None, 5000 / (115 / 64)), (115, 10, 5000 / 11.5),
                                         (50, 64, 5000), (64_000, 64, 200)]
)  # fmt: skip
def test_most_epochs_are_5000_steps_or_200_epochs(images, batch_size, epochs):
    settings = make_settings(training={"batch_size": batch_size, "device": "cpu"})
    data = SimpleNamespace(train=range(images))
    assert planning.most_epochs(settings, data) == pytest.approx(epochs)
    fixed = make_settings(training={"epochs": 7, "device": "cpu"})
    assert planning.most_epochs(fixed, data) == 7


def test_published_networks_share_the_time_of_the_finalists(plan, monkeypatch):
    without = plan("1h", epoch_s=8.0, retrain=3)
    assert (without.references, REFERENCES in without.seconds) == (0, False)
    named = plan("1h", epoch_s=8.0, retrain=3, references=["mobilenet_v2_0.5"])
    assert named.references == 1
    assert named.seconds[REFERENCES] == pytest.approx(named.seconds[FINALISTS] / 3, abs=0.1)
    used_s = (1 - SLACK) * 3600
    assert sum(named.seconds.values()) == pytest.approx(used_s, abs=4 * 2.0)
    assert plan("1h", references=["mobilenet_v2_0.5"], retrain=0).references == 0
    names = [f"mobilenet_v2_{width}" for width in (0.35, 0.5, 0.75, 1.0)]
    monkeypatch.setattr(planning, "possible_references", lambda *_: names)
    chosen = plan("1h", epoch_s=8.0, retrain=3)
    # A tenth of the budget trains those that the job does not name.
    epoch_s = 2.0 * chosen.finalist_epochs
    assert chosen.seconds[REFERENCES] == pytest.approx(chosen.references * epoch_s, abs=0.1)
    assert chosen.seconds[REFERENCES] <= 360 < (chosen.references + 1) * epoch_s
    assert sum(chosen.seconds.values()) == pytest.approx(used_s, abs=7 * 2.0)
    few = plan("1h", training={"epochs": 5}, search={"trials": 40})
    assert (few.references, few.finalist_epochs) == (4, 5)
    assert few.seconds[FINALISTS] == pytest.approx(few.retrain * 5 * 0.5)
    assert few.seconds[REFERENCES] == pytest.approx(4 * 5 * 0.5)


def test_budget_that_is_too_short_names_what_would_work(plan):
    with pytest.raises(JobFileError) as short:
        plan("1m")
    text = "latency table of mobilenet_tiny, squeezenet_tiny takes about 4. s"
    assert re.search(text, str(short.value))
    assert 'The smallest budget that works is "2m".' in short.value.remedy
    assert "A second job on this device finds the latency table" in short.value.remedy
    assert "[[space]] squeezenet_tiny alone would fit" in short.value.remedy
    plan("2m")
