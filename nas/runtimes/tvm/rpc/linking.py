"""Shared libraries for a board: compiled code, linked here if something here can, or on the board.

The libraries leave everything outside themselves to whatever loads them, so that no C library of
the board is needed to link them: a bare linker does.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tvm.support import cc

from nas.errors import MeasurementError, RequestError
from nas.runtimes.tvm.rpc.address import RpcTarget


class Compiled(Protocol):
    """A module or an executable of TVM."""

    def export_library(self, file_name: str, *, fcompile: Callable[..., None] | None = None) -> Any:
        """Writes object files and hands them to `fcompile`, by default to what the name asks."""
        ...


class Linker:
    """Links for one target.

    Args:
        command: what is run here, up to the object files; None where the board links.
    """

    def __init__(self, command: Sequence[str] | None) -> None:
        self.command = None if command is None else list(command)

    @property
    def suffix(self) -> str:
        """Of the file that `export` makes: TVM links a `.tar` of objects where it loads it."""
        return ".tar" if self.command is None else ".so"

    def export(self, compiled: Compiled, path: Path) -> None:
        """Writes a library that the board can load. Raises MeasurementError where linking fails."""
        if self.command is None:
            compiled.export_library(str(path))
        else:
            compiled.export_library(str(path), fcompile=self._link)

    def _link(self, output: str, objects: Sequence[str], **options: Any) -> None:
        assert self.command is not None
        command = [*self.command, "-shared", "-o", output, *objects]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise MeasurementError(f"{self.command[0]} does not run: {error}.") from error
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            raise MeasurementError(
                f"{self.command[0]} cannot link for the board: {words[-1][:300]}",
                remedy="Name a linker for the board's architecture with cc= in the target.",
            )


def linker_for(target: RpcTarget) -> Linker:
    """What links for a target: its `cc`, or the first that is installed.

    That is this machine's own compiler for its own architecture, and otherwise GCC's or binutils'
    for the target, or LLVM's linker. Where none is, the board links.

    Raises RequestError for a `cc` that is not installed.
    """
    if target.cc:
        if shutil.which(target.cc) is None:
            raise RequestError(
                f"There is no '{target.cc}' to link with.",
                remedy="Install it, correct cc= in the target, or leave it out.",
            )
        return Linker(_command(target.cc, target.triple))
    for name in _usual(target.triple):
        if shutil.which(name) is not None:
            return Linker(_command(name, target.triple))
    return Linker(None)


def _usual(triple: str) -> list[str]:
    machine, *rest = triple.split("-")
    found = []
    if machine == platform.machine() and "linux" in rest:
        found += [name for name in (cc.get_cc(),) if name]
    # Debian's compilers leave out the vendor, which LLVM may name.
    without_vendor = "-".join([machine, *rest[-2:]])
    for prefix in dict.fromkeys((triple, without_vendor)):
        found += [f"{prefix}-gcc", f"{prefix}-ld"]
    return [*found, "ld.lld"]


def _command(program: str, triple: str) -> list[str]:
    name = Path(program).name
    if name.endswith(("ld", "ld.lld", "ld.bfd", "ld.gold")):
        return [program]
    # Neither start-up code nor libraries: not every cross-compiler comes with the board's.
    if "clang" in name:
        return [program, f"--target={triple}", "-fuse-ld=lld", "-nostdlib"]
    return [program, "-nostdlib"]
