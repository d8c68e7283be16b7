import numpy as np
import pandas as pd
import pytest

from nas.errors import RunFolderError
from nas.report import candidates
from nas.search import Trial
from nas.space import load_definition

SPACE = load_definition("mobilenet_tiny")


def trials(count: int, seed: int = 0) -> list[Trial]:
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < count:
        architecture = SPACE.sample(rng)
        digest = architecture.digest
        values = {
            "predicted_us": float(rng.uniform(10, 50)),
            "validation_error": float(rng.uniform()),
        }
        found[digest] = Trial(digest, architecture, {}, "complete", values, 0.1)
    return list(found.values())


def rows(found, measured=None):
    return candidates.candidates(
        found,
        measured_us=measured or {},
        holdout_accuracy={},
        problems={},
        unsure_launches={},
    )


def test_a_row_has_the_counts_of_its_graph_and_fractions():
    (trial,) = trials(1)
    (row,) = rows([trial]).to_dict("records")
    graph = trial.architecture.graph
    assert (row["macs"], row["params"]) == (graph.macs, graph.params)
    assert row["validation_accuracy"] == pytest.approx(
        1 - trial.values["validation_error"], abs=1e-6
    )
    assert row["digest"].startswith(row["id"])


def test_ids_are_the_shortest_prefixes_that_differ():
    ids = candidates.short_ids(["abcdef00", "abcdee00", "12345600"])
    assert ids == {"abcdef00": "abcdef", "abcdee00": "abcdee", "12345600": "123456"}
    assert set(candidates.short_ids(["aaaa1111", "bbbb1111"]).values()) == {"aaaa", "bbbb"}


def test_the_front_is_that_of_brute_force():
    table = rows(trials(60))
    points = list(zip(table["predicted_us"], table["validation_accuracy"], strict=True))
    best = {p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)}
    front = candidates.front(table)
    assert set(zip(front["predicted_us"], front["validation_accuracy"], strict=True)) == best
    assert front["predicted_us"].is_monotonic_increasing
    assert front["validation_accuracy"].is_monotonic_increasing


def test_a_prediction_never_beats_a_measurement():
    found = trials(10)
    measured = {trial.digest: 1000.0 + at for at, trial in enumerate(found[:4])}
    front = candidates.front(rows(found, measured))
    assert set(front["digest"]) <= set(measured)


def test_the_limit_holds_for_the_measured_latency():
    found = trials(10)
    measured = {trial.digest: 1000.0 + at for at, trial in enumerate(found)}
    front = candidates.front(rows(found, measured), max_latency_us=1004)
    assert len(front)
    assert front["measured_us"].max() <= 1004
    assert candidates.front(rows(found, measured), max_latency_us=10).empty


def test_infeasible_and_failed_trials_are_rows_but_never_on_the_front():
    good, bad = trials(2)
    bad = Trial(bad.digest, bad.architecture, {}, "failed", {"predicted_us": 1.0}, 0.1, "broke")
    table = rows([good, bad])
    assert table["error"].tolist() == ["", "broke"]
    assert candidates.front(table)["digest"].tolist() == [good.digest]


def test_writing_and_reading_gives_the_same_table(tmp_path):
    table = rows(trials(5), {})
    candidates.write(table, tmp_path / "trials.csv")
    pd.testing.assert_frame_equal(candidates.read(tmp_path / "trials.csv"), table)


def test_an_id_of_digits_stays_text(tmp_path):
    table = rows(trials(1)).assign(id="0012", digest="0012000000000000")
    candidates.write(table, tmp_path / "trials.csv")
    assert candidates.read(tmp_path / "trials.csv")["id"].tolist() == ["0012"]


def test_another_table_is_refused(tmp_path):
    path = tmp_path / "trials.csv"
    with pytest.raises(RunFolderError, match="cannot be read"):
        candidates.read(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RunFolderError, match="no column 'state'|no column 'id'"):
        candidates.read(path)
