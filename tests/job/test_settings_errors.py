"""Messages about wrong job files and options."""

import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from nas.errors import JobFileError, RequestError
from nas.job.settings import (
    job_path,
    with_options,
)
from nas.job.settings_errors import option_error
from nas.run.settings import DataSettings
from tests.job.test_settings import ADDRESS, MINIMAL, SECRET, load


def text_of(lines: str) -> str:
    """Return a small job with further lines: at the top, or tables behind its own."""
    if lines.startswith("[data]\n"):
        return f"""{lines}source = "digits"\n[[space]]\nname = "mobilenet"\n"""
    return MINIMAL + lines if lines.startswith("[") else lines + MINIMAL


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("sede = 1\n", ["sede is not a key", "Did you mean seed?", "budget"]),
        (f"seed = {2**32}\n", ["seed is 4294967296: input should be less than or equal to 4294"]),
        ("name = '../x'\n", ["name is '../x'"]),
        ('name = "a\\n"\n', ["use 1 to 64 of the characters"]),
        *((f'budget = "{text}"\n', [f"budget is '{text}': write a duration"])
          for text in ("", "8", "8 hours", "-1h")),
        ('budget = "0s"\n', ["budget is '0s': a budget must be longer than 0 seconds"]),
        (f'budget = "{"9" * 20}h"\n', ["at most 366 days"]),
        *((f"[data]\nimage_size = {size}\n", ["data.image_size is ", 'write "auto" or a num'])
          for size in ("513", '"large"', "true")),
        ("[data]\nvalidation_fraction = nan\n", ["validation_fraction is nan"]),
        ('[data]\nbackground = "whyte"\n', ["background is 'whyte': expected a colour, such as"]),
        ("[device]\nruntime = 3\n", ["device.runtime is 3", "valid string"]),
        ("[device]\nbatch = 0\n", ["device.batch is 0", "or equal to 1"]),
        ("[device]\ntables = ''\n", ["tables is '': write 1 to 4096 printable characters"]),
        ('[device]\ntables = "a\\u0000b"\n', ["tables is 'a\\x00b': write 1 to 4096"]),
        ("[training]\nflip = 1\nshift = -2\n",
         ["training.flip is 1", "true or false", "training.shift is -2", "from 0 to 512"]),
        ("[training]\nlearning_rate = inf\n", ["learning_rate is inf: input should be a finite"]),
        ("[training]\nepochs = 2\nminutes = 1.0\n",
         ["training.minutes is 1.0: training.epochs is set, too; set one of the two"]),
        ("[[space]]\nname = 'a'\ncolour = 3\n",
         ["space.colour is not a key", "Allowed here: name"]),
        *((f"[[space]]\nname = 'a'\nresolutions = {shares}\n", ["space.resolutions is "])
          for shares in ("[]", "[0.5]", "[0.0, 1.0]", "0.5")),
        ("[[space]]\nname = 'a'\npretrained = 3\n",
         ["space.pretrained is 3: write the path of a file, or"]),
        ("[[space]]\nname = 'a'\n[space.pretrained]\nlicense = 'MIT'\n",
         ["space.pretrained.file is missing: path of a file with the weights of a published"]),
        ("[[space]]\nname = 'a'\npretrained = {file = 'a', licens = 'MIT', data = 'a\tb'}\n",
         ["space.pretrained.licens is not a key", "Did you mean license?", "printable"]),
        ("[[space]]\nname = 'a'\npretrained = {file = 'a', conventions = 'keras'}\n",
         ["space.pretrained.conventions is 'keras'", "'torchvision_v3' or 'tensorflow'"]),
        *((f"[[space]]\nname = 'a'\nwithin = '{network}'\n",
           [f"space.within is '{network}': write the folder of a run and the ID"])
          for network in ("results/a", ":k3f2", "results/a:")),
        ("[[space]]\nname = 'a'\npretrained = 'w.pth'\nwithin = 'results/a:k3f2'\n",
         ["space.within is 'results/a:k3f2': space.pretrained is set, too; set one of the two"]),
        ("[[space]]\nname = 'a'\nconventions = 'torch'\n", ["space.conventions is not a key"]),
        ("[search]\ntrails = 3\n", ["search.trails", "Did you mean trials?"]),
        ("[search]\ntrials = 0\n", ["search.trials is 0", "greater than or equal"]),
        ('[search]\ntrials = "9"\n', ["search.trials is '9'", "valid integer"]),
        (f"[search]\ntrials = 1{'0' * 30}\n", ["trials is 1000"]),
        ("[search]\nminutes = 1e9\n", ["minutes is 1000000000.0: input should be less than"]),
        ("[search]\nstall = -1\n", ["search.stall is -1", 'write "auto" or']),
        ("[search]\nanchors = 3\n", ["search.anchors is 3: allowed are 0 and 4 or more"]),
        ("[search]\nanchors = 4\ncorrect_scores = false\n", ["only a correction needs anchors"]),
        ('[search]\nsampler = "tarot"\n',
         ["search.sampler is 'tarot'", "'guided', 'tpe', 'nsga2'", "'random'"]),
        ('[search]\nalso_minimize = ["SRAM KiB"]\n',
         ["search.also_minimize is 'SRAM KiB'", "the name of a figure in small letters"]),
        ('[search]\nalso_maximize = ["params"]\n',
         ["less params is better; put it into search.also_minimize"]),
        ('[search]\nalso_minimize = ["a"]\nalso_maximize = ["a"]\n',
         ["search.also_minimize has a, too; put it into one of them"]),
        ("[search.limits]\nmacs = 5\n", ["search.limits", "the limit of macs is search.max_macs"]),
        ("[search.limits]\nsram_kib = -5\n",
         ["search.limits", "the limit of sram_kib is negative"]),
        ('[search.limits]\nsram_kib = "256"\n', ["search.limits"]),
        ("[search]\nmax_latency_ms = 0\n", ["search.max_latency_ms is 0"]),
        ("[search]\nmax_macs = 1.5\n", ["search.max_macs is 1.5", "integer"]),
        ("[[search.device]]\nmax_latency_ms = 1\n",
         ["search.device.table is missing: latency table of another"]),
        ('[[search.device]]\ntable = "x.jsonl"\nmax_params = 1\n',
         ["search.device.max_params is not a key", "Allowed here: table, max_latency_ms"]),
        ("".join(f'[[search.device]]\ntable = "{each}/x.jsonl"\n' for each in "ab"),
         ["search.device is", "two tables are called x"]),
        ("[search]\ndevice = 5\n", ["search.device is 5: write [[search.device]] once for each"]),
        ("[[search]]\n", ["search is a list: write one table, [search]"]),
        ('[search]\nstorage = "trials.db"\n', ["search.storage", '"journal"']),
        ("[search]\nstorage = 5\n", ["search.storage: input should be a valid string"]),
        ('[finish]\nexport = ["onnx", "onx"]\n',
         ["finish.export has 'onx': the formats are c, coreml, ex"]),
        ("[finish]\nmin_confidence = 0.9\nmin_accuracy = 0.98\n",
         ["finish.min_accuracy is 0.98: finish.min_confidence is set, too; set one of the two"]),
        (f"[{'a' * 5000}]\n", ["is not a key"]),
        ('["\\u001b]0;title\\u0007"]\n', ["\\x1b]0;title\\x07 is not a key"]),
        ("[search\n", ["is not TOML", "line 7"]),
        (f"seed = {'9' * 5000}\n", ["is not TOML: Exceeds the limit"]),
        (f"a = {'[' * 100_000}\n", ["is not TOML: maximum recursion depth"]),
        ("a = '\0'\n", ["is not TOML: Found invalid character '\\x00'"]),
    ],
)  # fmt: skip
def test_error_names_the_key_its_value_and_what_is_allowed(tmp_path, lines, words):
    with pytest.raises(JobFileError) as error:
        load(tmp_path, text_of(lines))
    message = str(error.value)
    assert error.value.exit_status == 2
    assert all(word in message for word in words), message
    assert len(message) < 700 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[data]\n[[space]]\nname = 'a'\n", ["data.source is missing", '"digits"']),
        ('[data]\nsource = "digits"\n', ["space is missing", "[[space]]"]),
        ('space = []\n[data]\nsource = "digits"\n', ["space", "at least 1 item"]),
    ],
)
def test_what_a_job_must_have_is_named(tmp_path, text, words):
    with pytest.raises(JobFileError) as error:
        load(tmp_path, text)
    assert all(word in str(error.value) for word in words)


