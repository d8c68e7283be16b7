import re
import string

import numpy as np
import pandas as pd
import pytest

from nas.errors import RunFolderError
from nas.latency import Kernel, Prediction
from nas.report import candidates
from nas.search import Trial
from nas.space import load_definition

SPACE = load_definition("mobilenet_tiny")


def make_trials(count: int, seed: int = 0) -> list[Trial]:
    rng = np.random.default_rng(seed)
    trials = {}
    while len(trials) < count:
        architecture = SPACE.sample(rng)
        digest = architecture.digest
        values = {
            "predicted_us": float(rng.uniform(10, 50)),
            "validation_error": float(rng.uniform()),
        }
        trials[digest] = Trial(digest, architecture, {}, "complete", values, 0.1)
    return list(trials.values())


def rows(trials, measured=None, predictions=None):
    return candidates.from_trials(
        trials,
        measured_us=measured or {},
        holdout_accuracy={},
        problems={},
        predictions=predictions or {},
    )


def test_row_has_counts_of_its_graph_and_accuracy_as_fraction():
    (trial,) = make_trials(1)
    (row,) = rows([trial]).to_dict("records")
    graph = trial.architecture.graph
    assert (row["macs"], row["params"]) == (graph.macs, graph.params)
    assert row["validation_accuracy"] == pytest.approx(
        1 - trial.values["validation_error"], abs=1e-6
    )
    assert row["digest"].startswith(row["id"])


def test_row_says_what_its_prediction_is_based_on():
    trials = make_trials(2)
    kernels = (Kernel.parse("linear 8x1x1 -> 10x1x1 bias"),) * 2
    prediction = Prediction(12.0, kernels, (1.0, 2.0), 5.0, unstable_launches=1, uncorrected_us=8.0)
    first, second = rows(trials, predictions={trials[0].digest: prediction}).to_dict("records")
    assert (first["unstable_launches"], first["estimated_launches"]) == (1, 0)
    assert first["dispatch_share"] == 5 / 8
    assert pd.isna(second["dispatch_share"])
    assert pd.isna(second["unstable_launches"])


def test_ids_are_shortest_distinct_prefixes():
    ids = candidates.short_ids(["abcdef00", "abcdee00", "12345600"])
    assert ids == {"abcdef00": "abcdef", "abcdee00": "abcdee", "12345600": "123456"}
    assert set(candidates.short_ids(["aaaa1111", "bbbb1111"]).values()) == {"aaaa", "bbbb"}


def test_front_equals_brute_force():
    table = rows(make_trials(60))
    points = list(zip(table["predicted_us"], table["validation_accuracy"], strict=True))
    best = {p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)}
    front = candidates.front(table)
    assert set(zip(front["predicted_us"], front["validation_accuracy"], strict=True)) == best
    assert front["predicted_us"].is_monotonic_increasing
    assert front["validation_accuracy"].is_monotonic_increasing


def test_front_has_only_measured_rows_if_any_row_is_measured():
    trials = make_trials(10)
    measured = {trial.digest: 1000.0 + at for at, trial in enumerate(trials[:4])}
    front = candidates.front(rows(trials, measured))
    assert set(front["digest"]) <= set(measured)


def test_front_keeps_to_limit_of_measured_latency():
    trials = make_trials(10)
    measured = {trial.digest: 1000.0 + at for at, trial in enumerate(trials)}
    front = candidates.front(rows(trials, measured), max_latency_us=1004)
    assert len(front)
    assert front["measured_us"].max() <= 1004
    assert candidates.front(rows(trials, measured), max_latency_us=10).empty


def test_failed_trials_are_rows_but_not_on_the_front():
    good, bad = make_trials(2)
    bad = Trial(bad.digest, bad.architecture, {}, "failed", {"predicted_us": 1.0}, 0.1, "broke")
    table = rows([good, bad])
    assert table["error"].tolist() == ["", "broke"]
    assert candidates.front(table)["digest"].tolist() == [good.digest]


def test_table_is_read_as_it_was_written(tmp_path):
    table = rows(make_trials(5), {})
    candidates.write(table, tmp_path / "trials.csv")
    pd.testing.assert_frame_equal(candidates.read(tmp_path / "trials.csv"), table)


def test_no_spreadsheet_reads_an_id_as_a_number_or_a_date():
    digests = [trial.digest for trial in make_trials(200)]
    assert len({digest[0] for digest in digests}) == 16, "every first digit occurs"
    dates = re.compile("(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[0-9]*")
    for digest in digests:
        for length in range(candidates.MIN_ID_CHARACTERS, 17):
            text = digest[:length]
            assert text[0] in string.ascii_letters
            assert not dates.fullmatch(text)
            with pytest.raises(ValueError, match="could not convert"):
                float(text)


def test_id_without_a_letter_is_refused(tmp_path):
    table = rows(make_trials(1)).assign(id="0012", digest="0012000000000000")
    candidates.write(table, tmp_path / "trials.csv")
    with pytest.raises(RunFolderError, match="id is '0012'"):
        candidates.read(tmp_path / "trials.csv")


def test_missing_file_and_other_table_are_refused(tmp_path):
    path = tmp_path / "trials.csv"
    with pytest.raises(RunFolderError, match="cannot be read"):
        candidates.read(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RunFolderError, match="no column 'state'|no column 'id'"):
        candidates.read(path)


def test_latency_agreement_uses_rows_with_both_latencies():
    table = pd.DataFrame({"measured_us": [10.0, np.nan, 20.0], "predicted_us": [11.0, 5.0, 20.0]})
    agreement = candidates.latency_agreement(table)
    assert agreement is not None
    assert (agreement.nets, agreement.mape) == (2, pytest.approx(0.05))
    assert candidates.latency_agreement(table.iloc[1:2]) is None
