"""How near to the peak of a core the kernels of a processor run, and what their inner loops hold.

    python -m tests.benchmarks.inner_loops [--target cpu?mcpu=znver3] [--tile 1x14] [KERNEL ...]

For each kernel: the register tile (vectors of channels x pixels) of its fastest schedule; its
multiply-adds a second as a share of the core's peak, which is measured beforehand with sums that
stay in registers; and the loads and the spills of the inner loop by multiply-add. With `--tile`,
pointwise kernels are timed with this tile, too, in turns. `apart` is the time of the pointwise and
the depthwise kernel that an expanded one does the work of. The fastest of several timings counts.
Run it on an idle machine.

    python -m tests.benchmarks.inner_loops --count cortex-a72 --triple aarch64-linux-gnu

only compiles, for any processor, and says nothing of speed.
"""

import argparse
import math
from typing import Any

import numpy as np
import tvm

from nas.display.console import print_table
from nas.kernels.kernel import Kernel
from nas.latency import open_runtime, timing
from nas.runtimes.tvm.kernel_timer import TvmKernelTimer
from nas.schedules.cpu import CpuTemplates
from nas.schedules.cpu.loops import VectorRegisters
from nas.schedules.tir import Buffer, function, loop
from tests.schedules.cpu.assembly import inner_loops, templates_for

KERNELS = [
    "conv2d 96x32x32 -> 24x32x32 k1 s1 p0 g1 bias",
    "conv2d 144x16x16 -> 32x16x16 k1 s1 p0 g1 bias",
    "conv2d 58x16x16 -> 58x16x16 k1 s1 p0 g1 bias relu",
    "conv2d 240x8x8 -> 40x8x8 k1 s1 p0 g1 bias add",
    "conv2d 384x8x8 -> 96x8x8 k1 s1 p0 g1 bias",
    "conv2d 960x4x4 -> 160x4x4 k1 s1 p0 g1 bias add",
    "conv2d 320x4x4 -> 1280x4x4 k1 s1 p0 g1 bias relu6",
    "conv2d 64x56x56 -> 64x28x28 k3 s2 p1 g1 bias relu",
    "conv2d 16x32x32 expanded bias relu6 -> 96x32x32 k3 s1 p1 g96 bias relu6",
    "conv2d 96x8x8 expanded bias relu6 -> 576x8x8 k3 s1 p1 g576 bias relu6",
]

SUMS = 12
"""Sums in registers that the peak is measured with: more than multiply-adds in flight."""

STEPS = 10_000
ROUNDS = 5


def peak(timer: TvmKernelTimer, lanes: int) -> float:
    """Return the multiply-adds that the core does in a microsecond at most."""
    x, y = Buffer("x", 2 * lanes), Buffer("y", SUMS * lanes)
    registers = VectorRegisters("sum", SUMS, lanes)

    def step(_: Any) -> list[Any]:
        products = (
            registers.load(k, lanes) * x.load(0, lanes) + x.load(lanes, lanes) for k in range(SUMS)
        )
        return [registers.store(k, value, lanes) for k, value in enumerate(products)]

    body = [
        *registers.allocate(),
        *(registers.store(k, y.load(k * lanes, lanes), lanes) for k in range(SUMS)),
        *loop(STEPS, step),
        *(y.store(k * lanes, registers.load(k, lanes), lanes) for k in range(SUMS)),
    ]
    written = function([x, y], body, "main")
    built = tvm.tirx.build(written, timer.templates.target, "tirx")
    tensors = [timer.device.to_device(np.full(n * lanes, 0.5, np.float32)) for n in (2, SUMS)]
    evaluate = timer.device.load_library(built).time_evaluator(
        "main", timer.device.tvm_device, number=20, repeat=20
    )
    with timer.device.timing_context(1):
        return SUMS * lanes * STEPS / (1e6 * min(evaluate(*tensors).results))


