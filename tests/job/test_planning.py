"""The plan of a job: the shares of its stages in the budget."""

from dataclasses import replace

import pytest

from nas.errors import JobFileError
from nas.job import JobSettings, stages
from nas.job.folder import claim
from nas.job.planning import (
    EXPECTED_TRIALS,
    FINALISTS_SHARE,
    MAX_EPOCHS,
    MAX_FINALISTS,
    MAX_TRIALS,
    MIN_TRIALS_PER_SPACE,
    SEARCH_SHARE,
    estimate_plan,
    fixed_plan,
    plan_finalists_again,
)
from nas.job.stage_costs import StageCosts
from nas.run.progress import SilentProgress
from nas.run.record import StageRecord, read_run
from nas.run.settings import FinishSettings

SPACES = ("a", "b")
MEASURE_S = 20 * (2.0 + 0.5) + 3 * 4.5
"""Seconds for 20 networks in three rounds: 8, 8 and 4, each with 12 kernels at the same moments."""

OTHERS_S = 10 + 100 + MEASURE_S
"""Seconds to prepare, of the table, and to measure."""
COSTS = StageCosts(
    table_s=100.0,
    epoch_s={"a": 10.0, "b": 30.0},
    trial_s=0.5,
    network_s=2.0,
    best_epoch_s=15.0,
    network_epoch_s=15.0,
    moments_s=4.5,
    prepare_s=10.0,
    export_file_s=12.0,
)


def make_settings(budget="1h", *, epochs=None, search=None, **finish):
    return JobSettings.model_validate(
        {
            "budget": budget,
            "data": {"source": "digits"},
            "space": [{"name": name} for name in SPACES],
            "training": {"epochs": epochs} if epochs else {},
            "search": search or {},
            "finish": {"export": []} | finish,
        }
    )


def make_plan(*arguments, costs=COSTS, **settings):
    return estimate_plan(make_settings(*arguments, **settings), 7, costs)


def test_shares_of_the_stages_add_up_to_the_budget():
    plan = make_plan()
    first = ["prepare", "table", "supernets"]
    assert list(plan.seconds) == [*first, "search", "measure", "finalists", "export"]
    assert plan.seconds["prepare"] == 10
    assert plan.seconds["table"] == 100
    assert plan.seconds["measure"] == MEASURE_S
    assert plan.seconds["search"] == EXPECTED_TRIALS * 0.5
    supernets_s = 10 * plan.epochs["a"] + 30 * plan.epochs["b"]
    assert plan.seconds["supernets"] == pytest.approx(supernets_s)
    assert plan.seconds["supernets"] == pytest.approx(2 * plan.supernet_seconds, abs=1)
    assert plan.seconds["finalists"] == 15 * plan.retrain * plan.retrain_epochs
    # Whole epochs of the finalists leave less than one of each.
    assert 3600 - 1 - 15 * plan.retrain < sum(plan.seconds.values()) <= 3600 + 1
    left_s = 3600 - OTHERS_S - EXPECTED_TRIALS * 0.5
    assert plan.seconds["finalists"] / left_s == pytest.approx(FINALISTS_SHARE, abs=0.02)
    assert plan.epochs["a"] == pytest.approx(3 * plan.epochs["b"], abs=0.1), "equal time"


def test_anchors_are_paid_by_the_supernets():
    without, plan = make_plan(), make_plan(search={"anchors": 4})
    assert plan.seconds["anchors"] == pytest.approx(4 * 15 * sum(plan.epochs.values()), abs=0.1)
    assert plan.seconds["supernets"] + plan.seconds["anchors"] == pytest.approx(
        without.seconds["supernets"], abs=1
    )
    assert plan.epochs["a"] == pytest.approx(3 * plan.epochs["b"], abs=0.1), "equal time"
    assert sum(plan.seconds.values()) <= 3600 + 1


