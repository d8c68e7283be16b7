"""What a study shows, against closed forms and scipy's tests."""

import math

import numpy as np
import pytest
from scipy import stats

from nas.run.study_comparison import (
    Curve,
    SeedNoise,
    StudyComparison,
    TrainedNetwork,
    compare_curves,
    compare_random,
    points_text,
    signed_points,
)
from nas.statistics import Interval
from tests.run.test_study import network, study


def trained(name, latency_us, *accuracies, kind="found", found=None):
    return TrainedNetwork(network(name, kind, latency_us, found), latency_us, accuracies)


def test_noise_is_the_error_of_an_analysis_of_variance():
    rng = np.random.default_rng(0)
    groups = [rng.normal(0.5 + at / 10, 0.02, 4) for at in range(5)]
    noise = SeedNoise.of([trained(str(at), 1.0, *own) for at, own in enumerate(groups)])
    mean_square = np.mean([own.var(ddof=1) for own in groups])
    assert noise.deviation == pytest.approx(math.sqrt(mean_square))
    assert noise.freedom == 15


def test_interval_of_two_networks_is_that_of_a_t_test():
    a, b = [0.70, 0.72, 0.75], [0.61, 0.66, 0.68]
    found, published = trained("a", 100.0, *a), trained("b", 100.0, *b, kind="published")
    record = study([found.network, published.network], {"a": a, "b": b}, seeds=3)
    (rival,) = StudyComparison.of(record).rivals
    expected = stats.ttest_ind(a, b).confidence_interval()
    assert rival.gain.value == pytest.approx(np.mean(a) - np.mean(b))
    assert (rival.gain.low, rival.gain.high) == pytest.approx((expected.low, expected.high))


def test_one_seed_gives_no_interval():
    assert SeedNoise.of([trained("a", 1.0, 0.5)]).interval(0.1, 1.0) == Interval(
        0.1, -math.inf, math.inf
    )


def test_curve_is_linear_in_the_logarithm_between_members_of_the_front():
    curve = Curve(
        [
            trained("fast", 100.0, 0.5),
            trained("slow", 400.0, 0.7),
            trained("dominated", 200.0, 0.4),
            trained("slower and worse", 800.0, 0.6),
        ]
    )
    assert [each.network.name for each in curve.members] == ["fast", "slow"]
    assert curve.slowest_us == 800
    at = np.array([100.0, 200.0, 400.0, 800.0])
    assert curve.accuracies(at) == pytest.approx([0.5, 0.6, 0.7, 0.7])
    assert curve.latencies_us(np.array([0.5, 0.6, 0.7])) == pytest.approx([100, 200, 400])
    assert curve.variance(curve.weights(at)) == pytest.approx([1, 0.5, 1, 1])


