"""Networks of format `c`, run by this machine's processor or by an emulator of theirs."""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.deploy.formats.base import LoadedModel
from nas.deploy.formats.tvm import machine_of
from nas.errors import RequestError
from nas.latency import timing
from nas.latency.timing import Evaluate
from nas.runtimes.tvm.cross import c_compiler, programs_folder, run_compiler, zig_triple
from nas.transports import transport_to

SOURCES = Path(__file__).parents[1] / "c"
"""Folder of the sources in C."""

OPTIONS = ("-O2", "-std=c11")
"""Options of all compilers. An object for a library needs `-fPIC`, too."""

_EMULATORS = {
    "aarch64": ("qemu-aarch64", "max"),
    "arm": ("qemu-arm", "max"),
    "riscv64": ("qemu-riscv64", "rv64,v=true,vlen=128"),
    "x86_64": ("qemu-x86_64", "max"),
}
"""The emulator of an architecture, and which of its processors has most instructions."""

_IMAGE_SECONDS = 90.0
"""Most time that an image may take. An emulator does about 25 million products in a second."""


class _IllegalInstructionError(RuntimeError):
    """A processor lacks an instruction."""


def runs_here(path: Path) -> bool:
    """Return whether this machine's processor has all instructions of an object."""
    return machine_of(path) == machine_of(Path(sys.executable)) and _is_run_by((), path)


def emulator_of(path: Path) -> str:
    """Return the name of the emulator here that runs an object; empty if none does.

    An emulator lacks some instructions of new processors, and may need too long for an image.
    """
    command = _emulator(path)
    return Path(command[0]).name if command and _is_run_by(command, path) else ""


def load(path: Path) -> LoadedModel:
    """Load an object. Raises RequestError if nothing here runs it, or there is no compiler."""
    if not machine_of(path):
        raise ValueError("it is no object file")
    if runs_here(path):
        return _NativeModel(path)
    if command := _emulator(path):
        return _ProgramModel(path, command)
    raise RequestError(
        f"{path.name} is for another processor, and no emulator of it is installed.",
        remedy="Install qemu-user.",
    )


def _emulator(path: Path) -> list[str]:
    """Return the command that runs programs for the processor of an object; empty without one."""
    try:
        architecture, *_ = zig_triple(_Header(path).triple).split("-")
        name, processor = _EMULATORS[architecture]
    except (KeyError, ValueError):
        return []
    emulator = shutil.which(name) or shutil.which(f"{name}-static")
    return [emulator, "-cpu", processor] if emulator else []


def _is_run_by(emulator: Sequence[str], path: Path) -> bool:
    """Return whether a command, or this processor if it is empty, runs an object.

    All errors but a missing instruction are left to those who then load the object.
    """
    try:
        model = _ProgramModel(path, emulator)
        model.logits(np.zeros((1, *model.image_shape), np.float32))
    except (_IllegalInstructionError, subprocess.TimeoutExpired, RequestError):
        return False
    except (RuntimeError, ValueError):
        return True
    return True


class _Header:
    """What the `model.h` of an object declares.

    Attributes:
        name: start of the names of all that it declares.
        triple: triple of the processor.
        classes: number of logits.
        image_shape: channels, height and width of an image.
        workspace_bytes: size of the workspace.
        alignment: bytes of which the addresses are multiples.
    """

    def __init__(self, path: Path) -> None:
        file = path.with_name("model.h")
        text = file.read_text(encoding="utf-8") if file.exists() else ""

        def declared(pattern: str) -> str:
            if match := re.search(pattern, text):
                return match[1]
            raise ValueError("the model.h that belongs to it is not beside it")

        def number(suffix: str) -> int:
            return int(declared(rf"{self.name}_{suffix} = (\d+)"))

        self.name = declared(r"int (\w+)_run\(")
        self.triple = declared(rf'{self.name}_TRIPLE "(.+)"')
        self.classes = number("CLASSES")
        self.image_shape = (number("CHANNELS"), number("HEIGHT"), number("WIDTH"))
        self.workspace_bytes = number("WORKSPACE_BYTES")
        self.alignment = number("ALIGNMENT")


