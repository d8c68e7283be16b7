"""Runtimes that cannot be imported: whatever they raise is the reason why they are not usable."""

from __future__ import annotations

import subprocess
import sys
from typing import NoReturn

import pytest

from nas.errors import DeviceError, RequestError
from nas.latency import (
    Capabilities,
    available_runtimes,
    installed_runtimes,
    open_runtime,
    runtime_names,
)
from nas.latency import runtime as contract
from nas.latency.installed_runtimes import RUNTIMES, runtime_class
from nas.latency.runtime import Runtime
from nas.run.settings import DeviceSettings
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.fake_runtime import FakeRuntime

ERRORS = [
    RuntimeError("Could not determine home directory."),
    KeyError("getpwuid(): uid not found: 12345"),
    SystemExit("no license"),
]


def test_runtimes_are_listed_where_no_package_of_theirs_is_installed() -> None:
    code = """
import sys
for name in ("tvm", "tvm_ffi", "onnx", "onnxruntime", "ai_edge_litert", "ethosu", "torch"):
    sys.modules[name] = None
from nas.latency.installed_runtimes import RUNTIMES, available_runtimes
print(sorted(RUNTIMES.load_all()) == RUNTIMES.names)
print([each.usable for each in available_runtimes()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    unusable = [False] * len(RUNTIMES.names)
    assert (done.stdout, done.stderr) == (f"True\n{unusable}\n", "")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", RUNTIMES.names)
def test_whatever_the_import_of_a_runtime_raises_is_its_reason(
    name: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(module: str) -> NoReturn:
        raise error

    monkeypatch.setattr(contract, "import_module", fail)
    availability = {each.name: each for each in available_runtimes()}[name]
    assert not availability.usable
    assert f"does not load ({type(error).__name__}: " in availability.reason
    assert availability.versions
    target = runtime_class(name).capabilities.targets[0]
    with pytest.raises((DeviceError, RequestError)) as refused:
        open_runtime(name, target=target, dtype=runtime_class(name).capabilities.dtypes[0])
    if isinstance(refused.value, DeviceError):  # A target with an address is checked before.
        assert availability.reason in refused.value.message


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_runtime_of_another_package_raises_is_its_reason(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(FakeRuntime):
        @classmethod
        def availability(cls) -> NoReturn:
            raise error

    (name, *others) = RUNTIMES.names
    Broken.name = name
    monkeypatch.setitem(RUNTIMES._loaded, name, Broken)
    runtimes = available_runtimes()
    assert [each.usable for each in runtimes] == [False, *[True] * len(others)]
    assert runtimes[0].reason.startswith(type(error).__name__)


def test_runtime_whose_class_does_not_load_is_listed_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (name, *others) = RUNTIMES.names
    load = RUNTIMES.load

    def fail(asked: str) -> object:
        if asked == name:
            raise RequestError("Its package is broken.", remedy="Install it again.")
        return load(asked)

    monkeypatch.setattr(RUNTIMES, "load", fail)
    first = available_runtimes()[0]
    assert (first.name, first.usable) == (name, False)
    assert first.reason == "Its package is broken. Install it again."
    with pytest.warns(UserWarning, match="Its package is broken"):
        assert runtime_names() == others


DEFAULTS = {"runtime": "tvm", "target": "cpu", "dtype": "float32"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, DEFAULTS),
        ({"target": "ethos-u55-128"}, {"runtime": "ethos_u", "dtype": "int8"}),
        ({"target": "ethos-u65-256:Ethos_U65_High_End"}, {"runtime": "ethos_u", "dtype": "int8"}),
        ({"runtime": "ethos_u", "target": "ethos-u55-32"}, {"dtype": "int8"}),
        ({"target": "ethos-u55-128", "dtype": "float32"}, {"runtime": "ethos_u"}),
        ({"runtime": "onnxruntime"}, {}),
        ({"target": "cuda"}, {}),
        ({"target": "ssh://pi@10.0.0.7"}, {}),
        ({"target": "no-such-device"}, {}),
        ({"runtime": "no_such_runtime", "target": "ethos-u55-128"}, {}),
        ({"runtime": "ethos_u"}, {"dtype": "int8"}),
    ],
)
def test_device_has_the_only_runtime_and_dtype_of_its_target(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    completed = installed_runtimes.completed_device(given, DEFAULTS)
    assert completed == {**DEFAULTS, **given, **expected}


@pytest.mark.parametrize("name", ["other", "o/dd"])
def test_runtime_whose_entry_point_has_another_name_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Named(FakeRuntime):
        pass

    Named.name = name
    entry = "o/dd" if name == "o/dd" else "one"
    monkeypatch.setitem(RUNTIMES._loaded, entry, Named)
    with pytest.raises(RequestError, match=f"The entry point '{entry}' of nas.runtimes"):
        installed_runtimes.runtime_class(entry)


class OneNpu(TvmRuntime):
    """A runtime with one target and one dtype."""

    name = "one"
    capabilities = Capabilities(targets=("npu",), dtypes=("int8",))


@pytest.mark.parametrize("given", [{"target": "npu"}, {"runtime": "one"}])
def test_plug_in_with_one_target_needs_no_other_option(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    point = installed_runtimes.RUNTIMES
    monkeypatch.setattr(OneNpu, "for_target", classmethod(lambda cls, target: cls))
    monkeypatch.setattr(OneNpu, "check_target", Runtime.check_target)
    points = {**point._entry_points, "one": None}
    monkeypatch.setattr(point, "_entry_points", points)
    monkeypatch.setitem(point._loaded, "one", OneNpu)
    expected = {"runtime": "one", "target": "npu", "dtype": "int8"}
    assert installed_runtimes.completed_device(given, DEFAULTS) == expected
    assert DeviceSettings.model_validate(given).model_dump().items() >= expected.items()
    points["two"] = None
    monkeypatch.setitem(point._loaded, "two", type("Two", (OneNpu,), {"name": "two"}))
    with pytest.raises(RequestError, match="The runtimes one, two have target 'npu'"):
        installed_runtimes.completed_device({"target": "npu"}, DEFAULTS)
