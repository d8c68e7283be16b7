"""LiteRT on an emulated Raspberry Pi 4: files written here, and a table built there.

`.ci/arm64-board FOLDER` makes the board, and `NAS_ARM64_BOARD=FOLDER` names its folder. The tests
check results, because timings of an emulator mean nothing.
"""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch

from nas.latency import LatencyTable
from nas.latency.installed_runtimes import RUNTIMES
from nas.runtimes.litert.network import network_file
from nas.torch_network import folded_weights
from tests.latency.example_graphs import GRAPHS
from tests.markdown import ROOT
from tests.runtimes.litert import board_program
from tests.runtimes.outputs import check_outputs, random_images
from tests.test_onnx_model import network

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        "NAS_ARM64_BOARD" not in os.environ, reason="needs an arm64 board of .ci/arm64-board"
    ),
]

BLOCKS = ["shuffle_unit", "classifier", "squeeze_excite"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the board's program, after it has run."""
    folder = tmp_path_factory.mktemp("board")
    for name in BLOCKS:
        graph = GRAPHS[name]()
        weights = folded_weights(network(graph))
        images = random_images(graph, 2)
        for dtype in ("float32", "int8"):
            path = folder / f"{name}-{dtype}.tflite"
            path.write_bytes(network_file(graph, weights, dtype))
            np.save(path.with_suffix(".npy"), images.transpose(0, 2, 3, 1))
    board = Path(os.environ["NAS_ARM64_BOARD"]) / "python"
    # The package is not installed on the board, only its entry points are.
    installed = folder / "site" / "hardware_nas-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: hardware-nas\nVersion: 0\n")
    runtimes = "\n".join(f"{e.name} = {e.value}" for e in entry_points(group=RUNTIMES.group))
    (installed / "entry_points.txt").write_text(f"[{RUNTIMES.group}]\n{runtimes}\n")
    environment = {**os.environ, "BOARD_PYTHONPATH": f"{ROOT}:{installed.parent}"}
    subprocess.run([board, board_program.__file__, folder], check=True, env=environment)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_compute_on_arm_what_torch_computes_here(
    folder: Path, name: str, dtype: str
) -> None:
    images, output = (np.load(folder / f"{name}-{dtype}{end}.npy") for end in ("", ".out"))
    with torch.no_grad():
        expected = network(GRAPHS[name]())(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    if output.ndim == 4:
        output = output.transpose(0, 3, 1, 2)
    check_outputs(output, expected.reshape(2, -1), dtype)


def test_table_of_the_board_predicts_here(folder: Path) -> None:
    (path,) = folder.glob("*.litert.float32.1t.jsonl")
    table = LatencyTable.open(path)
    assert table.device.processor == "aarch64 0x41-0xd08-0x0"
    assert table.predict(board_program.timed_graph()).latency_us > 0
