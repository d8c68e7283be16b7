"""The commands that docs/remote-boards.md gives for boards and trackers are those that TVM has."""

from __future__ import annotations

import runpy
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import tvm.rpc
import tvm.rpc.tracker

from tests import markdown

COMMANDS = [
    (words[at + 1], words[at + 2 :])
    for block in markdown.blocks("docs/remote-boards.md")
    for words in block.commands
    for at, word in enumerate(words)
    if word == "-m" and words[at + 1].startswith("tvm.exec.")
]
"""Modules of TVM that the page starts, and the options of each."""


class Recorder:
    """Stands in for a server or tracker, and records the arguments that it is started with."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.host, *_ = arguments
        self.options = options
        self.proc = SimpleNamespace(join=lambda: started.append(self))


started: list[Recorder] = []


@pytest.mark.parametrize(("module", "options"), COMMANDS)
def test_command_listens_on_loopback_interface_only(
    module: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tvm.rpc, "Server", Recorder)
    monkeypatch.setattr(tvm.rpc.tracker, "Tracker", Recorder)
    monkeypatch.setattr(sys, "argv", [module, *options])
    monkeypatch.delitem(sys.modules, module, raising=False)
    started.clear()
    runpy.run_module(module, run_name="__main__")
    (process,) = started
    assert process.host == "127.0.0.1"
    if "--tracker" in options:
        assert process.options["tracker_addr"] == ("127.0.0.1", 9190)
        assert process.options["key"] == "pi4"


def test_page_has_a_server_and_a_tracker() -> None:
    assert {module.rpartition("_")[2] for module, _ in COMMANDS} == {"server", "tracker"}
