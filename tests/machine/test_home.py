"""Processes without a home folder: they get one before a package that needs it is imported."""

import json
from pathlib import Path

import pytest

from nas.machine.home import lasting_home
from tests.machine.nameless import run_nameless

SHOW = """
import json, subprocess, sys, nas
from pathlib import Path
from nas.machine.home import lasting_home
child = "import nas; from pathlib import Path; print(Path.home())"
print(json.dumps({
    "home": str(Path.home()),
    "mode": oct(Path.home().stat().st_mode & 0o777),
    "in_child": subprocess.check_output([sys.executable, "-c", child], text=True).strip(),
    "lasting": str(lasting_home()),
}))
"""

NO_TEMPORARY_FOLDER = """
import tempfile
tempfile._candidate_tempdir_list = lambda: ["/proc"]
import sys, nas.cli
sys.argv = ["nas", *sys.argv[1:]]
nas.cli.main()
"""


def test_process_without_a_home_gets_a_private_one_while_it_runs():
    done = run_nameless("-c", SHOW)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["mode"] == "0o700", "TVM trusts the pickled cache in it"
    assert shown["in_child"] == shown["home"]
    assert shown["lasting"] == "None", "decoded images are not cached where they are lost"
    assert not Path(shown["home"]).exists()


@pytest.mark.parametrize("home", ["/nonexistent", "/proc", ""])
def test_home_that_is_missing_or_read_only_stays(home):
    code = "import os, nas; print(repr(os.environ['HOME']))"
    done = run_nameless("-c", code, HOME=home)
    assert (done.stdout.strip(), done.stderr) == (repr(home), "")


def test_home_of_an_account_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lasting_home() == tmp_path


@pytest.mark.slow
def test_doctor_finds_every_runtime_without_a_home_that_can_be_written():
    done = run_nameless("-m", "nas", "doctor", "--json", HOME="/proc")
    assert (done.returncode, done.stderr) == (0, "")
    runtimes = json.loads(done.stdout)["runtimes"]
    assert [each["reason"] for each in runtimes if not each["usable"]] == []
    assert len(runtimes) >= 4


@pytest.mark.slow
def test_machine_without_any_temporary_folder_is_an_error_with_a_remedy(tmp_path):
    out = tmp_path / "space.png"
    done = run_nameless(
        *("-c", NO_TEMPORARY_FOLDER, "spaces", "squeezenet_tiny", "--no-estimate", "--plot", out)
    )
    message = "error: No folder for temporary files can be written to. Set TMPDIR to one.\n"
    assert (done.returncode, done.stderr) == (1, message)
