import json
import re
from dataclasses import replace

import pytest

from nas.deploy import export
from nas.deploy.card import render_card, render_sustained
from nas.deploy.export import export_model
from nas.deploy.folder import ModelFolder
from nas.deploy.load import Latencies, LoadWindow
from nas.deploy.requests import ExportRequest
from nas.deploy.sustained import (
    STOPPED,
    _Measurement,
    _Window,
    draw_sustained,
    measure_sustained,
    save_sustained,
)
from nas.errors import RequestError
from nas.run.model_card import SustainedRecord
from nas.run.progress import SilentProgress
from tests.commands import document
from tests.deploy.example_model import onnx_folder


def measurement(seconds: float, latency_of, *, processes: int = 1, images: int = 20):
    """Return a measurement of 60 windows whose latencies are a function of time and process."""
    result = _Measurement("onnx", processes, None, seconds)
    for index in range(60):
        parts = []
        for process in range(processes):
            each = latency_of((index + 0.5) * seconds / 60, process)
            parts.append(LoadWindow(Latencies.of([each] * images), busy_s=each * images))
        end_s = (index + 1) * seconds / 60
        result.windows.append(_Window(end_s, parts, temperature_c=40 + index))
    return result


@pytest.mark.parametrize(
    ("minutes", "begin_s", "end_s"), [(20, 60, 1140), (10, 60, 540), (1, 6, 54)]
)
def test_slowdown_is_that_of_the_last_minute_or_tenth(minutes, begin_s, end_s):
    def latency(at_s: float, process: int) -> float:
        return 2e-3 if at_s < begin_s else 3e-3 if at_s < end_s else 5e-3

    load = measurement(60 * minutes, latency).result([])
    assert load.slowdown == pytest.approx(2.5, rel=5e-3)
    assert load.median_us == pytest.approx(3000, rel=2e-3)
    assert load.p99_us == pytest.approx(5000, rel=2e-3)
    assert len(load.windows) == 60
    assert load.windows[-1].temperature_c == 99
    assert load.windows[-1].end_s == pytest.approx(60 * minutes)
    few = measurement(60 * minutes, latency)
    del few.windows[4:]
    assert few.result([]).slowdown is None


def test_several_processes_are_compared_with_one():
    one = measurement(60, lambda at_s, process: 1e-3).result([])
    load = measurement(60, lambda at_s, process: (1.25e-3, 2e-3)[process], processes=2)
    both = load.result([one])
    assert one.images_per_second == pytest.approx(1000)
    assert both.images_per_second == pytest.approx(800 + 500)
    assert both.slowdowns_against_one == pytest.approx((1.25, 2.0))
    assert both.images_by_process == (1200, 1200)


def at_a_rate(*, rate: float, service_s: float, served: int, late_s: float = 0.0):
    """Return a load of a second at a rate of which so many images were served."""
    result = _Measurement("onnx", 1, rate, 1.0)
    latencies = Latencies.of([service_s + late_s] * served)
    part = LoadWindow(latencies, 0, round(rate) - served, service_s * served, late_s * served)
    result.windows.append(_Window(1.0, [part], temperature_c=None))
    return result.result([])


def test_only_a_file_that_is_slower_than_the_rate_is_said_not_to_keep_up():
    (slow,) = at_a_rate(rate=400, service_s=5e-3, served=200).rate_notes
    assert slow == (
        "onnx does not keep up with 400 a second: 200 images were not begun at the end."
    )
    (late,) = at_a_rate(rate=40_000, service_s=5.6e-6, served=13_670).rate_notes
    assert "26,330 images were not begun at the end, because this machine, or the process" in late
    assert "0.0056 ms, which is 179 k a second" in late
    assert "keep up" not in late
    assert at_a_rate(rate=400, service_s=1e-3, served=400).rate_notes == ()
    (woken,) = at_a_rate(rate=100, service_s=1e-3, served=100, late_s=2e-3).rate_notes
    assert "on average, 2 ms of a latency is the delay of the benchmark's own process" in woken
    assert measurement(60, lambda at_s, process: 1e-3).result([]).rate_notes == ()


