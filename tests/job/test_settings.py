"""The job file: what is read, refused and written."""

import errno
import os
import re
import tomllib
import traceback
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from nas import files
from nas.cli.options import Seed, command_line
from nas.errors import JobFileError, RequestError, RunFolderError
from nas.job.folder import claim, saved_settings
from nas.job.keys import KEYS, MAX_SEED
from nas.job.settings import (
    JobSettings,
    job_path,
    load_job,
    seconds_of,
    with_search,
)
from nas.job.settings_errors import MAX_PROBLEMS

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
workers = 4
storage = "postgresql://nas@host/trials"

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
    assert (job.name, job.seed, job.budget_s) == ("overnight", 0, 8 * 3600)
    assert job.device.tables == "latency_tables"
    assert [space.name for space in job.space] == ["mobilenet"]


@pytest.mark.parametrize(
    "path", sorted(files.packaged_folder("jobs").glob("*.toml")), ids=lambda p: p.stem
)
def test_packaged_jobs_are_valid(path):
    assert load_job(path).name == path.stem
    assert job_path(path.stem) == path


def test_written_job_file_reads_back_as_the_same_job(tmp_path):
    job = load(tmp_path, MINIMAL)
    assert JobSettings.model_validate(tomllib.loads(job.to_toml())) == job


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("8h", 28800), ("1h30m", 5400), ("1d", 86400)]
)
def test_seconds_of_reads_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "h", "8 hours", "-1h", "0s"])
def test_wrong_duration_is_refused(tmp_path, text):
    with pytest.raises(JobFileError, match="line 1: budget is"):
        load(tmp_path, f'budget = "{text}"\n' + MINIMAL)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sede = 1\n" + MINIMAL, ["line 1: sede is not a key", "Did you mean seed?", "budget"]),
        (MINIMAL + "[search]\ntrails = 3\n", ["line 8: search.trails", "Did you mean trials?"]),
        (MINIMAL + "colour = 3\n", ["line 7: space.colour is not a key", "Allowed here: name"]),
        (
            MINIMAL + "[search]\ntrials = 0\n",
            ["line 8: search.trials is 0", "greater than or equal"],
        ),
        (MINIMAL + '[search]\ntrials = "9"\n', ["line 8: search.trials is '9'", "valid integer"]),
        (MINIMAL + "[device]\nruntime = 3\n", ["line 8: device.runtime is 3", "valid string"]),
        (MINIMAL + "[device]\nbatch = 0\n", ["line 8: device.batch is 0", "or equal to 1"]),
        ("[data]\n[[space]]\nname = 'a'\n", ["data.source is missing", '"digits"']),
        ('[data]\nsource = "digits"\n', ["space is missing", "[[space]]"]),
        ('space = []\n[data]\nsource = "digits"\n', ["line 1: space", "at least 1 item"]),
        ("[data\n", ["is not TOML", "line 1"]),
        ("name = '../x'\n" + MINIMAL, ["line 1: name"]),
        (MINIMAL + "[search]\nworkers = 0\n", ["line 8: search.workers is 0", "or equal to 1"]),
        (MINIMAL + "[search]\nminutes = 0\n", ["line 8: search.minutes is 0", "greater than 0"]),
        (MINIMAL + "[search]\nstall = -1\n", ["line 8: search.stall is -1", "or equal to 1"]),
        (
            MINIMAL + '[search]\nsampler = "tarot"\n',
            ["line 8: search.sampler is 'tarot'", "'guided', 'tpe', 'nsga2'", "'random'"],
        ),
        (
            MINIMAL + '[search]\nalso_minimize = ["flops"]\n',
            ["line 8: search.also_minimize is 'flops'", "'macs', 'params' or 'peak_memory_bytes'"],
        ),
        (MINIMAL + "[search]\nmax_latency_ms = 0\n", ["line 8: search.max_latency_ms is 0"]),
        (MINIMAL + "[search]\nmax_macs = 1.5\n", ["line 8: search.max_macs is 1.5", "integer"]),
        (MINIMAL + "[search]\nmax_params = 0\n", ["line 8: search.max_params is 0"]),
        (MINIMAL + "[search]\nmax_peak_memory_bytes = -1\n", ["max_peak_memory_bytes is -1"]),
        (
            MINIMAL + "[[search.device]]\nmax_latency_ms = 1\n",
            ["search.device.table is missing: a latency table"],
        ),
        (
            MINIMAL + '[[search.device]]\ntable = "x.jsonl"\nmax_params = 1\n',
            [
                "line 9: search.device.max_params is not a key",
                "Allowed here: table, max_latency_ms",
            ],
        ),
        (
            MINIMAL + "".join(f'[[search.device]]\ntable = "{a}/x.jsonl"\n' for a in "ab"),
            ["line 9: search.device is", "two tables are called x"],
        ),
        (MINIMAL + '[search]\nstorage = "trials.db"\n', ["line 8: search.storage", '"journal"']),
    ],
)
def test_error_names_the_key_its_line_and_what_is_allowed(tmp_path, text, words):
    with pytest.raises(JobFileError) as error:
        load(tmp_path, text)
    assert error.value.exit_status == 2
    for word in words:
        assert word in str(error.value)