def test_constant_advantage_is_found_at_equal_latency_and_at_equal_accuracy():
    published = Curve([trained("p", 100.0, 0.5, 0.5), trained("q", 400.0, 0.7, 0.7)])
    found = Curve([trained("a", 50.0, 0.5, 0.5), trained("b", 200.0, 0.7, 0.7)])
    compared = compare_curves(found, published, SeedNoise(0.0, 4))
    assert compared.latency_range_us == (100, 200)
    assert compared.gain == Interval(pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    assert compared.latency_ratio == pytest.approx(0.5)
    assert compared.accuracy_range == (0.5, 0.7)
    assert (compared.better, compared.worse, compared.faster) == (1, 0, 1)
    assert (compared.shown_better, compared.shown_worse) == (1, 0)
    assert "10.0 points (10.0 to 10.0) more accurate" in compared.text[0]
    assert "over 0%; the seeds show it over 100% and 0%." in compared.text[0]
    assert "0.50 of the latency" in compared.text[1]
    once = compare_curves(found, published, SeedNoise(0.0, 0))
    assert once.text[0].endswith("less accurate over 0%.")


def test_losses_are_said_like_wins():
    published = Curve([trained("p", 100.0, 0.5), trained("q", 400.0, 0.5)])
    found = Curve([trained("a", 100.0, 0.4), trained("b", 400.0, 0.6)])
    compared = compare_curves(found, published, SeedNoise(0.0, 1))
    # Both lines are straight in the logarithm and cross in the middle.
    assert compared.gain.value == pytest.approx(0, abs=1e-6)
    assert compared.better == pytest.approx(0.5, abs=0.01)
    assert compared.worse == pytest.approx(0.5, abs=0.01)
    assert compared.worst_gain == (pytest.approx(-0.1), pytest.approx(100))
    assert compared.best_gain == (pytest.approx(0.1), pytest.approx(400))
    # The published curve has one accuracy, its fastest network's.
    assert compared.latency_ratio is None
    swapped = compare_curves(published, found, SeedNoise(0.0, 1))
    assert swapped.worst_gain == (pytest.approx(-0.1), pytest.approx(400))


def test_mean_gain_has_the_variance_of_its_members():
    published = Curve([trained("p", 100.0, 0.5, 0.5), trained("q", 400.0, 0.7, 0.7)])
    found = Curve([trained("a", 100.0, 0.6, 0.6), trained("b", 400.0, 0.8, 0.8)])
    compared = compare_curves(found, published, SeedNoise(0.01, 4))
    # Over the whole range, each of the two ends has half of the weight: 4 means of 2 accuracies.
    half = stats.t.ppf(0.975, 4) * 0.01 * math.sqrt(4 * 0.25 / 2)
    assert compared.gain.value - compared.gain.low == pytest.approx(half)


def test_curves_without_a_common_latency_are_not_compared():
    fast, slow = Curve([trained("a", 100.0, 0.5)]), Curve([trained("p", 200.0, 0.6)])
    assert compare_curves(fast, slow, SeedNoise(0.0, 0)) is None


def test_random_networks_are_compared_in_pairs():
    found = [trained("a", 100.0, 0.7), trained("b", 200.0, 0.8), trained("c", 300.0, 0.9)]
    drawn = [
        trained("r", 103.0, 0.6, kind="random", found="a"),
        trained("s", 98.0, 0.72, kind="random", found="a"),
        trained("t", 200.0, 0.7, kind="random", found="b"),
        trained("u", 300.0, 0.85, kind="random", found="c"),
    ]
    compared = compare_random(found, drawn)
    assert compared.gains == pytest.approx({"a": 0.04, "b": 0.1, "c": 0.05})
    assert compared.wins == 2
    assert compared.worst_mismatch == pytest.approx(0.03)
    expected = stats.ttest_rel([0.7, 0.8, 0.9], [0.66, 0.7, 0.85]).confidence_interval()
    assert (compared.gain.low, compared.gain.high) == pytest.approx((expected.low, expected.high))
    assert compare_random(found, []) is None


def test_rivals_beyond_the_curve_have_no_gain_or_no_ratio():
    found = [network("a", latency_us=100.0), network("b", latency_us=200.0)]
    published = [
        network("faster", "published", 50.0),
        network("better", "published", 400.0),
        network("worse", "published", 400.0),
    ]
    record = study(
        [*found, *published],
        {"a": [0.5], "b": [0.6], "faster": [0.5], "better": [0.7], "worse": [0.4]},
        seeds=1,
    )
    rivals = {each.network.network.name: each for each in StudyComparison.of(record).rivals}
    assert rivals["faster"].gain is None
    assert rivals["faster"].latency_ratio == pytest.approx(2)
    assert rivals["better"].gain.value == pytest.approx(-0.1)
    assert rivals["better"].latency_ratio is None
    assert rivals["worse"].gain.value == pytest.approx(0.2)
    assert rivals["worse"].latency_ratio == pytest.approx(0.25)


def test_study_without_trainings_states_nothing():
    assert StudyComparison.of(study([network("a")], {})).statements == []


def test_points_in_words():
    assert points_text(Interval(0.012, -0.001, 0.025)) == (
        "1.2 points (\N{MINUS SIGN}0.1 to 2.5) more accurate"
    )
    assert points_text(Interval(-0.012, -0.025, -0.001)) == "1.2 points (0.1 to 2.5) less accurate"
    assert points_text(Interval(0.012, -math.inf, math.inf)) == "1.2 points more accurate"
    assert [signed_points(each) for each in (0.012, -0.012, -0.0001)] == [
        "+1.2",
        "\N{MINUS SIGN}1.2",
        "+0.0",
    ]
