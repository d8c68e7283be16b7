"""`front.json` and its members."""

import pytest
from pydantic import ValidationError

from nas.errors import RunFolderError
from nas.records import FrontMember, FrontRecord, read_front, to_json

MEMBER = {
    "id": "s1ab",
    "space": "toy",
    "digest": "s1ab51ab",
    "architecture": {"space": "toy", "choices": {"stem.width": 8}},
    "validation_accuracy": 0.9,
    "predicted_us": 1000.0,
    "measured_us": 1200.0,
    "macs": 2000,
    "params": 100,
    "peak_memory_bytes": 64,
}


def member(**changes) -> FrontMember:
    return FrontMember.model_validate({**MEMBER, **changes})


def test_measured_latency_is_preferred_to_the_predicted_one():
    assert (member().latency_us, member().latency_basis) == (1200.0, "measured")
    predicted = member(measured_us=None)
    assert (predicted.latency_us, predicted.latency_basis) == (1000.0, "predicted")


def test_predicted_latency_names_its_unsure_launches():
    unsure = member(measured_us=None, unstable_launches=3, estimated_launches=1)
    assert unsure.unsure_launches == "3 unstable, 1 estimated"
    assert unsure.latency_basis == "predicted, of its launches 3 unstable, 1 estimated"
    assert member(measured_us=None, dispatch_share=0.5).latency_basis == "predicted"
    assert member(dispatch_share=0.625).latency_basis == "measured"
    rough = member(measured_us=None, dispatch_share=0.625)
    assert rough.latency_basis == "predicted, 62% of it launches"
    assert member(unstable_launches=0, estimated_launches=2).unsure_launches == "2 estimated"
    assert member().unsure_launches == ""


def test_member_needs_a_latency():
    with pytest.raises(ValidationError, match="neither a measured nor a predicted latency"):
        member(measured_us=None, predicted_us=None)


def test_summary_has_id_space_accuracy_latency_and_counts():
    assert member().summary == (
        "s1ab (toy): accuracy 0.9000, 1.2 ms measured, 2000 MACs, 100 parameters"
    )
    assert "accuracy 0.9000, trained 0.9300, 1.2 ms" in member(trained_accuracy=0.93).summary
    phone = member(device_predicted_us={"phone": 4500.0}).summary
    assert "1.2 ms measured, 4.5 ms predicted on phone, 2000 MACs" in phone
    figures = {"sram_kib": 25.25, "dram_traffic_kib": 55.0, "mac_utilisation": 0.354}
    assert member(**figures).summary.endswith(
        ", 25 KiB of SRAM, 55 KiB of DRAM traffic, 35% MAC utilisation"
    )


def test_front_is_read_as_it_was_written(tmp_path):
    record = FrontRecord(schema=2, run="toy", front=(member(),))
    (tmp_path / "front.json").write_text(to_json(record))
    assert read_front(tmp_path) == record.front


def test_missing_or_empty_front_is_an_error(tmp_path):
    with pytest.raises(RunFolderError, match=r"has no front: there is no front\.json"):
        read_front(tmp_path)
    (tmp_path / "front.json").write_text(to_json(FrontRecord(schema=2, run="toy", front=())))
    with pytest.raises(RunFolderError, match=r"is empty: .* Raise the limits in the job file"):
        read_front(tmp_path)
