import subprocess
import sys

import pytest

from nas.supernet import memory

COUNT_PAGE_FAULTS = """
import resource, torch
from nas.supernet.memory import keep_freed_memory


def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 << 20)  # 64 MiB: 16,384 pages.
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


default = page_faults()
assert keep_freed_memory()
page_faults()
print(default, page_faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs malloc of the GNU C library")
def test_keep_freed_memory_avoids_page_faults():
    done = subprocess.run([sys.executable, "-c", COUNT_PAGE_FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    default, kept = map(int, done.stdout.split())
    assert kept < default / 100


def test_keep_freed_memory_does_nothing_on_other_systems(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory.__wrapped__() is False
