"""Energy of loads on counters of known power."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest

from nas import files
from nas.deploy import energy
from nas.deploy.energy import EnergyGauge
from nas.deploy.export import export_model
from nas.deploy.folder import ModelFolder
from nas.deploy.requests import ExportRequest
from nas.machine import energy as machine_energy
from nas.machine.energy import EnergyCounter, Reading
from nas.run.progress import SilentProgress
from tests.commands import document

IDLE_W, LOAD_W = 20.0, 50.0
RANGE_UJ = 40_000_000
"""A counter that passes zero every 0.8 s under load."""


class Machine(EnergyCounter):
    """A machine of known power, with a clock of its own."""

    source = "a fake counter"

    def __init__(self, seconds_to_read: float = 0.0) -> None:
        self.now_s, self.joules, self._seconds_to_read = 100.0, 7.0, seconds_to_read

    def run(self, seconds: float, watts: float) -> None:
        self.now_s += seconds
        self.joules += seconds * watts

    def read(self) -> Reading:
        self.run(self._seconds_to_read, IDLE_W)
        return Reading(self.now_s, self.joules)


@pytest.fixture
def gauge(monkeypatch):
    """Return a function that makes a gauge of a machine."""

    def make(machine: Machine) -> EnergyGauge:
        monkeypatch.setattr(energy.time, "sleep", lambda seconds: machine.run(seconds, IDLE_W))
        return EnergyGauge(machine)

    return make


@pytest.mark.parametrize("seconds_to_read", [0.0, 0.9])
def test_energy_of_an_image_is_that_above_the_idle_machine(gauge, seconds_to_read):
    machine = Machine(seconds_to_read)
    measured = gauge(machine)
    for images in (1500, 300):
        measured.begin()
        machine.run(60, LOAD_W)
        record = measured.record(60, images)
        assert record.source == "a fake counter"
        assert record.idle_w == pytest.approx(IDLE_W)
        assert record.watts == pytest.approx(LOAD_W)
        assert record.joules_per_image == pytest.approx(60 * (LOAD_W - IDLE_W) / images)


def test_energy_that_is_not_above_that_of_the_idle_machine_is_none(gauge):
    machine = Machine()
    measured = gauge(machine)
    for watts in (IDLE_W - 1, 1.005 * IDLE_W):
        measured.begin()
        machine.run(60, watts)
        record = measured.record(60, 1000)
        assert record.joules_per_image is None
        assert record.watts == pytest.approx(watts)


# Real files on a machine with a counter of ours, which takes more power from a moment on


@pytest.fixture(scope="module")
def folder(trained, digits, origin, tmp_path_factory) -> ModelFolder:
    folder = ModelFolder(tmp_path_factory.mktemp("models") / "jf2a")
    export_model(trained, digits, folder, ExportRequest(("onnx",)), origin)
    return folder


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """Return a folder like Linux' powercap, whose counter follows a clock."""
    monkeypatch.setattr(energy, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(machine_energy, "POWERCAP", tmp_path / "powercap")
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (zone / "energy_uj").write_text("0\n")
    stop, is_under_load = threading.Event(), threading.Event()

    def count() -> None:
        joules, last_s = 0.0, time.monotonic()
        while not stop.is_set():
            now_s = time.monotonic()
            joules += (LOAD_W if is_under_load.is_set() else IDLE_W) * (now_s - last_s)
            last_s = now_s
            files.replace(zone / "energy_uj", f"{round(1e6 * joules) % RANGE_UJ}\n")
            stop.wait(0.002)

    counting = threading.Thread(target=count)
    counting.start()
    yield is_under_load
    stop.set()
    counting.join()


class SwitchingOn(SilentProgress):
    """Somebody who switches a consumer on when a stage of a benchmark begins."""

    def __init__(self, stage: str, switch) -> None:
        self.stage, self.switch = stage, switch

    def begin(self, stage: str, unit: str) -> None:
        if stage == self.stage:
            self.switch()


def check(record, images: int, seconds: float, *, idle_w: float, load_w: float) -> None:
    """Check a record; times on a busy machine are those of the clock within some percent."""
    assert record.idle_w == pytest.approx(idle_w, rel=0.1)
    assert record.watts == pytest.approx(load_w, rel=0.1)
    net_w = record.joules_per_image * images / seconds
    assert net_w == pytest.approx(load_w - idle_w, rel=0.15)


@pytest.mark.slow
def test_load_has_the_energy_of_a_counter_that_passes_zero(folder, powercap):
    import nas

    switching = SwitchingOn("sustained speed", powercap.set)
    record = nas.measure_sustained(
        folder.path, minutes=0.05, rate=100, energy=True, progress=switching
    )
    for load in record.loads:
        assert load.energy.source == "RAPL (package-0)"
        images = sum(load.images_by_process)
        # Loading the file takes as much as the load here, and is not measured.
        check(load.energy, images, load.seconds, idle_w=IDLE_W, load_w=LOAD_W)


@pytest.mark.slow
def test_benchmark_has_the_energy_of_a_meter(folder, tmp_path, monkeypatch):
    import nas
    from nas.deploy import benchmark

    monkeypatch.setattr(energy, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(benchmark, "ENERGY_SECONDS", 2.0)
    monkeypatch.setattr(benchmark, "ROUNDS", 2)
    flag, script = tmp_path / "on", tmp_path / "meter.py"
    script.write_text(
        "import os, sys, time\n"
        "joules, last = 0.0, time.monotonic()\n"
        "while True:\n"
        "    now = time.monotonic()\n"
        "    joules += (12 if os.path.exists(sys.argv[1]) else 5) * (now - last)\n"
        "    last = now\n"
        "    print(joules, flush=True)\n"
        "    time.sleep(0.02)\n"
    )
    (row,) = nas.benchmark(
        folder.path,
        meter=f"{sys.executable} {script} {flag}",
        progress=SwitchingOn("energy", flag.touch),
    )
    assert row.energy.idle_w == pytest.approx(5, rel=0.15)
    assert row.energy.watts == pytest.approx(12, rel=0.15)
    assert 0 < row.energy.joules_per_image < 7 * 2.0 / 100


@pytest.mark.slow
def test_command_prints_the_energy_with_its_source(folder, powercap, invoke):
    powercap.set()  # The idle power is that of the load, so that nothing is above it.
    arguments = ("benchmark", folder.path, "--energy")
    timed = document(invoke(*arguments, "--json"))
    assert timed["files"][0]["energy"]["source"] == "RAPL (package-0)"
    done = invoke(*arguments, "--minutes", 0.02)
    assert done.returncode == 0, done.stderr
    assert "RAPL (package-0)" in done.stdout
    assert "The idle power is subtracted" in done.stdout


def test_command_without_a_counter_says_what_is_missing(folder, tmp_path, invoke, monkeypatch):
    monkeypatch.setattr(machine_energy, "POWERCAP", tmp_path)
    monkeypatch.setitem(sys.modules, "zeus", None)
    for arguments in (["--energy"], ["--energy", "--minutes", 1]):
        done = invoke("benchmark", folder.path, *arguments)
        assert done.returncode == 1
        assert "This machine has no energy counter" in done.stderr
    before = Path(folder.path / "card.json").read_text()
    wrong = invoke("benchmark", folder.path, "--meter", "no-such-meter", "--minutes", 1, "--save")
    assert wrong.returncode == 2
    assert json.loads(before) == json.loads((folder.path / "card.json").read_text())
