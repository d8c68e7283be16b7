"""Tests of `nas.transports.ssh` against a real OpenSSH server."""

import os
import signal
import threading

import pytest

from nas.errors import BoardLostError, DeviceError, RequestError
from nas.transports import transport_to
from tests.transports.servers import ssh_server


@pytest.fixture
def server(tmp_path, monkeypatch):
    with ssh_server(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def device(server):
    with transport_to(server.address) as device:
        yield device


def test_a_cut_connection_is_a_lost_board_and_the_next_use_connects_again(server, device):
    with device.start(["sleep", "60"]) as program:
        threading.Timer(0.3, server.cut).start()
        with pytest.raises(BoardLostError, match="does not answer"):
            program.read_exactly(1)
    assert device.run(["echo", "again"]) == b"again\n"


def test_a_killed_client_is_a_lost_board(device):
    with device.start(["sh", "-c", "echo; exec sleep 60"]) as program:
        program.read_line()
        os.kill(device._master.pid, signal.SIGKILL)
        with pytest.raises(BoardLostError):
            program.read_exactly(1)
    assert device.run(["echo", "again"]) == b"again\n"


def test_a_silent_program_is_a_lost_board(device):
    with (
        device.start(["sleep", "60"]) as program,
        pytest.raises(BoardLostError, match="said nothing for 0 s"),
    ):
        program.read_some(limit_s=0.3)


def test_nobody_there(server, device):
    server.stop()
    with pytest.raises(BoardLostError, match="Connection refused"):
        device.run(["true"])


def test_an_unknown_host_key_is_refused(server, device):
    (server.folder / "known").write_text("")
    with pytest.raises(BoardLostError, match="Host key verification failed.*compare the key"):
        device.run(["true"])


def test_a_program_that_reads_ends_with_the_process_here(device, tmp_path):
    with device.start(["cat"]) as program:
        os.killpg(program._process.pid, signal.SIGKILL)
        with pytest.raises((BoardLostError, DeviceError)):
            program.read_exactly(1)


def test_half_of_a_file_never_takes_the_place_of_a_whole_one(server, device, tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "new").write_bytes(os.urandom(50_000_000))
    with device.private_folder() as folder:
        device.send(tmp_path / "old", f"{folder}/file")
        threading.Timer(0.15, server.cut).start()
        with pytest.raises(BoardLostError):
            device.send(tmp_path / "new", f"{folder}/file")
        assert device.read(f"{folder}/file") == b"old"


def test_what_a_start_up_file_prints_is_skipped(tmp_path_factory, monkeypatch):
    shell = tmp_path_factory.mktemp("shell") / "shell"
    shell.write_text('#!/bin/sh\necho "Welcome to the board"\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    shell.chmod(0o755)
    folder = tmp_path_factory.mktemp("ssh")
    with (
        ssh_server(folder, monkeypatch, str(shell)) as server,
        transport_to(server.address) as device,
    ):
        assert device.run(["echo", "1"]) == b"1\n"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ssh://MyPi", ["--", "MyPi"]),
        ("ssh://CORP%5Cpi@[fe80::1]:2222", ["-l", "CORP\\pi", "-p", "2222", "--", "fe80::1"]),
        ("ssh://a@b@host", ["-l", "a@b", "--", "host"]),
    ],
)
def test_parts_of_addresses_are_those_of_ssh(address, words):
    assert transport_to(address)._destination == words


@pytest.mark.parametrize(
    "address",
    ["ssh://", "ssh://-oProxyCommand=x", "ssh://-l@host", "ssh://h:0", "ssh://h/x", "ftp:"],
)
def test_other_addresses_are_refused(address):
    with pytest.raises(RequestError):
        transport_to(address)
