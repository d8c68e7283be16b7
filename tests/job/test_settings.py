"""The job file: what is read, refused and written."""

import os
import re
import tomllib
from pathlib import Path

import pytest

from nas import files
from nas.cli.options import command_line
from nas.errors import JobFileError, RequestError
from nas.job.folder import claim
from nas.job.settings import job_path, load_job, run_folder_of, with_options
from nas.run.settings import JobSettings, seconds_of

MINIMAL = """
[data]
source = "digits"

[[space]]
name = "mobilenet"
"""

SEARCH = """
[search]
trials = 4000
minutes = 90
stall = 500
sampler = "nsga2"
also_minimize = ["params", "peak_memory_bytes"]
max_latency_ms = 2
max_macs = 30_000_000
max_params = 1_000_000
max_peak_memory_bytes = 524_288
also_maximize = ["mac_utilisation"]
correct_scores = true
anchors = 8
workers = 4
storage = "postgresql://nas@host/trials"

[search.limits]
sram_kib = 256
mac_utilisation = 0.3
energy_uj = 12.5

[[search.device]]
table = "tables/pi4.jsonl"
max_latency_ms = 12.5

[[search.device]]
table = "tables/phone.jsonl"
"""

SECRET = "open-sesame"


def load(tmp_path, text):
    path = tmp_path / "job.toml"
    path.write_text(text)
    return load_job(path)


def test_all_keys_but_data_and_space_have_defaults(tmp_path):
    job = load(tmp_path, MINIMAL)
    assert (job.name, job.seed, job.budget_s) == ("job", 0, 8 * 3600)
    assert job.device.tables == "latency_tables"
    assert [space.name for space in job.space] == ["mobilenet"]


def test_statement_for_the_cards_has_a_limit(tmp_path):
    text = f"{MINIMAL}\n[card]\nmisuse = "
    assert load(tmp_path, f"{text}{'x' * 10_000!r}").card.misuse == "x" * 10_000
    with pytest.raises(JobFileError, match="card.misuse"):
        load(tmp_path, f"{text}{'x' * 10_001!r}")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("night.toml", "night"),
        ("job.v2.toml", "job.v2"),
        ("My job - Tübingen.toml", "My-job-Tubingen"),
    ],
)
def test_job_without_a_name_is_called_as_its_file(tmp_path, file, name):
    path = tmp_path / file
    path.write_text(MINIMAL)
    assert load_job(path).name == name
    path.write_text('name = "other"\n' + MINIMAL)
    assert load_job(path).name == "other"


@pytest.mark.parametrize("file", ["фото.toml", "con.toml", "--.toml"])
def test_job_file_of_whose_name_none_can_be_made_is_refused(tmp_path, file):
    (tmp_path / file).write_text(MINIMAL)
    with pytest.raises(JobFileError, match=r"has no name, and none can be made .* name = "):
        load_job(tmp_path / file)


@pytest.mark.parametrize(
    "path", sorted(files.packaged_folder("jobs").glob("*.toml")), ids=lambda p: p.stem
)
def test_packaged_jobs_are_valid(path):
    assert load_job(path).name == path.stem
    assert job_path(path.stem) == path


@pytest.mark.parametrize("size", ["", 'image_size = "auto"\n', "image_size = 64\n"])
def test_written_job_file_reads_back_as_the_same_job(tmp_path, size):
    job = load(tmp_path, MINIMAL.replace("[[space]]", f"{size}[[space]]"))
    assert str(job.data.image_size or "") in size
    assert JobSettings.model_validate(tomllib.loads(job.to_toml())) == job


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("8h", 28800), ("1h30m", 5400), ("1d", 86400)]
)
def test_seconds_of_reads_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("lines", "table", "value"),
    [
        ("resolutions = [1, 0.5, 1]\n", "space", (0.5, 1.0)),
        ('[training]\nshift = "auto"\n', "training", "auto"),
        ("[training]\nflip = false\n", "training", False),
    ],
)
def test_values_of_several_kinds_are_read_and_written(tmp_path, lines, table, value):
    job = load(tmp_path, MINIMAL + lines)
    read = job.space[0] if table == "space" else getattr(job, table)
    assert getattr(read, lines.removeprefix(f"[{table}]\n").partition(" ")[0]) == value
    assert JobSettings.model_validate(tomllib.loads(job.to_toml())) == job


def test_all_search_keys_are_read_and_written(tmp_path):
    job = load(tmp_path, MINIMAL + SEARCH)
    given = tomllib.loads(SEARCH)["search"]
    assert job.search.model_dump(mode="json", exclude_none=True) == given
    assert JobSettings.model_validate(tomllib.loads(job.to_toml())) == job
    plain = load(tmp_path, MINIMAL).search
    defaults = {"sampler": "auto", "correct_scores": True, "anchors": "auto"}
    defaults |= {"workers": 1, "storage": "journal"}
    assert plain.model_dump(include=defaults.keys()) == defaults
    others = plain.model_dump(exclude=defaults.keys())
    assert all(value in (None, (), {}) for value in others.values())


def test_options_override_the_job_file(tmp_path):
    job = load(tmp_path, MINIMAL + SEARCH)
    options = {"trials": 10, "sampler": "random", "storage": "journal", "max_latency_ms": 1.5}
    changed = with_options(job, search=options)
    assert {name: getattr(changed.search, name) for name in options} == options
    rest = set(type(job.search).model_fields) - options.keys()
    assert all(getattr(changed.search, name) == getattr(job.search, name) for name in rest)
    assert with_options(job, search={}) == job


