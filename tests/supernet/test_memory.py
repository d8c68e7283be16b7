import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from nas.supernet.memory import keep_freed_memory


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 << 20)  # 64 MiB: 16,384 pages.
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


usual = faults()
assert keep_freed_memory()
faults()
print(usual, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU C library's malloc")
def test_what_is_freed_is_not_fetched_from_the_system_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    usual, kept = map(int, done.stdout.split())
    assert kept < usual / 100


def test_other_systems_are_left_alone(monkeypatch):
    from nas.supernet import memory

    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory.__wrapped__() is False
