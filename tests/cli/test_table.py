"""`nas table`: what the commands print, write and refuse."""

import json
import os
from contextlib import nullcontext

import pytest

from nas.errors import DeviceError, TableError
from nas.latency import Kernel, LatencyTable, space_kernels
from nas.latency.correction import FITTED_NETWORKS
from nas.latency.record import Record, new_header
from nas.latency.rounds import Policy
from nas.latency.timing import Timing
from nas.space import load_definition
from tests.cli.small_table import (
    HEAD,
    POOL,
    SPACE,
    STEM,
    dispatch,
    kernel,
    uncertain_table,
    write_table,
)
from tests.commands import document
from tests.latency.fake_runtime import DEVICE, FakeRuntime
from tests.latency.small_table import correction

NOTES = b"notes of mine\nthe last one has no line feed"
TINY = ("--space", "mobilenet_tiny", "--image-size", 8)


@pytest.fixture
def device(tmp_path, monkeypatch):
    """Change to an empty folder, and replace the runtime and its timers by a fake one."""
    monkeypatch.chdir(tmp_path)
    runtime = FakeRuntime()
    monkeypatch.setattr("nas.latency.open_runtime", lambda *_, **__: runtime)
    workers = "nas.latency.worker_process"
    monkeypatch.setattr(f"{workers}.timers_for", lambda each: nullcontext([each]))
    monkeypatch.setattr(f"{workers}.WorkerTimer", nullcontext)
    return runtime


@pytest.fixture
def built(device, tmp_path, invoke):
    """Build a table `mine.jsonl` of a tiny space, and return what that printed."""
    return document(invoke("table", "build", *TINY, "--out", "mine.jsonl", "--json"))


def words(text):
    """Return a text with one blank between words, so that lines may wrap anywhere."""
    return " ".join(text.split())


def test_build_adds_what_is_missing_and_fits_a_correction(device, built, tmp_path, invoke):
    table = LatencyTable.open("mine.jsonl")
    assert (built["table"], built["batch"], built["failed"]) == ("mine.jsonl", 1, 0)
    assert built["ok"] == built["kernels_needed"] == len(table) == len(device.timed)
    assert built["dispatch_us"] == table.dispatch.parts_us
    (fitted,) = table.corrections()
    assert (built["calibration"]["kernel_factor"], fitted.nets) == (
        fitted.kernel_factor,
        FITTED_NETWORKS,
    )
    again = invoke("table", "build", *TINY, "--out", "mine.jsonl").stdout
    assert "0 kernels added (0 failed, 0 unstable, 0 disturbed)" in again
    assert len(LatencyTable.open("mine.jsonl").corrections()) == 1, "nothing was added"
    plain = invoke("table", "build", *TINY, "--no-calibrate", "--batch", 2, "--out", "mine.jsonl")
    assert f"{built['ok']} kernels added" in plain.stdout
    assert "corrected" not in plain.stdout


def test_build_has_the_kernels_of_each_resolution(device, invoke):
    shares = ("--resolution", "1", "--resolution", "0.75")
    built = document(
        invoke("table", "build", *TINY, *shares, "--no-calibrate", "--out", "mine.jsonl", "--json")
    )
    space = load_definition("mobilenet_tiny").adapt(image_size=8).at_resolutions((0.75, 1.0))
    needed = space_kernels(space, device)
    assert not LatencyTable.open("mine.jsonl").missing(needed)
    assert built["kernels_needed"] == len(set(needed))
    inputs = {each.inputs[0].shape for each in needed}
    assert {shape for shape in inputs if shape[0] == space.channels} == {(1, 6, 6), (1, 8, 8)}


def test_build_without_a_correction_says_why(device, invoke, monkeypatch):
    monkeypatch.setattr(device, "compile", lambda *_, **__: 1 / 0)
    built = document(invoke("table", "build", *TINY, "--out", "mine.jsonl", "--json"))
    assert "predictions stay uncorrected" in built["calibration_error"]
    assert "ZeroDivisionError" in built["calibration_error"]


