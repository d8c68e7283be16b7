"""Counters of known truth: a folder like Linux' powercap, commands, and a board of our own."""

import sys
import time
import types
from pathlib import Path

import pytest

from nas.errors import DeviceError, RequestError
from nas.machine import energy
from nas.machine.energy import Meter, Rapl, find_counter, rapl_zones

RANGE_UJ = 262_143_328_850


def write_zone(powercap: Path, folder: str, name: str, energy_uj: int) -> Path:
    zone = powercap / folder
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    return zone


@pytest.fixture
def powercap(tmp_path, monkeypatch) -> Path:
    """Return the counters of a server of two packages, with zones that count the same twice."""
    folder = tmp_path / "powercap"
    for number in (0, 1):
        write_zone(folder, f"intel-rapl:{number}", f"package-{number}", 1_000_000)
        write_zone(folder, f"intel-rapl:{number}:0", "core", 5)
        write_zone(folder, f"intel-rapl:{number}:1", "dram", 0)
    write_zone(folder, "intel-rapl:2", "psys", 77)
    write_zone(folder, "intel-rapl-mmio:0", "package-0", 1_000_000)
    monkeypatch.setattr(energy, "POWERCAP", folder)
    return folder


def add(powercap: Path, folder: str, joules: float) -> None:
    """Let a counter count on; it passes zero at the end of its range."""
    path = powercap / folder / "energy_uj"
    path.write_text(str((int(path.read_text()) + round(1e6 * joules)) % RANGE_UJ))


def test_packages_and_their_memory_are_counted_once(powercap):
    counter = find_counter()
    assert counter.source == (
        "RAPL (package-0, memory of package-0, package-1, memory of package-1)"
    )
    before = counter.read()
    for folder, joules in {
        "intel-rapl:0": 10, "intel-rapl:0:1": 1.5, "intel-rapl:1": 20, "intel-rapl:0:0": 9,
        "intel-rapl:2": 40, "intel-rapl-mmio:0": 10,
    }.items():  # fmt: skip
        add(powercap, folder, joules)
    after = counter.read()
    assert after.joules - before.joules == pytest.approx(31.5)
    assert before.at_s <= after.at_s <= time.monotonic()


def test_counters_may_pass_zero_between_two_looks(powercap):
    counter = Rapl(rapl_zones(powercap))
    before = counter.read()
    for _ in range(5):
        add(powercap, "intel-rapl:1", 200_000)  # Beyond 262,143 J it starts again.
        counter.update()
    assert counter.read().joules - before.joules == pytest.approx(1_000_000)


def test_counter_that_cannot_be_read_is_named_with_the_remedy(powercap):
    path = powercap / "intel-rapl:1/energy_uj"
    path.unlink()
    path.mkdir()  # Root could read a file without permissions.
    with pytest.raises(DeviceError) as caught:
        find_counter()
    assert f"{path} cannot be read" in caught.value.message
    assert f"sudo chmod a+r {path}" in caught.value.remedy


def test_without_a_counter_the_message_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setitem(sys.modules, "zeus", None)
    with pytest.raises(DeviceError) as caught:
        find_counter()
    text = str(caught.value)
    for part in (f"{tmp_path}/intel-rapl:0", "hardware-nas[energy]", "--meter COMMAND"):
        assert part in text


# zeus


class NoBoardError(Exception):
    pass


@pytest.fixture
def board(tmp_path, monkeypatch):
    """Return a reading of a board that a stand-in for zeus has; without fields there is none."""
    reading = types.SimpleNamespace()

    def get_soc():
        if not vars(reading):
            raise NoBoardError("No observable SoC was found on the current machine.")
        return types.SimpleNamespace(get_total_energy_consumption=lambda: reading)

    modules = {
        "zeus": types.ModuleType("zeus"),
        "zeus.device": types.ModuleType("zeus.device"),
        "zeus.device.exception": types.ModuleType("zeus.device.exception"),
    }
    modules["zeus.device"].get_soc = get_soc
    modules["zeus.device.exception"].ZeusBaseSoCError = NoBoardError
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return reading


JETSON = {"cpu_energy_mj": 900.0, "gpu_energy_mj": 100.0, "total_energy_mj": 2500.0}


@pytest.mark.parametrize(
    ("fields", "joules", "names"),
    [
        (JETSON, 2.5, "total"),
        ({**JETSON, "total_energy_mj": None}, 1.0, "cpu, gpu"),
        ({"cpu_total_mj": 300, "dram_mj": 50, "gpu_mj": None, "ane_mj": 4}, 0.354, "dram, ane"),
    ],
)
def test_board_of_zeus_counts_each_part_once(board, fields, joules, names):
    vars(board).update(fields)
    counter = find_counter()
    assert counter.read().joules == pytest.approx(joules)
    assert counter.source.startswith("zeus, ")
    assert names in counter.source


def test_board_that_zeus_does_not_know_is_an_error(board):
    with pytest.raises(DeviceError, match="zeus says: No observable SoC"):
        find_counter()
    board.other = 1
    with pytest.raises(DeviceError, match="tells no energy of this board"):
        find_counter()


# Power meters


def python(code: str) -> str:
    return f'{sys.executable} -c "{code}"'


def test_reading_of_a_meter_is_the_next_line_that_it_prints():
    code = (
        "import itertools, time\n"
        "for joules in itertools.count(): print(joules, flush=True); time.sleep(0.01)"
    )
    meter = find_counter(python(code))
    try:
        before = meter.read()
        called_s = time.monotonic()
        after = meter.read()
    finally:
        meter.close()
    assert after.joules > before.joules
    assert before.at_s <= called_s <= after.at_s
    assert meter.source.startswith("meter (")


def read_three_times(meter: Meter) -> None:
    for _ in range(3):
        meter.read()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('12 W')", "printed '12 W', which is no number"),
        ("print('nan')", "printed nan after 0"),
        ("print(3); print(2)", "printed 2 after 3"),
        ("raise SystemExit('no such port')", "has ended: no such port"),
        ("import time; time.sleep(60)", "printed nothing for 0.1 s"),
    ],
)
def test_meter_that_does_not_work_is_an_error(code, message, monkeypatch):
    if "sleep" in code:
        monkeypatch.setattr(energy, "METER_LIMIT_SECONDS", 0.1)
    meter = Meter(python(code))
    try:
        with pytest.raises(DeviceError) as caught:
            read_three_times(meter)
    finally:
        meter.close()
    assert message in caught.value.message


@pytest.mark.parametrize("command", ["no-such-meter --port 1", "'", ""])
def test_command_that_does_not_start_is_a_wrong_request(command):
    with pytest.raises(RequestError, match="cannot be started"):
        Meter(command)
