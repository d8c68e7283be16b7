"""Every command and snippet in the documentation works.

Commands run in a prepared folder: a finished run of three tiny spaces, its latency table, a few
images. A tiny space stands in for each of `mobilenet`, `shufflenet` and `squeezenet`, and numbers
of networks, trials and minutes are replaced by small ones. Blocks that are marked
`<!-- not run: reason -->` are parsed by the command line, but not run.
"""

import importlib
import itertools
import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import typer.main
from PIL import Image

import nas.files
from nas.cli import app
from nas.deploy.reference import FieldReference
from nas.job import JobSettings, load_job
from nas.latency import LatencyTable, build_table, open_runtime, space_kernels
from nas.latency.correction import FITTED_NETWORKS
from nas.latency.worker_process import timers_for
from nas.lifecycle.drift import Drift
from nas.lifecycle.version import ModelVersion
from nas.run.answers import Answers
from nas.run.model_card import ModelCard
from nas.run.record import RunRecord
from nas.run.settings import KEYS
from nas.space import SearchSpace, load_definition, load_space
from tests import markdown
from tests.commands import document
from tests.made_once import made_once
from tests.markdown import ROOT, Block

PAGES = markdown.pages()
BLOCKS = [block for page in PAGES for block in markdown.blocks(page)]

REAL_SPACES = ("spaces", "predict")
"""Commands that run with the spaces that ship: they time few kernels or none."""

LONG_PAGES = ("docs/devices-and-tables.md",)
"""Pages whose commands take more than half a minute."""

SMALL_VALUES = {
    "--budget": "1s",
    "--max-latency-ms": "1000",
    "--minutes": "0.01",
    "--trials": "31",
}
"""Values of options that take the place of those in the documentation."""

SMALL_ARGUMENTS = (r"\btrials=\d+|\bn_trials=\d+", lambda match: match[0].split("=")[0] + "=12")
"""The same for arguments in Python, as a pattern and its replacement."""

FEWEST_NETS = {"check": "8", "rank": "3"}
"""The smallest value of `--nets` that each command accepts, with all of its options."""

FURTHER_OPTIONS = {("spaces",): ["--no-estimate"]}
"""Options that are added to commands, so that they time fewer kernels."""

TINY_SPACE = """
from nas.space import SearchSpace, Stage

SPACE = SearchSpace(
    {name!r},
    (
        Stage("stem", "conv", 4, stride=2, per_stage={{"kernel": 3}}),
        Stage("body", "inverted_residual", 8, (1, 2, 3), 2, entry="linear_bottleneck",
              per_block={{"kernel": 3, "expand": (1, 3)}}),
        Stage("head", "linear_classifier"),
    ),
    image_size=32,
    classes=2,
)
"""


def name_of(block: Block) -> str:
    return f"{block.page}:{block.line}"


