"""A candidate of a run: its latency, its summary, and the tables that hold it."""

import csv

import pytest
from pydantic import ValidationError

from nas.errors import RunFolderError
from nas.records import Candidate
from nas.records.candidate import CANDIDATE, read_csv

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


def test_measured_latency_is_preferred_to_the_predicted_one():
    assert (candidate().latency_us, candidate().latency_basis) == (1200.0, "measured")
    predicted = candidate(measured_us=None)
    assert (predicted.latency_us, predicted.latency_basis) == (1000.0, "predicted")


def test_predicted_latency_names_its_unsure_launches():
    unsure = candidate(measured_us=None, unstable_launches=3, estimated_launches=1)
    assert unsure.unsure_launches == "3 unstable, 1 estimated"
    assert unsure.latency_basis == "predicted, of its launches 3 unstable, 1 estimated"
    assert candidate(measured_us=None, dispatch_share=0.5).latency_basis == "predicted"
    assert candidate(dispatch_share=0.625).latency_basis == "measured"
    rough = candidate(measured_us=None, dispatch_share=0.625)
    assert rough.latency_basis == "predicted, 62% of it launches"
    assert candidate(unstable_launches=0, estimated_launches=2).unsure_launches == "2 estimated"
    assert candidate().unsure_launches == ""


def test_summary_has_id_space_accuracy_latency_and_counts():
    assert candidate().summary == (
        "s1ab (toy): accuracy 0.9000, 1.2 ms measured, 2000 MACs, 100 parameters"
    )
    assert "accuracy 0.9000, trained 0.9300, 1.2 ms" in candidate(trained_accuracy=0.93).summary
    phone = candidate(device_predicted_us={"phone": 4500.0}).summary
    assert "1.2 ms measured, 4.5 ms predicted on phone, 2000 MACs" in phone
    figures = {"sram_kib": 25.25, "dram_traffic_kib": 55.0, "mac_utilisation": 0.354}
    assert candidate(**figures).summary.endswith(
        ", SRAM, KiB 25, DRAM traffic, KiB 55, MAC utilisation, % 35"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measured_us": -5.0}, "measured_us is '-5.0'"),
        ({"measured_us": "", "predicted_us": ""}, "a complete candidate has an accuracy and a lat"),
        ({"validation_accuracy": ""}, "a complete candidate has an accuracy and a latency"),
        ({"validation_accuracy": 1.5}, "less than or equal to 1"),
        ({"macs": True}, "macs is 'True'"),
        ({"params": 10**400}, "params is '1000"),
        ({"architecture": "[]"}, "architecture"),
        ({"space": "a/b"}, "space is 'a/b'"),
        ({"space": "other"}, "its architecture is of space 'toy', not 'other'"),
        ({"id": "0012", "digest": "0012000000000000"}, "id is '0012'"),
        ({"id": "s2ab"}, "its id s2ab is not the beginning of its digest s1ab51ab"),
    ],
)
def test_damaged_row_is_named_with_its_line_and_field(tmp_path, changes, words):
    cells = {**dict.fromkeys(Candidate.model_fields, ""), **candidate().cells}
    del cells["device_predicted_us"]
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
    with pytest.raises(RunFolderError, match="has no column 'id'"):
        read_csv(path, CANDIDATE)
