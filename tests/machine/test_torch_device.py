import subprocess
import sys

import pytest
import torch

from nas.errors import DeviceError
from nas.machine import torch_device
from nas.machine.torch_device import (
    MULTITHREADING_MIN_MACS,
    limit_threads,
    map_batches,
    resolve_device,
)

PAGE_FAULTS_SCRIPT = """
import resource, torch
from nas.machine.torch_device import keep_freed_memory


def count_page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 << 20)  # 64 MiB: 16,384 pages.
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


usual = count_page_faults()
assert keep_freed_memory()
count_page_faults()
print(usual, count_page_faults())
"""


@pytest.fixture
def two_threads():
    previous = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(previous)


def test_resolve_device_names_a_device_that_is_missing():
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="'nonsense'"):
        resolve_device("nonsense")


def test_small_batches_run_on_one_thread(two_threads):
    with limit_threads(MULTITHREADING_MIN_MACS - 1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with limit_threads(MULTITHREADING_MIN_MACS):
        assert torch.get_num_threads() == 2


def test_threads_are_restored_after_an_error(two_threads):
    with pytest.raises(ZeroDivisionError), limit_threads(1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the GNU C library's malloc")
def test_freed_memory_is_not_requested_from_the_system_again():
    command = [sys.executable, "-c", PAGE_FAULTS_SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    usual, with_kept_memory = map(int, done.stdout.split())
    assert with_kept_memory < usual / 100


def test_keep_freed_memory_does_nothing_on_other_systems(monkeypatch):
    monkeypatch.setattr(torch_device.sys, "platform", "darwin")
    assert torch_device.keep_freed_memory.__wrapped__() is False


@pytest.mark.parametrize("macs", [1, MULTITHREADING_MIN_MACS])
def test_batches_are_computed_by_ops_of_one_thread_and_come_in_order(macs):
    def work(batch: int) -> tuple[int, int]:
        return batch, torch.get_num_threads()

    before = torch.get_num_threads()
    results = map_batches(work, range(7), macs, torch.device("cpu"))
    assert results == [(batch, 1) for batch in range(7)]
    assert torch.get_num_threads() == before
