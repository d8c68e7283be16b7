"""Networks as object files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tvm

from nas.runtimes.tvm.c_network import write_object
from nas.runtimes.tvm.cross import code_target
from nas.runtimes.tvm.dispatch_benchmarks import launch_networks
from nas.runtimes.tvm.kernel_timer import tvm_kernels
from nas.schedules.cpu import CpuTemplates


@pytest.mark.parametrize("triple", ["x86_64-linux-gnu", "riscv64-linux-gnu"])
def test_no_kernel_is_inlined_into_a_network(
    triple: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reads would be moved before the writes of the kernel in front of it."""
    cpu = "haswell" if triple.startswith("x86") else "sifive-u74"
    templates = CpuTemplates(code_target(triple, cpu), 1)
    graph = launch_networks()["more"]
    kernels = tvm_kernels(graph)
    schedules = {kernel: templates.candidates(kernel)[0] for kernel in kernels}
    build, built = tvm.tirx.build, []
    monkeypatch.setattr(tvm.tirx, "build", lambda *own: built.append(build(*own)) or built[-1])
    write_object(graph, schedules, None, templates, tmp_path / "network.o", "few")
    code = built[0].inspect_source("ll")
    network = code[code.index("@few_network(") :]
    # A function of addresses may be inlined, but not the function with its loops.
    calls = re.findall(r"call .*@few_kernel_\d+(?:_compute)?\(", network[: network.index("\n}")])
    assert len(calls) == len(kernels)
