"""Kernels compile and link for processors other than this machine's."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import tvm

from nas.errors import MeasurementError, RequestError
from nas.kernels.kernel import Kernel
from nas.runtimes.tvm.kernel_timer import resolve_target
from nas.runtimes.tvm.rpc import toolchain
from nas.runtimes.tvm.rpc.address import parse
from nas.runtimes.tvm.rpc.toolchain import Linker, linker_for
from nas.schedules.cpu.loops import NEON, SSE, VectorUnit
from tests.schedules.kernels import KERNELS

EM_X86_64, EM_AARCH64 = 62, 183
"""Values of `e_machine` in the header of ELF files."""

UNUSED_ADDRESS = "rpc://127.0.0.1:1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "machine", "unit"),
    [
        ("triple=aarch64-linux-gnu&cpu=cortex-a72", EM_AARCH64, NEON),
        ("triple=x86_64-linux-gnu&cpu=core2", EM_X86_64, SSE),
    ],
)
def test_all_kinds_of_kernels_compile_for_other_processors(
    tmp_path: Path, code: str, machine: int, unit: VectorUnit
) -> None:
    templates, _ = resolve_target(f"{UNUSED_ADDRESS}?{code}", 1, "float32")
    assert templates.unit == unit  # type: ignore[attr-defined]
    functions = {}
    for text, *_ in KERNELS.values():
        kernel, name = Kernel.parse(text), f"k{len(functions)}"
        functions[name] = templates.function(kernel, templates.candidates(kernel)[0], name)
    built = tvm.tirx.build(tvm.IRModule(functions), templates.target, "tirx")
    built.write_to_file(str(tmp_path / "kernels.o"))
    header = (tmp_path / "kernels.o").read_bytes()[:20]
    assert header[:5] == b"\x7fELF\x02"
    assert struct.unpack_from("<H", header, 18) == (machine,)


PI = "rpc://127.0.0.1:1?triple=aarch64-linux-gnu&cpu=cortex-a72"
PI_WITH_VENDOR = "rpc://127.0.0.1:1?triple=aarch64-unknown-linux-gnu&cpu=cortex-a72"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder of the search path, on a machine that claims to be an x86."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "x86_64")
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
def test_first_installed_linker_for_the_board_is_used(
    programs: Path, installed: list[str], target: str, command: list[str] | None
) -> None:
    for name in installed:
        install(programs, name)
    linker = linker_for(parse(target))
    assert linker.command == command
    assert linker.suffix == (".tar" if command is None else ".so")


def test_compiler_of_this_machine_links_for_its_own_architecture(programs: Path) -> None:
    gcc = install(programs, "gcc")
    linker = linker_for(parse("rpc://127.0.0.1:1?triple=x86_64-linux-gnu&cpu=haswell"))
    assert linker.command == [gcc, "-nostdlib"]


def test_cc_setting_names_the_linker(programs: Path) -> None:
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


def test_failing_linker_is_quoted(programs: Path) -> None:
    command = install(programs, "ld", "echo wasted; echo kernel.o: wrong format >&2; exit 1")
    with pytest.raises(
        MeasurementError, match=r"cannot link for the board: kernel.o: wrong format"
    ):
        Linker([command]).export(Objects(), programs / "out.so")


def test_linker_that_hangs_is_ended(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "LINKER_LIMIT_SECONDS", 0.2)
    command = install(programs, "ld", "exec /bin/sleep 600")
    with pytest.raises(MeasurementError, match=r"ld does not run: .* timed out after 0\.2 seconds"):
        Linker([command]).export(Objects(), programs / "out.so")
