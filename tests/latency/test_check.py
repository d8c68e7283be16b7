"""Checks of tables: whole networks and kernels that are timed again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nas.space
from nas.errors import MeasurementError, RequestError, TableDeviceError, TableError
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency import (
    KernelCheck,
    LatencyTable,
    TableCheck,
    build_table,
    check_kernels,
    check_table,
    correct_after_build,
    correct_table,
    space_kernels,
)
from nas.latency import check as check_module
from nas.latency.check import (
    MAX_CORRECTION_NETWORKS,
    MIN_CORRECTION_NETWORKS,
    published_networks,
)
from nas.latency.record import Record
from nas.latency.timing import Timing
from tests.latency.fake_runtime import FakeNetwork, FakeRuntime, device, latency_us
from tests.latency.small_table import SPACE, checked

PUBLISHED = nas.space.load_space("squeezenet", image_size=8, channels=1)
KERNELS = space_kernels(SPACE, "tvm")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return tables of the kernels of one space, and of both."""
    folder, runtime = tmp_path_factory.mktemp("tables"), FakeRuntime()
    kernels = {"table": KERNELS, "both": KERNELS + space_kernels(PUBLISHED, "tvm")}
    paths = {name: folder / f"{name}.jsonl" for name in kernels}
    for name, path in paths.items():
        build_table(LatencyTable.open_or_create(path, runtime), kernels[name], runtime)
    return paths


@pytest.fixture
def table(tables: dict[str, Path], tmp_path: Path, runtime: FakeRuntime) -> LatencyTable:
    return LatencyTable.open(shutil.copy(tables["table"], tmp_path), runtime=runtime)


@pytest.fixture
def both(tables: dict[str, Path], tmp_path: Path, runtime: FakeRuntime) -> LatencyTable:
    return LatencyTable.open(shutil.copy(tables["both"], tmp_path), runtime=runtime)


def check(table: LatencyTable, runtime: FakeRuntime, nets: int = 6, **options: Any) -> TableCheck:
    rng = np.random.default_rng(5)
    spaces = options.pop("spaces", [SPACE])
    return check_table(table, spaces, runtime, nets=nets, rng=rng, **options)


def test_check_to_json_has_the_documented_keys() -> None:
    made = (checked(96, 100, 103), checked(208, 220, 200), checked(320, 302, 300, reference="net"))
    document = TableCheck(made).to_json()
    assert document["nets"] == 3
    assert document["mape"] == pytest.approx((0.04 + 0.04 + 20 / 300) / 3)
    assert document["within_5_percent"] == pytest.approx(2 / 3)
    assert document["within_10_percent"] == 1
    assert document["kendall_tau"] == 1.0
    assert document["retiming_spread"] == pytest.approx(0.03)
    assert document["target_mape"] == pytest.approx(0.06)
    assert document["target_met"] is True
    assert (document["random"]["nets"], document["references"]["nets"]) == (2, 1)
    assert document["uncorrected"]["mape"] == document["mape"]
    assert (document["batch"], document["basis"], document["device_ratio"]) == (1, "measured", None)
    assert [each["name"] for each in document["rows"]] == ["random", "random", "net"]
    second = document["rows"][1]
    assert second["architecture"] == SPACE.smallest.to_json()
    assert (second["predicted_us"], second["measured_us"]) == (208, 200)
    assert second["rounds_us"] == [220, 200]
    assert second["relative_error"] == pytest.approx(0.04)


def test_target_is_two_percent_on_steady_machine() -> None:
    made = TableCheck((checked(98.5, 100, 100.1),))
    assert made.target_mape == 0.02
    assert made.to_json()["target_met"] is True
    assert made.to_json()["references"] is None
    once = TableCheck((checked(98.5, 100),))
    assert (once.retiming_spread, once.target_mape) == (None, 0.02)


