"""Fixtures for many tests: the mini job, commands in this process, and a PostgreSQL server."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas.cli import main
from nas.data import ImageDataset, load_dataset
from nas.job import JobSettings, load_job, run_job
from nas.run import candidates
from tests import quick_timing
from tests.latency.fake_runtime import use_fake_device
from tests.made_once import made_once
from tests.mini_job import write_job
from tests.search.postgresql import Server, find_binaries, running_server

EXAMPLE = Path(__file__).parents[1] / "results" / "example"


def pytest_configure() -> None:
    """Let the processes that tests start obey Ctrl-C and hangups.

    A shell lets its background jobs ignore Ctrl-C, and `nohup` lets them ignore hangups. Processes
    inherit that, unless the signal has a handler.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with one test that needs the finished job, and end with the others.

    One process makes it while all others run tests that do not wait for it.
    """

    def waits(item: pytest.Item) -> bool:
        return "finished_job" in getattr(item, "fixturenames", ())

    waiting = [item for item in items if waits(item)]
    others = [item for item in items if not waits(item)]
    items[:] = [*waiting[:1], *others, *waiting[1:]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run torch on one thread, and skip tests marked `gpu` if TVM finds no NVIDIA GPU.

    Two threads that wait for each other are many times slower where other tests run beside them.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if item.get_closest_marker("gpu") is None:
        return
    import tvm

    if not tvm.cuda().exist:
        pytest.skip("needs an NVIDIA GPU, and TVM finds none on this machine")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory) -> Iterator[None]:
    """Give the session an image cache of its own.

    The package ziglang compiles the C library of a device once, for a minute, and has it then.
    """
    with pytest.MonkeyPatch.context() as patch:
        users = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        if "ZIG_GLOBAL_CACHE_DIR" not in os.environ:
            patch.setenv("ZIG_GLOBAL_CACHE_DIR", str(Path(users) / "zig"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _quick_timing() -> Iterator[None]:
    """Time in few rounds and without pauses, here and in the processes of timers."""
    with pytest.MonkeyPatch.context() as patch:
        quick_timing.apply(patch)
        yield


@pytest.fixture(scope="session")
def digits() -> ImageDataset:
    """Return the digits dataset, with half of its training images for validation."""
    return load_dataset("digits", validation_fraction=0.5)


@pytest.fixture
def job_folder(tmp_path, monkeypatch) -> Path:
    """Return an empty current folder with the mini job in it."""
    monkeypatch.chdir(tmp_path)
    write_job(tmp_path)
    return tmp_path


@pytest.fixture
def job(job_folder) -> JobSettings:
    """Return the settings of the mini job in the current folder."""
    return load_job(job_folder / "job.toml")


@pytest.fixture(scope="session")
def finished_job(tmp_path_factory) -> Path:
    """Return a folder in which the mini job has finished: `results/mini` and `latency_tables`.

    A test that changes files needs `copy_of_finished_job`.
    """

    def run(folder: Path) -> None:
        run_job(load_job(write_job(folder)), Path("results/mini"), command="nas run job.toml")

    return made_once(tmp_path_factory, "finished_job", run)


@pytest.fixture
def copy_of_finished_job(finished_job, tmp_path) -> Path:
    """Return a copy of the folder in which the mini job has finished."""
    return shutil.copytree(finished_job, tmp_path / "finished_job")


@pytest.fixture
def job_folder_with_table(job_folder, finished_job) -> Path:
    """Return the current folder with the mini job and the latency table of the finished job."""
    shutil.copytree(finished_job / "latency_tables", job_folder / "latency_tables")
    return job_folder


@pytest.fixture
def untrained_run(tmp_path: Path) -> Path:
    """Return a copy of the example run without trained models and corrected accuracies."""
    ignored = shutil.ignore_patterns("models", "*.safetensors", "study.journal", "standalone.jsonl")
    run = shutil.copytree(EXAMPLE, tmp_path / "run", ignore=ignored)
    rows = candidates.read(run / "trials.csv")
    later = ["trained_accuracy", "test_accuracy", "recipe", "dominated_by"]
    rows[[*later, "corrected_accuracy", "dispatch_share"]] = None
    candidates.write(rows, run / "trials.csv")
    return run


@pytest.fixture
def fake_device(monkeypatch) -> None:
    """Compute timings instead of measuring them, so that two runs are equal, without processes."""
    use_fake_device(monkeypatch)


@pytest.fixture
def invoke(monkeypatch, capsys):
    """Return a function that runs `nas` in this process, which is faster than in a new one."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["nas", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, ended.value.code or 0, out, err)

    return run


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """Return a PostgreSQL server; skip the test if PostgreSQL is not installed."""
    folder = find_binaries()
    if folder is None:
        if os.environ.get("NAS_REQUIRE_POSTGRESQL") == "1":
            pytest.fail("PostgreSQL is not installed, and NAS_REQUIRE_POSTGRESQL=1 asks for it")
        pytest.skip("PostgreSQL is not installed")
    with running_server(folder) as server:
        yield server


@pytest.fixture
def database(postgresql) -> str:
    """Return the address of an empty database, with its password."""
    return postgresql.new_database()
