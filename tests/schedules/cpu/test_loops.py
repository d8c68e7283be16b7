from __future__ import annotations

import pytest
from tvm.target import codegen

from nas.machine import this_machine
from nas.schedules.cpu import loops
from tests.schedules.cpu.processors import needs_x86

ZNVER4 = (
    "avx512bf16", "avx512bitalg", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512ifma",
    "avx512vbmi", "avx512vbmi2", "avx512vl", "avx512vnni", "avx512vpopcntdq",
)  # fmt: skip
"""Vector units of AMD's fourth generation beyond those of its third, by LLVM's names."""


def test_hidden_vector_units_are_those_that_linux_does_not_list() -> None:
    of_the_model = ["avx", "avx512f", "avx512vnni", "avxvnni", "amx-tile", "f16c", "fma", "bmi2"]
    listed = ["avx", "avx_vnni", "f16c", "sse4_1"]
    hidden = loops.hidden_vector_units(of_the_model, listed)
    assert hidden == ["amx-tile", "avx512f", "avx512vnni", "fma"]
    assert loops.hidden_vector_units(of_the_model, [*listed, *hidden, "amx_tile"]) == []


def test_a_system_that_lists_no_vector_features_hides_none() -> None:
    assert loops.hidden_vector_units(["avx", "avx512f"], ()) == []


@needs_x86
@pytest.mark.parametrize(
    ("llvm", "linux"), [("avx", "avx"), ("avx512f", "avx512f"), ("avx512vnni", "avx512_vnni")]
)
def test_target_has_no_vector_unit_that_this_machine_lacks(llvm: str, linux: str) -> None:
    has_unit = linux in this_machine.processor()[1]
    assert has_unit or not codegen.llvm_cpu_has_features(llvm, loops.this_processor())


@needs_x86
def test_target_without_avx_512_has_half_as_wide_vectors(monkeypatch) -> None:
    features = ("avx", "avx2", "f16c", "fma", "sse4_1")
    monkeypatch.setattr(this_machine, "processor", lambda: ("AMD EPYC", features))
    monkeypatch.setattr(codegen, "llvm_get_system_cpu", lambda: "znver4")
    assert loops.vector_unit(loops.this_processor()) == loops.AVX
    everything = (*features, *loops.hidden_vector_units(ZNVER4, features))
    monkeypatch.setattr(this_machine, "processor", lambda: ("AMD EPYC", everything))
    assert "mattr" not in loops.this_processor().attrs
    assert loops.vector_unit(loops.this_processor()) == loops.AVX512