def test_show_has_speed_of_kinds_and_coverage(tmp_path, invoke):
    path = tmp_path / "mine.jsonl"
    failed = Record(kind="kernel", name=HEAD, status="failed", error="no luck")
    write_table(path, kernel(STEM, 3.0), kernel(POOL, 1.0, spread=0.5), failed)
    (tmp_path / "small.py").write_text(SPACE)
    arguments = ("table", "show", path, "--space", tmp_path / "small.py")
    shown = document(invoke(*arguments, "--json"))
    assert shown["device"] == DEVICE.to_json()
    assert (shown["kernels"], shown["status"]) == (3, {"ok": 1, "unstable": 1, "failed": 1})
    assert list(shown["kinds"]) == ["conv 3x3", "global_pool"]
    stem, pool = shown["kinds"].values()
    assert stem["share_of_time"] == 0.75
    assert stem["best_gflops"] == stem["median_gflops"] == pytest.approx(2 * 8 * 64 * 27 / 3000)
    assert pool["best_gflops"] is None
    (space,) = shown["coverage"]
    assert space == {
        "space": "small", "image_size": 8, "batch": 1, "kernels": 3,
        "ok": 1, "unstable": 1, "disturbed": 0, "failed": 1, "missing": 0,
    }  # fmt: skip
    text = invoke(*arguments).stdout
    assert "3 kernels (1 ok, 1 unstable, 1 failed); dispatch: not measured" in text
    assert f"failed: {HEAD}: no luck" in text
    assert "uncertain timings are unstable" in words(text)


def test_show_says_where_another_device_would_have_to_be_asked(tmp_path, invoke):
    path = tmp_path / "other.jsonl"
    path.write_text(
        json.dumps(new_header(DEVICE.model_copy(update={"runtime": "onnxruntime"}))) + "\n"
    )
    arguments = ("table", "show", path, "--space", "mobilenet_tiny")
    (space,) = document(invoke(*arguments, "--json"))["coverage"]
    assert "does not know all kernels" in space["error"]
    assert "mobilenet_tiny: other.jsonl does not know" in words(invoke(*arguments).stdout)


def test_show_explains_no_uncertain_timings_where_there_are_none(tmp_path, invoke):
    path = write_table(tmp_path / "mine.jsonl", kernel(STEM, 3.0)).path
    assert "uncertain" not in invoke("table", "show", path).stdout


def test_show_and_merge_know_disturbed_kernels(tmp_path, invoke):
    slow = Timing((3.0,), reading_us=15.0, first_us=3.5)
    disturbed = Record.from_timings(
        "kernel", [slow], name=STEM, policy=Policy(2), full_us=10.0, schedule={}
    )
    path = write_table(tmp_path / "mine.jsonl", disturbed, kernel(POOL, 1.0)).path
    (tmp_path / "small.py").write_text(SPACE)
    shown = document(invoke("table", "show", path, "--space", tmp_path / "small.py", "--json"))
    assert shown["status"] == {"disturbed": 1, "ok": 1}
    assert shown["coverage"][0]["disturbed"] == shown["coverage"][0]["missing"] == 1
    other = write_table(tmp_path / "other.jsonl", kernel(STEM, 4.0, spread=0.5)).path
    invoke("table", "merge", path, other, "--out", tmp_path / "out.jsonl")
    merged = LatencyTable.open(tmp_path / "out.jsonl").record(Kernel.parse(STEM))
    assert (merged.status, merged.latency_us) == ("unstable", 4.0)


def test_show_names_estimates_and_corrections(tmp_path, invoke):
    path = uncertain_table(tmp_path / "mine.jsonl").path
    shown = document(invoke("table", "show", path, "--json"))
    assert shown["basis"] == {"estimated: by a model": 1, "measured": 2}
    assert shown["uncertain_dispatch"] == ["invocation"]
    (fitted,) = shown["calibrations"]
    assert (fitted["batch"], fitted["kernel_factor"], fitted["mape_after"]) == (1, 2.0, 0.01)
    text = words(invoke("table", "show", path).stdout)
    assert "1 of the kernels are estimated: by a model" in text
    assert "uncertain dispatch costs: invocation" in text
    assert "2.0000 x kernels + 1.0000 x dispatch costs, fitted on 20" in text


