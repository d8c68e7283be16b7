import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from nas.machine.process_identity import this_process
from nas.search.liveness import LivenessMonitor, repeat_in_background

CHILD = """
import json, time
from nas.machine.process_identity import this_process
print(json.dumps(this_process()), flush=True)
time.sleep(600)
"""


@pytest.fixture
def child():
    """A sleeping process, and its description of itself."""
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE) as process:
        yield process, json.loads(process.stdout.readline())
        process.kill()


def test_killed_child_is_dead_at_once_even_as_a_zombie(child):
    process, described = child
    assert described["pid"] == process.pid
    monitor = LivenessMonitor()
    assert not monitor.is_dead(0, described, 0)
    process.send_signal(signal.SIGKILL)
    # The child is a zombie until its parent reads its exit status.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert monitor.is_dead(0, described, 0)
    process.wait()
    assert monitor.is_dead(0, described, 0)


def test_stopped_child_is_alive(child):
    process, described = child
    process.send_signal(signal.SIGSTOP)
    assert not LivenessMonitor().is_dead(0, described, 0)


def test_process_that_reuses_an_id_is_not_taken_for_the_dead_one():
    own = this_process()
    assert LivenessMonitor().is_dead(0, {**own, "started": own["started"] - 60}, 0)


def test_background_action_is_repeated_until_the_context_ends():
    before = threading.active_count()
    calls, was_repeated = [], threading.Event()

    def call():
        calls.append(None)
        if len(calls) == 3:
            was_repeated.set()

    with repeat_in_background(call, 0.001):
        assert was_repeated.wait(60)
    assert threading.active_count() == before