def of_language(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


# Pages


def test_networks_of_a_build_are_as_many_as_the_documentation_says():
    numbers = {"eight": 8, "ten": 10, "twelve": 12, "sixteen": 16, "twenty": 20}
    text = " ".join(map(markdown.read, PAGES))
    said = re.findall(r"(?:ends with|fit on|a table by) (\w+)\s+whole\s+networks", text)
    assert len(said) >= 4
    assert {numbers[word] for word in said} == {FITTED_NETWORKS}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in markdown.links(page):
        if not link.startswith("https://"):
            target = (ROOT / page).parent / link.partition("#")[0]
            assert target.exists(), f"{page} links to {link}"


@pytest.mark.parametrize("block", BLOCKS, ids=name_of)
def test_blocks_are_in_a_language_that_is_tested(block):
    assert block.language in markdown.LANGUAGES


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_names_of_the_package_exist(page):
    for code in markdown.inline_code(page):
        if re.fullmatch(r"nas(\.\w+)+", code):
            assert resolves(code), f"{page} names {code}"


def resolves(dotted: str) -> bool:
    """Return whether a dotted name is a module, or an attribute of one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


# Commands, parsed


def nas_arguments(words: list[str]) -> list[str] | None:
    """Return the arguments of a `nas` command; None for other programs."""
    if words[0] == "nas":
        return words[1:]
    if words[0] == "torchrun":
        return words[words.index("nas") + 1 :]
    return None


def command_of(arguments: list[str]):
    """Return the command that arguments name, its path, and the arguments behind its name."""
    command, path = typer.main.get_command(app), []
    while hasattr(command, "commands") and arguments[:1]:
        if arguments[0] not in command.commands:
            break
        path.append(arguments[0])
        command, arguments = command.commands[arguments[0]], arguments[1:]
    return command, path, arguments


@pytest.mark.parametrize("block", of_language("bash"), ids=name_of)
def test_commands_parse(block):
    for words in block.commands:
        arguments = nas_arguments(words)
        if arguments is not None:
            command, path, rest = command_of(arguments)
            assert not hasattr(command, "commands"), f"there is no command nas {' '.join(path)}"
            command.make_context(" ".join(path), list(rest))
        elif words[:2] == ["python", "-m"] and words[2].startswith("tests."):
            source = (ROOT / words[2].replace(".", "/")).with_suffix(".py").read_text()
            for option in (word for word in words if word.startswith("--")):
                assert f'"{option}"' in source, f"{words[2]} has no option {option}"
        elif words[0] == "make":
            makefile = (ROOT / "Makefile").read_text()
            for target in words[1:]:
                assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        elif words[1:2] == ["install"]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
                assert extra in extras["optional-dependencies"]
        elif words[1:3] == ["-m", "pytest"]:
            for word in words[3:]:
                assert not word.startswith("tests/") or (ROOT / word).exists()


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_prose_have_their_options(page):
    for code in markdown.inline_code(page):
        if code.startswith("nas "):
            command, _, rest = command_of(code.split()[1:])
            is_command = not hasattr(command, "commands") or not rest or rest[0].startswith("--")
            assert is_command, f"{page}: there is no command {code}"
            options = {"--help", *(name for each in command.params for name in each.opts)}
            for word in rest:
                assert not word.startswith("--") or word in options, f"{page}: {code}"


def test_every_command_is_documented():
    described = " ".join(text for page in PAGES for text in [markdown.read(page)])

    def names(command, path):
        if hasattr(command, "commands"):
            return [
                n for name, each in command.commands.items() for n in names(each, [*path, name])
            ]
        return [" ".join(path)]

    for name in names(typer.main.get_command(app), ["nas"]):
        assert name in described, f"{name} is on no page"


@pytest.mark.parametrize(
    ("file", "record"),
    [
        ("card.json", ModelCard),
        ("answers.json", Answers),
        ("reference.json", FieldReference),
        ("run.json", RunRecord),
        ("nas drift --json", Drift),
        ("version.json", ModelVersion),
    ],
)
def test_governance_names_each_field_of_a_file(file, record):
    rows = [row.strip("|").split("|") for row in markdown.read("docs/governance.md").splitlines()]
    table = [row for row in rows if len(row) == 5]
    files = itertools.accumulate((row[0].strip() for row in table), lambda a, b: b or a)
    own = [row[1] for name, row in zip(files, table, strict=True) if name == f"`{file}`"]
    fields = re.findall(r"`(\w+)`", " ".join(own))
    assert sorted(fields) == sorted({*record.model_fields} - {"schema_version"})


# Job files


@pytest.mark.parametrize("block", of_language("toml"), ids=name_of)
def test_job_files_are_accepted(block, tmp_path):
    if "[project" in block.text:
        pytest.skip("this is a part of a pyproject.toml")
    job = {"space": [{"name": "mobilenet"}], **tomllib.loads(block.text)}
    job["data"] = {"source": "digits", **job.get("data", {})}
    path = tmp_path / "job.toml"
    path.write_text(tomli_w.dumps(job))
    assert load_job(path)


def test_every_key_of_a_job_is_documented_and_in_the_complete_job():
    complete = (ROOT / "jobs" / "overnight.toml").read_text()
    documented = "\n".join(markdown.read(page) for page in PAGES)

    for key in {part for path in KEYS for part in path.split(".")}:
        assert re.search(rf"\b{key}\b *(=|\])", complete), f"jobs/overnight.toml lacks {key}"
        assert re.search(rf"\b{key}\b", documented), f"{key} is on no page"


def test_complete_job_holds_defaults_where_it_says_so(tmp_path):
    text = (ROOT / "jobs" / "overnight.toml").read_text()
    examples = re.sub(r"^# (?=[a-z_]+ = |\[\[?s(earch|pace))", "", text, flags=re.MULTILINE)
    (minutes,) = [line for line in examples.splitlines() if "instead of epochs" in line]
    path = tmp_path / "job.toml"
    path.write_text(re.sub(r"^epochs = .*$", "", examples, flags=re.MULTILINE))
    assert load_job(path).training.minutes == 60
    path.write_text(examples.replace(minutes, ""))
    everything = load_job(path)
    assert everything.search.device[0].table == "phone.jsonl"
    assert everything.space[0].pretrained.file == "weights.pth"
    spaces = [{"name": each.name} for each in everything.space]
    defaults = JobSettings.model_validate({"data": {"source": "path/to/images"}, "space": spaces})
    given = load_job(ROOT / "jobs" / "overnight.toml").model_dump()
    assert given == {**defaults.model_dump(), "name": "overnight", "data": given["data"]}
    from nas.supernet.recipe import Recipe

    shown = everything.training.model_dump()
    for key, value in Recipe().__dict__.items():
        if key not in shown:
            continue
        if value is None and shown[key] != "auto":  # The default follows from the data.
            assert re.search(rf"^# {key} = \S+ +# example", text, re.MULTILINE), key
        elif value is not None:
            assert shown[key] == value, f"the default of {key} is {value}"


# Commands and snippets, run


@pytest.fixture(scope="session")
def tiny_library(tmp_path_factory) -> Path:
    """The folder of spaces that ship, with tiny ones in the place of three of them."""
    folder = tmp_path_factory.mktemp("library") / "search_spaces"
    shutil.copytree(ROOT / "search_spaces", folder)
    for name in ("mobilenet", "shufflenet", "squeezenet"):
        (folder / f"{name}.py").write_text(TINY_SPACE.format(name=name))
    return folder


@pytest.fixture(scope="session")
def prepared(finished_job, tiny_library, tmp_path_factory) -> Path:
    """The folder in which every page begins.

    It has a finished run as `results/quickstart` and `results/overnight`, the job file of the
    latter, images of two classes in `photos`, and a latency table of the run and the tiny spaces.
    """

    def prepare(folder: Path) -> None:
        shutil.copytree(finished_job, folder, dirs_exist_ok=True)
        for name in ("quickstart", "overnight"):
            shutil.copytree(folder / "results/mini", folder / "results" / name)
            for file in ("job.toml", "run.json"):
                path = folder / "results" / name / file
                path.write_text(re.sub(r'("?name"?\W+)"mini"', rf'\1"{name}"', path.read_text()))
        job = (folder / "job.toml").read_text().replace('"mini"', '"overnight"')
        (folder / "overnight.toml").write_text(job)
        rng = np.random.default_rng(0)
        for label in ("cat", "dog"):
            (folder / "photos" / label).mkdir(parents=True)
            for number in range(16):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / label / f"{number}.png")
        space = load_definition(tiny_library / "mobilenet.py")
        (folder / "arch.json").write_text(json.dumps(space.largest.to_json()))
        runtime = open_runtime("tvm")
        (path,) = (folder / "latency_tables").glob("*.jsonl")
        table = LatencyTable.open(path, runtime=runtime)
        with timers_for(runtime) as timers:
            build_table(table, space_kernels(space, "tvm"), timers)

    return made_once(tmp_path_factory, "docs", prepare)


@pytest.fixture
def use_library(tiny_library, monkeypatch):
    """Lets names mean the tiny spaces, or the real ones."""
    packaged_folder = nas.files.packaged_folder

    def use(tiny: bool) -> None:
        monkeypatch.setattr(
            "nas.files.packaged_folder",
            lambda name: (
                tiny_library if tiny and name == "search_spaces" else packaged_folder(name)
            ),
        )

    return use


def small(arguments: list[str], folder: Path) -> list[str]:
    """Return a command's arguments with files for patterns, and small numbers."""
    front = json.loads((folder / "results/quickstart/front.json").read_text())["front"]
    _, path, _ = command_of(arguments)
    result: list[str] = []
    for word in arguments:
        option = result[-1] if result else ""
        if option == "--nets":
            result.append(FEWEST_NETS[path[-1]])
        elif option in SMALL_VALUES:
            result.append(SMALL_VALUES[option])
        elif "*" in word:
            result += sorted(str(file) for file in Path().glob(word))
        else:
            result.append(re.sub(r"\bjf2a\b", front[0]["id"], word))
    return result + FURTHER_OPTIONS.get(tuple(path), [])


def save_space(text: str) -> None:
    """Write a snippet that defines a space to `NAME.py`, after the space or the first comment."""
    name = re.search(r'^# (\w+)\.py$|^SPACE = .*?name="(\w+)"', text, re.MULTILINE | re.DOTALL)
    if name:
        Path(f"{name[1] or name[2]}.py").write_text(text)


def runs(page: str) -> list[Block]:
    """Return the blocks of a page that are run, in order."""
    return [
        block
        for block in markdown.blocks(page)
        if not block.not_run
        and (
            block.language == "python"
            or (block.language == "bash" and any(map(nas_arguments, block.commands)))
        )
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.long if page in LONG_PAGES else ())
        for page in PAGES
        if runs(page)
    ],
)
def test_commands_and_snippets_run(page, prepared, tmp_path, monkeypatch, use_library, invoke):
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    (table,) = Path("latency_tables").glob("*.jsonl")
    for name in ("mine", "yours", "old", "new"):
        shutil.copy(table, f"{name}.jsonl")
    if page == "docs/python.md":
        shutil.copy(table, "latency_tables/mine.jsonl")
    if page == "latency_tables/README.md":
        shutil.copytree(ROOT / "latency_tables", "latency_tables", dirs_exist_ok=True)
    names: dict[str, object] = {"__name__": "snippet"}
    for block in runs(page):
        if block.language == "python":
            use_library(tiny=page != "docs/spaces.md")
            save_space(block.text)
            code = re.sub(*SMALL_ARGUMENTS, block.text)
            exec(compile(code, name_of(block), "exec"), names)
            continue
        for words in block.commands:
            arguments = nas_arguments(words)
            if arguments is None:
                continue
            use_library(tiny=arguments[0] not in REAL_SPACES)
            done = invoke(*small(arguments, folder))
            # Timings decide whether predictions agree, and whether the small front has a knee.
            allowed = (0, 1) if {"--quick", "--knee"} & set(arguments) else (0,)
            assert done.returncode in allowed, f"{' '.join(words)}: {done.stderr}"