def test_error_lists_all_problems(tmp_path):
    with pytest.raises(JobFileError) as error:
        load(tmp_path, "sede = 1\n" + MINIMAL + "[search]\ntrials = 0\n")
    assert "sede" in str(error.value)
    assert "trials" in str(error.value)


def test_error_for_missing_job_file_names_the_packaged_jobs():
    with pytest.raises(JobFileError, match=r"no job file nowhere.toml\. .*quickstart"):
        job_path("nowhere.toml")


def test_all_search_keys_are_read_and_written(tmp_path):
    job = load(tmp_path, MINIMAL + SEARCH)
    given = tomllib.loads(SEARCH)["search"]
    assert job.search.model_dump(mode="json", exclude_none=True) == given
    assert JobSettings.model_validate(tomllib.loads(job.to_toml())) == job
    quiet = load(tmp_path, MINIMAL).search
    assert (quiet.sampler, quiet.workers, quiet.storage) == ("auto", 1, "journal")
    others = quiet.model_dump(exclude={"sampler", "workers", "storage"})
    assert all(value in (None, ()) for value in others.values())


def test_options_override_the_job_file(tmp_path):
    job = load(tmp_path, MINIMAL + SEARCH)
    options = {"trials": 10, "sampler": "random", "storage": "journal", "max_latency_ms": 1.5}
    changed = with_search(job, options)
    assert {name: getattr(changed.search, name) for name in options} == options
    rest = set(type(job.search).model_fields) - options.keys()
    assert all(getattr(changed.search, name) == getattr(job.search, name) for name in rest)
    assert with_search(job, {}) == job


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "--workers is 0: input should be greater than or equal to 1."),
        ({"trials": 0}, "--trials is 0: input should be greater"),
        ({"minutes": -1.0}, "--minutes is -1.0: input should be greater than 0."),
        ({"sampler": "tarot"}, "--sampler is 'tarot': input should be 'auto', 'guided'"),
        ({"max_latency_ms": 0.0}, "--max-latency-ms is 0.0: input should be greater than 0."),
        ({"minutes": float("nan")}, "--minutes is nan: input should be"),
        ({"minutes": float("inf")}, "--minutes is inf: input should be a finite number."),
        ({"max_latency_ms": float("inf")}, "--max-latency-ms is inf: input should be a finite"),
        ({"max_latency_ms": float("nan")}, "--max-latency-ms is nan: input should be"),
        ({"trials": 10**30}, "--trials is 1000000000000000000000000000000: input should be less"),
        ({"storage": "trials.db"}, '--storage: allowed are "journal" and addresses such as'),
    ],
)
def test_error_names_the_wrong_option_and_what_is_allowed(tmp_path, options, words):
    with pytest.raises(RequestError) as error:
        with_search(load(tmp_path, MINIMAL), options)
    assert error.value.exit_status == 2
    assert str(error.value).startswith(words)


