from __future__ import annotations

import pytest

from nas.errors import DeviceError, RequestError
from nas.latency import available_runtimes, open_runtime
from nas.latency.runtime import Availability
from nas.runtimes.tvm.runtime import TvmRuntime


def test_every_runtime_says_whether_it_can_be_used() -> None:
    found = {each.name: each for each in available_runtimes()}
    assert found["tvm"].usable
    assert found["tvm"].versions


def test_an_unknown_runtime_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r"'tensorrt'.*Allowed: onnxruntime, tvm"):
        open_runtime("tensorrt")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": "abacus"}, r"target 'abacus'.*cpu"),
        ({"dtype": "int4"}, r"dtype 'int4'.*float32"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 100_000}, r"100000 threads cannot run at once on the \d+ processors"),
    ],
)
def test_settings_a_runtime_does_not_have_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        open_runtime("tvm", **settings)


def test_a_runtime_that_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Availability("tvm", False, "apache-tvm is not installed")
    monkeypatch.setattr(TvmRuntime, "availability", lambda: absent)
    with pytest.raises(DeviceError, match="apache-tvm is not installed"):
        open_runtime("tvm")