def test_error_for_missing_job_file_names_the_packaged_jobs():
    with pytest.raises(JobFileError, match=r"no job file nowhere.toml in /.*\. .*quickstart"):
        job_path("nowhere.toml")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "--workers is 0: input should be greater than or equal to 1."),
        ({"sampler": "tarot"}, "--sampler is 'tarot': input should be 'auto', 'guided'"),
        ({"max_latency_ms": 0.0}, "--max-latency-ms is 0.0: input should be greater than 0."),
        ({"minutes": float("inf")}, "--minutes is inf: input should be a finite number."),
        ({"storage": "trials.db"}, '--storage: allowed are "journal" and addresses such as'),
    ],
)
def test_error_names_the_wrong_option_and_what_is_allowed(tmp_path, options, words):
    with pytest.raises(RequestError) as error:
        with_options(load(tmp_path, MINIMAL), search=options)
    assert error.value.exit_status == 2
    assert str(error.value).startswith(words)


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
    with pytest.raises(JobFileError, match="search.storage: ") as in_file:
        load(tmp_path, MINIMAL + f'[search]\nstorage = "{address}"\n')
    with pytest.raises(RequestError, match="--storage: ") as on_command_line:
        with_options(load(tmp_path, MINIMAL), search={"storage": address})
    for raised in (in_file, on_command_line):
        shown = "".join(traceback.format_exception(raised.value, limit=0))
        assert "postgresql://USER@HOST" in shown
        assert SECRET not in shown


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL + f'[search]\ntrials = 0\nstorage = "{ADDRESS}"\n',
        MINIMAL + f'[search]\nstorag = "{ADDRESS}"\n',
        MINIMAL + f'[search]\nstorage = ["{ADDRESS}"]\n',
        MINIMAL + f'[search]\nstorage = "{ADDRESS}\n',
        MINIMAL + f'[search]\nstorage = "{ADDRESS}"\nstorage = "{ADDRESS}"\n',
        MINIMAL + f'[search]\ntrials = "nas:{SECRET}@host/trials"\n',
        MINIMAL + f'[[search]]\nstorage = "{ADDRESS}"\n',
        f'storage = "{ADDRESS}"\n' + MINIMAL,
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


def test_name_that_python_does_not_decode_is_refused_with_the_reason():
    for settings in ({"source": "phot\udcffos"}, {"source": "digits", "unknown": "\udcc3\udca9"}):
        with pytest.raises(ValidationError) as error:
            DataSettings.model_validate(settings)
        message = str(option_error(error.value))
        assert "is not valid UTF-8, which job files and records are written in; rename" in message