def test_password_is_not_written(tmp_path):
    address = f"postgresql://nas:{SECRET}@host/trials?sslpassword={SECRET}"
    job = load(tmp_path, MINIMAL + f'[search]\nstorage = "{address}"\n')
    assert job.search.storage == address
    bare = "postgresql://nas@host/trials"
    assert tomllib.loads(job.to_toml())["search"]["storage"] == bare
    assert job.model_dump(mode="json")["search"]["storage"] == bare
    assert job.model_dump()["search"]["storage"] == bare


@pytest.mark.parametrize(
    "address",
    [
        f"nas:{SECRET}@host/trials",
        f"postgresql:nas:{SECRET}@host/trials",
        f"postgresql://nas:x@{SECRET}@host/trials",
        f"postgresql://host:{SECRET}/trials",
        f"://nas:{SECRET}@host",
    ],
)
def test_wrong_address_is_refused_without_showing_it(tmp_path, address):
    with pytest.raises(JobFileError, match="line 8: search.storage: ") as in_file:
        load(tmp_path, MINIMAL + f'[search]\nstorage = "{address}"\n')
    with pytest.raises(RequestError, match="--storage: ") as on_command_line:
        with_search(load(tmp_path, MINIMAL), {"storage": address})
    for raised in (in_file, on_command_line):
        shown = "".join(traceback.format_exception(raised.value, limit=0))
        assert "postgresql://USER@HOST" in shown
        assert SECRET not in shown


ADDRESS = f"postgresql://nas:{SECRET}@host/trials"


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL + f'[search]\ntrials = 0\nstorage = "{ADDRESS}"\n',
        MINIMAL + f'[search]\nstorag = "{ADDRESS}"\n',
        MINIMAL + f'[search]\nstorage = "{ADDRESS}"\nsampler = "tarot"\n',
        MINIMAL + f'[search]\nstorage = ["{ADDRESS}"]\n',
        MINIMAL + f'[search]\nstorage = "{ADDRESS}\n',
        MINIMAL + f"[search]\nstorage = {ADDRESS}\n",
        MINIMAL + f'[search]\nstorage = "{ADDRESS}"\nstorage = "{ADDRESS}"\n',
        MINIMAL + f'[search]\nstorage = {{"{ADDRESS}" = 1, "{ADDRESS}" = 2}}\n',
        MINIMAL + f'[search]\n"{ADDRESS}" = 1\n',
        MINIMAL + f'[search."{ADDRESS}"]\n[search."{ADDRESS}"]\n',
        MINIMAL + f'[search]\ntrials = "{ADDRESS}"\n',
        MINIMAL + f'[search]\ndevice = "{ADDRESS}"\n',
        MINIMAL + f'[search]\ntrials = "nas:{SECRET}@host/trials"\n',
        MINIMAL + f'[search]\ntrials = "postgresql://host:{SECRET}/trials"\n',
        MINIMAL + f'[search]\ntrials = "postgresql://host/trials?passwd={SECRET}"\n',
        MINIMAL + f'[[search]]\nstorage = "{ADDRESS}"\n',
        MINIMAL + f'[[search.device]]\ntable = "{ADDRESS}"\n' * 2,
        MINIMAL + f'[[search.device]]\ntable = "x@{SECRET}.jsonl"\n' * 2,
        MINIMAL + f'[search]\ndevice = ["{ADDRESS}"]\n',
        f'search = "{ADDRESS}"\n' + MINIMAL,
        f'search = {{storage = "{ADDRESS}", trials = 0}}\n' + MINIMAL,
        f'storage = "{ADDRESS}"\n' + MINIMAL,
        f'name = "{ADDRESS}"\n' + MINIMAL,
        f'budget = "{ADDRESS}"\n' + MINIMAL,
        f'seed = "{ADDRESS}"\n' + MINIMAL,
        f'data = "{ADDRESS}"\nspace = "{ADDRESS}"\n',
        f'data = ["{ADDRESS}"]\nspace = ["{ADDRESS}"]\n',
    ],
)
def test_error_never_shows_a_password(tmp_path, text):
    with pytest.raises(JobFileError) as raised:
        load(tmp_path, text)
    error = raised.value
    shown = "".join(traceback.format_exception(error)) + repr(error.__cause__)
    assert SECRET not in shown.replace(Path(__file__).read_text(), "")
    assert len(str(error)) < 1500