class _NativeModel(LoadedModel):
    """A network linked into a library of this process."""

    def __init__(self, path: Path) -> None:
        header = _Header(path)
        self._classes, self._alignment = header.classes, header.alignment
        with programs_folder() as folder:
            source, library = SOURCES / "timing.c", folder / "model.so"
            run = f"-DNAME={header.name}_run"
            files = [str(each) for each in (source, path.absolute())]
            options = [*OPTIONS, "-fPIC", "-D_POSIX_C_SOURCE=200809L", run]
            command = [*c_compiler(None), *options, "-shared", "-o", library.name, *files, "-lm"]
            run_compiler(command, folder)
            self._library = ctypes.CDLL(str(library))
        self._run = self._library[f"{header.name}_run"]
        self._workspace = self._aligned((header.workspace_bytes,), np.uint8)

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        results = []
        for image in images:
            arguments, output = self._arguments(image[None])
            if self._run(*arguments):
                raise RuntimeError("the function of the network refuses its arguments")
            results.append(output.copy())
        return np.stack(results)

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`."""
        arguments, _ = self._arguments(image)
        return lambda: self._run(*arguments)

    def evaluator(self, image: NDArray[np.float32]) -> Evaluate:
        """See `LoadedModel.evaluator`. The calls are timed in C."""
        arguments, _ = self._arguments(image)

        def evaluate(calls: int, samples: int) -> Sequence[float]:
            seconds = np.zeros(samples)
            self._library.time_calls(*arguments, calls, samples, _pointer(seconds))
            return [float(each) for each in seconds]

        return evaluate

    def _arguments(
        self, image: NDArray[np.float32]
    ) -> tuple[list[ctypes.c_void_p], NDArray[np.float32]]:
        """Return the arguments of the network for an image `1 x C x H x W`, and its output."""
        _, channels, height, width = image.shape
        values = self._aligned((height, width, channels), np.float32)
        values[...] = image[0].transpose(1, 2, 0)
        output = self._aligned((self._classes,), np.float32)
        return [_pointer(each) for each in (values, output, self._workspace)], output

    def _aligned(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """Return an array of zeros that begins where the network wants its arguments."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = np.zeros(size + self._alignment, np.uint8)
        start = -memory.ctypes.data % self._alignment
        return memory[start : start + size].view(dtype).reshape(shape)


class _ProgramModel(LoadedModel):
    """A network linked into a program of its own.

    Args:
        path: path of the object.
        emulator: command that runs the program; empty for this machine's processor.
        is_static: whether the program needs no library of where it runs.

    Attributes:
        image_shape: channels, height and width of an image.
    """

    def __init__(self, path: Path, emulator: Sequence[str], *, is_static: bool = False) -> None:
        header = _Header(path)
        self.image_shape, self._classes = header.image_shape, header.classes
        self._files = ExitStack()
        weakref.finalize(self, self._files.close)
        self._program = self._files.enter_context(programs_folder()) / "program"
        self._command = [*emulator, str(self._program)]
        compiler = c_compiler(None)
        if emulator or is_static:
            compiler = [*c_compiler(header.triple, static=True), "-static"]
        sizes = {
            "RUN": f"{header.name}_run",
            "NAME": f"{header.name}_run",
            "ALIGNMENT": header.alignment,
            "VALUES": math.prod(header.image_shape),
            "CLASSES": header.classes,
            "WORKSPACE_BYTES": header.workspace_bytes,
        }
        options = ["-D_POSIX_C_SOURCE=200809L"]
        options += [f"-D{name}={value}" for name, value in sizes.items()]
        sources = [SOURCES / "stream.c", SOURCES / "timing.c", path.absolute()]
        command = [*compiler, *OPTIONS, *options, "-o", self._program.name, *map(str, sources)]
        run_compiler([*command, "-lm"], self._program.parent)

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`.

        Raises:
            _IllegalInstructionError: the processor, or the emulated one, lacks an instruction.
        """
        done = subprocess.run(
            self._command,
            input=images.transpose(0, 2, 3, 1).astype("<f4").tobytes(),
            capture_output=True,
            check=False,
            timeout=_IMAGE_SECONDS * len(images),
        )
        if done.returncode == -signal.SIGILL:
            raise _IllegalInstructionError("the processor lacks an instruction of the network")
        if done.returncode:
            raise RuntimeError(f"its program ends with status {done.returncode}")
        return np.frombuffer(done.stdout, "<f4").reshape(len(images), self._classes)

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`."""
        return lambda: self.logits(image)


class ProgramOnDevice(_ProgramModel):
    """A network linked into a program, which runs on a device in a folder of its own.

    Args:
        path: path of the object.
        device: target with the address of the device.
    """

    def __init__(self, path: Path, device: str) -> None:
        super().__init__(path, (), is_static=True)
        transport = self._files.enter_context(transport_to(device.partition("?")[0]))
        folder = self._files.enter_context(transport.private_folder())
        self._transport, self._remote = transport, f"{folder}/program"
        transport.send(self._program, self._remote, executable=True)

    @property
    def versions(self) -> Mapping[str, str]:
        """See `LoadedModel.versions`. The program needs nothing."""
        return {}

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        output = self._run(images, limit_s=_IMAGE_SECONDS * len(images))
        return np.frombuffer(output, "<f4").reshape(len(images), self._classes)

    def evaluator(self, image: NDArray[np.float32]) -> Evaluate:
        """See `LoadedModel.evaluator`. The calls are timed by the program."""

        def evaluate(calls: int, samples: int) -> Sequence[float]:
            output = self._run(image, str(calls), str(samples), limit_s=_IMAGE_SECONDS)
            return [float(each) for each in output.split()]

        return evaluate

    def timing_context(self, threads: int) -> AbstractContextManager[None]:
        """See `LoadedModel.timing_context`. The speed of the core there is not read."""
        return timing.reading(None)

    def reload(self) -> bool:
        """See `LoadedModel.reload`. Each timing starts the program anew."""
        return True

    def _run(self, images: NDArray[np.float32], *arguments: str, limit_s: float) -> bytes:
        values = images.transpose(0, 2, 3, 1).astype("<f4").tobytes()
        return self._transport.run([self._remote, *arguments], data=values, limit_s=limit_s)


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    """Return the address of an array, which keeps the array alive."""
    return array.ctypes.data_as(ctypes.c_void_p)
