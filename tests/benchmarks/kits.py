"""Compare a kit with `nas table build` on this processor: kernels, and predictions of networks.

    python -m tests.benchmarks.kits --cpu znver3 --space squeezenet --image-size 32 --out FOLDER

Writes a kit for this machine, runs it, and imports its results; builds the table of runtime `tvm`
for the same space; corrects both on whole networks; and times the same random networks by both
ways: as networks of a kit, and as networks of `nas table check`. Kernels with scratch memory
allocate it in each call where the table is built, and get it in a kit, as in format `c`. --cpu is
LLVM's name of this machine's processor. Run it on an idle machine. Steps whose files are in FOLDER
are not repeated.
"""

import argparse
import json
import platform
import subprocess
from pathlib import Path

import numpy as np

from nas.latency import LatencyTable, space_kernels
from nas.latency.correction import correct_by_kit, lacks_correction
from nas.latency.kit import MANIFEST, RESULTS, device_for
from nas.runtimes.tvm.network_function import scratch_arrays
from nas.schedules.cpu import CpuTemplates
from nas.schedules.cpu.loops import this_processor
from nas.space import load_space
from nas.statistics import latency_agreement
from tests.benchmarks.predictions import figures, nas


def run_kit(folder: Path) -> None:
    """Run the programs of a kit until they are done."""
    for program in json.loads((folder / MANIFEST).read_text())["programs"]:
        subprocess.run([folder.absolute() / program], cwd=folder, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", required=True)
    parser.add_argument("--space", default="squeezenet")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--nets", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    out: Path = options.out
    triple = f"{platform.machine()}-linux-gnu"
    device = device_for(f"kit:here?triple={triple}&cpu={options.cpu}")
    space = load_space(options.space, image_size=options.image_size)
    kernels = space_kernels(space, device)
    kit, networks_kit = out / "kit", out / "networks"
    if not (kit / RESULTS).exists():
        device.write_kernels_kit(kernels, [space.name], kit)
        run_kit(kit)
    notes = device.import_kernels(kit, out / "kit.jsonl")
    print(*notes, sep="\n")
    of_kit = LatencyTable.open(out / "kit.jsonl", runtime=device)
    wanted = ["--space", options.space, "--image-size", options.image_size]
    wanted += ["--channels", space.channels, "--classes", space.classes]
    built = nas("table", "build", *wanted, "--out", out / "built.jsonl")
    of_build = LatencyTable.open(out / "built.jsonl")
    templates = CpuTemplates(this_processor(), 1)
    ratios: dict[bool, list[float]] = {False: [], True: []}
    for kernel in kernels:
        one, other = of_kit.timed_record(kernel), of_build.timed_record(kernel)
        if one.latency_us and other.latency_us and one.schedule:
            function = templates.function(kernel, one.schedule, "main")
            ratios[bool(scratch_arrays(function))].append(one.latency_us / other.latency_us)
    print(f"{built['seconds']:.0f} s for the table")
    for has_scratch, own in ratios.items():
        low, median, high = np.quantile(own, [0.1, 0.5, 0.9]) if own else [np.nan] * 3
        print(
            f"{len(own)} kernels {'with' if has_scratch else 'without'} scratch memory: kit over "
            f"table {median:.3f} (median), {low:.3f} to {high:.3f} (80% of them)"
        )
    checked = nas(
        "table", "check", out / "built.jsonl", *wanted, "--nets", options.nets, "--no-references"
    )
    if lacks_correction(of_kit, [space]):
        if not (out / "calibration" / RESULTS).exists():
            correct_by_kit(of_kit, [space], device, out / "calibration")
            run_kit(out / "calibration")
        correct_by_kit(of_kit, [space], device, out / "calibration")
    architectures = [space.from_json(row["architecture"]) for row in checked["rows"]]
    if not (networks_kit / RESULTS).exists():
        graphs = {each.digest: each.graph for each in architectures}
        device.write_networks_kit(graphs, of_kit.schedules(), networks_kit)
        run_kit(networks_kit)
    latencies = device.network_latencies(networks_kit, of_kit.device.recorded)
    measured = [latencies[each.digest].fastest_us for each in architectures]
    predicted = [of_kit.predict(each) for each in architectures]
    rows = checked["rows"]
    print(f"dispatch costs, us: kit {of_kit.dispatch.parts_us}, table {of_build.dispatch.parts_us}")
    for name, own_us, of_table in (
        ("corrected", [each.latency_us for each in predicted], checked),
        ("uncorrected", [each.uncorrected_us for each in predicted], checked["uncorrected"]),
    ):
        print(f"kit, {name}: {figures(latency_agreement(own_us, measured).to_json())}")
        print(f"table, {name}: {figures(of_table)}")
    ratio = np.median([own / row["measured_us"] for own, row in zip(measured, rows, strict=True)])
    print(f"measured networks, kit over table: {ratio:.3f} (median)")


if __name__ == "__main__":
    main()
