from __future__ import annotations

from pathlib import Path

import pytest

from nas.errors import MeasurementError, RequestError
from nas.runtimes.tvm.rpc import linking
from nas.runtimes.tvm.rpc.address import parse
from nas.runtimes.tvm.rpc.linking import Linker, linker_for

PI = "rpc://127.0.0.1:1?triple=aarch64-linux-gnu&cpu=cortex-a72"
PI_WITH_VENDOR = "rpc://127.0.0.1:1?triple=aarch64-unknown-linux-gnu&cpu=cortex-a72"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of the search path, and a machine that is an x86."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(linking.platform, "machine", lambda: "x86_64")
    return tmp_path


def install(folder: Path, name: str, script: str = "exit 0") -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("installed", "target", "command"),
    [
        (["aarch64-linux-gnu-gcc", "ld.lld"], PI, ["aarch64-linux-gnu-gcc", "-nostdlib"]),
        (["aarch64-linux-gnu-ld", "gcc"], PI_WITH_VENDOR, ["aarch64-linux-gnu-ld"]),
        (["ld.lld", "gcc"], PI, ["ld.lld"]),
        (["gcc", "arm-linux-gnueabihf-gcc"], PI, None),
    ],
)
def test_the_first_linker_for_the_board_that_is_installed(
    programs: Path, installed: list[str], target: str, command: list[str] | None
) -> None:
    for name in installed:
        install(programs, name)
    found = linker_for(parse(target))
    assert found.command == command
    assert found.suffix == (".tar" if command is None else ".so")


def test_this_machines_compiler_links_for_its_own_architecture(programs: Path) -> None:
    gcc = install(programs, "gcc")
    found = linker_for(parse("rpc://127.0.0.1:1?triple=x86_64-linux-gnu&cpu=haswell"))
    assert found.command == [gcc, "-nostdlib"]


def test_a_linker_of_ones_own(programs: Path) -> None:
    clang = install(programs, "my-clang-19")
    assert linker_for(parse(f"{PI}&cc={clang}")).command == [
        clang,
        "--target=aarch64-linux-gnu",
        "-fuse-ld=lld",
        "-nostdlib",
    ]
    with pytest.raises(RequestError, match="no 'no-such-gcc' to link with"):
        linker_for(parse(f"{PI}&cc=no-such-gcc"))


class Objects:
    def export_library(self, file_name: str, *, fcompile: object = None) -> None:
        assert callable(fcompile)
        fcompile(file_name, ["kernel.o"])


def test_a_linker_that_fails_is_quoted(programs: Path) -> None:
    command = install(programs, "ld", "echo wasted; echo kernel.o: wrong format >&2; exit 1")
    with pytest.raises(
        MeasurementError, match=r"cannot link for the board: kernel.o: wrong format"
    ):
        Linker([command]).export(Objects(), programs / "out.so")
