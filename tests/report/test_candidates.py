import re
import string

import numpy as np
import pandas as pd
import pytest

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


def test_failed_trials_are_rows_with_their_error():
    good, bad = make_trials(2)
    bad = Trial(bad.digest, bad.architecture, {}, "failed", {"predicted_us": 1.0}, 0.1, "broke")
    assert rows([good, bad])["error"].tolist() == ["", "broke"]


def test_table_is_read_as_it_was_written(tmp_path):
    trials = make_trials(5)
    for latency_us, trial in enumerate(trials[1:], 1):
        trial.values["predicted_us phone"] = float(latency_us)
    table = rows(trials, {})
    assert table["predicted_us phone"].tolist()[1:] == [1, 2, 3, 4]
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


def test_latency_agreement_uses_rows_with_both_latencies():
    table = pd.DataFrame({"measured_us": [10.0, np.nan, 20.0], "predicted_us": [11.0, 5.0, 20.0]})
    agreement = candidates.latency_agreement(table)
    assert agreement is not None
    assert (agreement.nets, agreement.mape) == (2, pytest.approx(0.05))
    assert candidates.latency_agreement(table.iloc[1:2]) is None