def test_check_draws_same_different_networks_from_same_seed(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    steps: list[tuple[int, int]] = []
    first, second = (
        check(table, runtime, nets=60, progress=lambda done, total: steps.append((done, total)))
        for _ in range(2)
    )
    assert first == second
    digests = {each.architecture.graph.digest for each in first.networks}
    assert len(digests) == len(first.networks) == min(60, SPACE.size)
    half = len(steps) // 2
    assert steps[:half] == [(n, half) for n in range(1, half + 1)]
    for each in first.networks:
        own = sum(latency_us(kernel) for kernel in runtime.kernels(each.architecture.graph))
        assert each.measured_us == pytest.approx(1.1 * own, rel=1e-3)
        assert each.prediction == table.predict(each.architecture)
    assert first.retiming_spread == 0


def test_published_networks_are_those_at_a_resolution_of_the_space() -> None:
    """One row of the space runs at half of the image size, the others at all of it."""
    large = nas.space.load_space("mobilenet", image_size=64)
    first, *others = large.references
    rows = (replace(first, resolution=0.5), *others)
    names = [each.name for each in others]
    for shares, expected in (
        ((0.5, 0.75), [first.name]),
        ((0.75, 1.0), names),
        ((0.5, 1.0), [first.name, *names]),
        ((0.25, 0.75), []),
    ):
        space = replace(large, resolutions=shares, references=rows)
        assert [name for name, _ in published_networks([space])] == expected


def test_check_times_published_networks_and_never_draws_them(
    both: LatencyTable, runtime: FakeRuntime
) -> None:
    spaces = [SPACE, PUBLISHED]
    result = check(both, runtime, nets=8, spaces=spaces)
    assert {r.name for r in result.references.networks} == {r.name for r in PUBLISHED.references}
    assert len(result.random.networks) == 8
    without = check(both, runtime, nets=8, spaces=spaces, references=False)
    assert without.networks == result.random.networks
    published = {PUBLISHED.reference(r.name).digest for r in PUBLISHED.references}
    assert not published & {each.architecture.digest for each in result.random.networks}


def test_check_counts_uncertain_launches_of_each_network(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    kernel = runtime.kernels(SPACE.largest.graph)[0]
    wild = Record.from_timings("kernel", [Timing((1.0, 5.0, 9.0))], name=kernel.text)
    with table.writing():
        table.append(wild.model_copy(update={"basis": "estimated: by a model"}))
    counts = 0
    for each, row in zip(
        (result := check(table, runtime)).networks, result.to_json()["rows"], strict=True
    ):
        launches = runtime.kernels(each.architecture.graph).count(kernel)
        assert row["uncertain_launches"] == row["estimated_launches"] == launches
        counts += launches
    assert counts > 0


def test_check_judges_correction_by_held_out_networks(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    before = check(table, runtime, nets=8)
    correct_table(table, before, [SPACE])
    result = check(table, runtime)
    fitted_on = {each.architecture.digest for each in before.networks}
    assert fitted_on.isdisjoint(each.architecture.digest for each in result.networks)
    assert len(result.networks) == 6
    errors = [each.prediction.uncorrected_us / each.measured_us - 1 for each in result.networks]
    assert result.uncorrected_agreement.mape == pytest.approx(np.mean(np.abs(errors)))
    assert result.agreement.mape < result.uncorrected_agreement.mape


@dataclass
class SlowNetworks(FakeRuntime):
    """A runtime whose networks take twice as long, and whose kernels do not."""

    def compile(
        self, graph: Graph, schedules: Any, weights: Any = None, batch: int = 1
    ) -> FakeNetwork:
        return FakeNetwork(2 * self.kernels(graph, batch), self.broken)


def test_networks_are_divided_by_how_much_longer_those_of_the_correction_take(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    assert check(table, SlowNetworks()).device_ratio is None, "the table has no correction"
    fitted = correct_after_build(table, [SPACE], runtime)
    assert fitted is not None
    assert len(fitted.networks) > MAX_CORRECTION_NETWORKS
    before, after = check(table, runtime), check(table, SlowNetworks())
    assert before.device_ratio == pytest.approx(1, rel=1e-3)
    assert after.device_ratio == pytest.approx(2, rel=1e-3)
    assert after.to_json()["device_ratio"] == after.device_ratio
    for each, own in zip(before.networks, after.networks, strict=True):
        assert own.latency.fastest_us == pytest.approx(2 * each.latency.fastest_us, rel=1e-3)
        assert own.measured_us == pytest.approx(each.measured_us, rel=2e-3)
    reopened = LatencyTable.open(table.path, runtime=runtime)
    assert check(reopened, SlowNetworks()).device_ratio == after.device_ratio


def test_networks_of_the_correction_are_as_fast_as_the_kernels_that_were_timed_since(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    """All kernels take half as long as when the correction was fitted."""
    fitted = correct_after_build(table, [SPACE], runtime)
    assert fitted is not None
    with table.writing():
        for record in (*table.records("kernel"), *table.records("dispatch")):
            half = Timing(((record.latency_us or 0.0) / 2,))
            table.append(Record.from_timings(record.kind, [half], name=record.name, schedule={}))
        table.append(fitted)  # Other launch costs have cleared it.
    assert check(table, runtime).device_ratio == pytest.approx(2, rel=1e-2)


def test_few_networks_of_a_correction_do_not_tell_how_fast_the_device_is(
    both: LatencyTable, runtime: FakeRuntime
) -> None:
    fitted = correct_after_build(both, [SPACE], runtime)
    assert fitted is not None
    assert check(both, SlowNetworks(), spaces=[PUBLISHED]).device_ratio is None
    with both.writing():
        few = {"networks": fitted.networks[: MIN_CORRECTION_NETWORKS - 1]}
        both.append(fitted.model_copy(update=few))
    assert check(both, SlowNetworks()).device_ratio is None


def test_check_refuses_other_devices_and_empty_requests(table: LatencyTable) -> None:
    other = FakeRuntime(device(threads=2))
    with pytest.raises(TableDeviceError):
        check(table, other)
    for wrong in ({"spaces": []}, {"nets": 0}, {"batch": 0}):
        with pytest.raises(RequestError):
            check(table, other, **wrong)  # type: ignore[arg-type]


def test_check_fails_if_network_cannot_be_timed(both: LatencyTable, runtime: FakeRuntime) -> None:
    broken = {kernel.text for kernel in runtime.kernels(PUBLISHED.largest.graph)}
    crashing = replace(runtime, broken=frozenset(broken))
    with pytest.raises(MeasurementError, match="could not be timed: RuntimeError: it crashed"):
        check(both, crashing, spaces=[PUBLISHED], nets=1)


# Some kernels, timed again.


@pytest.fixture(autouse=True)
def _twenty_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "CHECKED_KERNELS", 20)


def check_again(table: LatencyTable, factor: float = 1.0) -> KernelCheck:
    """Check a table on a device that is slower by a factor, and by more at the first round."""
    slowed = {kernel.text: [1.5 * factor] + [factor] * 9 for kernel in KERNELS}
    runtime = FakeRuntime(slowed=slowed)
    return check_kernels(table, runtime, runtime.fingerprint)


@pytest.mark.parametrize(
    ("factor", "problem"),
    [
        (1.0, ""),
        (1.04, ""),
        (0.96, ""),
        (1.2, "kernels are 20% slower now"),
        (0.9, "kernels are 10% faster now"),
    ],
)
def test_table_holds_if_the_device_is_as_fast(
    table: LatencyTable, factor: float, problem: str
) -> None:
    before = table.path.read_bytes()
    result = check_again(table, factor)
    assert result.problem == problem
    assert result.device_ratio == pytest.approx(factor, rel=1e-2)
    document = result.to_json()
    assert (document["holds"], len(document["rows"])) == (not problem, 20)
    assert document["rows"][0]["ratio"] == pytest.approx(factor, rel=0.02)
    assert table.path.read_bytes() == before


def test_kernels_of_a_check_are_spread_over_latencies_and_always_the_same(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [each.kernel for each in check_again(table).kernels]
    assert chosen == [each.kernel for each in check_again(table).kernels]
    every = sorted(latency_us(kernel) for kernel in KERNELS)
    ranks = sorted(every.index(latency_us(kernel)) for kernel in chosen)
    assert ranks[0] == 0
    assert max(np.diff(ranks)) < 3 * len(KERNELS) / 20
    assert ranks[-1] > 0.9 * len(KERNELS)
    monkeypatch.setattr(check_module, "CHECKED_KERNELS", 10_000)
    assert len(check_again(table).kernels) == len(KERNELS)


def test_kernel_that_cannot_be_timed_is_a_problem(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_module, "CHECKED_KERNELS", len(KERNELS))
    tried: list[Kernel] = []

    class Broken(FakeRuntime):
        def retime_kernel(self, kernel: Kernel, schedule: Any) -> Timing:
            if kernel == KERNELS[0]:
                tried.append(kernel)
                raise RuntimeError("no such instruction")
            return super().retime_kernel(kernel, schedule)

    steps: list[int] = []
    runtime = Broken()
    result = check_kernels(
        table,
        runtime,
        runtime.fingerprint,
        progress=lambda done, total, _: steps.append(done - total),
    )
    assert result.problem == f"1 of {len(KERNELS)} kernels cannot be timed now"
    (failed,) = (each for each in result.kernels if each.latency.error)
    assert (failed.latency.error, failed.ratio) == ("RuntimeError: no such instruction", None)
    assert len(tried) == 1
    # The further timings of the kernel that fails are no steps.
    assert (len(steps), steps[-1]) == (1 + runtime.capabilities.rounds * (len(KERNELS) - 1), 0)
    assert steps == sorted(steps)


def test_kernel_check_reports_changed_facts_and_refuses_other_devices(table: LatencyTable) -> None:
    updated = device(recorded={"system": "newer", "governor": "powersave"})
    result = check_kernels(table, FakeRuntime(updated), updated)
    assert result.changes == ("system is newer, was test", "governor is powersave, was None")
    assert not result.problem
    newer = device(versions={"apache-tvm": "0.28", "kernels": "1"})
    with pytest.raises(TableDeviceError, match=r"apache-tvm 0\.28, .*not apache-tvm 0\.27"):
        check_kernels(table, FakeRuntime(newer), newer)


def test_kernel_check_refuses_table_without_kernels(tmp_path: Path, runtime: FakeRuntime) -> None:
    empty = LatencyTable.open_or_create(tmp_path / "empty.jsonl", runtime)
    with pytest.raises(TableError, match="no kernel with a latency"):
        check_again(empty)
