import json
import subprocess
import sys
from pathlib import Path

import pytest

from nas.space import load, names
from tests.mini_job import write_job


def nas(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nas", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def document(done: subprocess.CompletedProcess[str]):
    """The one JSON document on stdout."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_nas_pulls_in_none_of_the_heavy_libraries():
    code = (
        "import sys, nas, nas.cli; "
        "print([m for m in ('torch', 'tvm', 'optuna', 'pandas', 'matplotlib', 'numpy', 'datasets') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("nas.space", ("torch", "tvm", "optuna", "pandas")),
        ("nas.search", ("torch", "tvm", "nas.latency", "nas.supernet")),
        ("nas.latency", ("torch", "tvm", "optuna", "nas.supernet", "nas.search")),
        ("nas.supernet", ("tvm", "optuna", "nas.latency", "nas.search")),
        ("nas.report.page", ("torch", "tvm", "nas.supernet", "nas.job")),
    ],
)
def test_lower_layers_do_not_import_higher_ones(module, forbidden):
    code = f"import sys, {module}; print([m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    ["", "quickstart", "run", "doctor", "spaces", "table", "table build", "table show",
     "table check", "table calibrate", "table diff", "predict", "report", "select"],
)  # fmt: skip
def test_every_command_has_help(command):
    done = nas(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    if " " in command:
        assert "Example: nas" in " ".join(done.stdout.split())


def test_spaces_as_json():
    found = document(nas("spaces", "--json"))
    assert [each["name"] for each in found] == names()
    one = document(nas("spaces", "mobilenet", "--image-size", "32", "--classes", "7", "--json"))
    space = load("mobilenet").on(image_size=32, channels=3, classes=7)
    assert one["size"] == space.size
    assert one["macs"]["largest"] == space.lower(space.largest).macs
    assert one["macs"]["smallest"] <= one["macs"]["median"] <= one["macs"]["largest"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["spaces", "mobilnet"], 2, "There is no space 'mobilnet'. Spaces: mobilenet"),
        (["run", "nowhere.toml"], 2, "There is no job file nowhere.toml"),
        (["select", "nowhere"], 2, "has no front"),
        (["report", "nowhere"], 2, "is not a run"),
        (["table", "show", "nowhere.jsonl"], 2, "There is no file nowhere.jsonl"),
        (["table", "build", "--space", "mobilenet", "--runtime", "abacus"], 2, "Allowed: tvm"),
        (["predict", "nowhere:12", "--table", "x"], 2, "Give a JSON file, or RUN:ID"),
        (["table", "check"], 2, "Missing argument"),
        (["dance"], 2, "No such command"),
    ],
)
def test_a_wrong_request_is_one_short_message_and_exit_2(arguments, status, words, tmp_path):
    done = nas(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback():
    assert "Traceback" in nas("--debug", "spaces", "mobilnet").stderr


def test_a_run_is_chosen_from_reported_and_predicted(undisturbed):
    table = next((undisturbed / "latency_tables").glob("*.jsonl"))
    front = json.loads((undisturbed / "results/mini/front.json").read_text())["front"]
    best = document(nas("select", "results/mini", "--json", cwd=undisturbed))
    assert best == front[-1]
    limit = str(front[0]["measured_us"] / 1000 * 1.0001)
    fastest = nas("select", "results/mini", "--max-latency-ms", limit, "--json", cwd=undisturbed)
    assert document(fastest) == front[0]
    none = nas("select", "results/mini", "--max-latency-ms", "1e-5", cwd=undisturbed)
    assert none.returncode == 1
    assert "The nearest is" in none.stderr

    shown = document(nas("table", "show", str(table), "--json", cwd=undisturbed))
    assert shown["status"].keys() <= {"ok", "unstable"}
    same = document(nas("table", "diff", str(table), str(table), "--json", cwd=undisturbed))
    assert same["median_ratio"] == 1
    assert len(same["changes"]) == shown["kernels"] + len(shown["dispatch_us"])
    arch = f"results/mini:{best['digest'][:9]}"
    found = document(nas("predict", arch, "--table", str(table), "--json", cwd=undisturbed))
    assert found["predicted_us"] == pytest.approx(best["predicted_us"])
    assert found["macs"] == best["macs"]

    report = undisturbed / "results/mini/report.html"
    old = report.read_text()
    report.unlink()
    assert document(nas("report", "results/mini", "--json", cwd=undisturbed))
    assert report.read_text() == old


def test_a_table_of_another_machine_is_never_taken_for_this_ones(undisturbed, tmp_path):
    (table,) = (undisturbed / "latency_tables").glob("*.jsonl")
    path = write_job(tmp_path)
    header, rest = table.read_text().split("\n", 1)
    foreign = json.loads(header) | {"processor": "Cray-1"}
    (tmp_path / "latency_tables").mkdir()
    (tmp_path / "latency_tables" / table.name).write_text(json.dumps(foreign) + "\n" + rest)
    done = nas("run", path.name, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "measured on another device" in done.stderr
    assert "Cray-1" in done.stderr


def test_a_job_says_what_is_wrong_with_its_data(tmp_path):
    path = write_job(tmp_path)
    path.write_text(path.read_text().replace('"digits"', '"photos"'))
    done = nas("run", path.name, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "There is no data at photos" in done.stderr


def test_doctor_tells_device_runtimes_and_noise():
    found = document(nas("doctor", "--json"))
    assert found["processor"]
    assert {runtime["name"] for runtime in found["runtimes"]} == {"tvm"}
    assert found["noise"]["spread"] >= 0
    assert found["noise"]["worst"] >= 1