def test_error_for_missing_job_does_not_show_an_address():
    with pytest.raises(JobFileError) as raised:
        job_path(ADDRESS)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--storage", ADDRESS],
        [f"--storage={ADDRESS}"],
        ["--storage", f"{ADDRESS}?passwd={SECRET}"],
        [f"--storage=postgresql://h/t?sslmode=require&token={SECRET}"],
        ["--storage", f"nas:{SECRET}@host/trials"],
        ["--storage", f"{SECRET}@host"],
        [f"--storage=postgresql://nas:x@{SECRET}@host/trials"],
        ["--storage", ADDRESS, "--storage", ADDRESS],
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
    words = ["table", "build", "--target", "rpc://pi:9090?triple=aarch64&cpu=a72", "--space", "a@b"]
    monkeypatch.setattr("sys.argv", ["nas", *words])
    assert command_line() == " ".join(["nas", *words])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("[training]\nlearning_rate = inf\n", "learning_rate is inf: input should be a finite"),
        ("[training]\nweight_decay = nan\n", "weight_decay is nan: input should be a finite"),
        ("[search]\nminutes = inf\n", "minutes is inf: input should be a finite"),
        ("[search]\nmax_latency_ms = inf\n", "max_latency_ms is inf: input should be a finite"),
        ("[data]\nvalidation_fraction = nan\n", "validation_fraction is nan"),
        ("[search]\nminutes = 1e9\n", "minutes is 1000000000.0: input should be less than"),
        ("[search]\ntrials = 1" + "0" * 30 + "\n", "trials is 1000"),
        ("[search]\nmax_macs = 0x" + "F" * 5000 + "\n", "max_macs is a int of very many digits"),
        ("[search]\nmax_latency_ms = 0x" + "F" * 5000 + "\n", "max_latency_ms is a int of"),
        ("[search]\nworkers = 1_000_000_000_000\n", "workers is 1000000000000: input should be"),
        ("[finish]\nmeasure = 1_000_000_000_000\n", "measure is 1000000000000: input should be"),
        ("[training]\nepochs = 1_000_000_000_000\n", "epochs is 1000000000000: input should be"),
        ("[device]\nthreads = 1_000_000_000_000\n", "threads is 1000000000000: input should be"),
        ("[data]\nimage_size = 1_000_000_000_000\n", "image_size is 1000000000000: input"),
        ("[device]\ntables = ''\n", "tables is '': write 1 to 4096 printable characters"),
        ('[device]\ntables = "a\\u0000b"\n', "tables is 'a\\x00b': write 1 to 4096"),
        (f'[device]\ntables = "{"a" * 5000}"\n', "tables is 'aaaa"),
        (f'[search]\nsampler = "{"a" * 5000}"\n', "sampler is 'aaaa"),
        ("[search]\nstorage = 5\n", "search.storage: input should be a valid string"),
        ("[search]\ndevice = 5\n", "search.device is 5: write [[search.device]] once for each"),
        ("[[search]]\n", "search is a list: write one table, [search]"),
        (f"[{'a' * 5000}]\n", "is not a key"),
        ('["\\u001b]0;title\\u0007"]\n', "\\x1b]0;title\\x07 is not a key"),
    ],
)
def test_error_for_value_beyond_its_bounds_is_short(tmp_path, lines, words):
    text = MINIMAL.replace("[data]\n", "") if lines.startswith("[data]") else MINIMAL
    if lines.startswith("[data]"):
        text = text.replace('source = "digits"\n', "")
        lines += 'source = "digits"\n'
    with pytest.raises(JobFileError) as raised:
        load(tmp_path, text + lines)
    assert words in str(raised.value)
    assert len(str(raised.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"seed = {2**32}", "seed is 4294967296: input should be less than or equal to 4294967295"),
        (f"seed = {10**28}", "line 1: seed is 10000"),
        ("seed = " + "9" * 5000, "is not TOML: Exceeds the limit"),
        ('budget = "inf h"', "budget is 'inf h': write a duration"),
        ('budget = "99999999999999999999h"', "at most 366 days"),
        (f'budget = "{"1" * 200_000}"', "write a duration"),
        (f'name = "{"a" * 65}"', "use 1 to 64 of the characters"),
        ('name = "a\\n"', "use 1 to 64 of the characters"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "{b = " * 5000, "nested too deeply"),
        (".".join(["a"] * 10_000) + " = 1", "nested too deeply"),
        (".".join(["a"] * 2000) + " = 1", "a is not a key"),
        ("search.storage." + ".".join(["a"] * 2000) + " = 1", "search.storage: input should be"),
        ("a = '\0'", "is not TOML: Found invalid character '\\x00'"),
    ],
)
def test_extreme_toml_is_refused(tmp_path, line, words):
    with pytest.raises(JobFileError) as raised:
        load(tmp_path, f"{line}\n{MINIMAL}")
    assert words in str(raised.value)
    assert len(str(raised.value)) < 500 + len(str(tmp_path))


