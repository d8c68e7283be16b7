"""Energy of loads on counters of known power."""

import sys
import time
from pathlib import Path

import pytest

from nas.deploy import benchmark, energy
from nas.deploy.energy import EnergyGauge
from nas.deploy.sustained import measure_sustained
from nas.machine import energy as machine_energy
from nas.machine.energy import EnergyCounter, Reading
from nas.run.progress import SilentProgress
from tests.commands import document
from tests.deploy.example_model import onnx_folder

IDLE_W, LOAD_W = 20.0, 50.0


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


class SwitchedOn(EnergyCounter, SilentProgress):
    """A counter on the clock, and a consumer that is switched on when a stage begins."""

    source = "a fake counter"

    def __init__(self, stage: str = "") -> None:
        self._stage, self._watts = stage, IDLE_W
        self._last = Reading(time.monotonic(), 0.0)

    def read(self) -> Reading:
        now_s = time.monotonic()
        joules = self._last.joules + self._watts * (now_s - self._last.at_s)
        self._last = Reading(now_s, joules)
        return self._last

    def begin(self, stage: str, unit: str) -> None:
        if stage == self._stage:
            self.read()
            self._watts = LOAD_W


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(energy, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(benchmark, "ENERGY_SECONDS", 0.5)
    monkeypatch.setattr(benchmark, "MAX_ROUNDS", 2)
    return onnx_folder(tmp_path / "jf2a").path


@pytest.mark.slow
def test_load_has_its_energy_above_that_of_the_idle_machine(folder, monkeypatch):
    counter = SwitchedOn("sustained speed")
    monkeypatch.setattr(energy, "find_counter", lambda meter: counter)
    record = measure_sustained(folder, minutes=0.03, energy=True, progress=counter)
    (load,) = record.loads
    # Loading the file takes as long as the load here, and is not measured.
    assert load.energy.idle_w == pytest.approx(IDLE_W, rel=0.1)
    assert load.energy.watts == pytest.approx(LOAD_W, rel=0.1)
    net_w = load.energy.joules_per_image * sum(load.images_by_process) / load.seconds
    assert net_w == pytest.approx(LOAD_W - IDLE_W, rel=0.15)


@pytest.mark.slow
def test_commands_print_the_energy_with_its_source(folder, monkeypatch, invoke):
    monkeypatch.setattr(energy, "find_counter", lambda meter: SwitchedOn())
    timed = document(invoke("benchmark", folder, "--energy", "--json"))
    # Nothing is above the idle power.
    assert timed["files"][0]["energy"] == {
        "source": "a fake counter",
        "idle_w": pytest.approx(IDLE_W),
        "watts": pytest.approx(IDLE_W, rel=0.1),
        "joules_per_image": None,
    }
    done = invoke("benchmark", folder, "--meter", "a meter", "--minutes", 0.02)
    assert done.returncode == 0, done.stderr
    assert "a fake counter" in done.stdout
    assert "The idle power is subtracted" in done.stdout


def test_command_without_a_counter_says_what_is_missing(folder, tmp_path, invoke, monkeypatch):
    monkeypatch.setattr(machine_energy, "POWERCAP", tmp_path)
    monkeypatch.setitem(sys.modules, "zeus", None)
    for arguments in (["--energy"], ["--energy", "--minutes", 1]):
        done = invoke("benchmark", folder, *arguments)
        assert done.returncode == 1
        assert "This machine has no energy counter" in done.stderr
    before = (folder / "card.json").read_text()
    wrong = invoke("benchmark", folder, "--meter", "no-such-meter", "--minutes", 1, "--save")
    assert wrong.returncode == 2
    assert (folder / "card.json").read_text() == before
