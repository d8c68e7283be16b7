"""Processes are told from each other, and dead ones from living ones."""

import os

from nas.machine.process_identity import is_alive, this_process


def test_process_that_reuses_an_id_is_not_taken_for_the_dead_one():
    own = this_process()
    assert is_alive(own)
    assert not is_alive({**own, "started": own["started"] - 60})
    assert not is_alive({**own, "pid": 2**22 + 1})


def test_fork_is_another_process_than_its_parent():
    own = this_process()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        fork = this_process()
        os.write(writing, b"%d %d" % (fork["pid"], fork["host"] == own["host"]))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100).split() == [b"%d" % child, b"1"]
    os.close(reading)
    os.close(writing)
