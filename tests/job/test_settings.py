import tomllib
import traceback

import pytest

from nas import resources
from nas.errors import JobFileError, RequestError
from nas.job.settings import JobSettings, job_path, load_job, seconds_of, with_search

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


def test_everything_but_the_data_and_the_spaces_has_a_default(tmp_path):
    job = load(tmp_path, MINIMAL)
    assert (job.name, job.seed, job.budget_s) == ("overnight", 0, 8 * 3600)
    assert job.device.tables == "latency_tables"
    assert [space.name for space in job.space] == ["mobilenet"]


@pytest.mark.parametrize(
    "path", sorted(resources.folder("jobs").glob("*.toml")), ids=lambda p: p.stem
)
def test_the_jobs_that_ship_are_valid(path):
    assert load_job(path).name == path.stem
    assert job_path(path.stem) == path


def test_the_resolved_file_reads_back_as_the_same_job(tmp_path):
    job = load(tmp_path, MINIMAL)
    assert JobSettings.model_validate(tomllib.loads(job.to_toml())) == job


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("8h", 28800), ("1h30m", 5400), ("1d", 86400)]
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "h", "8 hours", "-1h", "0s"])
def test_what_is_no_duration(tmp_path, text):
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
        (MINIMAL + '[device]\nruntime = "x"\n', ["line 8: device.runtime is 'x'", "'tvm'"]),
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
def test_a_mistake_names_the_key_the_line_and_what_is_allowed(tmp_path, text, words):
    with pytest.raises(JobFileError) as error:
        load(tmp_path, text)
    assert error.value.exit_status == 2
    for word in words:
        assert word in str(error.value)


def test_every_mistake_is_told_at_once(tmp_path):
    with pytest.raises(JobFileError) as error:
        load(tmp_path, "sede = 1\n" + MINIMAL + "[search]\ntrials = 0\n")
    assert "sede" in str(error.value)
    assert "trials" in str(error.value)


def test_a_missing_job_file_names_those_that_ship():
    with pytest.raises(JobFileError, match=r"no job file nowhere.toml\. .*quickstart"):
        job_path("nowhere.toml")


def test_a_search_can_be_told_everything(tmp_path):
    job = load(tmp_path, MINIMAL + SEARCH)
    given = tomllib.loads(SEARCH)["search"]
    assert job.search.model_dump(mode="json", exclude_none=True) == given
    assert JobSettings.model_validate(tomllib.loads(job.to_toml())) == job
    quiet = load(tmp_path, MINIMAL).search
    assert (quiet.sampler, quiet.workers, quiet.storage) == ("auto", 1, "journal")
    others = quiet.model_dump(exclude={"sampler", "workers", "storage"})
    assert all(value in (None, ()) for value in others.values())


def test_options_stand_above_the_job_file(tmp_path):
    job = load(tmp_path, MINIMAL + SEARCH)
    options = {"trials": 10, "sampler": "random", "storage": "journal", "max_latency_ms": 1.5}
    found = with_search(job, options)
    assert {name: getattr(found.search, name) for name in options} == options
    rest = set(type(job.search).model_fields) - options.keys()
    assert all(getattr(found.search, name) == getattr(job.search, name) for name in rest)
    assert with_search(job, {}) == job


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "--workers is 0: input should be greater than or equal to 1."),
        ({"trials": 0}, "--trials is 0: input should be greater"),
        ({"minutes": -1.0}, "--minutes is -1.0: input should be greater than 0."),
        ({"sampler": "tarot"}, "--sampler is 'tarot': input should be 'auto', 'guided'"),
        ({"max_latency_ms": 0.0}, "--max-latency-ms is 0.0: input should be greater than 0."),
        ({"storage": "trials.db"}, '--storage: allowed are "journal" and addresses such as'),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(tmp_path, options, words):
    with pytest.raises(RequestError) as error:
        with_search(load(tmp_path, MINIMAL), options)
    assert error.value.exit_status == 2
    assert str(error.value).startswith(words)


def test_a_password_stays_in_memory(tmp_path):
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
def test_an_address_that_is_none_is_refused_without_a_word_of_it(tmp_path, address):
    with pytest.raises(JobFileError, match="line 8: search.storage: ") as in_file:
        load(tmp_path, MINIMAL + f'[search]\nstorage = "{address}"\n')
    with pytest.raises(RequestError, match="--storage: ") as on_command_line:
        with_search(load(tmp_path, MINIMAL), {"storage": address})
    for raised in (in_file, on_command_line):
        shown = "".join(traceback.format_exception(raised.value, limit=0))
        assert "postgresql://USER@HOST" in shown
        assert SECRET not in shown


@pytest.mark.parametrize(
    "lines",
    [
        'trials = 0\nstorage = "ADDRESS"\n',
        'storag = "ADDRESS"\n',
        'storage = "ADDRESS"\nsampler = "tarot"\n',
        'storage = ["ADDRESS"]\n',
        'storage = "ADDRESS\n',
    ],
)
def test_a_mistake_beside_a_password_does_not_show_it(tmp_path, lines):
    address = f"postgresql://nas:{SECRET}@host/trials"
    with pytest.raises(JobFileError) as raised:
        load(tmp_path, MINIMAL + "[search]\n" + lines.replace("ADDRESS", address))
    assert SECRET not in "".join(traceback.format_exception(raised.value, limit=0))
