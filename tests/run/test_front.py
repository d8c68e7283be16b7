"""The front of a run: over all objectives of its job, within its limits, the same everywhere."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nas.figures import Figure
from nas.opened_run import open_run
from nas.report import page
from nas.run import candidates
from nas.run.front import (
    NEAR_ACCURACY,
    NEAR_SHARE,
    behind,
    dominated_after_training,
    front,
    near_front,
    representatives,
)
from nas.run.objectives import RunObjective, run_objectives
from nas.run.settings import SearchDevice, SearchSettings

UTILISATION = Figure("mac_utilisation", "MAC utilisation, %", is_maximised=True)

TWO = SearchSettings()
FOUR = SearchSettings(also_minimize=["params"], also_maximize=["mac_utilisation"])
DEVICES = SearchSettings(device=[SearchDevice(table="tables/phone.jsonl", max_latency_ms=0.008)])


def objectives(search: SearchSettings) -> list[RunObjective]:
    return run_objectives(search, [UTILISATION])


def make_rows(count: int, seed: int = 0) -> pd.DataFrame:
    """Return candidates with few distinct values, so that there are ties."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "id": [f"g{at:03x}" for at in range(count)],
            "digest": [f"g{at:03x}{at:012x}" for at in range(count)],
            "state": "complete",
            "space": rng.choice(["a", "b"], count),
            "predicted_us": rng.integers(1, 12, count).astype(float),
            "measured_us": np.nan,
            "predicted_us phone": rng.integers(1, 12, count).astype(float),
            "validation_accuracy": rng.integers(1, 12, count) / 12,
            "corrected_accuracy": np.nan,
            "trained_accuracy": np.nan,
            "recipe": None,
            "mac_utilisation": rng.integers(1, 6, count) / 6,
        }
    )
    for name in ("macs", "params", "peak_memory_bytes"):
        table[name] = rng.integers(1, 12, count)
    return table


def vectors(rows: pd.DataFrame, search: SearchSettings, accuracy: str = "validation_accuracy"):
    """Return by digest the values of the objectives, all to be minimised, written down again."""
    latency = "measured_us" if rows["measured_us"].notna().any() else "predicted_us"
    columns = [rows[latency], -rows[accuracy]]
    columns += [rows[f"predicted_us {Path(device.table).stem}"] for device in search.device]
    columns += [rows[name] for name in search.also_minimize]
    columns += [-rows[name] for name in search.also_maximize]
    return dict(zip(rows["digest"], zip(*columns, strict=True), strict=True))


def dominates(a, b) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def non_dominated_values(rows: pd.DataFrame, search: SearchSettings) -> set[tuple[float, ...]]:
    values = set(vectors(rows, search).values())
    return {a for a in values if not any(dominates(b, a) for b in values)}


@pytest.mark.parametrize(("search", "seed"), [*product([TWO, FOUR, DEVICES], range(2))])
def test_front_equals_brute_force_over_all_objectives(search, seed):
    rows = make_rows(60, seed)
    allowed = rows[rows["predicted_us phone"] <= 8] if search.device else rows
    members = front(rows, objectives(search))
    shown = vectors(members, search)
    assert set(shown.values()) == non_dominated_values(allowed, search)
    assert len(shown) == len(set(shown.values())), "of equal candidates one is on the front"
    assert members["predicted_us"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("limits", "column", "largest"),
    [
        ({"max_latency_ms": 0.006}, "predicted_us", 6),
        ({"max_macs": 6}, "macs", 6),
        ({"max_params": 6}, "params", 6),
        ({"max_peak_memory_bytes": 6}, "peak_memory_bytes", 6),
        ({"limits": {"mac_utilisation": 0.5}}, "mac_utilisation", None),
    ],
)
def test_front_keeps_to_every_limit_and_a_limit_is_no_objective(limits, column, largest):
    rows = make_rows(60)
    members = front(rows, objectives(SearchSettings(**limits)))
    fitting = rows[rows[column] >= 0.5] if largest is None else rows[rows[column] <= largest]
    assert set(vectors(members, TWO).values()) == non_dominated_values(fitting, TWO)


def test_front_has_only_measured_rows_if_any_row_is_measured():
    rows = make_rows(30)
    rows.loc[:3, "measured_us"] = [1000.0, 1001.0, 1002.0, 1003.0]
    members = front(rows, objectives(TWO))
    assert set(members["digest"]) <= set(rows["digest"][:4])
    limited = front(rows, objectives(SearchSettings(max_latency_ms=1.001)))
    assert limited["measured_us"].max() <= 1001
    assert front(rows, objectives(SearchSettings(max_latency_ms=0.5))).empty


@pytest.mark.parametrize(("search", "seed"), [*product([TWO, FOUR, DEVICES], range(2))])
def test_networks_near_the_front_are_on_it_after_a_small_change_of_their_own(search, seed):
    rows = make_rows(80, seed)
    rng = np.random.default_rng(seed)
    rows["predicted_us"] *= 1 + 0.1 * rng.random(len(rows))
    rows["validation_accuracy"] = (rows["validation_accuracy"] - 0.01 * rng.random(80)).clip(0)
    rows.loc[:10, "measured_us"] = 1.0
    near = near_front(rows, objectives(search))
    predicted = rows.assign(measured_us=np.nan)
    allowed = predicted["predicted_us phone"] <= (8 if search.device else 100)
    values = vectors(predicted[allowed], search)
    for digest, value in values.items():
        # Maximised values are negative here.
        better = [each - NEAR_SHARE * abs(each) for each in value]
        better[1] = value[1] - NEAR_ACCURACY
        is_near = not any(dominates(other, tuple(better)) for other in values.values())
        assert near[rows["digest"] == digest].item() == is_near
    assert near.sum() == near[allowed].sum()
    assert set(front(predicted, objectives(search))["digest"]) <= set(rows["digest"][near])