def test_check_prints_and_draws_the_errors(built, tmp_path, invoke):
    arguments = ("table", "check", "mine.jsonl", *TINY)
    checked = document(invoke(*arguments, "--nets", 4, "--plot", "check.svg", "--json"))
    assert checked["nets"] == len(checked["rows"]) == 4
    assert checked["device_ratio"] == pytest.approx(1, rel=1e-3)
    assert checked["calibration"] is None
    assert not any(row["disturbed"] for row in checked["rows"])
    picture = (tmp_path / "check.svg").read_text()
    assert "mobilenet_tiny: 4 random" in picture
    text = words(invoke(*arguments, "--nets", 7).stdout)
    for part in (
        "the 5 of 7 random networks with the largest errors",
        "of 7 networks, 0 have kernels with uncertain timings, 0 have estimated ones",
        "two halves of the timings of the same network: 0.00% apart (median)",
        "took 1.000 times what they took then",
        "is 2.00%: ",
    ):
        assert part in text


@pytest.mark.slow
def test_check_shows_published_networks(device, tmp_path, invoke):
    space = ("--space", "squeezenet", "--image-size", 8, "--channels", 1)
    invoke("table", "build", *space, "--no-calibrate", "--out", "mine.jsonl")
    arguments = ("table", "check", "mine.jsonl", *space, "--nets", 1, "--plot", "check.svg")
    text = words(invoke(*arguments).stdout)
    assert "squeezenet_1.1" in text
    assert "published" in text
    assert "squeezenet_1.1" in (tmp_path / "check.svg").read_text()
    assert "squeezenet_1.1" not in invoke(*arguments, "--no-references").stdout


def test_check_fits_the_correction_anew(built, invoke):
    arguments = ("table", "check", "mine.jsonl", *TINY, "--fit", "--nets", 10)
    fitted = document(invoke(*arguments, "--json"))["calibration"]
    (stored,) = LatencyTable.open("mine.jsonl").corrections()
    assert (stored.to_json(), stored.nets) == (fitted, 10)
    assert "from now on, predictions are corrected: " in words(invoke(*arguments).stdout)


