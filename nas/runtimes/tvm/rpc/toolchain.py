"""Linking for a board.

Shared libraries are linked on this machine if it has a linker for the board, or else on the board.
They leave all symbols of other libraries undefined until they are loaded. So no C library of the
board is needed to link them, and a bare linker is enough.
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

LINKER_LIMIT_SECONDS = 300.0
"""How long the linker may take; a library takes milliseconds."""


class CompiledCode(Protocol):
    """A module or an executable of TVM."""

    def export_library(self, file_name: str, *, fcompile: Callable[..., None] | None = None) -> Any:
        """Write object files and link them with `fcompile`, by default as the suffix says."""
        ...


class Linker:
    """A linker for one target.

    Args:
        command: command that links on this machine, up to the object files; None if the board
            links.
    """

    def __init__(self, command: Sequence[str] | None) -> None:
        self.command = None if command is None else list(command)

    @property
    def suffix(self) -> str:
        """Suffix of the file that `export` writes. TVM links a `.tar` of objects when loading."""
        return ".tar" if self.command is None else ".so"

    def export(self, compiled: CompiledCode, path: Path) -> None:
        """Write a library that the board can load. Raises MeasurementError if linking fails."""
        if self.command is None:
            compiled.export_library(str(path))
        else:
            compiled.export_library(str(path), fcompile=self._link)

    def _link(self, output: str, objects: Sequence[str], **options: Any) -> None:
        assert self.command is not None
        command = [*self.command, "-shared", "-o", output, *objects]
        try:
            completed = subprocess.run(
                command, capture_output=True, text=True, timeout=LINKER_LIMIT_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MeasurementError(f"{self.command[0]} does not run: {error}.") from error
        if completed.returncode:
            message = (completed.stderr or completed.stdout).strip() or "no reason given"
            raise MeasurementError(
                f"{self.command[0]} cannot link for the board: {message.splitlines()[-1][:300]}",
                remedy="Name a linker for the board's architecture with cc= in the target.",
            )


def linker_for(board: RpcTarget) -> Linker:
    """Return the linker for a board: its `cc`, or the first usual one that is installed.

    Usual are this machine's compiler for its own architecture, the target's GCC or binutils, and
    LLVM's linker. If none is installed, the board links.

    Raises:
        RequestError: the `cc` of the target is not installed.
    """
    if board.cc:
        if shutil.which(board.cc) is None:
            raise RequestError(
                f"There is no '{board.cc}' to link with.",
                remedy="Install it, correct cc= in the target, or leave it out.",
            )
        return Linker(_command(board.cc, board.triple))
    for name in _usual_linkers(board.triple):
        if shutil.which(name) is not None:
            return Linker(_command(name, board.triple))
    return Linker(None)


def _usual_linkers(triple: str) -> list[str]:
    machine, *rest = triple.split("-")
    names = []
    if machine == platform.machine() and "linux" in rest:
        names += [name for name in (cc.get_cc(),) if name]
    # Debian's compilers leave out the vendor, which LLVM may name.
    without_vendor = "-".join([machine, *rest[-2:]])
    for prefix in dict.fromkeys((triple, without_vendor)):
        names += [f"{prefix}-gcc", f"{prefix}-ld"]
    return [*names, "ld.lld"]


def _command(program: str, triple: str) -> list[str]:
    name = Path(program).name
    if name.endswith(("ld", "ld.lld", "ld.bfd", "ld.gold")):
        return [program]
    # Leave out start-up code and libraries: not every cross-compiler has those of the board.
    if "clang" in name:
        return [program, f"--target={triple}", "-fuse-ld=lld", "-nostdlib"]
    return [program, "-nostdlib"]
