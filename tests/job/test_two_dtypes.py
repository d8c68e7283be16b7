"""A job that chooses float32 or int8 for each network."""

import json
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nas import job as jobs
from nas.errors import JobFileError, RequestError
from nas.job import int8_losses, load_job, retarget
from nas.job.inputs import check_device
from nas.job.settings import with_options
from nas.latency import configured_runtime
from nas.latency.timing import Timing, round_to_four_digits
from nas.opened_run import open_run
from nas.run.model_card import CARD
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from nas.supernet import evaluation
from tests.job.runs import OUT, edit, front_digests, read_completed_trials, read_trials
from tests.latency import fake_runtime
from tests.latency.fake_runtime import DEVICE, FakeNetwork, FakeRuntime, device, use_fake_device
from tests.mini_job import write_job

BOTH = '\n[device]\nruntime = "onnxruntime"\ndtype = ["int8", "float32"]\n'


def int8_us(kernel) -> float:
    """Return the latency of a kernel in int8, in which the large ones are faster."""
    return round(1.2 + kernel.macs / 4000, 1)


US = {"float32": fake_runtime.latency_us, "int8": int8_us}


class Network(FakeNetwork):
    def __init__(self, launched, dtype):
        super().__init__(launched)
        self.dtype = dtype

    def evaluate(self, calls, samples):
        return [1.1e-6 * sum(map(US[self.dtype], self.launched))] * samples


def onnxruntime(dtype):
    """Return the runtime whose kernels the fake device has."""
    return configured_runtime("onnxruntime", dtype=dtype, features=DEVICE.features)


class FakeOnnxRuntime(FakeRuntime):
    """A runtime with the kernels of ONNX Runtime, whose latencies depend on the dtype."""

    capabilities = replace(OnnxRuntime.capabilities, rounds=2)

    def __init__(self, dtype, **settings):
        super().__init__(device(runtime="onnxruntime", dtype=dtype))
        self.dtype, self.real = dtype, onnxruntime(dtype)

    def kernels(self, graph, batch=1):
        return self.real.kernels(graph, batch)

    def block_kernels(self, blocks, batch=1):
        return self.real.block_kernels(blocks, batch)

    def time_kernel(self, kernel):
        schedule, _ = super().time_kernel(kernel)
        return schedule, Timing((US[self.dtype](kernel),) * 10)

    def retime_kernel(self, kernel, schedule):
        super().retime_kernel(kernel, schedule)
        return Timing((round_to_four_digits(US[self.dtype](kernel)),) * 10)

    def compile(self, graph, schedules, weights=None, batch=1):
        return Network(self.kernels(graph, batch), self.dtype)


def whole_network_us(architecture) -> float:
    """Return the latency of a network on the fake device, from its kernels alone."""
    dtype = architecture.choices["dtype"]
    return 1.1 * sum(map(US[dtype], onnxruntime(dtype).kernels(architecture.graph, 1)))


def write_mixed_job(folder: Path) -> Path:
    path = write_job(folder, spaces=("mobile", "squeeze"), extra=BOTH)
    changes = {"retrain = 0": "retrain = 2", "export = []": 'export = ["onnx", "onnx-int8"]'}
    return edit(path, changes)


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory) -> Path:
    """Return a folder with a finished job in two dtypes on a fake device."""
    folder = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_fake_device(patch, FakeOnnxRuntime)
        jobs.run_job(load_job(write_mixed_job(folder)), OUT)
    return folder


@pytest.fixture
def finished(finished_folder, enter_copy, monkeypatch):
    """Make a copy of the folder the working directory, and return the run."""
    enter_copy(finished_folder)
    use_fake_device(monkeypatch, FakeOnnxRuntime)
    return open_run(OUT)


def network_of(row) -> tuple:
    """Return what two rows of one network in two dtypes have in common."""
    choices = json.loads(row["architecture"])["choices"]
    return row["space"], *[pair for pair in choices.items() if pair[0] != "dtype"]


@pytest.mark.slow
def test_trials_have_the_latency_of_their_dtype_and_the_expected_accuracy(finished):
    rows = read_completed_trials(OUT)
    assert set(rows["dtype"]) == {"float32", "int8"}
    for row in rows.dropna(subset=["measured_us"]).to_dict("records"):
        architecture = finished.architecture(row["digest"])
        assert architecture.choices["dtype"] == row["dtype"]
        assert row["measured_us"] == pytest.approx(whole_network_us(architecture), rel=1e-3)
    networks = {}
    for row in rows.to_dict("records"):
        networks.setdefault(network_of(row), {})[row["dtype"]] = row
    pairs = [(name, each) for name, each in networks.items() if len(each) == 2]
    assert pairs
    for (space, *_), pair in pairs:
        loss = max(0.0, np.mean(finished.record.int8_losses[space].losses))
        lost = pair["float32"]["validation_accuracy"] - pair["int8"]["validation_accuracy"]
        assert lost == pytest.approx(loss, abs=2e-6)


