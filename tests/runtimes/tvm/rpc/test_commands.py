"""The commands that the README gives for boards and trackers are those that TVM has."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tvm.rpc
import tvm.rpc.tracker

README = Path(__file__).parents[4] / "README.md"
COMMANDS = re.findall(r"python -m (tvm\.exec\.rpc_\w+) ([^\n`#]*)", README.read_text("utf-8"))


class Recorder:
    """In the place of a server or tracker: what it would have been started with."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.host, *_ = arguments
        self.options = options
        self.proc = SimpleNamespace(join=lambda: started.append(self))


started: list[Recorder] = []


@pytest.mark.parametrize(("module", "options"), COMMANDS)
def test_a_command_starts_what_listens_on_this_machine_only(
    module: str, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tvm.rpc, "Server", Recorder)
    monkeypatch.setattr(tvm.rpc.tracker, "Tracker", Recorder)
    monkeypatch.setattr(sys, "argv", [module, *options.split()])
    monkeypatch.delitem(sys.modules, module, raising=False)
    started.clear()
    runpy.run_module(module, run_name="__main__")
    (found,) = started
    assert found.host == "127.0.0.1"
    if "--tracker" in options:
        assert found.options["tracker_addr"] == ("127.0.0.1", 9190)
        assert found.options["key"] == "pi4"


def test_the_readme_has_a_server_and_a_tracker() -> None:
    assert {module.rpartition("_")[2] for module, _ in COMMANDS} == {"server", "tracker"}
