"""Public objects go into other processes: each is equal there, and so are the errors."""

import multiprocessing
import pickle
from collections.abc import Callable
from inspect import isclass
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import nas
from nas import errors
from nas.latency import LatencyTable
from nas.pretrained import read_weights
from nas.supernet.recipe import Recipe
from tests.conftest import EXAMPLE
from tests.latency.fake_runtime import FakeRuntime
from tests.latency.small_table import timed
from tests.pretrained.test_read_weights import SPACE as PUBLISHED_SPACE
from tests.pretrained.test_read_weights import published

SPACE = nas.load_space("mobilenet_tiny", image_size=8, channels=1)
ARCHITECTURE = SPACE.sample(seed=0)
GRAPH = ARCHITECTURE.graph


def macs(architectures: Any) -> list[float]:
    return [float(each.macs) for each in architectures]


def new_table(folder: Path) -> LatencyTable:
    """Return a writable table of the kernels of `GRAPH`."""
    runtime = FakeRuntime()
    table = LatencyTable.open_or_create(folder, runtime)
    nas.build_table(table, list(dict.fromkeys(runtime.kernels(GRAPH))), runtime)
    return table


def new_weights(folder: Path) -> nas.PublishedWeights:
    path = folder / "weights.pth"
    torch.save(published().state_dict(), path)
    return read_weights(path, spaces=[PUBLISHED_SPACE], conventions="torch")


def tensors(module: torch.nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in module.state_dict().items()}


def itself(thing: Any) -> Any:
    return thing


def trials_of(sampler: nas.GuidedSampler) -> list[Any]:
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: nas.suggest(trial, SPACE).macs, n_trials=3)
    return [trial.params for trial in study.trials]


CASES: dict[str, tuple[Callable[[Path], Any], Callable[[Any], Any]]] = {
    "Architecture": (lambda _: ARCHITECTURE, itself),
    "Graph": (lambda _: GRAPH, itself),
    "GuidedSampler": (lambda _: nas.GuidedSampler(SPACE, seed=3), trials_of),
    "ImageDataset": (
        lambda _: nas.load_dataset("digits"),
        lambda data: (data.digest, data.classes, data.test.pixels.tolist()),
    ),
    "LatencyTable": (
        new_table,
        lambda table: (table.path, table.device, table.schedules(), table.predict(GRAPH)),
    ),
    "Objective": (lambda _: nas.Objective("macs", macs, cheap=True, limit=9e9), itself),
    "PublishedWeights": (
        new_weights,
        lambda weights: (
            weights.digest, weights.architecture, weights.license, tensors(weights.network())
        ),
    ),
    "OpenedRun": (lambda _: nas.open_run(EXAMPLE), lambda run: (run.path, run.front.to_json())),
    "Run": (lambda _: nas.Run(EXAMPLE), lambda run: (run.path, run.front.to_json())),
    "Runtime": (
        lambda _: FakeRuntime(),
        lambda runtime: (runtime.kernels(GRAPH), runtime.fingerprint),
    ),
    "SearchSpace": (lambda _: SPACE, itself),
    "Stage": (lambda _: SPACE.stages[0], itself),
    "Supernet": (lambda _: nas.Supernet(SPACE, torch.Generator().manual_seed(0)), tensors),
    "Recipe": (lambda _: Recipe(epochs=3), itself),
    # What calls return.
    "to_torch": (lambda _: nas.to_torch(ARCHITECTURE), tensors),
    "load_job": (lambda _: nas.load_job(EXAMPLE / "job.toml"), itself),
    "predict": (lambda folder: new_table(folder).predict(ARCHITECTURE), itself),
    "pick": (
        lambda _: nas.open_run(EXAMPLE).pick(max_latency_ms=1000),
        lambda pick: (pick.architecture, pick.validation_accuracy, pick.path),
    ),
}  # fmt: skip
"""How each public object is made in a folder, and what must be equal after pickling."""


def test_every_public_class_has_a_case():
    assert {name for name in nas.__all__ if isclass(getattr(nas, name))} <= CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_public_object_is_equal_after_pickling(name, tmp_path, monkeypatch):
    make, shown = CASES[name]
    thing = make(tmp_path)
    copied = pickle.loads(pickle.dumps(thing))
    assert type(copied) is type(thing)
    expected = shown(thing)
    monkeypatch.chdir(tmp_path)
    assert shown(copied) == expected


def table_in_another_process(table: LatencyTable, architecture: nas.Architecture) -> Any:
    """Return what another process predicts, after it has added a kernel to the table."""
    with table.writing():
        table.append(timed(SPACE_KERNELS[-1]))
    return table.predict(architecture).latency_us, len(table), str(table.path)


SPACE_KERNELS = sorted(nas.space_kernels(SPACE, "tvm"), key=lambda kernel: kernel.text)


@pytest.mark.slow
def test_table_predicts_and_is_written_in_a_spawned_process(tmp_path):
    table = new_table(tmp_path)
    assert table.record(SPACE_KERNELS[-1]) is None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        predicted_us, count, path = pool.apply(table_in_another_process, (table, ARCHITECTURE))
    assert predicted_us == table.predict(ARCHITECTURE).latency_us
    assert (count, path) == (len(table) + 1, str(table.path.absolute()))
    table.refresh()
    assert table.record(SPACE_KERNELS[-1]) is not None


def test_table_that_was_opened_for_reading_stays_so(tmp_path):
    read_only = pickle.loads(pickle.dumps(LatencyTable.open(new_table(tmp_path).path)))
    with pytest.raises(errors.TableError, match="opened for reading only"), read_only.writing():
        pass


def test_table_of_a_relative_path_is_found_from_another_folder(tmp_path, monkeypatch):
    path = new_table(tmp_path).path
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(LatencyTable.open(path.name))
    monkeypatch.chdir("/")
    assert pickle.loads(pickled).predict(GRAPH) == LatencyTable.open(path).predict(GRAPH)


def test_table_that_is_gone_is_an_error_that_names_it(tmp_path):
    table = new_table(tmp_path)
    pickled = pickle.dumps(table)
    table.path.unlink()
    with pytest.raises(errors.TableError, match=f"There is no latency table {table.path}"):
        pickle.loads(pickled)


def test_table_goes_where_cloudpickle_takes_it(tmp_path):
    cloudpickle = pytest.importorskip("cloudpickle")
    table = new_table(tmp_path)
    score = pickle.loads(cloudpickle.dumps(lambda each: table.predict(each).latency_us))
    assert score(ARCHITECTURE) == table.predict(ARCHITECTURE).latency_us


def all_errors(kind: type[errors.NasError] = errors.NasError) -> list[type[errors.NasError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in all_errors(below))]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_error_says_the_same_in_another_process(kind):
    if kind is errors.IncompleteExportError:
        failed = {"onnx": errors.ExportError("It is too large.", remedy="Export another format.")}
        error: errors.NasError = kind(failed)
    else:
        error = kind("It is wrong.", remedy="Do this.")
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), copied.exit_status) == (kind, str(error), error.exit_status)
    assert copied.__dict__.keys() == error.__dict__.keys()