@pytest.mark.slow
def test_front_is_over_both_dtypes(finished):
    rows = read_trials(OUT).dropna(subset=["measured_us"])
    rows["error"] = 1 - rows["corrected_accuracy"]
    members = pd.read_csv(OUT / "front.csv")
    assert set(members["digest"]) == front_digests(rows, "measured_us", "error")
    assert set(members["dtype"]) == {"float32", "int8"}
    page = (OUT / "report.html").read_text()
    assert '<br><span class="missing">int8</span></td>' in page
    assert "<dt>int8 in squeeze</dt>" in page


@pytest.mark.slow
def test_a_finalist_in_int8_has_the_accuracies_of_its_int8_file(finished):
    records = list(finished.trained.values())
    assert len({(each.space, str(each.architecture.choices)) for each in records}) == 2
    own = [each for each in records if each.architecture.dtype == "int8"]
    assert own
    for record in own:
        card = CARD.read(OUT / "models" / record.id / "card.json")
        files = {each.format: each for each in card.files}
        assert card.search_dtype in ("int8", "")
        # A rounding at the edge may turn one image.
        near = 1.01 / record.holdout.images
        int8 = files["onnx-int8"].holdout_accuracy
        assert record.holdout.accuracy == pytest.approx(int8, abs=near)
        assert record.test.accuracy == pytest.approx(files["onnx-int8"].accuracy, abs=near)
        float32 = files["onnx"].holdout_accuracy
        assert record.float32_accuracy == pytest.approx(float32, abs=near)
        assert record.int8_loss == record.float32_accuracy - record.holdout.accuracy
        loss = finished.record.int8_losses[record.space]
        assert record.expected_int8_loss == loss.expected
        row = read_trials(OUT).set_index("digest").loc[record.digest]
        assert row["trained_accuracy"] == record.holdout.accuracy
        assert f"<code>{record.id}</code> was chosen in int8" in (OUT / "report.html").read_text()


@pytest.mark.slow
def test_an_interrupted_job_ends_as_an_uninterrupted_one(finished, monkeypatch):
    before, calls, loss = read_trials(OUT), count(1), int8_losses._loss
    shutil.rmtree(OUT)

    def stop(*arguments):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return loss(*arguments)

    settings = with_options(load_job(Path("job.toml")), finish={"export": []})
    with monkeypatch.context() as patch:
        patch.setattr(int8_losses, "_loss", stop)
        with pytest.raises(KeyboardInterrupt):
            jobs.run_job(settings, OUT)
    jobs.run_job(settings, OUT)
    pd.testing.assert_frame_equal(
        read_trials(OUT).drop(columns="seconds"), before.drop(columns="seconds")
    )


@pytest.mark.slow
def test_the_second_dtype_of_a_network_costs_no_evaluation(finished, monkeypatch):
    evaluated = []
    shutil.rmtree(OUT)
    folded_subnet = evaluation._folded_subnet

    def record(supernet, architecture, *arguments):
        if "dtype" in architecture.choices:  # A trial; losses and ends of spaces have none.
            evaluated.append(architecture.digest)
        return folded_subnet(supernet, architecture, *arguments)

    monkeypatch.setattr(evaluation, "_folded_subnet", record)
    jobs.search_job(load_job(Path("job.toml")), OUT)
    rows = read_completed_trials(OUT)
    networks = {network_of(row) for row in rows.to_dict("records")}
    assert len(evaluated) == len(networks) < len(rows)


@pytest.mark.slow
def test_a_run_in_two_dtypes_is_not_retargeted(finished):
    with pytest.raises(RequestError, match="candidates in float32 and int8"):
        retarget(finished, runtime="litert", dtype="int8")


@pytest.mark.parametrize(
    "dtype", ["[]", '["int8"]', '["float32", "float16"]', '["int8", "int8"]', "8", "[8]"]
)
def test_other_lists_of_dtypes_are_refused(tmp_path, dtype):
    path = write_job(tmp_path, extra=f"\n[device]\ndtype = {dtype}\n")
    with pytest.raises(JobFileError, match=r'device\.dtype.*write one, such as "int8", or \['):
        load_job(path)


def test_two_dtypes_need_a_runtime_with_both_and_no_further_device(tmp_path):
    path = write_job(tmp_path, extra='\n[device]\ndtype = ["float32", "int8"]\n')
    with pytest.raises(RequestError, match="int8"):
        check_device(load_job(path))
    one_file = BOTH + 'tables = "mine.jsonl"\n'
    with pytest.raises(RequestError, match=r"mine\.jsonl, and two dtypes have two tables"):
        check_device(load_job(write_job(tmp_path, extra=one_file)))
    more = '\n[[search.device]]\ntable = "tables/phone.jsonl"\n'
    with pytest.raises(RequestError, match=r"two values of \[device\] dtype has a"):
        check_device(load_job(write_job(tmp_path, extra=BOTH + more)))