@pytest.mark.parametrize(
    ("images", "has_high", "has_p99"), [(6, False, False), (20, True, False), (100, True, True)]
)
def test_percentiles_need_samples(images, has_high, has_p99):
    load = at_a_rate(rate=images, service_s=1e-3, served=images)
    assert (load.high_us is not None, load.p99_us is not None) == (has_high, has_p99)
    assert load.windows[0].high_us == load.high_us
    record = SustainedRecord(
        device="a processor", measured="now", minutes=1, threads=1, loads=(load,)
    )
    row = next(line for line in render_sustained(record).splitlines() if "| onnx |" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert [cell != "-" for cell in cells[3:6]] == [True, has_high, has_p99]


def made_up_record() -> SustainedRecord:
    full = measurement(600, lambda at_s, process: 2e-4).result([])
    loads = (full, full.model_copy(update={"rate": 30.0}))
    return SustainedRecord(device="a processor", measured="now", minutes=10, threads=2, loads=loads)


def test_picture_has_a_line_for_each_load(tmp_path):
    record = made_up_record()
    path = tmp_path / "sustained.svg"
    draw_sustained(record, path)
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text())
    assert {"onnx, full", "onnx, 30 a second", "minutes", "a processor, 2 thread(s)"} <= set(texts)
    with pytest.raises(RequestError, match="A picture cannot be written"):
        draw_sustained(record, tmp_path / "sustained.pdf")


# Real files


@pytest.fixture
def folder(tmp_path) -> ModelFolder:
    return onnx_folder(tmp_path / "jf2a")


def sections(page: str) -> list[str]:
    return re.findall("^## (.+)$", page, re.MULTILINE)


@pytest.mark.slow
def test_saved_record_is_part_of_the_card(folder):
    before = sections((folder.path / "card.md").read_text())
    save_sustained(folder, made_up_record())  # The measured one takes the place of this one.
    record = measure_sustained(folder.path, minutes=0.02, rate=50, save=True, progress=False)
    assert [(each.format, each.text) for each in record.loads] == [
        ("onnx", "full"),
        ("onnx", "50 a second"),
    ]
    # The load lasts 1.2 s. On a busy machine, its last images are not begun in time.
    assert sum(record.loads[1].images_by_process) + record.loads[1].unserved == 60
    assert folder.card.sustained == record
    folder.require_unchanged()
    assert "sustained.svg" in folder.sums()
    saved = (folder.path / "card.md").read_text()
    assert [each for each in sections(saved) if each != "Sustained speed"] == before
    assert sections(saved).count("Sustained speed") == 1
    assert render_sustained(record) in saved


@pytest.mark.slow
def test_record_stays_in_the_card_as_long_as_its_files(
    trained, digits, origin, tmp_path, monkeypatch
):
    folder, request = ModelFolder(tmp_path / "jf2a"), ExportRequest(("onnx",))
    export_model(trained, digits, folder, request, origin)
    save_sustained(folder, made_up_record())
    assert (folder.path / "card.md").read_text() == render_card(folder.card, "benchmark.svg")
    # Another license makes another card of the same files.
    licensed = replace(origin, data=origin.data.model_copy(update={"license": "MIT"}))
    assert export_model(trained, digits, folder, request, licensed).sustained == made_up_record()
    assert "sustained.svg" in (folder.path / "card.md").read_text()
    # New files were not measured.
    monkeypatch.setattr(export, "digest_of_weights", lambda model: "0" * 64)
    assert export_model(trained, digits, folder, request, origin).sustained is None
    assert not (folder.path / "sustained.svg").exists()
    folder.require_unchanged()


class Interrupting(SilentProgress):
    """Somebody who presses Ctrl-C after some seconds of a measurement."""

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        if done >= self.after_s:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured_and_saves_nothing(folder):
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    options = {"minutes": 0.02, "processes": 2, "save": True}
    record = measure_sustained(folder.path, **options, progress=Interrupting(2))
    alone, both = record.loads
    assert record.stopped == STOPPED
    assert alone.seconds == pytest.approx(1.2)
    assert 0 < both.seconds < 1.2
    # On a busy machine, one of the processes may have had no time for an image yet.
    assert len(both.slowdowns_against_one) == sum(n > 0 for n in both.images_by_process) > 0
    assert before == {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        measure_sustained(folder.path, minutes=0.05, progress=Interrupting(0))


@pytest.mark.slow
def test_command_prints_and_draws_the_sustained_speed(folder, tmp_path, invoke):
    picture = tmp_path / "sustained.svg"
    arguments = ("benchmark", folder.path, "--minutes", 0.01, "--processes", 2)
    shown = document(invoke(*arguments, "--plot", picture, "--json"))
    assert [load["processes"] for load in shown["loads"]] == [1, 2]
    assert shown["stopped"] == ""
    assert "onnx, full, 2 processes" in picture.read_text()
    done = invoke(*arguments, "--save")
    assert done.returncode == 0, done.stderr
    assert "each of 2 processes takes" in done.stdout
    card = json.loads((folder.path / "card.json").read_text())
    assert len(card["sustained"]["loads"]) == 2
    wrong = invoke("benchmark", folder.path, "--rate", 30)
    assert wrong.returncode == 2
    assert "Give --minutes too" in wrong.stderr
    many = invoke("benchmark", folder.path, "--minutes", 1, "--processes", 4096)
    assert many.returncode == 2
    assert "4096 processes of 1 thread each cannot run at once" in many.stderr
