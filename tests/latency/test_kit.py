"""Programs of kits that a transport carries, with scripts as programs and a real OpenSSH server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nas.errors import BoardLostError, DeviceError
from nas.latency import kit
from nas.latency.kit import RESULTS, run_kit
from nas.transports import Transport, transport_to
from tests.transports.servers import ssh_server

PROGRAM = """#!/bin/sh
# Appends the numbers from where its results end up to {count}, each to the file and the output.
exec 9> lock && flock 9 # As the program of a kit does.
at=$(cat results.jsonl 2> /dev/null | wc -l)
while [ "$at" -lt {count} ]; do
    line='{{"line":"timing","at":'$at'}}'
    echo "$line" >> results.jsonl && echo "$line"
    echo '{{"line":"progress","done":'$at',"of":{count}}}'
    at=$((at + 1))
    {then}
done
{end}
"""


class Device:
    """What `run_kit` needs of a device."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def kit_programs(self, folder: Path) -> tuple[str, list[str]]:
        return "0123456789abcdef", ["kit"]


@pytest.fixture
def server_of_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Iterator[Any]:
    home = tmp_path_factory.mktemp("home")
    shell = tmp_path_factory.mktemp("shell") / "shell"
    shell.write_text(f'#!/bin/sh\nHOME={home}\nexport HOME\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    shell.chmod(0o755)
    with ssh_server(tmp_path_factory.mktemp("ssh"), monkeypatch, str(shell)) as server:
        yield server, home / ".cache" / "nas" / "kit-0123456789abcdef"


def write_kit(folder: Path, count: int = 5, then: str = ":", end: str = ":") -> Path:
    program = folder / "kit"
    program.write_text(PROGRAM.format(count=count, then=then, end=end))
    return folder / RESULTS


def numbers(results: Path) -> list[int]:
    return [json.loads(line)["at"] for line in results.read_text().splitlines()]


def test_results_come_home_line_by_line(server_of_home: Any, tmp_path: Path) -> None:
    server, remote = server_of_home
    results, seen = write_kit(tmp_path), []
    device: Any = Device(transport_to(server.address))
    run_kit(device, tmp_path, lambda done, total, text="": seen.append((done, total)))
    assert numbers(results) == [0, 1, 2, 3, 4]
    assert seen == [(at, 5) for at in range(5)]
    assert not remote.exists()


def test_a_cut_connection_and_a_lost_folder_lose_nothing(
    server_of_home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, remote = server_of_home
    monkeypatch.setattr(kit, "LOST_PAUSE_SECONDS", 0.1)
    results = write_kit(tmp_path, count=30, then="sleep 0.05")

    def cut() -> None:
        server.cut()
        for path in remote.iterdir():  # It starts anew, with an empty disk.
            path.unlink()

    timers = [threading.Timer(0.6, server.cut), threading.Timer(1.3, cut)]
    for each in timers:
        each.start()
    device: Any = Device(transport_to(server.address))
    run_kit(device, tmp_path)
    assert sorted(set(numbers(results))) == [*range(30)]


def test_results_that_only_the_device_has_are_brought_home(
    server_of_home: Any, tmp_path: Path
) -> None:
    server, remote = server_of_home
    results = write_kit(tmp_path)
    remote.mkdir(parents=True)
    (remote / RESULTS).write_text('{"line":"timing","at":0}\n{"line":"timing","at":1}\n')
    results.write_text('{"line":"timing","at":0}\n{"line":"tim')
    device: Any = Device(transport_to(server.address))
    run_kit(device, tmp_path)
    assert numbers(results) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("echo 'results.jsonl cannot be written: No space left' >&2; exit 1", "No space left"),
        ("kill -SEGV $$", "SIGSEGV"),
        ("echo Welcome", "'Welcome', which is no line of its results"),
        ("echo '[1]'", "no line of its results"),
        ("""echo '{"line":"progress","done":"all","of":5}'""", "no line of its results"),
        ("head -c 100000 /dev/zero | tr '\\\\0' '['; echo", "no line of its results"),
    ],
)
def test_what_the_program_says_is_the_error(
    server_of_home: Any, tmp_path: Path, end: str, message: str
) -> None:
    server, _ = server_of_home
    results = write_kit(tmp_path, end=end)
    device: Any = Device(transport_to(server.address))
    with pytest.raises(DeviceError, match=message) as caught:
        run_kit(device, tmp_path)
    assert not isinstance(caught.value, BoardLostError)
    assert numbers(results) == [0, 1, 2, 3, 4]


def test_a_program_that_never_ends_its_results_is_refused(
    server_of_home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = server_of_home
    monkeypatch.setattr(kit, "MAX_RESULTS_BYTES", 100)
    results = write_kit(tmp_path, count=1_000_000)
    device: Any = Device(transport_to(server.address))
    with pytest.raises(DeviceError, match="100 at most"):
        run_kit(device, tmp_path)
    assert results.stat().st_size < 150
    results.unlink()
    with pytest.raises(DeviceError, match="100 at most"):  # nor is the device's file brought home
        run_kit(device, tmp_path)
    assert not results.exists()


def test_a_program_goes_on_when_its_device_was_hot(
    server_of_home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = server_of_home
    monkeypatch.setattr(kit, "LOST_PAUSE_SECONDS", 0.1)
    hot = """if [ "$at" = 3 ]; then
        echo '{"line":"end","at":3,"reason":"hot"}' | tee -a results.jsonl
        echo 'The device stays hot. Cool it' >&2; exit 1
    fi"""
    results = write_kit(tmp_path, then=hot)
    device: Any = Device(transport_to(server.address))
    with pytest.warns(UserWarning, match=r"The device stays hot. Cool it\.? .*tried again"):
        run_kit(device, tmp_path)
    assert numbers(results) == [0, 1, 2, 3, 4]


def test_a_device_that_stays_hot_is_an_error(
    server_of_home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = server_of_home
    monkeypatch.setattr(kit, "LOST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(kit, "HOT_SECONDS", 1.0)
    hot = 'echo \'{"line":"end","reason":"hot"}\'; echo \'It stays hot\' >&2; exit 1'
    write_kit(tmp_path, end=hot)
    device: Any = Device(transport_to(server.address))
    with (
        pytest.warns(UserWarning, match="It stays hot"),
        pytest.raises(DeviceError, match="It stays hot"),
    ):
        run_kit(device, tmp_path)


def test_a_device_that_stays_away_is_lost(
    server_of_home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = server_of_home
    monkeypatch.setattr(kit, "LOST_PAUSE_SECONDS", 0.1)
    write_kit(tmp_path)
    server.stop()
    device: Any = Device(transport_to(server.address))
    with (
        pytest.warns(UserWarning, match="tried again"),
        pytest.raises(BoardLostError, match="Connection refused"),
    ):
        run_kit(device, tmp_path, lost_s=0.3)
