import tomllib

import pytest

from nas import resources
from nas.errors import JobFileError
from nas.job.settings import JobSettings, job_path, load_job, seconds_of

MINIMAL = """
[data]
source = "digits"

[[space]]
name = "mobilenet"
"""


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
