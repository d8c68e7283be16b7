"""Writing kits: folders with a program that times kernels or networks on a device.

The program and what it times are compiled for the device, and once more for this machine. The
program of this machine runs here, and the sums of its outputs become constants of the other one, so
that the device finds out by itself whether its results are right.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import jinja2

from nas.display.progress import Advance
from nas.errors import NasError, RequestError, first_line
from nas.files import replace
from nas.files.documents import to_json
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.cache_model import WEIGHT_PARTS, WEIGHTS_MIB
from nas.latency.kit import MANIFEST as MANIFEST_FILE
from nas.latency.kit import MAX_MB, RESULTS
from nas.latency.runtime import Schedules
from nas.machine.processes import ChildProcess
from nas.machine.this_machine import allowed_cores
from nas.runtimes.tvm.cross import c_compiler, code_target, programs_folder, run_compiler
from nas.runtimes.tvm.dispatch_benchmarks import WEIGHT_SETS_PER_MIB, launch_networks
from nas.runtimes.tvm.kernel_timer import tvm_kernels
from nas.runtimes.tvm.kit import functions
from nas.runtimes.tvm.kit.address import KitTarget
from nas.runtimes.tvm.kit.functions import Function, Part
from nas.runtimes.tvm.kit.manifest import Item, Manifest
from nas.runtimes.tvm.runtime import kernel_versions

_SOURCES = Path(__file__).parent
_PROGRAM_SOURCES = ("kit.c", "timing.c", "device.c", "results.c")
_OPTIONS = ("-O2", "-std=gnu11")

_MAX_PROCESSES = 8
"""Most processes that compile: each has TVM in memory."""

_ITEM_SECONDS = 300.0
"""How long all candidates of a kernel, or a network, may compile, and how long one of them. LLVM
never ends with some of a pooling on 32-bit Arm."""

_EXPECTED_SECONDS = 1800.0
"""How long everything may run once on this machine."""


@dataclass(frozen=True)
class _Job:
    """What one process compiles: the functions of one object file.

    Args:
        part, name: as of the items.
        compile: function of `functions`, and its arguments before the stem.
    """

    part: Part
    name: str
    compile: Callable[..., list[Function]]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _Compiled:
    """The functions of a job, or the error for which there are none.

    The items of the functions have the numbers from `first_id` on, and `objects` are the names of
    their object files.
    """

    job: _Job
    functions: Sequence[Function]
    objects: Sequence[str]
    object_bytes: int
    error: str | None
    first_id: int = 0


def write_table_kit(
    target: KitTarget,
    kernels: Iterable[Kernel],
    out: Path,
    *,
    spaces: Sequence[str] = (),
    batch: int = 1,
    max_mb: float = MAX_MB,
    progress: Advance | None = None,
) -> Manifest:
    """Write a kit that times kernels, and what the costs of a dispatch follow from.

    A kernel that cannot be compiled is an item with an error.

    Args:
        target: the device.
        kernels: the kernels.
        out: folder of the kit, new or that of a kit without results.
        spaces: the search spaces of the kernels, for people.
        batch: number of images of one inference.
        max_mb: size of a program in megabytes from which on there are several.
        progress: function of the object files that are compiled, of all, and of the last one's
            name.

    Raises:
        RequestError: the target is unknown to TVM, there is no C compiler, or the folder has
            something else in it.
        NasError: the kit cannot be compiled, or does not run here.
    """
    jobs = [
        _Job("dispatch", name, functions.compile_chain, (target, name, mib * WEIGHT_SETS_PER_MIB))
        for name, mib in zip(WEIGHT_PARTS, WEIGHTS_MIB, strict=True)
    ]
    timed: set[str] = set()
    for name, graph in launch_networks().items():
        alone = {kernel.text for kernel in tvm_kernels(graph)} - timed
        timed |= alone
        arguments = (target, graph, None, "dispatch", name, alone)
        jobs.append(_Job("dispatch", name, functions.compile_network, arguments))
    jobs += [
        _Job("kernel", text, functions.compile_kernel, (target, text))
        for text in dict.fromkeys(kernel.text for kernel in kernels)
    ]
    return _write("kernels", target, jobs, out, spaces, batch, max_mb, progress)


def write_networks_kit(
    target: KitTarget,
    graphs: Mapping[str, Graph],
    schedules: Schedules,
    out: Path,
    *,
    progress: Advance | None = None,
) -> Manifest:
    """Write a kit that times whole networks. See `write_table_kit` for the other arguments.

    Args:
        graphs: the networks, by their digests.
        schedules: schedules of their kernels. A network with a kernel that has none is an item with
            an error.
    """
    jobs = [
        _Job(
            "network",
            digest,
            functions.compile_network,
            (target, graph, dict(schedules), "network", digest, ()),
        )
        for digest, graph in graphs.items()
    ]
    return _write("networks", target, jobs, out, (), 1, MAX_MB, progress)


def _write(
    content: Literal["kernels", "networks"],
    target: KitTarget,
    jobs: Sequence[_Job],
    out: Path,
    spaces: Sequence[str],
    batch: int,
    max_mb: float,
    progress: Advance | None,
) -> Manifest:
    """Compile the jobs, and write the kit."""
    code_target(target.triple, target.cpu, target.features)
    compilers = {
        "device": [*c_compiler(target.triple, static=True), "-static"],
        "host": c_compiler(None),
    }
    _check_folder(out)
    with programs_folder() as folder:
        for name in functions.FOLDERS:
            (folder / name).mkdir()
        compiled = _compile(jobs, folder, progress)
        shares = list(_shares(compiled, max_mb * 1e6))
        names = [f"kit-{n + 1}" for n in range(len(shares))] if len(shares) > 1 else ["kit"]
        manifest = Manifest.of(
            content,
            target.text,
            kernel_versions(),
            [*_items(compiled)],
            batch=batch,
            spaces=spaces,
            programs=names,
        )
        out.mkdir(parents=True, exist_ok=True)
        for name, share in zip(names, shares, strict=True):

            def link(side: str, sums: Mapping[int, Sequence[float]]) -> Path:
                items = _rendered(
                    "items.c.j2",
                    manifest=manifest,
                    share=share,  # noqa: B023
                    curve=WEIGHT_PARTS,
                    sums=sums,
                )
                return _link(compilers[side], items, folder / side, share)  # noqa: B023

            shutil.move(link("device", _expected(link("host", {}))), out / name)
    replace(out / "README.txt", _rendered("README.txt.j2", manifest=manifest))
    replace(out / MANIFEST_FILE, to_json(manifest))
    if progress is not None:
        progress(len(jobs) + 1, len(jobs) + 1, str(out))
    return manifest


def _check_folder(out: Path) -> None:
    """Raise RequestError for a folder with results, or with anything else but a kit."""
    if (out / RESULTS).exists():
        raise RequestError(
            f"{out} has results of a kit, which another kit would not continue.",
            remedy="Import them with `nas table import`, and name another folder.",
        )
    if out.exists() and not (out / MANIFEST_FILE).exists() and any(out.iterdir()):
        raise RequestError(f"{out} has something else in it.", remedy="Name another folder.")


def _compile(jobs: Sequence[_Job], folder: Path, progress: Advance | None) -> list[_Compiled]:
    """Compile all jobs in a few processes; an error or a crash is the result of its job alone.

    Raises NasError if not one of them could be compiled.
    """
    processes = [ChildProcess() for _ in range(min(allowed_cores(), _MAX_PROCESSES))]
    idle: SimpleQueue[ChildProcess] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def run(number: int) -> _Compiled:
        process = idle.get()
        try:
            return _compile_job(process, jobs[number], f"item_{number}", folder)
        finally:
            idle.put(process)

    executor = ThreadPoolExecutor(len(processes))
    try:
        waiting = [executor.submit(run, number) for number in range(len(jobs))]
        for done, future in enumerate(as_completed(waiting), start=1):
            if progress is not None:
                progress(done, len(jobs) + 1, future.result().job.name)
    finally:
        for process in processes:
            process.close(for_good=True)
        executor.shutdown(cancel_futures=True)
    compiled: list[_Compiled] = []
    first_id = 0
    for future in waiting:
        compiled.append(dataclasses.replace(future.result(), first_id=first_id))
        first_id += max(1, len(compiled[-1].functions))
    if not any(each.functions for each in compiled):
        reason = next((each.error for each in compiled), "there is none")
        raise NasError(f"Nothing of what the kit should time can be compiled: {reason}.")
    return compiled


def _compile_job(process: ChildProcess, job: _Job, stem: str, folder: Path) -> _Compiled:
    """Compile a job; the schedules of a kernel one by one if they cannot be compiled at once."""
    made: list[Function] = []
    objects: list[str] = []

    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the answer of the process, or the error as text."""
        try:
            return process.call(function, *arguments, limit_s=_ITEM_SECONDS)
        except ChildProcessError as error:
            return f"the compiler {error}"
        except TimeoutError as error:
            return f"compiling {error}"
        except (NasError, RuntimeError) as error:
            return first_line(error)

    def attempt(own_stem: str, *only: int) -> str | None:
        """Compile functions; return the error if they cannot be."""
        own: list[Function] | str = ask(job.compile, *job.arguments, own_stem, folder, *only)
        if isinstance(own, str):
            return own
        made.extend(own)
        objects.extend([f"{own_stem}.o"] if own else [])
        return None

    error = attempt(stem)
    if error is not None and job.part == "kernel":
        schedules: int | str = ask(functions.count_schedules, *job.arguments)
        for number in range(schedules if isinstance(schedules, int) else 0):
            attempt(f"{stem}_{number}", number)
    if made:
        error = None
    size = sum((folder / "device" / name).stat().st_size for name in objects)
    return _Compiled(job, made, objects, size, error)


