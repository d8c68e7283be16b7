"""What every transport does: over ssh to a real server, and over adb to a stand-in."""

import os

import pytest

from nas.errors import DeviceError
from nas.transports import transport_to
from tests.transports import fake_adb
from tests.transports.servers import ssh_server


@pytest.fixture(params=["ssh", "adb"])
def device(request, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "adb":
        with transport_to(fake_adb.install(folder, monkeypatch).address) as device:
            yield device
        return
    with ssh_server(folder, monkeypatch) as server, transport_to(server.address) as device:
        yield device


def test_arguments_reach_a_program_as_they_are(device):
    hostile = ["a b", "$HOME", "`id`", "'", '"', "*", "\\", "line\nbreak", "-n", ";exit 3", "é"]
    shown = device.run(["printf", "%s\\0", *hostile]).decode().split("\0")
    assert shown == [*hostile, ""]


def test_files_travel_both_ways(device, tmp_path):
    content = os.urandom(3_000_000)
    (tmp_path / "here").write_bytes(content)
    with device.private_folder() as folder:
        device.send(tmp_path / "here", f"{folder}/the file")
        device.fetch(f"{folder}/the file", tmp_path / "home")
        assert os.stat(folder).st_mode & 0o777 == 0o700
    assert (tmp_path / "home").read_bytes() == content
    assert not os.path.exists(folder)


def test_a_program_reads_and_writes_while_it_runs(device):
    with device.start(["sh", "-c", 'while read -r each; do echo "got $each"; done']) as program:
        for number in range(3):
            program.write(f"{number}\n".encode())
            assert program.read_line() == f"got {number}".encode()
        program.end_input()
        program.require_success()


def test_a_failed_program_says_its_last_line(device):
    with pytest.raises(DeviceError, match=r"sh on (ssh|adb):.* failed: second"):
        device.run(["sh", "-c", "echo first >&2; echo second >&2; exit 4"])


def test_status_255_of_a_program_is_no_lost_connection(device):
    with device.start(["sh", "-c", "exit 255"]) as program:
        assert program.wait() == 254