def test_search_is_planned_with_the_trials_that_it_needs_and_may_take_more():
    plan = make_plan()
    assert plan.trials > EXPECTED_TRIALS == plan.expected_trials
    assert plan.trials == int(SEARCH_SHARE * (3600 - OTHERS_S) / 0.5)
    assert make_plan("100h").trials == MAX_TRIALS
    slow = make_plan(costs=replace(COSTS, trial_s=60.0))
    assert slow.trials == MIN_TRIALS_PER_SPACE * len(SPACES)
    assert slow.seconds["search"] == 60 * slow.trials
    without_model = make_plan(search={"sampler": "tpe"})
    assert without_model.trials == plan.trials
    assert without_model.seconds["search"] == plan.trials * 0.5
    assert without_model.seconds["supernets"] < plan.seconds["supernets"]


@pytest.mark.parametrize("stall", [None, "auto", 50])
def test_trials_of_the_job_file_are_planned(stall):
    search = {"trials": 1000} | ({"stall": stall} if stall else {})
    plan = make_plan(search=search)
    assert plan.trials == 1000
    expected = EXPECTED_TRIALS if stall == "auto" else 1000
    assert plan.seconds["search"] == expected * 0.5


def test_minutes_of_the_job_file_bound_the_search():
    short = make_plan(search={"minutes": 1.0})
    assert (short.seconds["search"], short.expected_trials) == (60, 120)
    assert make_plan(search={"minutes": 50.0}).seconds["search"] == EXPECTED_TRIALS * 0.5


def test_epochs_of_the_job_file_leave_the_rest_to_the_finalists():
    plan = make_plan(epochs=4)
    assert plan.epochs == {"a": 4, "b": 4}
    assert plan.seconds["supernets"] == 4 * (10 + 30)
    left_s = 3600 - OTHERS_S - 160 - plan.seconds["search"]
    assert left_s - 15 * plan.retrain < plan.seconds["finalists"] <= left_s


def test_number_of_finalists_follows_from_the_budget_unless_the_job_file_sets_it():
    assert make_plan("10m").retrain == 1
    assert make_plan("1h").retrain >= 3
    assert make_plan("8h").retrain == MAX_FINALISTS
    slow = replace(COSTS, best_epoch_s=400.0, network_epoch_s=400.0)
    assert make_plan("8h", costs=slow).retrain == 3
    assert make_plan("8h", costs=slow).retrain_epochs < make_plan("8h").retrain_epochs
    assert make_plan("10m", retrain=5).retrain == 5
    without = make_plan(retrain=0)
    assert (without.retrain, without.seconds["finalists"]) == (0, 0)
    assert without.seconds["supernets"] > make_plan().seconds["supernets"]


def test_most_accurate_finalist_takes_longer_than_the_others():
    slow_best = replace(COSTS, best_epoch_s=45.0)
    for finalists, epoch_s in ((1, 45), (2, 45 + 15), (4, 45 + 3 * 15)):
        plan = make_plan(costs=slow_best, retrain=finalists)
        assert plan.seconds["finalists"] == epoch_s * plan.retrain_epochs
        assert 3600 - epoch_s < sum(plan.seconds.values()) <= 3600 + 1


def test_export_of_the_finalists_is_part_of_their_share():
    without, plan = make_plan(retrain=3), make_plan(retrain=3, export=["onnx", "onnx-int8"])
    assert without.seconds["export"] == 0
    assert plan.seconds["export"] == 3 * 2 * COSTS.export_file_s
    assert plan.seconds["supernets"] == without.seconds["supernets"]
    assert sum(plan.seconds.values()) <= 3600
    settings = make_settings(retrain=3, export=["onnx", "onnx-int8"])
    again = plan_finalists_again(settings, plan, 10_000)
    assert again.retrain_epochs == plan.retrain_epochs // 2


def test_long_budget_trains_no_network_for_more_than_the_largest_number_of_epochs():
    plan = make_plan("1000h")
    assert max(plan.epochs.values()) == MAX_EPOCHS == plan.retrain_epochs


