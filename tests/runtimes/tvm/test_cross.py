"""Targets of TVM's code generator, and C compilers, for other processors."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from nas.errors import NasError, RequestError
from nas.runtimes.tvm import cross
from nas.runtimes.tvm.cross import c_compiler, code_target


@pytest.mark.parametrize(
    ("triple", "cpu", "features", "why"),
    [
        ("aarch65-linux-gnu", "cortex-a72", (), "'aarch65' .* Did you mean aarch64-linux-gnu"),
        ("aarch64-linux-gnu", "cortex-a761", (), "no aarch64 processor .* Did you mean cortex-a76"),
        ("x86_64-linux-gnu", "cortex-a72", (), "no x86_64 processor 'cortex-a72'"),
        ("aarch64-linux-gnu", "cortex-a72", ("+nosuch",), r"feature '\+nosuch'"),
    ],
)
def test_targets_unknown_to_llvm_are_refused(
    triple: str, cpu: str, features: tuple[str, ...], why: str
) -> None:
    with pytest.raises(RequestError, match=why):
        code_target(triple, cpu, features)


def test_features_reach_the_code_generator() -> None:
    target = code_target("aarch64-linux-gnu", "cortex-a72", ("+dotprod",))
    assert list(target.attrs["mattr"]) == ["+dotprod"]


@pytest.mark.parametrize(
    ("triple", "zig"),
    [
        ("x86_64-linux-gnu", "x86_64-linux-musl"),
        ("aarch64-linux-android", "aarch64-linux-musl"),
        ("aarch64-unknown-linux-gnu", "aarch64-linux-musl"),
        ("armv7-linux-gnueabihf", "arm-linux-musleabihf"),
        ("armv7-linux-gnueabi", "arm-linux-musleabi"),
        ("riscv64-linux-gnu", "riscv64-linux-musl"),
    ],
)
def test_zig_compiles_for_the_triple(
    triple: str, zig: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross, "find_spec", lambda name: object())
    command = c_compiler(triple, static=True)
    assert command == [sys.executable, "-m", "ziglang", "cc", "-target", zig]


def test_the_compiler_of_debian_is_the_first_choice_for_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cross, "find_spec", lambda name: object())
    gcc = tmp_path / "riscv64-linux-gnu-gcc"
    gcc.touch(mode=0o755)
    assert c_compiler("riscv64-linux-gnu") == [gcc.name]
    assert "ziglang" in c_compiler("riscv64-linux-gnu", static=True)


def test_a_missing_compiler_is_an_error_that_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cross, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="no C compiler for riscv64-linux-gnu") as error:
        c_compiler("riscv64-linux-gnu")
    assert "pip install ziglang" in error.value.remedy


def test_compiler_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(cross, "COMPILER_LIMIT_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match=r"^sleep: it had not ended after 0\.2 s$"):
        cross.run_compiler(["sleep", "600"], tmp_path)


def test_without_any_folder_for_programs_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross, "may_run_from", lambda path: False)
    with (
        pytest.raises(NasError, match="mounted with the option noexec") as refused,
        cross.programs_folder(),
    ):
        pass
    assert tempfile.gettempdir() in refused.value.message
    assert "TMPDIR" in refused.value.remedy