# The example of a space


@pytest.fixture
def example(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    (block,) = [b for b in markdown.blocks("docs/spaces.md") if 'name="eight_blocks"' in b.text]
    save_space(block.text)
    return "eight_blocks.py"


def test_example_space_is_counted_by_hand(example):
    # First blocks have two options; of the others n in a row make sum(2^k, k = 0..n) networks.
    assert load_definition(example).size == (2 * 7) * (2 * 2 * 7) * (2 * 3) * 2


def test_example_spaces_lower(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in markdown.blocks("docs/spaces.md"):
        if block.language == "python":
            save_space(block.text)
    pyramids = load_space("pyramids.py", image_size=32, classes=4)
    assert isinstance(pyramids, SearchSpace)
    assert pyramids.size == 2 * (2 + 4)
    assert pyramids.lower(pyramids.largest).output_shape == (4, 1, 1)
    mine = load_space("mine.py", image_size=32)
    assert mine.parameters["resolution"] == (24, 32)


@pytest.mark.long
@pytest.mark.usefixtures("fake_device")
def test_example_space_through_all_stages_of_a_job(example, invoke):
    job = {
        "name": "mine",
        "data": {"source": "digits", "validation_fraction": 0.9},  # few images to train on
        "training": {"epochs": 1},
        "search": {"trials": 6},
        # A file for TVM would be made for this processor, and not for the device of the test.
        "finish": {"measure": 2, "export": ["onnx"]},
        "space": [{"name": example}],
    }
    Path("job.toml").write_text(tomli_w.dumps(job))
    done = document(invoke("run", "job.toml", "--json"))
    assert done["front"] > 0
    assert "eight_blocks" in Path(done["report"]).read_text()
