"""`install.py`: a version is whole and tested before it runs, and the one before it stays."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from subprocess import DEVNULL

import pytest

from nas.lifecycle.bundle import write_bundle
from tests.deploy.example_model import model_with_script
from tests.lifecycle.bundles import (
    contents,
    rebundled,
    write_keys,
    write_tar,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_with_script(tmp_path_factory.mktemp("bundle") / "jc80")


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory):
    """Return a bundle whose run.py needs no libraries, so that it starts at once."""
    made = tmp_path_factory.mktemp("bundles") / "made.tar"
    write_bundle(folder.path, made)
    return rebundled(made, made.with_name("fast.tar"), {"run.py": b""})


@pytest.fixture(scope="module")
def script(bundle):
    path = bundle.with_name("install.py")
    path.write_bytes(contents(bundle)["install.py"])
    return path


@pytest.fixture
def install(script, tmp_path):
    """Return a function that installs a bundle to the folder `to`."""

    def run(bundle, *options, umask=-1):
        command = [sys.executable, "-I", script, bundle, "--to", tmp_path / "to", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, umask=umask)

    return run


def running(root):
    """Return the version that runs, after a check that it is whole."""
    current = root / "current"
    if not current.is_symlink():
        return None
    manifest = json.loads((current / "manifest.json").read_bytes())
    for name in manifest["files"]:
        assert (current / name).is_file()
    return manifest["version"]


def entries(root):
    return {each.name for each in root.iterdir()}, {
        each.name.split("-")[0] for each in (root / "versions").iterdir()
    }


@pytest.mark.slow
def test_the_model_of_a_bundle_is_tested_on_its_images(folder, tmp_path, install):
    made = tmp_path / "made.tar"
    write_bundle(folder.path, made)
    done = install(made)
    assert done.returncode == 0, done.stderr
    assert "Version 1.0 of jc80 runs" in done.stdout
    assert "The signature was not checked" in done.stdout
    # Pixels are divided by another number: the script runs, and its answers are wrong.
    script = contents(made)["run.py"]
    other = script.replace(b"/ 255", b"/ 250")
    assert other != script
    wrong = rebundled(made, tmp_path / "wrong.tar", {"run.py": other}, "1.1")
    done = install(wrong)
    assert done.returncode == 1
    assert "model.onnx: 0 of 32 images have the answers of the export" in done.stderr
    assert running(tmp_path / "to") == "1.0"


def test_versions_follow_each_other(bundle, tmp_path, install):
    root = tmp_path / "to"
    versions = {
        each: rebundled(bundle, tmp_path / f"{each}.tar", {}, each)
        for each in ("1.9", "1.10", "2.0")
    }
    for each in versions:
        done = install(versions[each])
        assert done.returncode == 0, done.stderr
        assert running(root) == each
    # The version before stays, and older ones go.
    assert entries(root) == ({"versions", "current", ".lock"}, {"2.0", "1.10"})
    assert os.readlink(root / "current").startswith("versions/2.0-")
    done = install(versions["2.0"])
    assert (done.returncode, running(root)) == (0, "2.0")
    assert "is installed already" in done.stdout
    done = install(versions["1.9"])
    assert (done.returncode, running(root)) == (1, "2.0")
    assert "Version 1.9 is not later than 2.0: give --allow-older" in done.stderr
    same = rebundled(bundle, tmp_path / "same.tar", {"card.md": b"other"}, "2.0")
    assert install(same).returncode == 1
    assert install(versions["1.9"], "--allow-older").returncode == 0
    assert running(root) == "1.9"
    assert entries(root) == ({"versions", "current", ".lock"}, {"2.0", "1.9"})


def test_a_version_can_be_read_by_other_users_whatever_the_umask_is(bundle, tmp_path, install):
    root = tmp_path / "to"
    newer = rebundled(bundle, tmp_path / "newer.tar", {"folder/file": b""}, "1.1")
    for made, umask in ((bundle, 0o077), (newer, 0o027)):
        assert install(made, umask=umask).returncode == 0
        for each in (root, *root.rglob("*")):
            needed = 0o755 if each.is_dir() else 0o644
            assert each.stat().st_mode & 0o777 == needed, each
    last = rebundled(bundle, tmp_path / "last.tar", {}, "1.3")
    assert install(last, umask=0o002).returncode == 0
    assert (root / "current").stat().st_mode & 0o777 == 0o775, "who may write is as asked"


def test_a_damaged_version_is_repaired_by_its_bundle(bundle, tmp_path, install):
    root = tmp_path / "to"
    newer = rebundled(bundle, tmp_path / "newer.tar", {}, "1.1")
    for made in (bundle, newer):
        assert install(made).returncode == 0
    for damage in (
        lambda folder: (folder / "model.onnx").write_bytes(b"no network"),
        lambda folder: (folder / "run.py").unlink(),
        lambda folder: (folder / "manifest.json").write_bytes(b"{"),
        lambda folder: (folder / "card.json").chmod(0o600),
        lambda folder: folder.chmod(0o700),
        lambda folder: shutil.rmtree(folder.resolve()),
    ):
        damage(root / "current")
        done = install(newer)
        assert (done.returncode, running(root)) == (0, "1.1"), done.stderr
        for name, content in contents(newer).items():
            assert (root / "current" / name).read_bytes() == content
        for each in (root / "current").resolve().rglob("*"):
            assert each.stat().st_mode & 0o044 == 0o044, "services read it"
        assert (root / "current").stat().st_mode & 0o055 == 0o055
        assert "installed already" not in done.stdout
        assert entries(root) == ({"versions", "current", ".lock"}, {"1.0", "1.1"})
        assert len(list((root / "versions").iterdir())) == 2, "the version before it stays"
    (root / "current" / "field.jsonl").write_bytes(b"what the service writes")
    assert "installed already" in install(newer).stdout
    (root / "current" / "manifest.json").write_bytes(b"{")
    assert install(bundle).returncode == 1, "what is older stays so"
    assert install(rebundled(bundle, tmp_path / "last.tar", {}, "1.2")).returncode == 0


@pytest.mark.parametrize(
    ("run_script", "message"),
    [
        ("import sys; sys.exit('no numpy')", "status 1, and wrote: no numpy"),
        ("import os; os.kill(os.getpid(), 9)", "status -9"),
        ("raise SystemExit(3)", "status 3"),
    ],
)
def test_a_version_that_fails_its_test_is_removed(bundle, tmp_path, install, run_script, message):
    root = tmp_path / "to"
    assert install(bundle).returncode == 0
    before = sorted(root.rglob("*"))
    broken = rebundled(bundle, tmp_path / "broken.tar", {"run.py": run_script.encode()}, "1.1")
    done = install(broken)
    assert done.returncode == 1
    assert message in done.stderr
    assert running(root) == "1.0"
    assert sorted(root.rglob("*")) == before
    # A command of the user counts in its place.
    assert install(broken, "--test", "false").returncode == 1
    assert install(broken, "--test", f"{sys.executable} -c pass").returncode == 0
    assert running(root) == "1.1"


def test_a_model_without_a_script_needs_a_command(bundle, tmp_path, install):
    plain = rebundled(bundle, tmp_path / "plain.tar", {}, names={*contents(bundle)} - {"run.py"})
    done = install(plain)
    assert done.returncode == 1
    assert "give --test COMMAND" in done.stderr
    assert install(plain, "--test", "test -f model.onnx").returncode == 0


def test_damaged_bundles_and_signatures_change_nothing(bundle, folder, tmp_path, install):
    root = tmp_path / "to"
    assert install(bundle).returncode == 0
    before = sorted(root.rglob("*"))
    own, public = write_keys(tmp_path, "own")
    _, other = write_keys(tmp_path, "other")
    signed = tmp_path / "signed.tar"
    write_bundle(folder.path, signed, key=own)
    newer = rebundled(bundle, tmp_path / "newer.tar", {}, "1.1")
    files = contents(newer)
    for changed in (
        {**files, "model.onnx": files["model.onnx"][:-1]},
        {**files, "../out": b""},
        {},
    ):
        done = install(write_tar(tmp_path / "changed.tar", changed))
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
    for path, key, message in (
        (newer, public, "is not signed"),
        (signed, other, "did not sign the bundle"),
        (tmp_path / "none", public, "No such file"),
    ):
        done = install(path, "--public-key", key, "--allow-older")
        assert done.returncode == 1
        assert message in done.stderr
    assert sorted(root.rglob("*")) == before
    assert not (tmp_path / "out").exists()
    done = install(signed, "--public-key", public, "--allow-older", "--test", "true")
    assert done.returncode == 0, done.stderr
    assert "was not checked" not in done.stdout


def test_other_faults_are_errors_without_a_traceback(bundle, script, tmp_path, install):
    assert install(bundle).returncode == 0
    newer = rebundled(bundle, tmp_path / "newer.tar", {}, "1.1")
    broken = write_tar(tmp_path / "broken.tar", {"manifest.json": b"{"})
    for command in (
        [broken, "--to", tmp_path / "to"],
        [newer, "--to", newer],
        ["nowhere://model", "--to", tmp_path / "other"],
        [tmp_path / "none", "--to", tmp_path / "other"],
    ):
        done = subprocess.run(
            [sys.executable, "-I", script, *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        stays = "The version that was installed stays." in done.stderr
        assert stays == (command[-1] == tmp_path / "to")
    (tmp_path / "own" / "current").mkdir(parents=True)
    command = [sys.executable, "-I", script, newer, "--to", tmp_path / "own"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"error: {tmp_path}/own/current: ")
    assert running(tmp_path / "to") == "1.0"


def test_two_installations_wait_for_each_other(bundle, script, tmp_path):
    root = tmp_path / "to"
    newer = rebundled(bundle, tmp_path / "newer.tar", {}, "1.1")
    commands = [[sys.executable, script, each, "--to", root] for each in (bundle, newer)] * 3
    started = [subprocess.Popen(each, stdout=DEVNULL, stderr=DEVNULL) for each in commands]
    for each in started:
        each.wait()
    assert running(root) == "1.1"
    assert {each.name for each in root.iterdir()} == {"versions", "current", ".lock"}


def test_a_key_without_the_package_that_checks_it_is_an_error(bundle, script, tmp_path):
    signed = write_tar(tmp_path / "signed.tar", {**contents(bundle), "model.sig": b"{}"})
    _, public = write_keys(tmp_path, "own")
    # -S: without installed packages, as on a device that has Python alone.
    command = [sys.executable, "-I", "-S", script, signed, "--to", tmp_path / "to"]
    done = subprocess.run(
        [*command, "--public-key", public], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install model-signing pyopenssl" in done.stderr
    assert running(tmp_path / "to") is None
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_bundle_comes_from_a_server(bundle, tmp_path, install):
    handler = functools.partial(QuietHandler, directory=bundle.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        done = install(f"{address}/{bundle.name}")
        missing = install(f"{address}/none.tar")
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert running(tmp_path / "to") == "1.0"
    assert missing.returncode == 1
    assert "404" in missing.stderr


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


KILLED_AT_EVERY_LINE = """
import json, os, shutil, sys
script, root, *bundles = sys.argv[1:]
code = compile(open(script).read(), script, "exec")
exec(code, {"__name__": "loaded"})  # Its libraries are imported once.
sys.executable = "/bin/sh"  # It starts faster than Python.
os.sync = lambda: None

