"""Cascades of a run: what is chosen, what is said of it, and which networks are in none."""

import numpy as np
import pytest

from nas.errors import InfeasibleError, RequestError
from nas.opened_run import open_run
from tests.commands import document
from tests.plans.cases import (
    change,
    complementary_run,
    copy_of_example,
    latencies_us,
    trained_ids,
    write_answers,
)


@pytest.fixture
def run(tmp_path):
    return copy_of_example(tmp_path / "run")


@pytest.fixture
def complementary(tmp_path):
    return complementary_run(tmp_path / "run")


def test_shared_errors_count_and_thresholds_are_judged_on_the_other_half(complementary):
    plan = open_run(complementary).cascades()
    first, second = trained_ids(complementary)[:2]
    chosen = plan.choose(max_latency_ms=1)
    assert chosen.networks == (first, second)
    # Half of the 24 images of each class judge: one quarter of them are passed on.
    assert chosen.answered == pytest.approx((0.75, 0.25), abs=0.05)
    us = latencies_us(complementary)
    assert chosen.mean_us == pytest.approx(us[first] + chosen.answered[1] * us[second])
    assert chosen.worst_us == chosen.high_us == pytest.approx(us[first] + us[second])
    assert (chosen.accuracy, chosen.chosen_accuracy) == (1.0, 1.0)
    assert chosen.accuracy_low < 1
    # 120 images judge it, and the fastest network alone is wrong on a quarter of them.
    assert plan.images == "120 of the 240 hold-out images"
    assert chosen.rival.network == first
    assert chosen.rival.gain == pytest.approx(0.25, abs=0.05)
    assert chosen.is_better
    assert f"more accurate than {first}, the best network that is as fast, as a paired" in (
        chosen.verdict
    )
    assert plan.curve[-1].name == chosen.name


def test_limits_choose_the_fastest_or_the_most_accurate_cascade(complementary):
    plan = open_run(complementary).cascades()
    us, (first, *_) = latencies_us(complementary), trained_ids(complementary)
    best = plan.choose(max_latency_ms=1)
    assert best.chosen_accuracy == plan.front[-1].accuracy == 1.0
    equal = plan.choose()
    assert equal == plan.choose(max_accuracy_drop=0)
    assert plan.chosen.accuracies.max() <= equal.chosen_accuracy < best.chosen_accuracy
    cheap = plan.choose(max_accuracy_drop=0.1)
    assert us[first] < cheap.mean_us < equal.mean_us < best.mean_us
    assert cheap.chosen_accuracy >= plan.chosen.accuracies.max() - 0.1
    between = (us[first] + best.mean_us) / 2000
    tight = plan.choose(max_latency_ms=between)
    assert tight.chosen_accuracy < best.chosen_accuracy
    fast = [each for each in plan.front if each.mean_us <= 1000 * between]
    assert tight.chosen_accuracy == max(each.accuracy for each in fast)
    with pytest.raises(InfeasibleError, match="within the limits. The nearest is"):
        plan.choose(max_latency_ms=us[first] / 1000)
    with pytest.raises(InfeasibleError, match="points below"):
        plan.choose(max_latency_ms=cheap.mean_us / 1000, max_accuracy_drop=0)
    for wrong in ({"max_latency_ms": 0.0}, {"max_latency_ms": float("nan")}):
        with pytest.raises(RequestError, match="finite number above zero"):
            plan.choose(**wrong)
    for drop in (-0.1, 1.0, float("nan")):
        with pytest.raises(RequestError, match="max_accuracy_drop is"):
            plan.choose(max_accuracy_drop=drop)


def test_cascade_that_the_test_does_not_tell_from_a_network_is_said_to_be_none(run, invoke):
    """The networks of the example are nearly equal on digits."""
    shown = document(invoke("cascade", run, "--json"))
    assert shown["is_better"] is False
    assert shown["verdict"].startswith("No cascade is shown to be better than a single network")
    done = invoke("cascade", run, "--stages", 3)
    assert done.returncode == 0, done.stderr
    assert "not shown" in done.stdout
    assert "120 of the 240 hold-out images" in done.stdout


def test_command_prints_the_cascade_that_python_chooses(complementary, invoke):
    shown = document(invoke("cascade", complementary, "--max-accuracy-drop", 0.1, "--json"))
    plan = open_run(complementary).cascades()
    assert shown["chosen"] == plan.choose(max_accuracy_drop=0.1).model_dump(mode="json")
    assert len(shown["curve"]) == len(plan.curve)
    text = invoke("cascade", complementary).stdout
    assert plan.choose().rule.split(" answers")[0] in text
    assert "as a paired test shows" in text


def test_front_without_a_cascade_is_said(run):
    """A network that is right on all images leaves nothing to gain."""
    first, *others = trained_ids(run)
    count = 240
    write_answers(run, first, np.full(count, True), np.linspace(0.5, 1, count))
    assert others
    with pytest.raises(InfeasibleError, match="There is no cascade"):
        open_run(run).cascades().choose()


def test_networks_that_cannot_be_in_a_cascade_are_named(run):
    ids = trained_ids(run)
    (run / "models" / ids[0] / "answers.json").unlink()
    change(run / "models" / ids[1] / "trained.json", calibration__images=0)
    plan = open_run(run).cascades()
    assert plan.judged.names == tuple(ids[2:])
    assert plan.notes == (
        f"{ids[0]} has no answers.json: `nas retrain` with its ID writes it",
        f"{ids[1]} has no calibrated confidences, because its last ops do not allow a temperature",
    )


@pytest.mark.parametrize("stages", [1, 4])
def test_cascade_has_two_or_three_stages(run, stages, invoke):
    done = invoke("cascade", run, "--stages", stages)
    assert done.returncode == 2
    assert f"cannot have {stages} stages" in done.stderr


def test_run_with_too_few_networks_says_why_others_are_left_out(run, invoke):
    ids = trained_ids(run)
    for name in ids[1:]:
        change(run / "models" / name / "trained.json", calibration__images=0)
    done = invoke("cascade", run)
    assert done.returncode == 2
    assert f"and {run} has 1. {ids[1]} has no calibrated confidences" in done.stderr


def test_networks_of_two_dtypes_are_in_no_common_cascade(run):
    ids = trained_ids(run)
    for name in ids[2:]:
        (run / "models" / name / "answers.json").unlink()
    change(run / "models" / ids[0] / "trained.json", architecture__choices__dtype="int8")
    with pytest.raises(RequestError, match="of one dtype, and .* has 1 in int8 and 1 in float32"):
        open_run(run).cascades()


def test_network_that_answered_other_images_is_left_out(run):
    ids = trained_ids(run)
    change(run / "run.json", data__class_counts__holdout=[24] * 9 + [23])
    with pytest.raises(RequestError, match=f"{ids[0]} answered other images"):
        open_run(run).cascades()