def _items(compiled: Iterable[_Compiled]) -> Iterator[Item]:
    """Yield the items of the manifest."""
    for each in compiled:
        job = each.job
        if each.error is not None:
            yield Item(id=each.first_id, part=job.part, name=job.name, error=each.error)
        for at, function in enumerate(each.functions, start=each.first_id):
            schedule = None if function.schedule is None else dict(function.schedule)
            yield Item(id=at, part=job.part, name=function.name, schedule=schedule)


def _shares(compiled: Iterable[_Compiled], max_bytes: float) -> Iterator[list[_Compiled]]:
    """Yield the object files of each program, in order, so that none is too large."""
    share: list[_Compiled] = []
    for each in compiled:
        if share and sum(one.object_bytes for one in [*share, each]) > max_bytes:
            yield share
            share = []
        share.append(each)
    yield share


def _rendered(template: str, **values: Any) -> str:
    """Return a text of this folder with values in place."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_SOURCES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["literal"] = json.dumps
    return environment.get_template(template).render(**values)


def _link(compiler: Sequence[str], items: str, folder: Path, share: Sequence[_Compiled]) -> Path:
    """Compile and link a program from the object files in a folder, and return its path."""
    program = folder / "kit"
    (folder / "items.c").write_text(items, encoding="utf-8")
    objects = [name for each in share for name in each.objects]
    (folder / "objects.txt").write_text("\n".join(objects), encoding="utf-8")
    sources = [str(_SOURCES / name) for name in _PROGRAM_SOURCES]
    command = [*compiler, *_OPTIONS, f"-I{_SOURCES}", "-o", program.name, "items.c", *sources]
    command += ["@objects.txt", "-lm"]
    try:
        run_compiler(command, folder)
    except RuntimeError as error:
        raise NasError(
            f"The program of the kit cannot be linked: {error}",
            remedy="pip install ziglang: its compiler has a C library for all processors.",
        ) from error
    return program


def _expected(program: Path) -> dict[int, tuple[float, float]]:
    """Return the sums of the output of each item, by its number, from a run on this machine."""
    command = [str(program), "--expected"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_EXPECTED_SECONDS
    )
    if done.returncode:
        raise NasError(
            f"The program of the kit does not run on this machine: {done.stderr.strip()[-300:]}"
        )
    sums: dict[int, tuple[float, float]] = {}
    for line in done.stdout.splitlines():
        number, weighted, absolute = line.split()
        sums[int(number)] = float(weighted), float(absolute)
        if not all(map(math.isfinite, sums[int(number)])) or not sums[int(number)][1]:
            raise NasError(f"Item {number} of the kit computes no numbers on this machine.")
    return sums
