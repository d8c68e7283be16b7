"""ONNX Runtime on an emulated Raspberry Pi 4; see `tests.runtimes.litert.test_qemu`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from nas.kernels.kernel import Kernel
from tests.markdown import ROOT
from tests.runtimes.onnxruntime import board_program

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        "NAS_ARM64_BOARD" not in os.environ, reason="needs an arm64 board of .ci/arm64-board"
    ),
]


CONVOLUTIONS = {
    "float32": {"Conv", "com.microsoft.FusedConv"},
    "int8": {"com.microsoft.QLinearConv"},
}


def test_kernels_of_a_space_on_arm() -> None:
    """The processor has no layout of blocks. The program compares a whole network with them."""
    board = Path(os.environ["NAS_ARM64_BOARD"]) / "python"
    program = str(Path(board_program.__file__))
    environment = {**os.environ, "BOARD_PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [board, program], check=True, env=environment, stdout=subprocess.PIPE, text=True
    )
    for dtype, answer in json.loads(done.stdout).items():
        kernels = [Kernel.parse(text) for text in answer["kernels"]]
        ops = {each.node.op for each in kernels if each.node and each.kind == "conv2d"}
        assert ops == CONVOLUTIONS[dtype]
        assert answer["latency_us"] > 0
