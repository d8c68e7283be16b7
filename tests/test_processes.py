"""Signals that stop a command, and processes that end with the one that started them."""

import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

PATIENCE_S = 60

NATIVE_CHILD = """
import ctypes
from nas import processes
processes.end_with_parent(0)
print("ready", flush=True)
ctypes.PyDLL(None).sleep(1000)  # native code that keeps the interpreter's lock
"""

PARENT = """
import subprocess, sys, threading, time
children = []
def start():
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=-1, stdout=-1)
    child.stdout.readline()
    children.append(child)
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(0.2)
print(children[0].pid, children[0].poll(), flush=True)
time.sleep(1000)
"""


def python(code: str, *arguments: str, **settings: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, **settings)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux alone ends native code")
def test_a_child_in_native_code_ends_with_its_parent_but_not_with_a_thread():
    with python(PARENT, NATIVE_CHILD) as parent:
        pid, status = parent.stdout.readline().split()
        child = psutil.Process(int(pid))
        assert status == "None"
        parent.kill()
        _, alive = psutil.wait_procs([child], timeout=PATIENCE_S)
    assert not alive


def test_a_child_whose_parent_has_ended_ends_at_once():
    code = """
    import time
    from nas import processes
    processes.end_with_parent(0)
    time.sleep(1000)
    """
    ended_parent, parent = os.pipe()
    os.close(parent)
    with python(code, stdin=ended_parent) as child:
        os.close(ended_parent)
        out, err = child.communicate(timeout=PATIENCE_S)
    assert (child.returncode != 0, out, err) == (True, "", "")


WAITING = """
import signal, time
{before}
from nas import processes
processes.stop_as_by_ctrl_c()
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
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    return out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_that_stop_a_command_are_ctrl_c(number):
    assert stopped_by(number) == "stopped\n"


def test_a_background_job_that_ignores_ctrl_c_is_stopped_by_sigterm():
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    assert stopped_by(signal.SIGTERM, ignored) == "stopped\n"


def test_a_signal_goes_to_what_handles_ctrl_c_at_that_moment():
    code = """
    import os, signal
    from nas import processes
    from nas.search.budget import InterruptHandler
    processes.stop_as_by_ctrl_c()
    with InterruptHandler().installed(print) as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        print(interrupt.is_requested)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            print("at once")
    """
    with python(code) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert err == ""
    assert out.splitlines()[1:] == ["True", "at once"]


def test_nohup_outlives_its_terminal():
    code = """
    import os, signal
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from nas import processes
    processes.stop_as_by_ctrl_c()
    os.kill(os.getpid(), signal.SIGHUP)
    print("goes on")
    """
    with python(code) as process:
        assert process.communicate(timeout=PATIENCE_S) == ("goes on\n", "")


def test_a_signal_waits_for_the_end_of_the_block_and_never_reaches_a_child_of_it():
    code = """
    import os, signal, subprocess, sys, time
    from nas import processes
    child = "import sys; print('up', flush=True); sys.stdin.read(); print('goes on')"
    try:
        with processes.stopping_delayed():
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
        assert process.communicate(timeout=PATIENCE_S) == ("end of the block\ngoes on\n", "")