def test_quick_check_fails_if_the_device_is_slower(device, built, invoke):
    before = document(invoke("table", "check", "mine.jsonl", "--quick", "--json"))
    assert (before["holds"], before["device_ratio"], len(before["rows"])) == (True, 1, 40)
    assert "(median): the table holds" in words(
        invoke("table", "check", "mine.jsonl", "--quick").stdout
    )
    timed = device.retimed.count(device.timed[0])
    device.slowed = {each.text: [1.0] * timed + [1.2] * 9 for each in device.timed}
    done = invoke("table", "check", "mine.jsonl", "--quick")
    assert done.returncode == 1
    assert "mine.jsonl does not hold: kernels are 20% slower now" in done.stderr
    assert "40 kernels took 1.200 times what the table says" in words(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No space is named"),
        (["--quick", "--fit"], "times no networks to fit on"),
        ([*TINY, "--fit", "--nets", 7], "--nets is 7. --fit needs 8 or more"),
        ([*TINY, "--plot", "x.pdf"], "ends in .png or .svg"),
    ],
)
def test_check_refuses_wrong_requests_before_timing(device, tmp_path, invoke, arguments, message):
    write_table(tmp_path / "mine.jsonl")
    done = invoke("table", "check", "mine.jsonl", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_fit_refuses_read_only_table_before_timing(device, tmp_path, invoke, monkeypatch):
    write_table(tmp_path / "mine.jsonl")
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    done = invoke("table", "check", "mine.jsonl", *TINY, "--fit")
    assert done.returncode == 1
    assert "mine.jsonl cannot be written: Permission denied" in done.stderr


def test_diff_prints_and_draws_changes(tmp_path, invoke, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = write_table(tmp_path / "a.jsonl", kernel(STEM, 3.0), kernel(POOL, 1.0))
    after = write_table(tmp_path / "b.jsonl", kernel(STEM, 6.0, spread=0.5), kernel(HEAD, 1.0))
    arguments = ("table", "diff", before.path, after.path)
    shown = document(invoke(*arguments, "--plot", "diff.svg", "--json"))
    assert (shown["common"], shown["only_before"], shown["only_after"]) == (1, 1, 1)
    assert shown["kinds"] == {"conv 3x3": {"count": 1, "median": 2.0}}
    assert "conv 3x3: 1" in (tmp_path / "diff.svg").read_text()
    text = words(invoke(*arguments).stdout)
    assert "1 are only in the first, 1 only in the second" in text
    assert all(part in text for part in (f"kernel {STEM}", "2.000", "unstable"))
    nothing = write_table(tmp_path / "c.jsonl")
    done = invoke("table", "diff", before.path, nothing.path, "--plot", "diff.png")
    assert done.returncode == 2
    assert "have no kernel in common" in done.stderr
    assert "median ratio undefined" in invoke("table", "diff", before.path, nothing.path).stdout


def test_merge_says_where_rows_come_from(tmp_path, invoke):
    a = write_table(tmp_path / "a.jsonl", *dispatch(), kernel(STEM, 3.0), correction()).path
    b = write_table(tmp_path / "b.jsonl", kernel(STEM, 4.0), kernel(HEAD, 1.0)).path
    out = tmp_path / "out.jsonl"
    merged = document(invoke("table", "merge", a, b, "--out", out, "--json"))
    assert merged == {
        "table": str(out), "kernels": 2, "failed": 0, "taken": {str(a): 1, str(b): 1},
        "dispatch_from": str(a),
    }  # fmt: skip
    again = invoke("table", "merge", b, "--out", tmp_path / "compact.jsonl").stdout
    assert "2 kernels (0 failed)" in words(again)


# Files that are no tables.


@pytest.fixture
def notes(device, tmp_path):
    """Return a folder with a file that is no table."""
    (tmp_path / "notes.jsonl").write_bytes(NOTES)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("table", "build", *TINY, "--out", "notes.jsonl"),
        ("table", "show", "notes.jsonl"),
        ("table", "check", "notes.jsonl", *TINY, "--fit"),
        ("table", "check", "notes.jsonl", "--quick"),
        ("predict", "squeezenet_1.1", "--table", "notes.jsonl"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:2])),
)
def test_file_that_is_no_table_is_named_and_unchanged(notes, invoke, arguments):
    done = invoke(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: notes.jsonl, line 1 ")
    assert done.stderr.count("\n") == 1
    assert (notes / "notes.jsonl").read_bytes() == NOTES
    assert [path.name for path in notes.iterdir()] == ["notes.jsonl"]


def test_merge_never_overwrites_a_file(notes, invoke):
    for name in ("a.jsonl", "b.jsonl"):
        (notes / name).write_text(json.dumps(new_header(DEVICE)) + "\n")
    done = invoke("table", "merge", "a.jsonl", "b.jsonl", "--out", "notes.jsonl")
    assert done.returncode == 2
    assert "notes.jsonl exists already" in done.stderr
    assert (notes / "notes.jsonl").read_bytes() == NOTES
    done = invoke("table", "merge", "a.jsonl", "notes.jsonl", "--out", "c.jsonl")
    assert done.returncode == 1
    assert not (notes / "c.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ("tvm", "cpu", "float32")),
        (["--target", "ethos-u55-128"], ("ethos_u", "ethos-u55-128", "int8")),
        (["--runtime", "onnxruntime", "--dtype", "int8"], ("onnxruntime", "cpu", "int8")),
    ],
)
def test_device_is_that_of_the_options_that_are_given(options, expected, invoke, monkeypatch):
    opened = []

    def absent(name, *, target, threads, dtype):
        opened.append((name, target, dtype))
        raise DeviceError("It is not here.")

    monkeypatch.setattr("nas.latency.open_runtime", absent)
    assert invoke("table", "build", *TINY, *options).returncode == 1
    assert opened == [expected]


def test_failed_build_creates_no_folder(device, tmp_path, invoke, monkeypatch):
    def refuse(*_: object) -> None:
        raise TableError("no kernels")

    monkeypatch.setattr("nas.latency.space_kernels", refuse)
    done = invoke("table", "build", *TINY, "--out", "tables/deep")
    assert (done.returncode, done.stderr) == (1, "error: no kernels\n")
    assert list(tmp_path.iterdir()) == []
