import json
from dataclasses import fields

import pytest

from nas.errors import InfeasibleError, RequestError, RunFolderError
from nas.report.select import Limits, select

SLOW, FAST, GUESS = "s1ab", "wa57", "ge55"


def member(digest, accuracy, measured, predicted=1.0, params=100, **changes):
    return {
        "id": digest,
        "space": "toy",
        "digest": digest,
        "architecture": {"space": "toy", "choices": {"stem.width": 8}},
        "validation_accuracy": accuracy,
        "holdout_accuracy": None,
        "measured_us": measured,
        "predicted_us": predicted,
        "macs": 1000,
        "params": params,
        "peak_memory_bytes": 4000,
        **changes,
    }


def write_front(folder, *members, **changes):
    front = {"schema": 2, "run": "toy", "max_latency_ms": None, "front": members, **changes}
    (folder / "front.json").write_text(json.dumps(front))


@pytest.fixture
def run(tmp_path):
    write_front(
        tmp_path,
        member(SLOW, 0.9, 900.0, 100.0, params=900),
        member(FAST, 0.7, 300.0, 100.0, params=300),
        member(GUESS, 0.8, None, 500.0, params=500),
    )
    return tmp_path


def test_select_returns_most_accurate_member_within_limits(run):
    assert select(run, Limits()).id == SLOW
    assert select(run, Limits(max_params=600)).id == GUESS
    assert select(run, Limits(max_latency_ms=0.4, min_accuracy=0.6)).id == FAST


def test_select_prefers_measured_to_predicted_latency(run):
    """All three are predicted within 0.5 ms, but the slow one was measured at 0.9 ms."""
    assert select(run, Limits(max_latency_ms=0.5)).id == GUESS


def test_trained_members_count_with_their_trained_accuracy(tmp_path):
    """Training gained 0.1 and 0.2, so 0.15 is expected of the member that was not trained."""
    members = [
        member(FAST, 0.7, 300.0, trained_accuracy=0.9),
        member(GUESS, 0.72, 500.0),
        member(SLOW, 0.78, 900.0, trained_accuracy=0.88),
    ]
    write_front(tmp_path, *members)
    assert select(tmp_path, Limits()).id == FAST
    write_front(tmp_path, *members[1:])
    assert select(tmp_path, Limits()).id == SLOW
    write_front(tmp_path, *members[::2], {**members[1], "validation_accuracy": 0.76})
    assert select(tmp_path, Limits()).id == GUESS
    assert select(tmp_path, Limits(min_accuracy=0.905)).id == GUESS
    with pytest.raises(InfeasibleError, match=r"nearest is ge55 .* it misses accuracy by 1.1%"):
        select(tmp_path, Limits(min_accuracy=0.92))


def test_select_names_nearest_member_when_nothing_fits(run):
    with pytest.raises(
        InfeasibleError, match=r"nearest is wa57 .*0.3 ms measured.*latency by 50.0%"
    ):
        select(run, Limits(max_latency_ms=0.2))
    with pytest.raises(InfeasibleError) as error:
        select(run, Limits(max_latency_ms=0.2))
    assert error.value.exit_status == 1


@pytest.mark.parametrize("name", ["macs", "params", "peak_memory_bytes"])
def test_a_limit_on_a_count_chooses_the_best_below_it_or_names_the_nearest(tmp_path, name):
    accurate, small = member(SLOW, 0.9, 300.0), member(FAST, 0.7, 300.0)
    write_front(tmp_path, {**accurate, name: 1000}, {**small, name: 500})
    assert select(tmp_path, Limits(**{f"max_{name}": 1000})).id == SLOW
    assert select(tmp_path, Limits(**{f"max_{name}": 999})).id == FAST
    words = name.removesuffix("_bytes").replace("_", " ")
    with pytest.raises(InfeasibleError, match=f"nearest is {FAST} .* it misses {words} by 25.0%"):
        select(tmp_path, Limits(**{f"max_{name}": 400}))


def test_impossible_limits_are_refused(run):
    with pytest.raises(RequestError, match="max_latency_ms is -1"):
        select(run, Limits(max_latency_ms=-1))
    with pytest.raises(RequestError, match=r"fraction, such as 0.95"):
        select(run, Limits(min_accuracy=95))


def test_missing_or_empty_front_is_an_error(tmp_path):
    with pytest.raises(RunFolderError, match="has no front"):
        select(tmp_path, Limits())
    write_front(tmp_path)
    with pytest.raises(RunFolderError, match="is empty"):
        select(tmp_path, Limits())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
@pytest.mark.parametrize("name", [each.name for each in fields(Limits)])
def test_limit_must_be_a_finite_number_above_zero(name, value):
    with pytest.raises(RequestError, match=f"{name} is {value}"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measured_us": -5.0}, r"front\[0\].measured_us is -5.0"),
        ({"measured_us": None, "predicted_us": None}, "neither a measured nor a predicted latency"),
        ({"validation_accuracy": 1.5}, "less than or equal to 1"),
        ({"validation_accuracy": None}, "validation_accuracy is None"),
        ({"macs": True}, "macs is True"),
        ({"params": 10**400}, "params is 1000"),
        ({"architecture": []}, "architecture"),
        ({"space": "a/b"}, "space is 'a/b'"),
    ],
)
def test_damaged_member_is_named_with_its_field(tmp_path, changes, words):
    write_front(tmp_path, member(FAST, 0.7, 300.0, **changes))
    with pytest.raises(RunFolderError, match=rf"front.json is not a front: .*{words}"):
        select(tmp_path, Limits())


def test_unknown_schema_is_refused(tmp_path):
    write_front(tmp_path, member(FAST, 0.7, 300.0), schema=9)
    with pytest.raises(RunFolderError, match="has schema 9; this version reads schema 2"):
        select(tmp_path, Limits())


def test_selected_member_names_the_basis_of_its_latency(tmp_path):
    unsure = member(GUESS, 0.8, None, 500.0, unstable_launches=3, estimated_launches=1)
    write_front(tmp_path, unsure)
    chosen = select(tmp_path, Limits())
    assert chosen.latency_basis == "predicted, of its launches 3 unstable, 1 estimated"
    write_front(tmp_path, {**unsure, "measured_us": 400.0})
    assert select(tmp_path, Limits()).latency_basis == "measured"
