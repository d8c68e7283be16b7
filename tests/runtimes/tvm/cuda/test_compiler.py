"""The headers that stand in for those of libcu++, compiled with g++ together with TVM's source."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nas.kernels.kernel import Kernel
from nas.runtimes.tvm.cuda import compiler
from nas.schedules.cuda.templates import CudaTemplates
from tests.schedules.cuda.cuda_emulator import cuda_source

CHECKS = """
static_assert(sizeof(int8_t) == 1 && sizeof(uint8_t) == 1 && int8_t(-1) < 0 && uint8_t(-1) > 0);
static_assert(sizeof(int16_t) == 2 && sizeof(uint16_t) == 2 && int16_t(-1) < 0);
static_assert(sizeof(int32_t) == 4 && sizeof(uint32_t) == 4 && uint32_t(-1) > 0);
static_assert(sizeof(int64_t) == 8 && sizeof(uint64_t) == 8 && uint64_t(-1) > 0);
static_assert(std::is_same_v<int32_t, int> && !std::is_same_v<int32_t, uint32_t>);
"""


def test_headers_declare_what_the_source_names(tmp_path: Path) -> None:
    templates = CudaTemplates.for_arch("sm_90", "float32")
    kernel = Kernel.parse("copy 8x2x2 -> 8x2x2 relu")
    function = templates.function(kernel, templates.candidates(kernel)[0], "kernel")
    beginning, _, _ = cuda_source({"kernel": function}, templates.target).partition('extern "C"')
    assert "#include <cuda/std/type_traits>" in beginning
    for name, text in compiler.HEADERS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    source = tmp_path / "source.cpp"
    source.write_text(beginning + CHECKS)
    # Like NVRTC, without the headers of the C++ library.
    options = [
        "-std=c++17",
        "-nostdinc",
        "-nostdinc++",
        "-D__CUDACC_RTC__",
        "-D__CUDACC_VER_MAJOR__=13",
    ]
    done = subprocess.run(
        ["g++", "-fsyntax-only", *options, f"-I{tmp_path}", str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_folders_of_headers_exist(tmp_path: Path) -> None:
    assert compiler.include_folders(tmp_path) == []
    (tmp_path / "include").mkdir()
    assert compiler.include_folders(tmp_path) == [tmp_path / "include"]
    by_architecture = tmp_path / "targets" / "x86_64-linux" / "include"
    (by_architecture / "cccl").mkdir(parents=True)
    folders = compiler.include_folders(tmp_path)
    assert folders == [tmp_path / "include", by_architecture, by_architecture / "cccl"]
