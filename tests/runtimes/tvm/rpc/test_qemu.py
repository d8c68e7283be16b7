"""Kernels for a Raspberry Pi 4, compiled here and run on an emulated one.

`.ci/arm64-board FOLDER` makes the board, and `NAS_ARM64_BOARD=FOLDER` names its folder. The tests
check results, because timings of an emulator mean nothing.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tvm

import nas.space
from nas.kernels.kernel import Kernel
from nas.runtimes.boards import connection
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.example_graphs import GRAPHS
from tests.runtimes.board_servers import answering_runtime
from tests.runtimes.outputs import check_network
from tests.runtimes.tvm.rpc import rpc_processes

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        "NAS_ARM64_BOARD" not in os.environ, reason="needs an arm64 board of .ci/arm64-board"
    ),
]

BLOCKS = ["inverted_residual", "shuffle_unit", "squeeze_excite", "unpadded_stem"]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TvmRuntime]:
    folder = Path(os.environ["NAS_ARM64_BOARD"])
    code = "triple=aarch64-linux-gnu&cpu=cortex-a72"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}/tools/usr/bin:{os.environ['PATH']}")
        patch.setenv("LD_LIBRARY_PATH", f"{folder}/tools/usr/lib/x86_64-linux-gnu")
        # An emulated board beside other tests takes long to begin a session.
        patch.setattr(connection, "ANSWER_SECONDS", 40.0)

        @contextmanager
        def board() -> Iterator[rpc_processes.Process]:
            port = rpc_processes.free_port()
            command = [folder / "python", rpc_processes.__file__, str(port), "server"]
            with (
                (tmp_path_factory.mktemp("qemu") / "log").open("wb") as log,
                subprocess.Popen(command, stdout=log, stderr=log) as started,
            ):
                process = rpc_processes.Process(started.pid, port)
                process.wait()
                try:
                    yield process
                finally:
                    process.kill()

        yield from answering_runtime(
            board, lambda address: TvmRuntime(target=f"rpc://{address}?{code}")
        )


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_compute_on_arm_what_torch_computes_here(runtime: TvmRuntime, name: str) -> None:
    check_network(runtime, GRAPHS[name]())


def test_network_computes_on_arm_what_torch_computes_here(runtime: TvmRuntime) -> None:
    space = nas.space.load_space("mobilenet_tiny", image_size=16, classes=5)
    check_network(runtime, space.sample(seed=2, uniform_over="choices").graph)


def test_kernels_use_neon_and_can_be_timed(runtime: TvmRuntime) -> None:
    kernel = Kernel.parse("conv2d 20x9x9 -> 48x9x9 k1 s1 p0 g1 bias relu")
    schedule, timing = runtime.timer.time_kernel(kernel)
    assert timing.latency_us > 0
    function = runtime.timer.templates.function(kernel, schedule, "main")
    built = tvm.tirx.build(tvm.IRModule({"main": function}), runtime.timer.templates.target, "tirx")
    assembly = built.inspect_source("asm")
    assert "fmla\tv" in assembly
    assert "v31" in assembly


def test_board_is_not_mistaken_for_its_host(runtime: TvmRuntime) -> None:
    fingerprint = runtime.fingerprint
    assert fingerprint.processor == "aarch64 0x41-0xd08-0x0"
    assert fingerprint.target == "rpc?triple=aarch64-linux-gnu&cpu=cortex-a72"
    assert fingerprint.recorded["board_tvm"] == fingerprint.versions["apache-tvm"]
