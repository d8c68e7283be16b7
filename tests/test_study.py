"""The study of docs/study.md: what it trains, and what it concludes from its rows."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.benchmarks.study import (
    Curve,
    SeedNoise,
    by_network,
    compare_published,
    draw,
    read_rows,
    report,
    rival,
    statements,
    train_missing,
)
from tests.markdown import ROOT


def network(name, kind, latency_us, found=None):
    return {"name": name, "kind": kind, "latency_us": latency_us, "found": found, "space": "small"}


def networks_of(*rows):
    """Return networks as the study compares them: name, kind, latency and accuracies of each."""
    study = {"networks": [network(*row[:3], *row[4:]) for row in rows]}
    trainings = [
        {"network": row[0], "seed": seed, "test_accuracy": accuracy}
        for row in rows
        for seed, accuracy in enumerate(row[3])
    ]
    return by_network(study, pd.DataFrame(trainings))


def test_committed_study_is_what_its_rows_say():
    folder = ROOT / "results/study"
    study, rows = json.loads((folder / "study.json").read_text()), read_rows(folder)
    assert (folder / "study.md").read_text() == report(study, rows, by_network(study, rows))


def test_trainings_that_have_a_row_are_skipped(tmp_path):
    names = ["a", "b"], ["p"], ["r1", "r2", "r3"]
    kinds = zip(("found", "published", "random"), names, strict=True)
    networks = [network(name, kind, 100.0) for kind, own in kinds for name in own]
    study = {"networks": networks, "seeds": 2, "epochs": 1, "facts": {}}
    begun = []

    def train(network, seed):
        if len(begun) == 7:
            raise KeyboardInterrupt
        begun.append((network["name"], seed))
        if network["name"] == "p":
            return {"error": "it diverged, twice"}
        return {"test_accuracy": 0.5, "holdout_accuracy": 0.5, "seconds": 1.0}

    with pytest.raises(KeyboardInterrupt):
        train_missing(tmp_path, study, train)
    rows = read_rows(tmp_path)
    text = report(study, rows, by_network(study, rows))
    assert "7 of 12 trainings have ended" in text
    begun_before, begun = begun, []
    train_missing(tmp_path, study, train)
    # The first seed of all networks comes first, and kinds take turns.
    order = ["a", "p", "r1", "b", "r2", "r3"]
    assert begun_before + begun == [(name, seed) for seed in (0, 1) for name in order]
    rows = read_rows(tmp_path)
    assert rows["error"].dropna().tolist() == ["it diverged, twice"] * 2
    networks = by_network(study, rows)
    assert "p" not in networks.index
    assert "trainings have ended" not in report(study, rows, networks)
    assert len(draw(study, networks).axes) == 1


def test_curve_is_linear_in_the_logarithm_between_members_of_the_front():
    curve = Curve(
        networks_of(
            ("fast", "found", 100.0, [0.5]),
            ("dominated", "found", 200.0, [0.4]),
            ("slow", "found", 400.0, [0.7]),
            ("slower and worse", "found", 800.0, [0.6]),
        )
    )
    assert list(curve.members["name"]) == ["fast", "slow"]
    assert curve.accuracy([100.0, 200.0, 400.0, 800.0]) == pytest.approx([0.5, 0.6, 0.7, 0.7])
    assert curve.latency_us([0.5, 0.6, 0.7]) == pytest.approx([100, 200, 400])
    assert curve.variance(curve.weights(200.0)) == pytest.approx(0.5)


def test_noise_is_the_error_of_an_analysis_of_variance():
    rng = np.random.default_rng(0)
    groups = [rng.normal(0.5 + at / 10, 0.02, 4) for at in range(5)]
    rows = [(str(at), "found", 1.0 + at, own) for at, own in enumerate(groups)]
    noise = SeedNoise(networks_of(*rows))
    assert noise.deviation**2 == pytest.approx(np.mean([own.var(ddof=1) for own in groups]))
    assert noise.freedom == 15


def test_interval_of_two_networks_is_that_of_a_t_test():
    a, b = [0.70, 0.72, 0.75], [0.61, 0.66, 0.68]
    networks = networks_of(("a", "found", 100.0, a), ("b", "published", 100.0, b))
    gain, ratio = rival(networks.loc["b"], Curve(networks[:1]), SeedNoise(networks))
    expected = stats.ttest_ind(a, b).confidence_interval()
    assert gain == (
        f"{100 * (np.mean(a) - np.mean(b)):.1f} points ({100 * expected.low:.1f} to "
        f"{100 * expected.high:.1f}) more accurate"
    )
    assert ratio == "1.00"


@pytest.mark.parametrize(
    ("latency_us", "accuracy", "gain", "ratio"),
    [
        (50.0, 0.5, "", "2.00"),
        (400.0, 0.7, "10.0 points less accurate", ""),
        (400.0, 0.4, "20.0 points more accurate", "0.25"),
    ],
)
def test_rival_beyond_the_curve_has_no_gain_or_no_ratio(latency_us, accuracy, gain, ratio):
    networks = networks_of(
        ("a", "found", 100.0, [0.5]),
        ("b", "found", 200.0, [0.6]),
        ("p", "published", latency_us, [accuracy]),
    )
    curve = Curve(networks[networks["kind"] == "found"])
    assert rival(networks.loc["p"], curve, SeedNoise(networks)) == (gain, ratio)


def test_constant_advantage_is_seen_at_equal_latency_and_at_equal_accuracy():
    networks = networks_of(
        ("a", "found", 50.0, [0.5, 0.5]),
        ("b", "found", 200.0, [0.7, 0.7]),
        ("p", "published", 100.0, [0.5, 0.5]),
        ("q", "published", 400.0, [0.7, 0.7]),
    )
    kinds = [Curve(networks[networks["kind"] == kind]) for kind in ("found", "published")]
    better, faster = compare_published(*kinds, SeedNoise(networks))
    assert "from 0.1 ms to 0.2 ms" in better
    assert "10.0 points (10.0 to 10.0) more accurate" in better
    assert "over 100% of this range" in better
    assert "they take 0.50 of the latency" in faster
    worse, slower = compare_published(*reversed(kinds), SeedNoise(networks))
    assert "10.0 points (10.0 to 10.0) less accurate" in worse
    assert "they take 2.00 of the latency" in slower
    (none,) = compare_published(Curve(networks[:1]), Curve(networks[-1:]), SeedNoise(networks))
    assert none.startswith("No latency is common")


def test_random_networks_are_compared_in_pairs():
    networks = networks_of(
        *((name, "found", 100.0 * at, [own]) for at, (name, own) in enumerate(FOUND.items(), 1)),
        *((f"r-{name}", "random", 103.0, [own], name) for name, own in RANDOM.items()),
    )
    (text,) = statements(networks)
    expected = stats.ttest_rel(list(FOUND.values()), list(RANDOM.values())).confidence_interval()
    assert f"({100 * expected.low:.1f} to {100 * expected.high:.1f}) more accurate" in text
    assert "2 of 3 are more accurate" in text
    assert "at most 66%" in text


FOUND = {"a": 0.7, "b": 0.8, "c": 0.9}
RANDOM = {"a": 0.66, "b": 0.82, "c": 0.85}
