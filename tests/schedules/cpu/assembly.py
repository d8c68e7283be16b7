"""What the inner loop of a kernel looks like in machine code, for any processor that LLVM knows."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import tvm

from nas.kernels.kernel import Kernel
from nas.schedules.cpu import CpuTemplates

_LABEL = re.compile(r"(\.L\w+):")
_JUMP = re.compile(r"(?:j\w+|b\.?\w*|cbn?z|tbn?z)\s.*?(\.L\w+)")
_MULTIPLY_ADD = re.compile(r"vfn?m(?:add|sub)\w*ps|fml[as]\s")
_SPILL = re.compile(r"(?=.*(?:%rsp|\[sp\b)).*(?:%[xyz]mm|\b[qv]\d)")


class InnerLoop(NamedTuple):
    """Instructions of one iteration.

    Attributes:
        multiply_adds: multiply-adds of vectors.
        loads: loads from memory, operands of other instructions included.
        spills: vectors that pass through the stack, because they do not fit the registers.
    """

    multiply_adds: int
    loads: int
    spills: int


def templates_for(cpu: str, triple: str = "x86_64-linux-gnu") -> CpuTemplates:
    """Return templates for a processor by LLVM's name."""
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})
    return CpuTemplates(target, 1)


def inner_loops(
    templates: CpuTemplates, kernel: Kernel, schedule: dict[str, Any]
) -> list[InnerLoop]:
    """Compile a kernel, and return its innermost loops with multiply-adds.

    Whole register tiles and those at the end of a row have loops of their own.
    """
    built = tvm.tirx.build(templates.function(kernel, schedule, "kernel"), templates.target, "tirx")
    loops = [
        InnerLoop(
            multiply_adds=sum(bool(_MULTIPLY_ADD.match(line)) for line in body),
            loads=sum(map(_is_load, body)),
            spills=sum(bool(_SPILL.search(line)) for line in body),
        )
        for body in _innermost_loops(_assembly(built))
    ]
    return [each for each in loops if each.multiply_adds]


def _assembly(built: tvm.runtime.Module) -> list[str]:
    """Return the instructions and the labels of a module, without comments and debug labels."""
    (code,) = (each for each in [built, *built.imports] if each.kind == "llvm")
    lines = (line.strip().replace("\t", " ") for line in code.inspect_source("asm").splitlines())
    return [line for line in lines if line and not re.match(r"[#/]|\.(?!L)|\.Ltmp", line)]


def _innermost_loops(lines: list[str]) -> list[list[str]]:
    """Return what lies between each label and a jump back to it, if no label lies between."""
    labels = {match[1]: at for at, line in enumerate(lines) if (match := _LABEL.match(line))}
    loops = []
    for at, line in enumerate(lines):
        match = _JUMP.match(line)
        start = labels.get(match[1], at) if match else at
        body = lines[start + 1 : at]
        if body and not any(map(_LABEL.match, body)):
            loops.append(body)
    return loops


def _is_load(line: str) -> bool:
    if line.startswith(("lea", "prefetch", "prfm", "st")):
        return False
    is_store = re.search(r",\s*[^,(]*\([^)]*\)$", line)  # The target comes last in AT&T's syntax.
    return line.startswith("ld") or ("(" in line and not is_store)