def times_us(timer: TvmKernelTimer, kernel: Kernel, schedules: list[dict]) -> list[float]:
    """Return the microseconds of a kernel with each schedule, timed in turns."""
    evaluators = timer._compile_candidates(kernel, schedules)
    best = [math.inf] * len(schedules)
    with timer.device.timing_context(1):
        for _ in range(ROUNDS):
            quick = map(timing.quick_latency_us, evaluators)
            best = [min(pair) for pair in zip(best, quick, strict=True)]
    return best


def candidates(timer: TvmKernelTimer, kernel: Kernel) -> list[dict]:
    """Return the schedules among which a table chooses, but for refinements of later ones."""
    first = timer.templates.candidates(kernel)
    return [*first, *timer.templates.refinements(kernel, first[0])]


def apart(kernel: Kernel) -> list[Kernel]:
    """Return the two kernels that an expanded one does the work of; none for another kernel."""
    if kernel.expansion is None:
        return []
    (operand,) = kernel.inputs
    channels, height, width = operand.shape
    between = f"{kernel.groups}x{height}x{width}"
    steps = " ".join(kernel.expansion)
    pointwise = f"conv2d {channels}x{height}x{width} -> {between} k1 s1 p0 g1 {steps}"
    depthwise = f"conv2d {between} -> {kernel.text.partition(' -> ')[2]}"
    return [Kernel.parse(pointwise), Kernel.parse(depthwise)]


def row(templates: CpuTemplates, kernel: Kernel, schedule: dict, speed: list[str]) -> list[str]:
    tile = f"{schedule['channels']} x {schedule.get('pixels') or schedule['columns']}"
    # A load serves more multiply-adds in whole tiles than in those at the end of a row.
    loops = inner_loops(templates, kernel, schedule)
    body = min(loops, key=lambda each: each.loads / each.multiply_adds)
    counts = (f"{count / body.multiply_adds:.2f}" for count in (body.loads, body.spills))
    return [kernel.text, tile, *counts, *speed]


def other_tiles(kernel: Kernel, schedule: dict, tile: str | None) -> list[dict]:
    """Return the schedule of a pointwise kernel with another tile, if there is one."""
    if tile is None or kernel.kernel > 1:
        return []
    channels, columns = map(int, tile.split("x"))
    return [{**schedule, "channels": channels, "columns": columns}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", default=KERNELS, metavar="KERNEL")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--tile", help="vectors x pixels of the tiles of pointwise kernels")
    parser.add_argument("--count", metavar="CPU", help="only compile, for this processor")
    parser.add_argument(
        "--triple", default="x86_64-linux-gnu", help="of the processor to count for"
    )
    options = parser.parse_args()
    kernels = list(map(Kernel.parse, options.kernels))
    if options.count:
        templates = templates_for(options.count, options.triple)
        rows = [row(templates, each, templates.candidates(each)[0], []) for each in kernels]
        print_table(["kernel", "tile", "loads", "spills"], rows)
        return
    timer = open_runtime("tvm", target=options.target).timer
    most = peak(timer, timer.templates.unit.lanes)
    print(f"peak: {most / 1e3:.1f} billion multiply-adds a second")
    rows = []
    for kernel in kernels:
        schedules = candidates(timer, kernel)
        own = len(schedules)
        schedules += other_tiles(kernel, schedules[0], options.tile)
        us = times_us(timer, kernel, schedules)
        best = min(us[:own])
        share, *other = (f"{kernel.macs / each / most:.0%}" for each in (best, *us[own:]))
        parts = [min(times_us(timer, each, candidates(timer, each))) for each in apart(kernel)]
        speed = [f"{best:.1f}", f"{sum(parts):.1f}" if parts else "", share, *other]
        rows.append(row(timer.templates, kernel, schedules[us.index(best)], speed))
        rows[-1] += [""] * (not other and options.tile is not None)
    titles = ["kernel", "tile", "loads", "spills", "us", "apart", "of the peak"]
    print_table(titles + [f"with {options.tile}"] * bool(options.tile), rows)


if __name__ == "__main__":
    main()
