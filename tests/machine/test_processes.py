"""Signals that stop a command, and children that end with their parent."""

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from nas.errors import MeasurementError
from nas.machine.processes import ChildProcess

TIMEOUT_S = 60
"""Generous: a test that needs it fails anyway."""


def python(code: str, *arguments: str, **settings: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, **settings)


def test_child_of_ended_parent_ends_at_once():
    code = """
    import time
    from nas.machine import processes
    processes.exit_with_parent(0)
    time.sleep(1000)
    """
    ended_parent, parent = os.pipe()
    os.close(parent)
    with python(code, stdin=ended_parent) as child:
        os.close(ended_parent)
        out, err = child.communicate(timeout=TIMEOUT_S)
    assert (child.returncode != 0, out, err) == (True, "", "")


WAITING = """
import signal, time
{before}
from nas.machine import processes
processes.handle_stop_signals_like_ctrl_c()
try:
    print("ready", flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    print("stopped")
"""


def stopped_by(number: int, before: str = "") -> str:
    with python(WAITING.format(before=before)) as process:
        process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (0, "")
    return out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stop_signals_interrupt_like_ctrl_c(number):
    assert stopped_by(number) == "stopped\n"


def test_sigterm_stops_background_job_that_ignores_ctrl_c():
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    assert stopped_by(signal.SIGTERM, ignored) == "stopped\n"


def test_signal_calls_the_current_handler_of_ctrl_c():
    code = """
    import os, signal
    from nas.machine import processes
    from nas.search.budget import stop_requested_by_ctrl_c
    processes.handle_stop_signals_like_ctrl_c()
    with stop_requested_by_ctrl_c(print) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        print(stop.is_set())
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            print("at once")
    """
    with python(code) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert err == ""
    assert out.splitlines()[1:] == ["True", "at once"]


def test_ignored_sighup_stays_ignored():
    code = """
    import os, signal
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from nas.machine import processes
    processes.handle_stop_signals_like_ctrl_c()
    os.kill(os.getpid(), signal.SIGHUP)
    print("goes on")
    """
    with python(code) as process:
        assert process.communicate(timeout=TIMEOUT_S) == ("goes on\n", "")


def test_delayed_signal_arrives_after_the_block_and_not_in_its_child():
    code = """
    import os, signal, subprocess, sys, time
    from nas.machine import processes
    child = "import sys; print('up', flush=True); sys.stdin.read(); print('goes on')"
    try:
        with processes.delayed_stop_signals():
            started = subprocess.Popen([sys.executable, "-c", child], stdin=-1, stdout=-1)
            started.stdout.readline()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                started.send_signal(number)
            os.kill(os.getpid(), signal.SIGINT)
            print("end of the block", flush=True)
    except KeyboardInterrupt:
        print(started.communicate()[0].decode(), end="")
    """
    with python(code) as process:
        assert process.communicate(timeout=TIMEOUT_S) == ("end of the block\ngoes on\n", "")


def act(what: str) -> object:
    """What `ChildProcess` calls in the tests below."""
    match what:
        case "abort":
            os.write(2, b"first words\nterminate called\n")
            os.abort()
        case "exit":
            os._exit(3)
        case "wait":
            time.sleep(0.1)
        case "hang":
            ctypes.PyDLL(None).sleep(1000)  # native code that keeps the interpreter's lock
        case "refuse":
            raise MeasurementError("It cannot be done.", remedy="Do something else.")
        case "fail":
            raise KeyError("no such thing\nat all")
        case "open":
            return open(os.devnull)
        case "print":
            print("this is no answer")
    return os.getpid()


@pytest.fixture
def worker():
    process = ChildProcess()
    yield process
    process.close()


def ask(worker, what="", limit_s=TIMEOUT_S, **settings):
    return worker.call(act, what, limit_s=limit_s, **settings)


def test_functions_are_called_in_one_process_that_stays(worker):
    pid = ask(worker)
    assert pid == worker.pid != os.getpid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)  # They go to the process group, and this process decides.
    assert ask(worker, "print") == worker.call(os.getpid, limit_s=TIMEOUT_S) == pid


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("abort", "^was ended by SIGABRT: terminate called$"),
        ("exit", "^ended with status 3$"),
    ],
)
def test_call_after_a_crash_has_a_new_process(worker, what, message):
    pid = ask(worker)
    with pytest.raises(ChildProcessError, match=message):
        ask(worker, what)
    with pytest.raises(ChildProcessError, match="has ended"):
        ask(worker, start=False)
    assert ask(worker) not in (pid, os.getpid())


def test_call_that_takes_too_long_ends_its_process(worker):
    process = psutil.Process(ask(worker))
    with pytest.raises(TimeoutError, match=r"^took more than 0\.1 s$"):
        ask(worker, "hang", limit_s=0.1)
    assert not process.is_running()
    assert ask(worker) != process.pid


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("refuse", MeasurementError, r"It cannot be done\. Do something else\."),
        ("fail", RuntimeError, "KeyError: .no such thing"),
        ("open", RuntimeError, r"the answer cannot be sent: TypeError: .*pickle"),
    ],
)
def test_error_of_the_function_is_raised(worker, what, kind, message):
    pid = ask(worker)
    with pytest.raises(kind, match=message):
        ask(worker, what)
    assert ask(worker) == pid


def test_process_that_is_stopped_takes_no_longer_than_the_limit(worker):
    """It reads nothing: a message that is larger than the pipe would be sent for ever."""
    pid = ask(worker)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError, match=r"^took more than 0\.5 s$"):
        worker.call(len, bytes(1 << 24), limit_s=0.5)
    assert not psutil.pid_exists(pid)
    assert worker.call(len, bytes(1 << 24), limit_s=TIMEOUT_S) == 1 << 24


def test_process_that_ended_between_calls_is_replaced(worker):
    process = psutil.Process(ask(worker))
    process.kill()
    with pytest.raises(ChildProcessError, match="was ended by SIGKILL"):
        ask(worker, start=False)
    assert ask(worker) != process.pid


def test_process_that_is_closed_for_good_is_not_started_again(worker):
    process = psutil.Process(ask(worker))
    worker.close(for_good=True)
    assert not process.is_running()
    with pytest.raises(ChildProcessError, match="is closed"):
        ask(worker)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process in native code")
def test_process_ends_with_its_parent_and_not_with_the_thread_that_started_it():
    code = """
    import threading
    from nas.machine.processes import ChildProcess
    from tests.machine.test_processes import act
    worker, pids = ChildProcess(), []
    def start():
        pids.append(worker.call(act, "", limit_s=100.0))
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert worker.call(act, "wait", limit_s=100.0) == pids[0]
    print(pids[0], flush=True)
    worker.call(act, "hang", limit_s=1000.0)
    """
    with python(code) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        _, alive = psutil.wait_procs([child], timeout=TIMEOUT_S)
    assert not alive
