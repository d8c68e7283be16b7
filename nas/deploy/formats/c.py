"""Format `c`: an object file with the very kernels that the latency table timed, for C programs.

`model.o` holds code and weights, and needs nothing but a C library: no runtime, no allocation, no
file and no thread. `model.h` declares the function that runs the network, and `example.c` calls it.

The code is for the processor of the table: this machine's, or that of another device. Of another
architecture, it is run by an emulator (qemu-user) if there is one.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nas.deploy.cpp_example import write_source
from nas.deploy.formats import c_model
from nas.deploy.formats.base import LoadedModel
from nas.deploy.formats.c_model import OPTIONS, SOURCES
from nas.deploy.formats.tvm import Tvm
from nas.errors import RequestError
from nas.runtimes.tvm.cross import c_compiler, code_target, run_compiler, zig_triple
from nas.runtimes.tvm.kit import address as kit_address
from nas.runtimes.tvm.kit.address import KitTarget
from nas.transports import is_address

if TYPE_CHECKING:
    from nas.deploy.model import TrainedModel
    from nas.latency.runtime import Schedules
    from nas.run.settings import DeviceSettings
    from nas.runtimes.tvm.runtime import TvmRuntime
    from nas.schedules.templates import Templates

_KERNELS = "kernels"
"""Start of the names of the functions that TVM compiles."""


class C(Tvm):
    """An object file for C programs, with kernels of a latency table. See `ModelFormat`."""

    name = "c"
    file_name = "model.o"
    companions = ("model.h", "example.c")
    packages = ()
    requirements = ()
    runtimes = ()
    extra = "kit"

    @property
    def missing_packages(self) -> list[str]:
        """A C compiler, if there is none: it links a program that runs the file."""
        try:
            c_compiler(None)
        except RequestError:
            return ["ziglang"]
        return []

    def is_made_for(self, device: DeviceSettings) -> bool:
        """See `ModelFormat.is_made_for`. Other devices than this machine often lack a runtime."""
        return device.runtime == "tvm" and kit_address.is_kit(device.target)

    def check_device(self, runtime: str, target: str, dtype: str, threads: int = 1) -> None:
        """See `ModelFormat.check_device`. There is no file for several threads."""
        super().check_device(runtime, target, dtype, threads)
        if threads != 1:
            raise RequestError(
                f"Format 'c' runs on one thread, and the run is for {threads}.",
                remedy="Export format tvm, or search with [device] threads = 1.",
            )

    def check_compiler(self, target: str) -> None:
        """See `Tvm.check_compiler`. Objects of macOS and Windows have other formats."""
        if not sys.platform.startswith("linux"):
            raise RequestError(
                f"Format 'c' is made on Linux, and this is {sys.platform}.",
                remedy="Export it there, or another format, such as onnx.",
            )
        compiler_for(target)

    def write_code(
        self, model: TrainedModel, runtime: TvmRuntime, schedules: Schedules, path: Path
    ) -> None:
        """See `Tvm.write_code`."""
        from nas.runtimes.tvm.c_network import write_object
        from nas.runtimes.tvm.network_function import ALIGNMENT_BYTES
        from nas.runtimes.tvm.object_file import hide_functions

        templates = _templates(runtime)
        triple, cpu = (str(templates.target.attrs[each]) for each in ("mtriple", "mcpu"))
        compiler = compiler_for(runtime.target)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            kernels, weights = folder / "kernels.o", folder / "weights.bin"
            network = write_object(
                model.graph, schedules, model.weights, templates, kernels, _KERNELS
            )
            weights.write_bytes(network.weights.tobytes())
            # Two files that share a name and hold anything else, such as another training of the
            # network, would each answer for the other where a program has both.
            held = kernels.read_bytes() + weights.read_bytes()
            held += model.preprocessing.embedded.encode()
            name = f"nas_{model.network.graph.digest[:8]}_{hashlib.sha256(held).hexdigest()[:8]}"
            hide_functions(kernels, f"{name}_")
            for template in SOURCES.glob("*.j2"):
                write_source(
                    template,
                    folder,
                    name=name,
                    network=f"{name}_{_KERNELS}_network",
                    how=model.preprocessing,
                    triple=triple,
                    cpu=cpu,
                    commands=_link_commands(runtime.target),
                    alignment=ALIGNMENT_BYTES,
                    workspace_bytes=network.workspace_bytes,
                )
            run_compiler([*compiler, *OPTIONS, "-fPIC", "-c", "runtime.c"], folder)
            objects = ["runtime.o", kernels.name]
            run_compiler([*compiler, "-r", "-nostdlib", "-o", path.name, *objects], folder)
            for file in (path.name, *self.companions):
                shutil.move(folder / file, path.with_name(file))

    def can_run(self, path: Path) -> bool:
        """See `ModelFormat.can_run`."""
        return c_model.runs_here(path)

    def emulator(self, path: Path) -> str:
        """See `ModelFormat.emulator`."""
        return c_model.emulator_of(path)

    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        """See `ModelFormat.load`. A C compiler links a library or a program of it.

        Raises:
            RequestError: there is no compiler, or nothing that runs it.
        """
        return c_model.load(path)

    def load_on(self, device: str, path: Path, threads: int = 1) -> LoadedModel:
        """See `ModelFormat.load_on`. A program of it is linked here, and copied to the device."""
        return c_model.ProgramOnDevice(path, device)


def processor_of(target: str) -> KitTarget | None:
    """Return the processor of a target by its triple; None for this machine's.

    Also None for a device with an address: its table has the processor.
    """
    has_processor = kit_address.is_kit(target) and not is_address(target)
    return kit_address.parse(target) if has_processor else None


def compiler_for(target: str) -> list[str]:
    """Return the command of a C compiler for a target. Raises RequestError if there is none."""
    processor = processor_of(target)
    return c_compiler(None if processor is None else processor.triple)


def _templates(runtime: TvmRuntime) -> Templates:
    """Return the templates of a device, which need not be there."""
    from nas.schedules.cpu import CpuTemplates

    processor = processor_of(runtime.target)
    if processor is None:
        return runtime.timer.templates
    return CpuTemplates(code_target(processor.triple, processor.cpu, processor.features), 1)


def _link_commands(target: str) -> list[str]:
    """Return commands that link the example for a target, up to their arguments."""
    processor = processor_of(target)
    if processor is None:
        return ["cc"]
    triple = processor.triple
    zig = f"python -m ziglang cc -target {zig_triple(triple)}"
    if "android" in triple:
        return [zig, f"{triple}24-clang"]
    return [zig, f"{triple}-gcc -static"]
