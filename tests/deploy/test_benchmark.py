import math
import os
import re
import signal
import threading
import time
from unittest.mock import Mock

import numpy as np
import pytest

from nas.deploy import benchmark
from nas.deploy.benchmark import draw_benchmark, time_files
from nas.deploy.model_process import ModelProcess
from nas.errors import ExportError, RequestError
from nas.latency import rounds, timing
from nas.run.model_card import ExportedFile, LatencyRecord
from tests.deploy import example_formats as formats
from tests.deploy.example_model import onnx_folder
from tests.deploy.test_model_process import IMAGES
from tests.latency.rounds_without_readings import latency_of
from tests.run.test_judged import IMAGES as JUDGED


def exported(name: str, latency_us: float | None, precision: str = "float32") -> ExportedFile:
    latency = None
    if latency_us is not None:
        latency = LatencyRecord.of(latency_of([latency_us] * 5), threads=2)
    return ExportedFile(
        format=name, file=f"model.{name}", precision=precision, size_bytes=10, accuracy=0.9,
        latency=latency,
    )  # fmt: skip


@pytest.mark.slow
def test_files_are_timed_in_rounds(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "MAX_ROUNDS", 3)
    monkeypatch.setattr(rounds, "ROUNDS", 3)
    matrix = np.random.default_rng(1).standard_normal((16, 3)).astype(np.float32)
    np.save(tmp_path / "model.npy", matrix)
    steps = []
    with (
        ModelProcess(formats.Matrix(), tmp_path / "model.npy") as first,
        ModelProcess(formats.FastInt8Matrix(), tmp_path / "model.npy") as second,
    ):
        second.load(IMAGES[:1])  # A process that has loaded its file does not load it again.
        running = {"first": first, "second": second}
        timed, _ = time_files(running, IMAGES[:1], lambda *step: steps.append(step))
    assert [name for _, _, name in steps] == ["first", "second"] * 3
    assert [(done, total) for done, total, _ in steps] == [(n, 6) for n in range(1, 7)]
    for latency in timed.values():
        assert len(latency.rounds_us) == len(latency.first_us) == 3
        assert latency.threads == 1
    record = second.described(exported("x", None), latency=timed["second"])
    assert (record.quantised_layers, record.latency) == ((1, 1), timed["second"])
    assert record.accuracy == 0.9


@pytest.mark.slow
def test_file_that_fails_is_left_out_and_the_others_are_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "MAX_ROUNDS", 3)
    monkeypatch.setattr(rounds, "ROUNDS", 3)
    np.save(tmp_path / "model.npy", np.eye(16, 3, dtype=np.float32))
    with (
        ModelProcess(formats.Refusing(), tmp_path / "model.npy") as refusing,
        ModelProcess(formats.Matrix(), tmp_path / "model.npy") as killed,
        ModelProcess(formats.Matrix(), tmp_path / "model.npy") as good,
    ):
        running = {"refusing": refusing, "killed": killed, "good": good}

        def kill(done, total, name):
            if name == "killed" and killed._process.is_running:
                os.kill(killed._process.pid, signal.SIGKILL)
                while killed._process.is_running:
                    time.sleep(0.01)

        timed, failed = time_files(running, IMAGES[:1], kill)
    assert set(timed) == {"good"}
    assert len(timed["good"].rounds_us) == 3
    assert "it is no matrix" in str(failed["refusing"])
    assert "ended by SIGKILL" in str(failed["killed"])


@pytest.mark.parametrize(
    ("samples_us", "expected"),
    [
        ([100.0, 102.9, 140.0, 130.0], 4),
        ([100.0, 104.0, 140.0, 130.0, 99.0], 5),
        ([160.0, 150.0, 140.0, 130.0, 120.0, 100.0, 110.0, 170.0, 100.0], 8),
    ],
)
def test_files_are_timed_until_the_timings_of_each_agree_within_3_percent(
    samples_us, expected, monkeypatch
):
    monkeypatch.setattr(rounds, "ROUNDS", 4)
    monkeypatch.setattr(timing, "SECONDS_BETWEEN_ROUNDS", 0.0)

    def file(own_us):
        timings = (timing.Timing((us,)) for us in own_us)
        return Mock(loaded=True, threads=1, time=lambda again: next(timings))

    steps = []
    running = {"steady": file([50.0] * 9), "noisy": file(samples_us)}
    report = lambda *step: steps.append(step)  # noqa: E731
    timed, failed = time_files(running, IMAGES[:1], report, known_us=math.inf)
    assert not failed
    assert {len(latency.rounds_us) for latency in timed.values()} == {expected}
    assert steps[-1] == (2 * expected, 2 * expected, "noisy")


def test_files_are_timed_in_all_rounds_where_a_slow_core_would_not_be_seen(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS_BETWEEN_ROUNDS", 0.0)
    file = Mock(loaded=True, threads=1)
    file.time.return_value = timing.Timing((50.0,))
    timed, _ = time_files({"steady": file}, IMAGES[:1])
    assert len(timed["steady"].rounds_us) == benchmark.MAX_ROUNDS
    loads = [each.kwargs["again"] for each in file.time.call_args_list]
    assert loads == [False, *[True] * (benchmark.MAX_ROUNDS - 1)], "each round has its own load"


def test_why_a_process_ended_while_it_learned_the_speed_is_said(monkeypatch):
    monkeypatch.setattr(benchmark, "MAX_ROUNDS", 1)
    ended = ExportError("was ended by SIGKILL")
    dead = Mock(loaded=True, threads=1, learn_speed=Mock(side_effect=ended))
    alive = Mock(loaded=True, threads=1, time=lambda again: timing.Timing((50.0,)))
    timed, failed = time_files({"dead": dead, "alive": alive}, IMAGES[:1])
    assert failed == {"dead": ended}
    assert set(timed) == {"alive"}


def test_processes_learn_the_speed_at_the_same_time_before_any_file_is_timed(monkeypatch):
    monkeypatch.setattr(benchmark, "MAX_ROUNDS", 1)
    together, calls = threading.Barrier(2, timeout=30.0), []

    def learn_speed():
        together.wait()
        calls.append("learn")

    def time_once(again):
        calls.append("time")
        return timing.Timing((100.0,))

    file = Mock(loaded=True, threads=1, learn_speed=learn_speed, time=time_once)
    time_files({"first": file, "second": file}, IMAGES[:1])
    assert calls == ["learn", "learn", "time", "time"]


def test_file_that_does_not_run_is_an_error(tmp_path, monkeypatch):
    failed = {"onnx": ExportError("model.onnx: it is no model")}
    monkeypatch.setattr(benchmark, "time_files", lambda *_: ({}, failed))
    with pytest.raises(ExportError, match="it is no model"):
        benchmark.benchmark(onnx_folder(tmp_path / "jf2a").path)


def test_picture_names_every_timed_file(tmp_path):
    path = tmp_path / "benchmark.svg"
    files = [
        exported("onnx", 310.0),
        exported("onnx-int8", 150.0, "int8"),
        exported("coreml", None),
    ]
    draw_benchmark(files, "a processor", path, JUDGED)
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text())
    assert {"onnx", "onnx-int8", "0.31 ms, accuracy 90.0% (78.6 to 95.7)"} <= set(texts)
    assert "coreml" not in texts
    assert "a processor, 2 thread(s)" in texts
    with pytest.raises(ExportError, match="no latency to draw"):
        draw_benchmark([exported("coreml", None)], "a processor", path, JUDGED)
    with pytest.raises(RequestError, match="A picture cannot be written"):
        draw_benchmark(files, "a processor", tmp_path / "benchmark.pdf", JUDGED)
