"""The server of a board: its options, its answers, and delegates that crash or hang."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import nas.space
from nas.machine import this_machine
from nas.runtimes.boards.address import BoardDescription
from nas.runtimes.boards.tflite_protocol import PROTOCOL
from nas.runtimes.litert import board_server, timed_files
from nas.runtimes.litert.board_server import FileTimer
from nas.runtimes.litert.network import network_file
from nas.runtimes.litert.timed_files import Delegate
from tests import markdown
from tests.runtimes.board_servers import CONV_2D, compile_delegate


@pytest.fixture(scope="module")
def data() -> bytes:
    """Return a file with two convolutions, the second of them depthwise, and a linear layer."""
    graph = nas.space.load_space("mobilenet_tiny", image_size=8, classes=3).smallest.graph
    return network_file(graph, None, "int8")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_delegate(tmp_path_factory.mktemp("delegate"))


@pytest.fixture
def timer() -> Iterator[FileTimer]:
    started = FileTimer(None)
    yield started
    started.stop()


def request(data: bytes, **changes: Any) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    return {"file": digest, "threads": 1, "batch": 1, "calls": 2, "samples": 3, **changes}


def test_description_is_that_of_this_machine(timer: FileTimer) -> None:
    answer = timer.answer({"describe": True})
    assert answer.pop("protocol") == PROTOCOL
    description = BoardDescription.from_json(answer)
    assert (description.processor, description.features) == this_machine.processor()
    assert description.versions == {"ai-edge-litert": version("ai-edge-litert")}
    assert description.delegate == ""


def test_file_is_sent_once_and_counted(timer: FileTimer, data: bytes) -> None:
    assert set(timer.answer(request(data))) == {"unknown"}
    answer = timer.answer(request(data), data)
    assert 1 <= len(answer["seconds"]) <= 3, "disturbed samples are left out"
    assert min(answer["seconds"]) > 0
    assert answer["operators"]["DEPTHWISE_CONV_2D"] == 1
    assert answer["delegated"] == {}
    assert 1 <= len(timer.answer(request(data, samples=2))["seconds"]) <= 2
    assert timer.answer(request(data, samples=0))["seconds"] == []
    assert set(timer.answer(request(data, batch=4))) == {"unknown"}
    assert timer.answer(request(data, batch=4), data)["seconds"]


def test_speed_of_the_board_is_read_there(timer: FileTimer) -> None:
    assert 0 < timer.answer({"speed": 1})["seconds"] < 1


def test_damaged_files_are_answered_with_the_reason(timer: FileTimer, data: bytes) -> None:
    assert "not arrive as it was sent" in timer.answer(request(data), data[:-1])["error"]
    assert "not a valid Flatbuffer" in timer.answer(request(b"no model"), b"no model")["error"]
    answer = board_server.answering(timer, {})
    assert '"error": "JSONDecodeError' in answer("{", b"")
    assert '"error": "TypeError' in answer('{"file": "ab"}', b"")


def test_files_that_were_used_last_stay_loaded(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_files, "CACHE_FRACTION", 1e-9)
    files = timed_files.LoadedFiles(None)
    for _ in range(2):
        assert "unknown" in files.time(b"", **request(data))
        assert "seconds" in files.time(data, **request(data))
        assert "seconds" in files.time(b"", **request(data))
        assert "seconds" in files.time(data, **request(data, batch=2))  # the first makes room


def test_delegate_runs_the_operators_that_it_takes(library: Path, data: bytes) -> None:
    delegate = Delegate(str(library), (("takes", "3"), ("microseconds", "500")))
    timer = FileTimer(delegate)
    try:
        answer = timer.answer(request(data), data)
        described = timer.answer({"describe": True})
    finally:
        timer.stop()
    assert "error" not in answer, answer
    assert answer["delegated"] == {"CONV_2D": answer["operators"]["CONV_2D"]}
    assert min(answer["seconds"]) > 500e-6 * answer["operators"]["CONV_2D"]
    assert described["delegate"] == "libstandin_delegate.so"
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    named = f"{digest[:12]} takes=3 microseconds=500"
    assert described["versions"]["libstandin_delegate.so"] == named


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("crash", "LiteRT was ended by SIGABRT"),
        pytest.param("hang", "LiteRT took more than 10 s", marks=pytest.mark.slow),
    ],
)
def test_delegate_that_fails_ends_only_its_request(
    library: Path, data: bytes, does: str, message: str
) -> None:
    timer = FileTimer(Delegate(str(library), (("takes", "3"), ("does", does))), limit_s=10.0)
    answer = board_server.answering(timer, {})
    try:
        timer.answer({"describe": True})
        assert message in answer(json.dumps(request(data)), data)
        assert timer.answer({"describe": True})["processor"]
    finally:
        timer.stop()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--delegate", "/nowhere/libnpu.so"], 2, "There is no delegate /nowhere/libnpu.so"),
        (["--delegate-option", "a=b"], 2, "--delegate-option needs a --delegate"),
        (["--delegate", __file__, "--delegate-option", "a"], 2, "'a' is no option"),
        (["--delegate", __file__], 1, "test_board_server.py does not load: "),
        (["--tracker", "localhost", "--key", "pi"], 2, "is no tracker with a key"),
        (["--tracker", "localhost:9190"], 2, "is no tracker with a key"),
        (["--host", "203.0.113.1"], 1, "cannot listen at 203.0.113.1:9090"),
    ],
)
def test_wrong_options_are_refused_with_a_message(
    options: list[str],
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # This process goes on to other tests.
    monkeypatch.setattr(multiprocessing, "set_start_method", lambda *_, **__: None)
    assert board_server.main(options) == status
    assert message in capsys.readouterr().err


def test_delegate_that_refuses_its_options_does_not_start(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert board_server.main(["--delegate", str(library), "--delegate-option", "speed=9"]) == 1
    assert "it has no such option." in capsys.readouterr().err


def test_commands_of_the_pages_listen_on_the_loopback_interface_only(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "nas.runtimes.litert.board_server"
    commands = [
        words[words.index(module) + 1 :]
        for page in ("docs/remote-boards.md", "docs/litert.md", "docs/npus.md")
        for block in markdown.blocks(page)
        for words in block.commands
        if module in words
    ]
    assert commands
    hosts = []
    monkeypatch.setattr(board_server, "serve", lambda host, *_, **__: hosts.append(host))
    for words in commands:
        # The vendor's delegate is not here; another one stands in for it.
        stand_ins = {"--delegate": str(library), "--delegate-option": CONV_2D}
        own = [
            stand_ins.get(before, word) for before, word in zip(["", *words], words, strict=False)
        ]
        board_server.main(own)
    assert hosts == ["127.0.0.1"] * len(commands)


def test_litert_may_have_its_former_name() -> None:
    code = (
        "import sys, ai_edge_litert.interpreter as own\n"
        "sys.modules['tflite_runtime'] = sys.modules['tflite_runtime.interpreter'] = own\n"
        "sys.modules['ai_edge_litert.interpreter'] = None\n"
        "from nas.runtimes.litert import session\n"
        "assert session.Interpreter is own.Interpreter"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
