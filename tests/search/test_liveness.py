import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nas.search import liveness
from nas.search.liveness import SILENCE_S, Watcher, meanwhile, this_process

CHILD = """
import json, time
from nas.search.liveness import this_process
print(json.dumps(this_process()), flush=True)
time.sleep(600)
"""


@pytest.fixture
def child():
    """A process that sleeps, and how it calls itself."""
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE) as process:
        yield process, json.loads(process.stdout.readline())
        process.kill()


@pytest.fixture
def clock(monkeypatch):
    """This process's own clock, which the test sets."""
    now = [1000.0]
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now[0])
    return now


def elsewhere(**changes):
    return {**this_process(), "host": "another one", **changes}


def test_this_process_lives():
    assert not Watcher().is_dead(0, this_process(), 0)


def test_a_process_is_described_the_same_by_itself_at_any_time():
    first = this_process()
    time.sleep(0.05)
    assert this_process() == first


def test_a_killed_child_is_dead_at_once_even_while_nobody_has_waited_for_it(child):
    process, described = child
    assert described["pid"] == process.pid
    watcher = Watcher()
    assert not watcher.is_dead(0, described, 0)
    process.send_signal(signal.SIGKILL)
    # A zombie until its parent asks how it ended.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert watcher.is_dead(0, described, 0)
    process.wait()
    assert watcher.is_dead(0, described, 0)


def test_a_stopped_child_lives(child):
    process, described = child
    process.send_signal(signal.SIGSTOP)
    assert not Watcher().is_dead(0, described, 0)


def test_another_process_with_the_number_of_a_dead_one_is_not_taken_for_it():
    own = this_process()
    assert Watcher().is_dead(0, {**own, "started": own["started"] - 60}, 0)


def test_a_fork_is_another_process_than_its_parent():
    own = this_process()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        found = this_process()
        os.write(writing, b"%d %d" % (found["pid"], found["host"] == own["host"]))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100).split() == [b"%d" % child, b"1"]
    os.close(reading)
    os.close(writing)


def test_the_clock_on_the_wall_may_be_set(monkeypatch):
    described = this_process()
    monkeypatch.setattr(liveness.psutil, "boot_time", lambda: 12345.0)
    monkeypatch.setattr(liveness.time, "time", lambda: 99.0)
    liveness._host.cache_clear()
    assert this_process() == described
    assert not Watcher().is_dead(0, described, 0)


def test_a_process_elsewhere_is_dead_after_a_silence(clock):
    watcher = Watcher()
    assert not watcher.is_dead(7, elsewhere(), 0)
    clock[0] += SILENCE_S
    assert not watcher.is_dead(7, elsewhere(), 0)
    clock[0] += 0.1
    assert watcher.is_dead(7, elsewhere(), 0)


def test_a_process_elsewhere_whose_beats_change_lives(clock):
    watcher = Watcher()
    for beat in range(5):
        assert not watcher.is_dead(7, elsewhere(), beat)
        clock[0] += 10 * SILENCE_S
    # Its number of beats counts, not by how much it grew, and not that of another trial.
    assert not watcher.is_dead(7, elsewhere(), 3)
    assert not watcher.is_dead(8, elsewhere(), 3)
    clock[0] += SILENCE_S + 1
    assert watcher.is_dead(7, elsewhere(), 3)


def test_the_number_of_a_process_elsewhere_says_nothing(clock):
    watcher = Watcher()
    nobody = elsewhere(pid=2**22 + 1)
    assert not watcher.is_dead(0, nobody, 0)
    assert not watcher.is_dead(0, nobody, 1)


def test_a_silence_in_which_nobody_could_be_heard_is_no_sign_of_death(clock):
    watcher = Watcher()
    watcher.is_dead(0, elsewhere(), 4)
    clock[0] += 20 * SILENCE_S
    away_until = clock[0]
    assert not watcher.is_dead(0, elsewhere(), 4, away_until)
    clock[0] += SILENCE_S + 1
    assert watcher.is_dead(0, elsewhere(), 4, away_until)


def test_what_is_done_meanwhile_ends_with_it_or_by_itself():
    calls = {"for ever": 0, "twice": 0}

    def call(name: str, most: float) -> bool:
        calls[name] += 1
        return calls[name] == most

    with meanwhile(lambda: call("for ever", -1), 0.01), meanwhile(lambda: call("twice", 2), 0.01):
        end = time.monotonic() + 60
        while calls["for ever"] < 5 or calls["twice"] < 2:
            assert time.monotonic() < end
            time.sleep(0.005)
    after = dict(calls)
    time.sleep(0.05)
    assert calls == after
    assert calls["twice"] == 2
