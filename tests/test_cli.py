import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nas.deploy.formats import format_names
from nas.space import load_definition, load_space, space_names
from nas.space.library import path_of
from tests.commands import WITHOUT_UTF8, document, run_nas
from tests.conftest import EXAMPLE
from tests.mini_job import write_job


@pytest.mark.parametrize(
    "command",
    ["", "quickstart", "run", "doctor", "spaces", "table", "table build", "table show",
     "table check", "table diff", "table import", "table merge",
     "supernet", "supernet train", "supernet evaluate", "supernet rank",
     "retarget", "search", "retrain", "predict", "report", "select"],
)  # fmt: skip
def test_every_command_has_help_with_an_example(invoke, command):
    done = invoke(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    if " " in command or command in ("spaces", "predict", "retrain"):
        assert "Example: nas" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_spaces_estimates_table_and_draws_picture(invoke, tmp_path):
    path = tmp_path / "space.png"
    done = invoke("spaces", "shufflenet_tiny", "--plot", path, "--json")
    table = document(done)["table"]["tvm"]
    assert table["estimated_seconds"] > 0
    assert 1 <= table["timed_kernels"] <= table["kernels"]
    assert path.read_bytes().startswith(b"\x89PNG")
    shown = invoke("spaces", "shufflenet_tiny", "--no-estimate").stdout
    assert "112 different networks" in shown
    assert "no estimate of the time to build it: --no-estimate" in shown


@pytest.mark.slow
def test_spaces_compares_published_networks(invoke, tmp_path):
    rows = document(invoke("spaces", "--references", "--json"))
    assert {row["space"] for row in rows} <= set(space_names())
    assert all(row["agrees"] for row in rows)
    path = tmp_path / "mine.py"
    text = path_of("mobilenet_v3").read_text()
    path.write_text(text.replace("params=5_483_032", "params=5_483_031"))
    done = invoke("spaces", path, "--references", "--json")
    assert done.returncode == 1
    assert "1 of 1 reference networks disagree: mobilenet_v3_large." in done.stderr
    assert [row["agrees"] for row in json.loads(done.stdout)] == [False]


@pytest.mark.slow
def test_spaces_samples_architectures_within_limits(invoke):
    limits = ("--sample", 5, "--max-macs", "200e6", "--min-macs", "150e6", "--max-params", "3e6")
    drawn = document(invoke("spaces", "mobilenet", *limits, "--json"))
    lines = invoke("spaces", "mobilenet", *limits).stdout.splitlines()
    assert [json.loads(line) for line in lines] == drawn
    assert len(drawn) == 5
    space = load_definition("mobilenet")
    for record in drawn:
        graph = space.from_json(record).graph
        assert 150e6 <= graph.macs <= 200e6
        assert graph.params <= 3e6
    other = invoke("spaces", "mobilenet", *limits, "--seed", 1, "--json")
    assert document(other) != drawn
    none = invoke("spaces", "mobilenet", "--sample", 1, "--max-macs", 1000)
    assert none.returncode == 1
    assert "has macs of at most 1000" in none.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "mobilenet_v2_1.O"], "Did you mean mobilenet_v2_1"),
        (["mobilenet", "--plot", "x.pdf"], "ends in .png or .svg"),
        (["--plot", "x.png"], "Give a NAME"),
        (["--arch", "mobilenet_v2_1.0", "--plot", "x.png"], "draws one space"),
        (["mobilenet", "--sample", 2, "--references"], "--references and --sample do not go"),
        (["mobilenet", "--max-macs", 2], "Give --sample N too"),
        (["--sample", 2], "Name it"),
        (["mobilenet_tiny", "--runtime", "abacus"], "Allowed: ethos_u, litert, onnxruntime, tvm"),
    ],
)
def test_wrong_request_for_spaces_exits_2(invoke, arguments, words):
    done = invoke("spaces", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["spaces", "mobilnet"], "There is no space 'mobilnet'. Spaces: efficientnet_lite"),
        (["run", "nowhere.toml"], "There is no job file nowhere.toml"),
        (["select", "nowhere"], "is not a run"),
        (["table", "show", "nowhere.jsonl"], "There is no file nowhere.jsonl"),
        (["table", "show", "n" * 300 + ".jsonl"], "There is no file"),
        (["table", "build", "--space", "mobilenet", "--runtime", "abacus"], "Allowed: ethos_u, li"),
        (["predict", "nowhere:12", "--table", "x"], "Or give a JSON file, or RUN:ID"),
        (["table", "check"], "Missing argument"),
        (["table", "diff", "a.jsonl", "b.jsonl", "--plot", "x.pdf"], "ends in .png or .svg"),
        (["table", "build", "--space", "mobilenet", "--batch", "0"], "Invalid value for"),
        (["dance"], "No such command"),
    ],
)
def test_wrong_request_prints_one_message_and_exits_2(
    invoke, arguments, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = invoke(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("job.toml", "job.toml is a file"),
        ("job.toml/run", "Not a directory: job.toml/run"),
        ("/proc/run", "No such file or directory: /proc/run"),
        ("x" * 300, "File name too long"),
    ],
)
def test_run_folder_that_cannot_be_made_is_a_wrong_request(job_folder, invoke, out, words):
    before = sorted(job_folder.rglob("*"))
    done = invoke("run", "job.toml", "--out", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(job_folder.rglob("*")) == before


def test_full_disk_keeps_the_old_picture(invoke, tmp_path, monkeypatch):
    path = tmp_path / "plot.png"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = invoke("spaces", "mobilenet_tiny", "--no-estimate", "--plot", path)
    assert done.returncode == 1
    assert f"No space left on device: {path}. Nothing is half-written: make room" in done.stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_control_characters_from_files_do_not_reach_the_terminal(invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.toml"
    path.write_text('[data]\nsource = "digits"\n[[space]]\nname = "\\u001b[2Jx"\n')
    done = invoke("run", path)
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "x1b[2Jx" in done.stderr


def test_debug_prints_the_traceback():
    assert "Traceback" in run_nas("--debug", "spaces", "mobilnet").stderr


@pytest.mark.slow
def test_select_predict_and_report_read_a_finished_run(copy_of_finished_job, invoke, monkeypatch):
    folder = copy_of_finished_job
    monkeypatch.chdir(folder)
    table = next((folder / "latency_tables").glob("*.jsonl"))
    front = json.loads((folder / "results/mini/front.json").read_text())["front"]
    best = document(invoke("select", "results/mini", "--json"))
    low, high = best.pop("intervals")["validation_accuracy"]
    assert low < best["validation_accuracy"] < high
    assert best.pop("no_difference_shown") == []
    assert best.pop("judging_images") == "240 hold-out images"
    assert best.pop("slowdown")["typical"] >= 1
    assert best.pop("file_bytes") > 0
    best.pop("is_file_size_estimated")
    second = best.pop("runner_up")
    assert len(front) == 1 or second["id"] != best["id"]
    assert best == front[-1]
    limit = str(front[0]["measured_us"] / 1000 * 1.0001)
    select = ("select", "results/mini", "--max-latency-ms")
    fastest = invoke(*select, limit, "--json")
    assert document(fastest)["id"] == front[0]["id"]
    none = invoke(*select, "1e-5")
    assert none.returncode == 1
    assert "The nearest is" in none.stderr

    arch = f"results/mini:{best['digest'][:9]}"
    prediction = document(invoke("predict", arch, "--table", str(table), "--json"))
    assert prediction["predicted_us"] == pytest.approx(best["predicted_us"])
    assert prediction["macs"] == best["macs"]
    shown = document(invoke("spaces", "--arch", arch, "--json"))
    assert shown["architecture"] == best["architecture"]
    assert sum(layer["params"] for layer in shown["layers"]) == best["params"]

    report = folder / "results/mini/report.html"
    old = report.read_text()
    report.unlink()
    assert document(invoke("report", "results/mini", "--json"))
    assert report.read_text() == old


@pytest.mark.long
def test_table_has_rows_of_several_batch_sizes(invoke, finished_job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (known,) = (finished_job / "latency_tables").glob("*.jsonl")
    Path("mine.jsonl").write_text(known.read_text())
    Path("small.py").write_text(
        "from nas.space import SearchSpace, Stage\n"
        "stem = Stage('stem', 'conv', (4, 8), per_stage={'kernel': 3})\n"
        "SPACE = SearchSpace('small', (stem, Stage('head', 'linear_classifier')))\n"
    )
    of = ("--space", "small.py", "--image-size", 8, "--channels", 1, "--classes", 3)
    table, out = "mine.jsonl", ("--out", "mine.jsonl", "--json")
    one = document(invoke("table", "build", *of, *out))
    shown = document(invoke("table", "show", table, *of, "--batch", 4, "--json"))
    assert shown["coverage"][0]["missing"] == one["kernels_needed"] <= shown["kernels"]
    space = load_space("small.py", image_size=8, channels=1, classes=3)
    network = tmp_path / "network.json"
    network.write_text(json.dumps(space.largest.to_json()))
    arch = (network, *of, "--table", table, "--json")
    before = document(invoke("predict", *arch))
    missing = invoke("predict", *arch, "--batch", 4)
    assert missing.returncode == 1
    assert re.search(r"lacks (\d+) of the \1 kernels of the network", missing.stderr)
    four = document(invoke("table", "build", *of, "--batch", 4, *out))
    assert (four["table"], four["kernels_needed"]) == (table, one["kernels_needed"])
    timed = four["ok"] + four["unstable"] + four["disturbed"]
    assert timed == one["kernels_needed"]
    after = document(invoke("predict", *arch, "--batch", 4))
    assert (before["batch"], after["batch"]) == (1, 4)
    assert after["macs"] == before["macs"]
    assert all(" batch4 " in row["kernel"] for row in after["kernels"])
    # Kernels for four images take longer than for one; a launch costs the same.
    assert before["predicted_us"] < after["predicted_us"] < 8 * before["predicted_us"]
    assert document(invoke("predict", *arch)) == before


@pytest.mark.slow
def test_table_of_another_machine_is_refused(finished_job, tmp_path, invoke, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (table,) = (finished_job / "latency_tables").glob("*.jsonl")
    path = write_job(tmp_path, extra=f'\n[device]\ntables = "latency_tables/{table.name}"\n')
    header, rest = table.read_text().split("\n", 1)
    foreign = json.loads(header) | {"processor": "Cray-1"}
    (tmp_path / "latency_tables").mkdir()
    (tmp_path / "latency_tables" / table.name).write_text(json.dumps(foreign) + "\n" + rest)
    done = invoke("run", path.name, "--out", "out")
    assert done.returncode == 2
    assert "measured on another device" in done.stderr
    assert "Cray-1" in done.stderr
    foreign_table = str(tmp_path / "latency_tables" / table.name)
    for command in (["check", "--quick"], ["check", "--space", "mobilenet_tiny"]):
        done = invoke("table", *command, foreign_table)
        assert done.returncode == 2
        assert "processor is" in done.stderr
        assert "Cray-1" in done.stderr


def test_missing_data_is_named(tmp_path, invoke, monkeypatch):
    path = write_job(tmp_path)
    path.write_text(path.read_text().replace('"digits"', '"photos"'))
    monkeypatch.chdir(tmp_path)
    done = invoke("run", path.name, "--out", "out")
    assert done.returncode == 2
    assert "There is no data at photos" in done.stderr


@pytest.mark.slow
def test_doctor_prints_device_runtimes_and_speed(invoke, monkeypatch):
    monkeypatch.setattr("nas.cli.machine.SPEED_SECONDS", 0.1)
    doctor = document(invoke("doctor", "--json"))
    assert doctor["processor"]
    assert {runtime["name"] for runtime in doctor["runtimes"]} >= {"tvm", "onnxruntime"}
    formats = {each["name"]: each for each in doctor["formats"]}
    assert list(formats) == format_names()
    assert set(formats["torch"]["versions"]) == {"torch", "safetensors"}
    assert all(each["usable"] == (not each["install"]) for each in formats.values())
    assert 0 < doctor["speed"]["full_share"] <= 1
    assert doctor["speed"].keys() == {"full_share", "slow_factor", "stretch_s"}


@pytest.mark.slow
def test_names_are_utf8_whatever_the_locale(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "rün")

    def nas(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "nas", *arguments],
            cwd=tmp_path,
            env={**os.environ, **WITHOUT_UTF8},
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    assert nas("report", "rün") == (0, "rün/report.html\n", "")
    status, _, message = nas("report", "fehlt-é")
    assert (status, message.partition(" is not")[0]) == (2, "error: fehlt-é")
    status, _, message = nas("report", os.fsdecode(b"r\xfcn"))
    assert (status, message.count("\n")) == (2, 1)
    assert "is not valid UTF-8, which torch's files need. Rename the folder." in message


def test_doctor_lists_packages_that_raise_when_they_are_imported(tmp_path):
    packages = ("torch", "tvm", "onnxruntime", "ai_edge_litert", "ethosu")
    for name in packages:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('no home')")
    code = "import sys, nas.cli; sys.path.insert(0, sys.argv[1]); del sys.argv[1]; nas.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, "doctor"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "trains on      nothing: torch does not load" in done.stdout
    reasons = [line for line in done.stdout.splitlines() if "does not load (" in line]
    assert len(reasons) == len(packages)
    assert all(line.endswith("(SystemExit: no home)") for line in reasons)
