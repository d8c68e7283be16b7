from __future__ import annotations

import pytest

from nas.errors import DeviceError, RequestError
from nas.latency import available_runtimes, open_runtime
from nas.latency.runtime import Availability
from nas.runtimes.tvm.runtime import TvmRuntime


def test_available_runtimes_reports_every_runtime() -> None:
    availability = {each.name: each for each in available_runtimes()}
    assert availability["tvm"].usable
    assert availability["tvm"].versions


def test_unknown_runtime_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r"Allowed: ethos_u, litert, onnxruntime, tvm"):
        open_runtime("tensorrt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "abacus"}, r"target 'abacus'.*cpu"),
        ({"dtype": "int4"}, r"dtype 'int4'.*float32"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 100_000}, r"100000 threads cannot run at once: this process may use \d+ of"),
    ],
)
def test_unknown_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        open_runtime("tvm", **settings)


def test_unusable_runtime_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Availability("tvm", False, "apache-tvm is not installed")
    monkeypatch.setattr(TvmRuntime, "availability", lambda: absent)
    with pytest.raises(DeviceError, match="apache-tvm is not installed"):
        open_runtime("tvm")