def run(bundle, last_line):
    # The child ends like a killed process, before its line of this number.
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0
    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename != script:
            return None
        if event == "line":
            count += 1
            if count == last_line:
                os._exit(99)
        return trace
    sys.argv = [script, bundle, "--to", root]
    sys.settrace(trace)
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as error:
        os._exit(error.code)
    finally:
        os._exit(98)

os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
assert run(bundles[0], 0) == 0
lines, seen, link = 0, set(), os.path.join(root, "current")
while True:
    lines += 1
    status = run(bundles[1], lines)
    manifest = json.load(open(os.path.join(link, "manifest.json")))
    assert all(os.path.isfile(os.path.join(link, each)) for each in manifest["files"]), lines
    seen.add((status, manifest["version"]))
    assert run(bundles[1], 0) == 0, lines  # The same command goes on.
    if status != 99:
        break
    left = {*os.listdir(root)}, len(os.listdir(os.path.join(root, "versions")))
    assert left == ({"current", "versions", ".lock"}, 2), (lines, left)
    os.replace(link, link + ".old")  # Back to the first version.
    [first] = [each for each in os.listdir(os.path.join(root, "versions")) if each[:4] == "1.0-"]
    os.symlink(os.path.join("versions", first), link)
    os.remove(link + ".old")
    for each in os.listdir(os.path.join(root, "versions")):
        if each != first:
            shutil.rmtree(os.path.join(root, "versions", each))
print(json.dumps([lines, sorted(seen)]), file=sys.stderr)
"""


@pytest.mark.slow
def test_killed_at_any_line_one_whole_version_runs(bundle, script, tmp_path):
    files = {"run.py": b"exit 0"}
    bundles = [
        rebundled(bundle, tmp_path / f"{each}.tar", files, each, names=files)
        for each in ("1.0", "1.1")
    ]
    done = subprocess.run(
        [sys.executable, "-I", "-c", KILLED_AT_EVERY_LINE, script, tmp_path / "to", *bundles],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines, seen = json.loads(done.stderr)
    assert lines > 100
    assert seen == [[0, "1.1"], [99, "1.0"], [99, "1.1"]]
