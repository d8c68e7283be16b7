"""Code for other processors: TVM's target for them, and C compilers for their programs.

Importing this imports no TVM.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.errors import NasError, RequestError
from nas.files.foreign import NOTHING_RUNS, may_run_from

if TYPE_CHECKING:
    import tvm

EXAMPLE_TRIPLES = (
    "x86_64-linux-gnu",
    "aarch64-linux-gnu",
    "aarch64-linux-android",
    "armv7-linux-gnueabihf",
    "riscv64-linux-gnu",
)
"""Triples of usual devices."""

COMPILER_LIMIT_SECONDS = 1800.0
"""How long a compiler may take; the largest network takes minutes on a slow machine."""

_ARCHITECTURE_ALIASES = re.compile(r"arm64|armv\d.*|thumbv\d.*|amd64|i[3-6]86")
"""Architectures that LLVM accepts in a triple, but lists under another name."""

_SHOW_TARGET = (
    "On the device, `uname -m` shows the architecture, and /proc/cpuinfo the processor; with TVM: "
    "python -c 'from tvm.target import codegen as c; "
    "print(c.llvm_get_system_triple(), c.llvm_get_system_cpu())'. If /proc/cpuinfo lacks a vector "
    "unit of the processor, such as avx512f, add features=-avx512f."
)

_ZIG_ARCHITECTURES = {"armv7": "arm", "armv7l": "arm", "arm64": "aarch64", "amd64": "x86_64"}
"""Names of architectures in triples of `zig cc`, where they differ."""


def code_target(triple: str, cpu: str, features: Sequence[str] = ()) -> tvm.target.Target:
    """Return the target of TVM's code generator for a processor.

    Args:
        triple: architecture, system and ABI, as LLVM and GCC name them.
        cpu: the processor, as LLVM names it.
        features: features that it has (`+`) or lacks (`-`), unlike others of its name.

    Raises:
        RequestError: LLVM does not know the triple, the processor or a feature. LLVM itself would
            only warn, and compile for another processor.
    """
    import tvm
    from tvm.target import codegen

    architecture = triple.partition("-")[0]
    known = [*codegen.llvm_get_targets()]
    if architecture not in known and not _ARCHITECTURE_ALIASES.fullmatch(architecture):
        raise RequestError(
            f"TVM cannot compile for architecture '{architecture}' of triple={triple}."
            f"{_near(triple, EXAMPLE_TRIPLES)}",
            remedy=_SHOW_TARGET,
        )
    if not codegen.llvm_is_valid_cpu(cpu, triple):
        names = codegen.llvm_get_cpu_archlist(
            tvm.target.Target({"kind": "llvm", "mtriple": triple})
        )
        raise RequestError(
            f"LLVM knows no {architecture} processor '{cpu}'.{_near(cpu, [*map(str, names)])}",
            remedy=_SHOW_TARGET,
        )
    description: dict[str, Any] = {
        "kind": "llvm",
        "mtriple": triple,
        "mcpu": cpu,
        **_float_abi(triple),
    }
    if features:
        description["mattr"] = list(features)
    target = tvm.target.Target(description)
    for feature in features:
        if codegen.llvm_cpu_has_features(feature[1:], target) != (feature[0] == "+"):
            raise RequestError(
                f"LLVM cannot give {cpu} the feature '{feature}'.",
                remedy="Use the names that LLVM has for features, or leave it out.",
            )
    return target


def _float_abi(triple: str) -> dict[str, str]:
    """Return how functions pass floats, where LLVM's default is another than that of Linux."""
    if triple.startswith(("arm", "thumb")) and triple.endswith("hf"):
        return {"mfloat-abi": "hard"}
    return {"mabi": "lp64d"} if triple.startswith("riscv64") else {}


def _near(name: str, known: Sequence[str]) -> str:
    """Return a sentence with the known names that are similar; empty if there is none."""
    names = get_close_matches(name, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(names)}?" if names else ""


def c_compiler(triple: str | None, *, static: bool = False) -> list[str]:
    """Return the command of a C compiler, up to its options.

    For this machine it is the compiler of `CC`, or a usual one. For other processors it is Debian's
    cross compiler, or that of the package ziglang, which has a C library for all of them.

    Args:
        triple: triple of the processor; None for this machine.
        static: whether programs are linked that need no library of the device, so that the package
            ziglang is the first choice.

    Raises:
        RequestError: there is none.
    """
    if triple is None:
        names = [*os.environ.get("CC", "").split()[:1], "cc", "gcc", "clang"]
    else:
        names = [f"{triple}-gcc"]
    has_zig = find_spec("ziglang") is not None
    installed = next((name for name in names if shutil.which(name)), None)
    if installed and not (static and has_zig):
        return [installed]
    if has_zig:
        of_triple = [] if triple is None else ["-target", zig_triple(triple)]
        return [sys.executable, "-m", "ziglang", "cc", *of_triple]
    package = "gcc" if triple is None else f"Debian's gcc-{triple}"
    raise RequestError(
        f"There is no C compiler for {triple or 'this machine'}.",
        remedy=f"pip install ziglang (it compiles for all processors), or install {package}.",
    )


def run_compiler(command: Sequence[str], folder: Path) -> None:
    """Run a compiler in a folder. Raises RuntimeError with its first error if it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMPILER_LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        limit = f"{COMPILER_LIMIT_SECONDS:g} s"
        raise RuntimeError(f"{command[0]}: it had not ended after {limit}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise RuntimeError(f"{command[0]}: {lines[0].strip()[:300]}")


@contextmanager
def programs_folder() -> Iterator[Path]:
    """Yield a temporary folder for programs and libraries that are run here.

    It is in the folder for temporary files, or in another one that Python uses for them if nothing
    may be run from there.

    Raises:
        NasError: nothing may be run from any of them.
    """
    usual = tempfile.gettempdir()
    others = [usual, "/tmp", "/var/tmp", os.getcwd()]
    places = [each for each in others if os.access(each, os.W_OK) and may_run_from(Path(each))]
    if not places:
        raise NasError(
            f"A program is to be run from the folder for temporary files, {usual}, and "
            f"{NOTHING_RUNS}.",
            remedy="Set TMPDIR to a folder on a disk from which programs can be run.",
        )
    with tempfile.TemporaryDirectory(prefix="nas-", dir=places[0]) as folder:
        yield Path(folder)


def zig_triple(triple: str) -> str:
    """Return a triple as `zig cc` names it, with the C library musl."""
    architecture, *rest = triple.split("-")
    architecture = _ZIG_ARCHITECTURES.get(architecture, architecture)
    is_hard = architecture == "arm" and rest[-1].endswith("hf")
    abi = ("musleabihf" if is_hard else "musleabi") if architecture == "arm" else "musl"
    return f"{architecture}-linux-{abi}"