def test_rows_without_a_value_are_not_on_the_front():
    rows = make_rows(30)
    rows.loc[0, ["state", "validation_accuracy"]] = ["failed", 1.0]
    rows.loc[1, "validation_accuracy"] = np.nan
    rows.loc[2, ["mac_utilisation", "validation_accuracy"]] = [np.nan, 1.0]
    assert set(front(rows, objectives(FOUR))["digest"]).isdisjoint(rows["digest"][:3])
    assert front(rows.iloc[:0], objectives(FOUR)).empty


def test_representatives_of_two_objectives_are_spread_the_most_accurate_first():
    rows = make_rows(9).assign(
        predicted_us=np.arange(9.0) + 1, validation_accuracy=np.arange(9) / 9
    )
    names = dict(zip(rows["digest"], range(9), strict=True))

    def chosen(count: int) -> list[int]:
        return [names[digest] for digest in representatives(rows, objectives(TWO), count)]

    assert chosen(0) == []
    assert chosen(1) == [8]
    assert chosen(3) == [8, 4, 0]
    assert chosen(20) == list(range(9))[::-1]
    four = chosen(4)
    assert (four[0], four[-1], len(four)) == (8, 0, 4)
    assert sorted(four, reverse=True) == four


@pytest.mark.parametrize("seed", range(2))
def test_representatives_hold_the_best_in_every_objective(seed):
    members = front(make_rows(200, seed), objectives(FOUR))
    assert len(members) > 7
    for count in (4, 7, len(members)):
        chosen = representatives(members, objectives(FOUR), count)
        assert len(set(chosen)) == count
        own = members.set_index("digest").loc[chosen]
        assert own["validation_accuracy"].is_monotonic_decreasing
        best_of_each = zip(*vectors(members, FOUR).values(), strict=True)
        chosen_of_each = zip(*vectors(own.reset_index(), FOUR).values(), strict=True)
        assert [min(values) for values in chosen_of_each] == [min(v) for v in best_of_each]


def test_behind_orders_by_the_error_of_a_prediction_that_would_change_the_front():
    rows = make_rows(50)
    members = front(rows, objectives(FOUR))
    digests = behind(rows, members, objectives(FOUR))
    values = vectors(rows, FOUR)

    def error(digest: str) -> float:
        latency, *others = values[digest]
        rivals = [
            values[member][0]
            for member in members["digest"]
            if all(x <= y for x, y in zip(values[member][1:], others, strict=True))
        ]
        return latency / min(rivals)

    errors = [error(digest) for digest in digests]
    assert errors == sorted(errors)
    assert errors[0] == 1.0
    assert len(digests) == 50
    limited = SearchSettings(max_macs=6, also_minimize=["params"])
    digests = behind(rows, front(rows, objectives(limited)), objectives(limited))
    assert set(digests) == set(rows["digest"][rows["macs"] <= 6])


def test_training_moves_networks_off_the_front_that_one_trained_alike_beats_in_everything():
    rows = make_rows(4).assign(
        predicted_us=[1.0, 2.0, 3.0, 4.0],
        trained_accuracy=[0.8, 0.7, np.nan, 0.8],
        params=[5, 4, 1, 5],
        mac_utilisation=0.5,
    )
    first, second, third, fourth = rows["id"]
    assert dominated_after_training(rows, objectives(TWO)) == {second: first, fourth: first}
    assert dominated_after_training(rows, objectives(FOUR)) == {fourth: first}
    other = rows.assign(trained_accuracy=[0.9, 0.7, 0.8, 0.6], recipe=["6 epochs", "1 epoch"] * 2)
    assert dominated_after_training(other, objectives(TWO)) == {third: first, fourth: second}


@pytest.fixture
def run(untrained_run: Path) -> Path:
    """Return a run whose search minimised the size of the activations as well.

    The networks have one another's sizes, so that small ones are not always the fast ones.
    """
    folder = untrained_run
    record = json.loads((folder / "run.json").read_text())
    rows = candidates.read(folder / "trials.csv")
    order = np.random.default_rng(0).permutation(len(rows))
    rows["peak_memory_bytes"] = rows["peak_memory_bytes"].to_numpy()[order]
    candidates.write(rows, folder / "trials.csv")
    measured = rows["measured_us"]
    record["job"]["search"] = {
        "also_minimize": ["peak_memory_bytes"],
        "max_latency_ms": float(measured.quantile(0.8)) / 1000,
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_all_outputs_of_a_run_have_the_same_front(run):
    page.build(open_run(run))
    opened = open_run(run)
    search = opened.record.job.search
    rows = opened.trials.dropna(subset=["measured_us"])
    rows = rows[rows["measured_us"] <= 1000 * search.max_latency_ms]
    expected = non_dominated_values(rows, search)
    assert len(expected) > len(non_dominated_values(rows, TWO))
    ids = opened.front["id"].tolist()
    assert set(vectors(opened.front, search).values()) == expected
    assert pd.read_csv(run / "front.csv")["id"].tolist() == ids
    members = json.loads((run / "front.json").read_text())["front"]
    assert [member["id"] for member in members] == ids
    text = (run / "report.html").read_text()
    assert f"front of accuracy, latency and peak memory has {len(ids)} networks" in text
    table = text[text.index('<table id="front" ') :]
    table = table[: table.index("</tbody>")]
    assert [part.split('"')[0] for part in table.split('data-network="')[1:]] == ids
    best = opened.front.sort_values("validation_accuracy").iloc[-1]
    assert opened.pick(most_accurate=True).id == best["id"]
