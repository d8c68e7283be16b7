"""The compiler that this package calls, against Vela's own command line, and its failures."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from nas import tflite_model
from nas.errors import MeasurementError
from nas.graph import Channels, Graph, Op, Slot
from nas.latency.networks import random_weights
from nas.runtimes.ethos_u import vela
from nas.runtimes.ethos_u.configuration import Target, configuration
from nas.runtimes.ethos_u.networks import EthosUNetwork, file_of
from nas.runtimes.ethos_u.vela import FIGURES, compile_file
from nas.space import load_space
from tests.runtimes.ethos_u import failing_compilers

pytest.importorskip("ethosu")


def squeezenet():
    return load_space("squeezenet_tiny", image_size=32, channels=3, classes=10).sample(0).graph


def summary_of_command(path, target):
    """Return the summary that Vela's command line writes for a file."""
    command = (
        "--config", "Arm/vela.ini", "--accelerator-config", target.part,
        "--system-config", target.system, "--memory-mode", target.memory,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "ethosu.vela", *command, "--output-dir", path.parent, path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (summary,) = path.parent.glob("*_summary_*.csv")
    with open(summary, newline="") as file:
        (row,) = csv.DictReader(file)
    return row, (path.parent / f"{path.stem}_vela.tflite").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ethos-u65-256", "ethos-u55-256:Ethos_U55_Deep_Embedded:Sram_Only"]
)
def test_network_is_compiled_as_by_the_command_line(name, tmp_path):
    target = Target.parse(name)
    data = file_of(squeezenet())
    path = tmp_path / "network.tflite"
    path.write_bytes(data)
    row, model = summary_of_command(path, target)
    compiled = compile_file(data, configuration(target))
    assert compiled.model == model
    assert compiled.cycles == float(row["cycles_total"])
    seconds = compiled.cycles / configuration(target).clock_hz
    assert seconds == pytest.approx(float(row["inference_time"]), rel=1e-6)
    assert compiled.peak_bytes["Sram"] / 1024 >= float(row["sram_memory_used"]) > 0
    figures = compiled.figures(target.macs_per_cycle)
    assert set(figures) == {figure.name for figure in FIGURES}
    assert 1024 * figures["dram_traffic_kib"] == float(row["dram_total_bytes"])
    flash = float(row["off_chip_flash_total_bytes"]) + float(row["on_chip_flash_total_bytes"])
    assert 1024 * figures["flash_traffic_kib"] == flash
    macs_per_second = float(row["nn_tops"]) * 1e12 / 2
    peak_macs_per_second = target.macs_per_cycle * float(row["core_clock"])
    used = macs_per_second / peak_macs_per_second
    assert figures["mac_utilisation"] == pytest.approx(used, rel=1e-3)


def test_cycles_of_a_layer_are_near_those_recorded_with_other_weights():
    """A 1x1 convolution, 32 to 192 channels of 28x28 pixels, in Vela 5.2.0's command line."""
    slot = Slot("kernel", Channels.prefix(192, 192))
    convolution = Op("conv", (0,), (192, 28, 28), bias=True, slot=slot)
    graph = Graph((Op("input", (), (32, 28, 28)), convolution))
    network = EthosUNetwork(graph, None, configuration(Target.parse("ethos-u55-128")))
    assert network.compilation.cycles == pytest.approx(77504, rel=0.02)


def test_cycles_depend_on_the_weights():
    """Weights are compressed: zeros are read faster."""
    graph, target = squeezenet(), configuration(Target.parse("ethos-u65-256"))
    weights = random_weights(graph, np.random.default_rng(0))
    zeros = {slot: 0 * weight for slot, weight in weights.items()}
    random = EthosUNetwork(graph, weights, target).compilation
    empty = EthosUNetwork(graph, zeros, target).compilation
    assert empty.constant_bytes < random.constant_bytes
    assert empty.cycles < random.cycles


def test_float_network_is_refused_with_its_operators():
    graph = squeezenet()
    data = tflite_model.model(graph, random_weights(graph, np.random.default_rng(0)))
    with pytest.raises(MeasurementError, match=r"leaves .*Conv2D.* to the CPU"):
        compile_file(data, configuration(Target.parse("ethos-u55-128")))


@pytest.mark.parametrize(
    ("compiler", "limit_s", "message"),
    [
        (failing_compilers.crash, 60.0, "^Vela's compiler was ended by SIGABRT"),
        (failing_compilers.hang, 1.0, r"^Vela's compiler took more than 1 s\.$"),
    ],
)
def test_failure_of_the_compiler_is_an_error_and_the_next_file_is_compiled(
    compiler, limit_s, message, monkeypatch
):
    data, target = file_of(squeezenet()), configuration(Target.parse("ethos-u55-128"))
    with monkeypatch.context() as patch:
        patch.setattr(vela, "_compile", compiler)
        patch.setattr(vela, "COMPILE_LIMIT_SECONDS", limit_s)
        with pytest.raises(MeasurementError, match=message):
            compile_file(data, target)
    assert compile_file(data, target).cycles > 0
