"""Every kind of kernel compiles for processors that this machine is not."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import tvm

from nas.errors import RequestError
from nas.latency.kernel import Kernel
from nas.runtimes.tvm import targets
from nas.runtimes.tvm.rpc.address import parse
from nas.runtimes.tvm.rpc.code import compiled_for

KERNELS = [
    "conv2d 20x9x9 -> 150x9x9 k1 s1 p0 g1 bias relu",
    "conv2d 7x9x9 -> 37x9x9 k3 s1 p1 g1 bias relu6",
    "conv2d 24x6x6 -> 72x6x6 k1 s1 p0 g3 bias hard_swish",
    "conv2d 58x13x13 -> 58x13x13 k3 s1 p1 g58 bias relu",
    "conv2d 70x12x12 -> 70x6x6 k5 s2 p2 g70 bias",
    "conv2d 16x4x4 -> 16x4x4 k1 s1 p0 g1 bias add",
    "max_pool 70x13x13 -> 70x7x7 k3 s2 p1 g1",
    "avg_pool 70x13x13 -> 70x7x7 k3 s2 p1 g1",
    "global_pool 150x3x3 -> 150x1x1",
    "linear 64x1x1 -> 40x1x1 bias",
]

EM_X86_64, EM_AARCH64 = 62, 183
"""Of the ELF header's e_machine."""

NOWHERE = "rpc://127.0.0.1:1"


@pytest.mark.parametrize(
    ("code", "machine", "lanes", "registers"),
    [
        ("triple=aarch64-linux-gnu&cpu=cortex-a72", EM_AARCH64, 4, 32),
        ("triple=x86_64-linux-gnu&cpu=haswell", EM_X86_64, 8, 16),
        ("triple=x86_64-linux-gnu&cpu=core2", EM_X86_64, 4, 16),
        ("triple=x86_64-linux-gnu&cpu=skylake-avx512", EM_X86_64, 16, 32),
    ],
)
def test_every_kind_of_kernel_compiles_for_another_processor(
    tmp_path: Path, code: str, machine: int, lanes: int, registers: int
) -> None:
    templates, _ = targets.resolve(f"{NOWHERE}?{code}", 1, "float32")
    assert (templates.lanes, templates.registers) == (lanes, registers)  # type: ignore[attr-defined]
    for index, text in enumerate(KERNELS):
        kernel = Kernel.parse(text)
        function = templates.function(kernel, templates.candidates(kernel)[0], "main")
        built = tvm.tirx.build(tvm.IRModule({"main": function}), templates.target, "tirx")
        path = tmp_path / f"{index}.o"
        built.write_to_file(str(path))
        header = path.read_bytes()[:20]
        assert header[:5] == b"\x7fELF\x02"
        assert struct.unpack_from("<H", header, 18) == (machine,)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("triple=aarch65-linux-gnu&cpu=cortex-a72", "no architecture 'aarch65'"),
        ("triple=aarch64-linux-gnu&cpu=cortex-a999", "no aarch64 processor 'cortex-a999'"),
        ("triple=x86_64-linux-gnu&cpu=cortex-a72", "no x86_64 processor 'cortex-a72'"),
        ("triple=aarch64-linux-gnu&cpu=cortex-a72&features=+nosuch", r"feature '\+nosuch'"),
    ],
)
def test_what_llvm_does_not_know_is_refused(code: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        compiled_for(parse(f"{NOWHERE}?{code}"))


def test_features_reach_the_code_generator() -> None:
    code = compiled_for(
        parse(f"{NOWHERE}?triple=aarch64-linux-gnu&cpu=cortex-a72&features=+dotprod")
    )
    assert list(code.attrs["mattr"]) == ["+dotprod"]
