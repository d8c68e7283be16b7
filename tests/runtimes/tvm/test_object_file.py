"""Names of functions in object files. `tests/deploy/formats` has those of other processors."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from nas.runtimes.tvm.cross import c_compiler
from nas.runtimes.tvm.object_file import hide_functions
from tests.deploy.formats.models import defined_symbols

SOURCE = """
int imported(int value);
int table[2] = {3, 4};
static int half(int value) { return value / 2; }
int twice(int value) { return 2 * value + table[0]; }
__attribute__((weak)) int weak(int value) { return half(value) + table[1]; }
int all(int value) { return twice(value) + weak(value) + imported(value); }
"""


def compiled(folder: Path, *command: object) -> None:
    subprocess.run([*c_compiler(None), *map(str, command)], cwd=folder, check=True)


def test_definitions_get_a_prefix_and_are_hidden_and_imports_stay(tmp_path: Path) -> None:
    (tmp_path / "own.c").write_text(SOURCE)
    (tmp_path / "main.c").write_text(
        "int a_long_prefix_all(int); int imported(int value) { return 100 * value; }\n"
        "int weak(int value) { return a_long_prefix_all(value); }\n"
    )
    compiled(tmp_path, "-fPIC", "-c", "own.c")
    hide_functions(tmp_path / "own.o", "a_long_prefix_")
    names = {"a_long_prefix_all", "a_long_prefix_table", "a_long_prefix_twice"}
    assert defined_symbols(tmp_path / "own.o", hidden=True) == {*names, "a_long_prefix_weak"}
    assert defined_symbols(tmp_path / "own.o", hidden=False) == set()
    compiled(tmp_path, "-fPIC", "-shared", "-o", "own.so", "main.c", "own.o")
    assert ctypes.CDLL(str(tmp_path / "own.so")).weak(10) == 23 + 9 + 1000


@pytest.mark.parametrize("content", [b"", b"no object", b"\x7fELF\x03"])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.o"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no object file"):
        hide_functions(path, "a_")
