"""A candidate of a run: its latency, its summary, and the tables that hold it."""

import csv
import re
import string
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from nas.errors import RunFolderError
from nas.latency import Kernel, Prediction
from nas.latency.rounds import Latency
from nas.latency.timing import Timing
from nas.run import candidates
from nas.run.candidates import CANDIDATE, Candidate, read_csv
from nas.search import Trial
from nas.space import load_definition
from tests.latency.rounds_without_readings import latency_of
from tests.run.test_judged import IMAGES

FIELDS = {
    "id": "s1ab",
    "space": "toy",
    "digest": "s1ab51ab",
    "state": "complete",
    "architecture": {"space": "toy", "choices": {"stem.width": 8}},
    "validation_accuracy": 0.9,
    "predicted_us": 1000.0,
    "measured_us": 1200.0,
    "macs": 2000,
    "params": 100,
    "peak_memory_bytes": 64,
    "seconds": 0.5,
}


def candidate(**changes) -> Candidate:
    return Candidate.model_validate({**FIELDS, **changes})


PREDICTED = {"measured_us": None}


@pytest.mark.parametrize(
    ("changes", "latency_us", "basis"),
    [
        ({}, 1200.0, "measured"),
        ({"disturbed": False, "uncertain_launches": 2}, 1200.0, "measured"),
        (
            {"disturbed": True, "measured_low_us": 800.0, "measured_high_us": 1200.0},
            1200.0,
            "measured, disturbed: 0.8 ms to 1.2 ms at full speed",
        ),
        (PREDICTED, 1000.0, "predicted"),
        (
            {**PREDICTED, "uncertain_launches": 3, "estimated_launches": 1},
            1000.0,
            "predicted, of its launches 3 uncertain, 1 estimated",
        ),
        ({**PREDICTED, "dispatch_share": 0.5}, 1000.0, "predicted"),
        ({**PREDICTED, "dispatch_share": 0.625}, 1000.0, "predicted, 62% of it launches"),
    ],
)
def test_latency_is_measured_or_predicted_and_says_how_sure_it_is(changes, latency_us, basis):
    own = candidate(**changes)
    assert (own.latency_us, own.latency_basis) == (latency_us, basis)
    assert f" ms {basis}, 2000 MACs" in own.summary(IMAGES)


@pytest.mark.parametrize(
    ("low_us", "high_us", "is_told"),
    [
        (1000.0, 1100.0, True),
        (1000.0, 1200.0, False),
        (1250.0, 1260.0, False),
        (1301.0, 1400.0, True),
    ],
)
def test_latencies_are_told_apart_where_their_limits_do_not_overlap(low_us, high_us, is_told):
    wide = candidate(measured_low_us=1200.0, measured_high_us=1300.0)
    other = candidate(measured_low_us=low_us, measured_high_us=high_us)
    assert wide.is_told_from(other) == other.is_told_from(wide) == is_told
    assert wide.is_told_from(candidate(measured_us=None, predicted_us=1250.0)), "not measured"


def test_a_chosen_dtype_is_a_column_before_the_architecture():
    alone, choices = candidate(), {"dtype": "int8", "stem.width": 8}
    chosen = candidate(architecture={"space": "toy", "choices": choices})
    assert (alone.dtype, chosen.dtype) == (None, "int8")
    assert "dtype" not in candidates.table([alone]).columns
    rows = candidates.table([alone, chosen])
    assert list(rows.columns)[-2:] == ["dtype", "architecture"]
    assert candidates.of_table(rows) == [alone, chosen]
    assert chosen.summary(IMAGES).startswith("s1ab (toy, int8): ")


def test_summary_has_id_space_accuracy_latency_and_counts():
    assert candidate().summary(IMAGES) == (
        "s1ab (toy): accuracy 90.0% (86.7 to 92.6), 1.2 ms measured, 2000 MACs, 100 parameters"
    )
    assert "accuracy 90.0% (82.6 to 94.5), 1.2" in candidate(score_images=100).summary(IMAGES)
    trained = candidate(trained_accuracy=0.93).summary(IMAGES)
    assert "accuracy 90.0% (86.7 to 92.6), trained 93.0% (90.4 to 94.9), 1.2 ms" in trained
    phone = candidate(device_predicted_us={"phone": 4500.0}).summary(IMAGES)
    assert "1.2 ms measured, 4.5 ms predicted on phone, 2000 MACs" in phone
    figures = {"sram_kib": 25.25, "dram_traffic_kib": 55.0, "mac_utilisation": 0.354}
    assert (
        candidate(figures=figures)
        .summary(IMAGES)
        .endswith(", sram_kib 25.25, dram_traffic_kib 55, mac_utilisation 0.354")
    )