def test_largest_seed_is_accepted_by_numpy_and_the_command_line(tmp_path):
    job = load(tmp_path, f"seed = {MAX_SEED}\n{MINIMAL}")
    np.random.RandomState(job.seed)
    with pytest.raises(ValueError, match="Seed must be between"):
        np.random.RandomState(MAX_SEED + 1)
    (option,) = Seed.__metadata__
    assert option.max == MAX_SEED


def test_error_lists_the_first_of_many_problems(tmp_path):
    unknown = "".join(f"unknown{number} = 1\n" for number in range(20_000))
    with pytest.raises(JobFileError) as raised:
        load(tmp_path, unknown + MINIMAL)
    lines = str(raised.value).splitlines()
    assert len(lines) == MAX_PROBLEMS + 1
    assert "line 1: unknown0 is not a key" in lines[0]
    assert lines[-1] == f"There are {20_000 - MAX_PROBLEMS} more problems."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe" + MINIMAL.encode("utf-16-le"), "is not UTF-8 (at byte 0)"),
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
        with pytest.raises(JobFileError, match="There is no job file"):
            job_path(name)


def test_unreadable_job_file_is_refused(tmp_path, monkeypatch):
    def denied(*arguments, **settings):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = tmp_path / "job.toml"
    path.write_text(MINIMAL)
    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(JobFileError, match=r"job.toml cannot be read: Permission denied\."):
        load_job(path)


def test_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "job.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_job(path) == load(tmp_path, MINIMAL)


@pytest.mark.parametrize(
    "content", [b"", b"[data", b"\xff", b"a = " + b"[" * 10_000, b"seed = -1\n" + MINIMAL.encode()]
)
def test_run_with_damaged_job_file_is_refused(tmp_path, content):
    (tmp_path / "job.toml").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"holds a damaged job file\. .*job.toml") as raised:
        saved_settings(tmp_path)
    assert raised.value.remedy
    assert (tmp_path / "job.toml").read_bytes() == content


def test_saved_settings_is_none_for_other_folders(tmp_path):
    (tmp_path / "job.toml").mkdir()
    for folder in (tmp_path, tmp_path / "nowhere", Path("a" * 5000), Path("a\0b")):
        assert saved_settings(folder) is None


def test_every_key_of_a_job_file_has_a_description():
    def paths(model, prefix=""):
        for name, field in model.model_fields.items():
            tables = (field.annotation, *get_args(field.annotation))
            table = next((t for t in tables if hasattr(t, "model_fields")), None)
            if table is None:
                described = [field, *(m for t in tables for m in getattr(t, "__metadata__", ()))]
                yield (
                    prefix + name,
                    next(each.description for each in described if each.description),
                )
            else:
                yield from paths(table, f"{prefix}{name}.")

    described = dict(paths(JobSettings))
    assert described == {path: key.meaning for path, key in KEYS.items()}
