"""`nas device`, with this machine behind a real OpenSSH server as the device."""

from nas.machine import this_machine
from tests.commands import document
from tests.transports.servers import loopback


def test_device_says_what_it_has_and_what_can_be_used_there(invoke):
    with loopback() as target:
        printed = document(invoke("device", target, "--json"))
        plain = invoke("device", f"{target.partition('?')[0]}?python=/no/python")
    assert printed["processor"] == this_machine.processor()[0]
    runtimes = {each["name"]: each for each in printed["runtimes"]}
    assert set(runtimes) >= {"tvm", "onnxruntime", "litert"}
    assert all(runtimes[name]["usable"] for name in ("tvm", "onnxruntime", "litert"))
    assert runtimes["onnxruntime"]["versions"]["onnxruntime"]
    assert "onnxruntime: not usable" in plain.stdout
    assert "Install Python 3 there" in plain.stdout
    assert "tvm: usable" in plain.stdout


def test_settings_that_no_runtime_has_are_refused(invoke):
    done = invoke("device", "ssh://127.0.0.1:1?pyton=/x")
    assert done.returncode == 2
    assert "pyton" in done.stderr


def test_device_that_is_not_there_is_an_error(invoke):
    done = invoke("device", "ssh://127.0.0.1:1")
    assert done.returncode == 1
    assert "does not answer" in done.stderr