def test_figures_of_a_runtime_are_columns_of_a_table(tmp_path):
    rows = [candidate(figures={"sram_kib": 25.25, "energy_uj": 3.5}), candidate()]
    candidates.write(candidates.table(rows), tmp_path / "trials.csv")
    read = candidates.read(tmp_path / "trials.csv")
    assert read["sram_kib"].to_list()[0] == 25.25
    assert candidates.of_table(read) == rows
    assert [row.cost("energy_uj") for row in rows] == [3.5, None]
    assert rows[0].cost("macs") == rows[0].macs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measured_us": -5.0}, "measured_us is '-5.0'"),
        ({"measured_us": "", "predicted_us": ""}, "a complete candidate has an accuracy and a lat"),
        ({"validation_accuracy": ""}, "a complete candidate has an accuracy and a latency"),
        ({"validation_accuracy": 1.5}, "less than or equal to 1"),
        ({"architecture": "[]"}, "architecture"),
        ({"space": "a/b"}, "space is 'a/b'"),
        ({"space": "other"}, "its architecture is of space 'toy', not 'other'"),
        ({"id": "0012", "digest": "0012000000000000"}, "digest is '0012000000000000'"),
        ({"id": "s2ab"}, "its id s2ab is not the beginning of its digest s1ab51ab"),
    ],
)
def test_damaged_row_is_named_with_its_line_and_field(tmp_path, changes, words):
    cells = {**dict.fromkeys(Candidate.model_fields, ""), **candidate().cells}
    del cells["device_predicted_us"], cells["figures"]
    write_csv(tmp_path / "trials.csv", cells, {**cells, **changes})
    message = f"line 3 is not a table of candidates: .*{words}"
    with pytest.raises(RunFolderError, match=message):
        read_csv(tmp_path / "trials.csv", CANDIDATE)


def write_csv(path, *rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_json_holds_what_the_record_holds():
    full = candidate(device_predicted_us={"phone": 4500.0}, corrected_accuracy=0.8)
    assert Candidate.model_validate_json(full.model_dump_json()) == full
    assert Candidate.of_cells({k: v for k, v in full.cells.items() if v is not None}) == full
    with pytest.raises(ValidationError, match="macs"):
        candidate(macs=1.5)


def test_missing_file_and_other_table_are_refused(tmp_path):
    path = tmp_path / "trials.csv"
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_csv(path, CANDIDATE)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RunFolderError, match="has no column 'digest'"):
        read_csv(path, CANDIDATE)


def test_byte_order_mark_is_no_part_of_a_table(tmp_path):
    path, own = tmp_path / "trials.csv", candidate()
    write_csv(path, {name: cell for name, cell in own.cells.items() if cell is not None})
    path.write_text(path.read_text(), encoding="utf-8-sig", newline="\r\n")
    assert read_csv(path, CANDIDATE) == [own]


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


def test_row_has_what_is_known_of_its_trial(tmp_path):
    steady, slowed, predicted, failed = trials = make_trials(4)
    trials[3] = replace(failed, state="failed", error="broke")
    predicted.values["predicted_us phone"] = 7.0
    kernels = (Kernel.parse("linear 8x1x1 -> 10x1x1 bias"),) * 2
    prediction = Prediction(
        12.0, kernels, (1.0, 2.0), 5.0, uncertain_launches=1, uncorrected_us=8.0
    )
    latencies = {
        steady.digest: latency_of([10.2, 10.0]),
        slowed.digest: Latency([Timing((30.0,), 15.0, 33.0)], full_us=10.0),
    }
    table = candidates.from_trials(
        trials, latencies=latencies, predictions={predicted.digest: prediction}
    )
    graph = steady.architecture.graph
    first = table.iloc[0]
    assert (first["macs"], first["params"]) == (graph.macs, graph.params)
    accuracy = 1 - steady.values["validation_error"]
    assert first["validation_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert first["digest"].startswith(first["id"])
    columns = ["measured_us", "measured_low_us", "measured_high_us", "disturbed"]
    assert table[columns].iloc[:2].to_numpy().tolist() == [
        [10.0, 10.0, 10.2, False],
        [30.0, 20.0, 30.0, True],
    ]
    assert table[columns].iloc[2:].isna().all(axis=None)
    columns = ["uncertain_launches", "estimated_launches", "dispatch_share", "predicted_us phone"]
    assert table[columns].iloc[2].tolist() == [1, 0, 5 / 8, 7.0]
    assert table[columns].drop(index=2).isna().all(axis=None)
    assert table["error"].tolist() == ["", "", "", "broke"]
    candidates.write(table, tmp_path / "trials.csv")
    pd.testing.assert_frame_equal(candidates.read(tmp_path / "trials.csv"), table)


def test_ids_are_shortest_distinct_prefixes():
    ids = candidates.short_ids(["abcdef00", "abcdee00", "12345600"])
    assert ids == {"abcdef00": "abcdef", "abcdee00": "abcdee", "12345600": "123456"}
    assert set(candidates.short_ids(["aaaa1111", "bbbb1111"]).values()) == {"aaaa", "bbbb"}


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