def test_budget_that_table_and_measuring_exceed_is_refused_unless_the_file_sets_the_rest():
    with pytest.raises(JobFileError, match=r"too short: the latency table takes about 1\.7 min"):
        make_plan("2m")
    plan = make_plan("2m", epochs=3, search={"trials": 40})
    assert (plan.trials, plan.retrain, plan.retrain_epochs) == (40, 1, 3)


def test_job_that_sets_epochs_and_trials_needs_no_measurement():
    plan = fixed_plan(make_settings(epochs=6, search={"trials": 30}), SPACES, 7)
    assert plan.epochs == {"a": 6, "b": 6}
    assert (plan.kernels, plan.trials, plan.measure) == (7, 30, 20)
    assert (plan.retrain, plan.retrain_epochs, plan.seconds) == (3, 6, {})
    short = make_settings("5m", epochs=6, search={"trials": 30})
    assert fixed_plan(short, SPACES, 7).retrain == 1
    chosen = make_settings("5m", epochs=6, search={"trials": 30}, retrain=0)
    assert fixed_plan(chosen, SPACES, 7).retrain == 0
    assert fixed_plan(make_settings(epochs=6), SPACES, 7) is None
    assert fixed_plan(make_settings(search={"trials": 30}), SPACES, 7) is None


def test_estimate_for_a_job_that_sets_epochs_and_trials_is_of_what_it_does():
    settings = {"epochs": 6, "search": {"trials": 30}}
    for budget in ("5m", "100h"):
        fixed = fixed_plan(make_settings(budget, **settings), SPACES, 7)
        estimated = make_plan(budget, **settings)
        for field in ("kernels", "epochs", "trials", "measure", "retrain", "retrain_epochs"):
            assert getattr(estimated, field) == getattr(fixed, field)
        assert estimated.seconds["finalists"] == fixed.retrain * 6 * 15


def test_finalists_get_what_the_other_stages_leave():
    settings, plan = make_settings(retrain=3), make_plan(retrain=3)
    planned_s = plan.seconds["finalists"]
    others_s = sum(plan.seconds.values()) - planned_s
    early = plan_finalists_again(settings, plan, others_s - 300)
    assert early.retrain == 3
    assert early.retrain_epochs == int((3600 - others_s + 300) / (3 * 15))
    assert early.seconds["finalists"] == 45 * early.retrain_epochs
    late = plan_finalists_again(settings, plan, 10_000)
    assert late.retrain_epochs == plan.retrain_epochs // 2
    assert {**late.model_dump(), "retrain_epochs": 0, "seconds": 0} == {
        **plan.model_dump(),
        "retrain_epochs": 0,
        "seconds": 0,
    }
    more = plan_finalists_again(make_settings(), make_plan(), 0)
    assert more.retrain > make_plan().retrain


def test_finalists_of_a_plan_without_an_estimate_stay():
    settings = make_settings(epochs=6, search={"trials": 30})
    plan = fixed_plan(settings, SPACES, 7)
    assert plan_finalists_again(settings, plan, 5.0) == plan
    without = make_plan(retrain=0)
    assert plan_finalists_again(make_settings(retrain=0), without, 5.0) == without


def test_finalists_are_decided_once_and_recorded(job_folder, job):
    notes = []

    class Notes(SilentProgress):
        def note(self, text):
            notes.append(text)

    job = job.model_copy(update={"budget": "1h", "finish": FinishSettings()})
    plan = make_plan()
    with claim(job_folder / "out", job, "") as run:
        run.record.plan = plan
        for spent_s in (1000.0, 2000.0):
            run.record.stages = {"search": StageRecord(seconds=spent_s)}
            count = stages.decide_finalists(run, Notes())
    decided = plan_finalists_again(job, plan, 1000.0)
    assert count == decided.retrain > plan.retrain
    expected = decided.model_copy(update={"are_finalists_final": True})
    assert read_run(job_folder / "out").plan == expected
    assert len(notes) == 1
    assert notes[0].startswith("16.7 min of 1h are spent: ")
