"""The program of a kit, compiled for this machine, and on emulated devices."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray

from nas.errors import NasError, RequestError
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.cache_model import WEIGHT_PARTS
from nas.latency.rounds import MAX_ROUNDS, ROUNDS
from nas.machine import this_machine
from nas.runtimes.tvm.cross import code_target
from nas.runtimes.tvm.kernel_timer import tvm_kernels
from nas.runtimes.tvm.kit import address, functions, program
from nas.runtimes.tvm.kit.manifest import MANIFEST, Manifest
from nas.schedules.cpu import CpuTemplates
from nas.schedules.cpu.loops import this_processor
from nas.transports.facts import DeviceFacts
from tests import small_disk
from tests.latency.example_graphs import GRAPHS
from tests.made_once import made_once
from tests.schedules.kernels import KERNELS

pytestmark = pytest.mark.slow

HERE = address.parse("kit:here?triple=x86_64-linux-gnu&cpu=x86-64-v2")
NAMES = ("inverted_residual", "shuffle_unit")

DEVICES = {
    "aarch64": "triple=aarch64-linux-gnu&cpu=cortex-a76",
    "arm": "triple=armv7-linux-gnueabihf&cpu=cortex-a9",
    "riscv64": "triple=riscv64-linux-gnu&cpu=generic-rv64&features=+m,+a,+f,+d,+c",
    "x86_64": "triple=x86_64-linux-gnu&cpu=x86-64-v2",
}

CONTAINER_LIMITS = [
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
]

NEEDS_EMULATORS = pytest.mark.skipif(
    "NAS_ARM64_BOARD" not in os.environ, reason="needs the emulators of .ci/arm64-board"
)


def _emulator(architecture: str) -> list[Path | str]:
    tools = Path(os.environ["NAS_ARM64_BOARD"]) / "tools/usr/bin"
    return [tools / f"qemu-{architecture}-static"]


def _graphs() -> dict[str, Graph]:
    graphs = [GRAPHS[name]() for name in NAMES]
    return {graph.digest: graph for graph in graphs}


def _schedules(graphs: Mapping[str, Graph]) -> dict[Kernel, dict[str, Any]]:
    templates = CpuTemplates(code_target(HERE.triple, HERE.cpu), 1)
    kernels = {kernel for graph in graphs.values() for kernel in tvm_kernels(graph)}
    return {kernel: templates.candidates(kernel)[0] for kernel in kernels}


def _write_networks(out: Path) -> Manifest:
    graphs = _graphs()
    return program.write_networks_kit(HERE, graphs, _schedules(graphs), out)


@pytest.fixture(scope="module")
def networks_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "networks_kit", _write_networks)


@pytest.fixture
def kit(networks_kit: Path, tmp_path: Path) -> Path:
    """A copy of the kit, into which a program may write its results."""
    return shutil.copytree(networks_kit, tmp_path / "kit")


def _run(
    folder: Path, *options: str, emulator: Sequence[str | Path] = ()
) -> subprocess.CompletedProcess[str]:
    command = [*emulator, folder / "kit", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def _rounds(lines: Sequence[Mapping[str, Any]], item: int) -> list[int]:
    own = [line for line in lines if line["line"] == "timing" and line["item"] == item]
    return [line["round"] for line in own]


def _check_finished(folder: Path) -> None:
    """Check that everything was timed, in as many rounds as it needs, and none twice."""
    manifest, lines = MANIFEST.read(folder / "kit.json"), _lines(folder)
    assert {line["kit"] for line in lines if line["line"] == "start"} == {manifest.kit}
    assert lines[-1]["line"] == "end"
    assert lines[-1]["reason"] == "done"
    for item in manifest.items:
        kinds = [line["line"] for line in lines if line.get("item") == item.id]
        assert kinds.count("quick") == 1
        rounds = _rounds(lines, item.id)
        assert rounds == list(range(len(rounds)))
        assert ROUNDS <= len(rounds) <= MAX_ROUNDS


def test_a_program_times_everything(kit: Path) -> None:
    done = _run(kit)
    assert done.returncode == 0, done.stderr
    _check_finished(kit)
    [start, *_] = _lines(kit)
    assert start["core"] in os.sched_getaffinity(0)
    assert DeviceFacts.from_parts(start["device"]).processor == this_machine.processor()[0]
    timing = next(line for line in _lines(kit) if line["line"] == "timing")
    assert all(us > 0 and us * timing["calls"] >= 1000 for us, *_ in timing["attempts"])


def test_what_does_not_fit_into_memory_fails_with_that_reason(tmp_path: Path) -> None:
    manifest = program.write_table_kit(HERE, [Kernel.parse(KERNELS["dense"][0])], tmp_path / "kit")
    (largest,) = [item.id for item in manifest.items if item.name == WEIGHT_PARTS[-1]]
    # Less than the 64 MiB of the largest chain, and more than anything else takes.
    (tmp_path / "limit").write_text("60000000")
    scripts = ["ulimit -v 60000; exec ./kit --stream --minutes 1"]
    if limit := next(filter(Path.exists, CONTAINER_LIMITS), None):
        namespace = "unshare -rm sh -c 'mount --bind"
        scripts.append(f"{namespace} ../limit {limit} && exec ./kit --stream --minutes 1'")
    for script in scripts:
        command = ["sh", "-c", f"exec {script}" if script.startswith("unshare") else script]
        with subprocess.Popen(command, cwd=tmp_path / "kit", stdout=subprocess.PIPE) as running:
            assert running.stdout
            lines = map(json.loads, running.stdout)
            failed = next((line for line in lines if line["line"] == "failed"), None)
            assert failed is not None, script
            assert any(line["line"] == "quick" for line in lines)
            running.kill()
        assert failed["item"] == largest
        assert re.match(r"it needs 6\d MB of memory, and there are \d+", failed["error"])
        (tmp_path / "kit/results.jsonl").unlink()


def test_a_killed_program_continues(kit: Path) -> None:
    with subprocess.Popen([kit / "kit"], cwd=kit, stderr=subprocess.PIPE) as killed:
        assert killed.stderr is not None
        killed.stderr.readline()  # the progress after the first timing
        killed.kill()
    with (kit / "results.jsonl").open("a") as file:
        file.write('{"line":"timing","item":0,"rou')
    for minutes in ("0.01", "60"):  # Four rounds are half a second apart, and take longer.
        assert _run(kit, "--minutes", minutes).returncode == 0
    assert [line["reason"] for line in _lines(kit) if line["line"] == "end"] == ["time", "done"]
    _check_finished(kit)


def test_a_second_program_is_refused_until_the_first_one_ends(kit: Path) -> None:
    with subprocess.Popen([kit / "kit"], cwd=kit, stderr=subprocess.PIPE) as first:
        assert first.stderr is not None
        first.stderr.readline()  # the progress after the first timing
        second = _run(kit, "--minutes", "0.01")
        first.kill()
    assert second.returncode == 1
    assert "another program of a kit is running, which writes results.jsonl" in second.stderr
    assert [line["line"] for line in _lines(kit)].count("start") == 1
    assert _run(kit, "--minutes", "0.01").returncode == 0


def test_programs_of_two_kits_time_one_after_the_other(kit: Path) -> None:
    """Those that a transport starts lie beside each other."""
    other = shutil.copytree(kit, kit.with_name("other"))
    command = ["./kit", "--stream"]
    with (
        subprocess.Popen(command, cwd=kit, stdout=subprocess.PIPE) as first,
        subprocess.Popen(
            ["sh", "-c", "read go; exec ./kit --stream"], cwd=other, stdin=-1, stdout=-1
        ) as second,
    ):
        assert first.stdout
        assert second.stdin
        assert second.stdout
        first.stdout.readline()  # It has begun.
        second.stdin.write(b"\n")
        second.stdin.close()
        assert [second.stdout.readline() for _ in range(2)] == 2 * [b'{"line":"waiting"}\n']
        assert not (other / "results.jsonl").exists()
        first.kill()  # Whatever ends it, the other one goes on.
        lines = [line for line in second.stdout if b"waiting" not in line]
    assert second.returncode == 0
    streamed = [line for line in lines if b'"line":"progress"' not in line]
    assert b"".join(streamed) == (other / "results.jsonl").read_bytes()
    _check_finished(other)


def test_a_file_with_its_lines_twice_is_continued_as_one(kit: Path) -> None:
    assert _run(kit).returncode == 0
    few = [line for line in _lines(kit) if line["line"] != "timing" or line["round"] < 2]
    content = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in few[:-1])
    (kit / "results.jsonl").write_text(2 * content)
    assert _run(kit).returncode == 0
    for item in MANIFEST.read(kit / "kit.json").items:
        rounds = {*_rounds(_lines(kit), item.id)}
        assert rounds == {*range(len(rounds))}
        assert len(rounds) >= ROUNDS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_program_says_how_to_continue(kit: Path, number: signal.Signals) -> None:
    with subprocess.Popen([kit / "kit"], cwd=kit, stderr=subprocess.PIPE) as stopped:
        assert stopped.stderr is not None
        stopped.stderr.readline()
        stopped.send_signal(number)
        assert b"the same command continues" in stopped.stderr.read()
    assert stopped.returncode == 1
    assert _lines(kit)[-1]["reason"] == "interrupted"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGILL, "the processor lacks an instruction, make a kit for another cpu="),
        (signal.SIGSEGV, "a bad access to memory"),
    ],
)
def test_a_crash_names_what_ran(kit: Path, number: signal.Signals, reason: str) -> None:
    with subprocess.Popen([kit / "kit"], cwd=kit, stderr=subprocess.PIPE, text=True) as crashed:
        assert crashed.stderr is not None
        crashed.stderr.readline()
        crashed.send_signal(number)
        said = crashed.stderr.read()
    assert crashed.returncode == 1
    assert reason in said
    names = [item.name for item in MANIFEST.read(kit / "kit.json").items]
    assert re.search(
        f"in '({'|'.join(names)})', which was compiled for {re.escape(HERE.text)}", said
    )


def test_results_of_other_kits_and_other_files_are_not_changed(kit: Path) -> None:
    results = kit / "results.jsonl"
    for content, reason in (
        ('{"line":"start","schema":1,"kit":"0123456789abcdef"}\n', "results of another kit"),
        ("a diary", "another kind of file"),
    ):
        results.write_text(content)
        done = _run(kit)
        assert done.returncode == 1
        assert reason in done.stderr
        assert results.read_text() == content


def test_results_belong_to_one_core(kit: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert _run(kit, "--minutes", "0", "--core", str(cores[0])).returncode == 0
    assert _run(kit, "--minutes", "0").returncode == 0
    assert {line["core"] for line in _lines(kit) if line["line"] == "start"} == {cores[0]}
    if len(cores) > 1:
        done = _run(kit, "--core", str(cores[1]))
        assert f"use --core {cores[0]}" in done.stderr
    (kit / "results.jsonl").unlink()
    for core in ("1000", "4294967296"):
        assert "cannot be used here" in _run(kit, "--core", core).stderr


def test_a_full_disk_ends_the_program(
    kit: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if small_disk.rerun_where_mounting_is_allowed(request, folder):
        return
    assert _run(kit, "--minutes", "0").returncode == 0
    start = (kit / "results.jsonl").read_text().splitlines(keepends=True)[0]
    with small_disk.mounted(folder, "size=512k"):
        results = folder / "results.jsonl"
        results.write_text(start)
        with suppress(OSError):
            (folder / "rest").write_bytes(bytes(512 << 10))
        command = [kit / "kit"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert results.read_text() == start


def test_an_output_that_differs_is_a_failed_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = program._expected

    def changed(path: Path) -> dict[int, tuple[float, float]]:
        sums = expected(path)
        return {**sums, 0: (sums[0][0], sums[0][1] * 1.02)}

    monkeypatch.setattr(program, "_expected", changed)
    _write_networks(tmp_path / "kit")
    assert _run(tmp_path / "kit").returncode == 0
    [failed] = [line for line in _lines(tmp_path / "kit") if line["line"] == "failed"]
    assert failed["item"] == 0
    assert failed["error"] == "the output differs by 0.02 of its size"
    assert not _rounds(_lines(tmp_path / "kit"), 0)


def test_a_kernel_that_cannot_be_compiled_is_an_item_with_an_error(tmp_path: Path) -> None:
    graphs = _graphs()
    schedules = _schedules(graphs)
    [lacking] = {*tvm_kernels(GRAPHS["shuffle_unit"]())} - {
        *tvm_kernels(GRAPHS["inverted_residual"]())
    } & {kernel for kernel in schedules if kernel.kind == "concat"}
    del schedules[lacking]
    manifest = program.write_networks_kit(HERE, graphs, schedules, tmp_path / "kit")
    errors = [item.error for item in manifest.items]
    assert errors[0] is None
    assert f"'{lacking}' has no schedule" in str(errors[1])
    assert _run(tmp_path / "kit", "--expected").stdout.startswith("0 ")
    with pytest.raises(NasError, match="Nothing of what the kit should time"):
        program.write_networks_kit(HERE, graphs, {}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


class _Compiler:
    """Calls functions in this process, and fails to compile as a test says."""

    def __init__(self, *errors: Exception | None) -> None:
        self._errors = iter(errors)

    def call(self, function: Any, *arguments: Any, limit_s: float) -> Any:
        if function is functions.compile_kernel and (error := next(self._errors)):
            raise error
        return function(*arguments)


class _Closed(_Compiler):
    def call(self, function: Any, *arguments: Any, limit_s: float) -> Any:
        next(self._errors)
        raise ChildProcessError("is closed")


def test_schedules_are_compiled_one_by_one_after_a_crash(tmp_path: Path) -> None:
    for name in functions.FOLDERS:
        (tmp_path / name).mkdir()
    text = next(each for own in KERNELS.values() for each in own if "pool" in each)
    count = functions.count_schedules(HERE, text)
    assert count > 2
    job = program._Job("kernel", text, functions.compile_kernel, (HERE, text))
    crash, slow = ChildProcessError("was ended by SIGSEGV"), TimeoutError("took more than 1 s")
    process: Any = _Compiler(crash, slow, *[None] * (count - 1))
    compiled = program._compile_job(process, job, "item", tmp_path)
    assert compiled.error is None
    assert list(compiled.objects) == [f"item_{number}.o" for number in range(1, count)]
    everything = functions.compile_kernel(HERE, text, "item", tmp_path)
    assert [each.schedule for each in compiled.functions] == [
        each.schedule for each in everything[1:]
    ]


def test_a_process_that_is_closed_is_not_asked_for_ever(tmp_path: Path) -> None:
    """Ctrl-C closes it, and then waits for the threads that ask."""
    text = next(each for own in KERNELS.values() for each in own)
    job = program._Job("kernel", text, functions.compile_kernel, (HERE, text))
    compiled = program._compile_job(_Closed(None, None, None), job, "item", tmp_path)  # type: ignore[arg-type]
    assert compiled.error == "the compiler is closed"


def test_a_large_kit_has_several_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = _graphs()
    monkeypatch.setattr(program, "MAX_MB", 1e-6)
    manifest = program.write_networks_kit(HERE, graphs, _schedules(graphs), tmp_path)
    assert manifest.programs == ("kit-1", "kit-2")
    for name in manifest.programs:
        (tmp_path / "kit").unlink(missing_ok=True)
        shutil.copy(tmp_path / name, tmp_path / "kit")
        assert _run(tmp_path).returncode == 0
    (tmp_path / "kit").unlink()
    _check_finished(tmp_path)


def test_folders_with_results_or_other_files_stay(tmp_path: Path) -> None:
    for name in ("results.jsonl", "diary.txt"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).touch()
        with pytest.raises(RequestError, match="Name another folder|name another folder"):
            program.write_networks_kit(HERE, _graphs(), {}, folder)
        assert [each.name for each in folder.iterdir()] == [name]


def test_all_schedules_of_a_kernel_are_tried(tmp_path: Path) -> None:
    """A build refines the fastest candidate alone, and any of them may be the fastest."""
    for name in functions.FOLDERS:
        (tmp_path / name).mkdir()
    kernel = Kernel.parse("conv2d 12x6x6 -> 20x6x6 k3 s1 p1 g1 bias relu")
    templates = CpuTemplates(code_target(HERE.triple, HERE.cpu), 1)
    made = functions.compile_kernel(HERE, kernel.text, "item", tmp_path)
    wanted = templates.candidates(kernel)
    wanted += [each for one in wanted for each in templates.refinements(kernel, one)]
    assert [each.schedule for each in made] == [
        each for at, each in enumerate(wanted) if each not in wanted[:at]
    ]
    assert {"winograd" in (each.schedule or {}) for each in made} == {True, False}


def _random(state: int, count: int) -> tuple[NDArray[np.float64], int]:
    """Return the next random numbers of a program, from -1 to 1, and its state."""
    values = []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        values.append(((state >> 8) - 2**23) / 2**23)
    return np.array(values), state


def test_expected_sums_are_those_of_the_kernel_in_tvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = (KERNELS["expanded"][0], KERNELS["dense"][1])
    sums: dict[int, tuple[float, float]] = {}
    expected = program._expected
    monkeypatch.setattr(program, "_expected", lambda path: sums.update(expected(path)) or sums)
    monkeypatch.setattr(program, "launch_networks", dict)
    kernels = [Kernel.parse(text) for text in texts]
    manifest = program.write_table_kit(HERE, kernels, tmp_path)
    templates = CpuTemplates(code_target(HERE.triple, HERE.cpu), 1)
    for item in (each for each in manifest.items if each.part == "kernel"):
        kernel, schedule = Kernel.parse(item.name), item.schedule or {}
        made = functions._function("kernel", kernel, schedule, templates, "main")
        state, arrays = 1, []
        for each in made.tensors[: made.output + 1]:
            values, state = _random(state, each.elements if each.scale else 0)
            filled = values * each.scale * 3**0.5 if each.scale else np.zeros(each.elements)
            arrays.append(tvm.runtime.tensor(filled.astype(np.float32)))
        function = templates.function(kernel, schedule, "main")
        tvm.tirx.build(function, this_processor(), "tirx")["main"](*arrays)
        output = arrays[-1].numpy().astype(float)
        weights, _ = _random(2, output.size)
        right = [np.sum(weights * output), np.abs(output).sum()]
        assert sums[item.id] == pytest.approx(right, abs=1e-5 * right[1])


@pytest.mark.qemu
@pytest.mark.slow
@NEEDS_EMULATORS
@pytest.mark.parametrize("architecture", DEVICES)
def test_every_kernel_is_right_on_all_architectures(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: dict[int, tuple[float, float]] = {}
    expected = program._expected
    monkeypatch.setattr(program, "_expected", lambda path: sums.update(expected(path)) or sums)
    # This machine runs code of its own architecture, which an emulator does ten times slower.
    emulator = [] if architecture == "x86_64" else _emulator(architecture)
    target = address.parse(f"kit:device?{DEVICES[architecture]}")
    texts = [text for own in KERNELS.values() for text in own]
    if architecture == "arm":  # LLVM does not end with some schedules of this kernel for armv7.
        texts = [text for text in texts if not ("max_pool" in text and "k3 s2 p1" in text)]
    manifest = program.write_table_kit(target, [Kernel.parse(each) for each in texts], tmp_path)
    assert [item.error for item in manifest.items if item.error] == []
    done = _run(tmp_path, "--expected", emulator=emulator)
    own = {int(line.split()[0]): line.split()[1:] for line in done.stdout.splitlines()}
    assert own.keys() == {item.id for item in manifest.items}
    for item, right in sums.items():
        assert [*map(float, own[item])] == pytest.approx(right, abs=1e-5 * right[1])
    with subprocess.Popen(
        [*emulator, tmp_path / "kit"], cwd=tmp_path, stderr=subprocess.PIPE
    ) as killed:
        assert killed.stderr is not None
        killed.stderr.readline()
        killed.kill()
    assert _run(tmp_path, "--minutes", "0.1", emulator=emulator).returncode == 0
    quick = [line["item"] for line in _lines(tmp_path) if line["line"] == "quick"]
    assert quick == list(range(len(quick)))
