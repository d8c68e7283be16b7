import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from nas.deploy import model_process
from nas.deploy.model_process import ModelProcess
from nas.errors import ExportError
from tests.deploy import example_formats as formats

IMAGES = np.random.default_rng(0).standard_normal((5, 1, 4, 4), np.float32)


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "model.npy"
    np.save(path, np.random.default_rng(1).standard_normal((16, formats.CLASSES), np.float32))
    return path


@pytest.fixture
def new_child() -> Callable[[], psutil.Process]:
    """A function that returns the only process that was started since the test began.

    Other tests may have left processes that end later.
    """
    before = {each.pid for each in psutil.Process().children()}

    def find() -> psutil.Process:
        (child,) = [each for each in psutil.Process().children() if each.pid not in before]
        return child

    return find


def test_file_is_run_in_a_process_of_its_own_without_torch(path, new_child, tmp_path, monkeypatch):
    # Files of the working directory do not replace packages.
    (tmp_path / "numpy.py").write_text("raise ImportError('not this one')")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.chdir(tmp_path)
    with ModelProcess(formats.Printing(), path) as process:
        loaded = process.load(IMAGES[:1])
        logits = process.logits(IMAGES)
        timing = process.time()
        child = new_child()
        maps = Path(f"/proc/{child.pid}/maps")
        assert not maps.exists() or "libtorch" not in maps.read_text()
    np.testing.assert_allclose(logits, IMAGES.reshape(5, -1) @ np.load(path), rtol=1e-6)
    assert loaded.versions == {"numpy": np.__version__}
    assert loaded.quantised_layers is None
    assert all(us > 0 for us in (*timing.samples_us, timing.reading_us, timing.first_us))
    assert not child.is_running()


def test_peak_memory_is_that_of_loading_and_one_image(path):
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux says what the peak was")
    peaks = []
    for kind in (formats.Matrix, formats.Large):
        with ModelProcess(kind(), path) as process:
            peaks.append(process.load(IMAGES[:1]).peak_memory_bytes)
    small, large = peaks
    assert small < 16 << 20
    assert 60 << 20 <= large < 96 << 20


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (formats.Refusing, r"model\.npy: it is no matrix Write one\."),
        (formats.Raising, r"model\.npy: KeyError: 'opset'"),
        (formats.Crashing, r"was ended by SIGSEGV: bad instruction"),
    ],
)
def test_runtime_that_fails_is_an_error_with_its_reason(path, kind, message):
    with ModelProcess(kind(), path) as process, pytest.raises(ExportError, match=message):
        process.load(IMAGES[:1])


@pytest.mark.slow
def test_runtime_that_hangs_is_ended(path, monkeypatch):
    monkeypatch.setattr(model_process, "LOAD_LIMIT_SECONDS", 3.0)
    with (
        ModelProcess(formats.Hanging(), path) as process,
        pytest.raises(ExportError, match="took more than 3 s"),
    ):
        process.load(IMAGES[:1])


def test_closed_process_starts_no_other(path):
    """A thread that loads a file when Ctrl-C ends the block would wait for a new process."""
    with ModelProcess(formats.Matrix(), path) as process:
        process.load(IMAGES[:1])
    with pytest.raises(ExportError, match="the process that runs it is closed"):
        process.load(IMAGES[:1])