def test_password_is_not_written(tmp_path):
    address = f"postgresql://nas:{SECRET}@host/trials?sslpassword={SECRET}"
    job = load(tmp_path, MINIMAL + f'[search]\nstorage = "{address}"\n')
    assert job.search.storage == address
    bare = "postgresql://nas@host/trials"
    assert tomllib.loads(job.to_toml())["search"]["storage"] == bare
    assert job.model_dump(mode="json")["search"]["storage"] == bare
    assert job.model_dump()["search"]["storage"] == bare


ADDRESS = f"postgresql://nas:{SECRET}@host/trials"


@pytest.mark.parametrize(
    "words",
    [
        ["--storage", ADDRESS],
        [f"--storage={ADDRESS}"],
        ["--storage", f"{ADDRESS}?passwd={SECRET}"],
        ["--storage", f"nas:{SECRET}@host/trials"],
        [f"--storage=postgresql://nas:x@{SECRET}@host/trials"],
        ["--", ADDRESS],
        [f"--sampler={ADDRESS}"],
    ],
)
def test_run_folder_never_holds_a_password(tmp_path, words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["nas", "search", "job.toml", *words])
    job = load(tmp_path, MINIMAL + f'[search]\nstorage = "{ADDRESS}?pwd={SECRET}"\n')
    folder = tmp_path / "run"
    with claim(folder, job, command_line()) as run:
        run.save()
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert {"job.toml", "run.json"} <= files.keys()
    assert not any(SECRET in content for content in files.values())
    assert "postgresql://nas@host/trials" in files["job.toml"]


def test_recorded_command_lacks_only_the_password(monkeypatch):
    words = ["table", "build", "--target", "ssh://pi?triple=aarch64&cpu=a72", "--space", "a@b"]
    monkeypatch.setattr("sys.argv", ["nas", *words])
    assert command_line() == " ".join(["nas", *words])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe" + MINIMAL.encode("utf-16-le"), "it is text in UTF-16, which Windows"),
        (b"a = " + b"1" * 2**20, "cannot be read: it has more than 1 MiB"),
        (b"\0" * 1000, "is not TOML"),
        (b"", "data is missing"),
    ],
)
def test_file_that_is_no_job_is_refused(tmp_path, content, words):
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    with pytest.raises(JobFileError, match=re.escape(words)):
        load_job(path)


def test_huge_file_folder_pipe_and_device_are_refused(tmp_path):
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 2**40)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in (*tmp_path.iterdir(), Path("/dev/zero")):
        with pytest.raises(JobFileError, match=rf"{path} cannot be read: it (has|is) "):
            load_job(job_path(str(path)))
    for name in ("a" * 5000, "a\0b", "nowhere/job.toml"):
        with pytest.raises(JobFileError, match=f"There is no job file .* in {Path.cwd()}"):
            job_path(name)


def test_several_spaces_have_anchors_unless_scores_are_not_corrected(tmp_path):
    one = load(tmp_path, MINIMAL)
    assert one.anchors == 0
    several = MINIMAL + '\n[[space]]\nname = "shufflenet_tiny"\n'
    assert load(tmp_path, several).anchors == 4
    assert load(tmp_path, several + "[search]\nanchors = 0\n").anchors == 0
    assert load(tmp_path, several + "[search]\nanchors = 9\n").anchors == 9
    assert load(tmp_path, several + "[search]\ncorrect_scores = false\n").anchors == 0


def test_paths_of_a_job_are_those_of_the_working_folder_or_else_of_its_own_folder(
    tmp_path, monkeypatch
):
    home, work, jobs = (tmp_path / name for name in ("home", "work", "jobs"))
    for folder in (home, work, jobs / "photos", jobs / "tables", work / "none"):
        folder.mkdir(parents=True)
    for file in (
        jobs / "mine.py",
        jobs / "w.pth",
        jobs / "pi.jsonl",
        home / "x",
        work / "pi.jsonl",
    ):
        file.touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    path = jobs / "job.toml"
    path.write_text(
        '[data]\nsource = "photos"\nunknown = "none"\n[device]\ntables = "tables"\n'
        '[[space]]\nname = "mine.py"\npretrained = "w.pth"\n[[space]]\nname = "mobilenet"\n'
        'pretrained = "~/x"\n[[search.device]]\ntable = "pi.jsonl"\n'
    )
    job = load_job(path)
    assert (job.data.source, job.data.unknown) == (str(jobs / "photos"), "none")
    assert job.device.tables == str(jobs / "tables")
    assert [space.name for space in job.space] == [str(jobs / "mine.py"), "mobilenet"]
    assert [space.pretrained.file for space in job.space] == [str(jobs / "w.pth"), "~/x"]
    assert job.search.device[0].table == "pi.jsonl"
    monkeypatch.chdir(jobs)
    assert load_job(Path("job.toml")).data.source == "photos"
    assert load_job(Path("job.toml")).device.tables == "tables"


def test_job_file_of_a_run_folder_is_that_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/job.toml").write_text(MINIMAL)
    assert run_folder_of(Path("run/job.toml")) is None
    with pytest.raises(JobFileError, match="run cannot be read: it is a folder"):
        load_job(job_path("run"))
    (tmp_path / "run/run.json").write_text("{}")
    assert run_folder_of(Path("run/job.toml")) == Path("run")
    assert job_path("run") == Path("run/job.toml")
    assert run_folder_of(Path("run/other.toml")) is None


def test_targets_of_equal_devices_become_one_target(tmp_path):
    device = '[device]\nruntime = "litert"\ntarget = ["ssh://pi1?python=py", "ssh://pi2{}"]\n'
    job = load(tmp_path, MINIMAL + device.format("?python=py"))
    assert job.device.target == "ssh://pi1 ssh://pi2?python=py"
    with pytest.raises(RequestError, match="settings of equal devices are the same"):
        load(tmp_path, MINIMAL + device.format(""))
