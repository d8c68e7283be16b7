"""Messages name options that exist, in the command that they name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

import nas
from nas.cli import app

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")

COMMAND = re.compile(r"\bnas ((?:table|supernet|kit) [a-z]+|[a-z]+)((?: [^\s`]+)*)")
"""A command and its words, up to the end of the code or of the line."""

OTHER_TOOLS = {
    "supernet/distributed.py": {"--nproc-per-node"},  # torchrun
    "cli/supernet.py": {"--nproc-per-node"},
    "cli/lifecycle.py": {"--log", "--log-paths", "--to"},  # run.py and install.py
    "deploy/run_template.py": {"--check", "--log", "--log-paths", "--model"},
    "deploy/script_check.py": {"--check"},
    "deploy/script_log.py": {"--log"},
    "deploy/verify.py": {"--model"},
    "lifecycle/drift.py": {"--check", "--log"},
    "lifecycle/install_template.py": {
        *("--allow-older", "--check", "--public-key", "--test", "--to"),
    },
    "lifecycle/federated_start.py": {
        *("--server", "--name", "--images", "--root-certificates"),  # start.py
        *("--insecure", "--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certfile", "--superlink"),
        *(
            "--disable-runtime-dependency-installation",
            "--database",
            "--node-config",
            "--port",
            "--stream",
        ),
    },
    "plans/split_export.py": {"--port"},  # server.py
    "plans/split_device.py": {"--answer-seconds"},  # device.py
    "plans/split_server.py": {"--host", "--idle-seconds", "--port"},
    "latency/kit.py": {"--stream"},  # the program of a kit
    "runtimes/tvm/kit/program.py": {"--expected"},  # the program of a kit
    "runtimes/tvm/cuda/device.py": {"--query-gpu", "--id"},  # nvidia-smi
}
"""Options of other programs, by the file that names them."""

OTHER_PROGRAMS = {"runtimes/tvm/cuda/compiler.py"}
"""Files whose options are those of other programs only: of nvcc."""


def options_of_commands() -> dict[str, set[str]]:
    """Return the options of each command, such as those of `table build`."""
    result: dict[str, set[str]] = {}

    def visit(command, name):
        parts = (each for each in command.params)
        result[name] = {o for each in parts for o in (*each.opts, *each.secondary_opts)}
        for below, child in getattr(command, "commands", {}).items():
            visit(child, f"{name} {below}".strip())

    visit(get_command(app), "")
    return result


OPTIONS = options_of_commands()


@cache
def texts() -> list[tuple[str, int, str]]:
    """Return file, line and text of each string literal of the package, see `iterate_texts`."""
    return list(iterate_texts())


def iterate_texts() -> Iterator[tuple[str, int, str]]:
    """Yield file, line and text of each string literal of the package's files that name options.

    A word stands for each expression in an f-string.
    """
    root = Path(nas.__file__).parent
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        source = path.read_text(encoding="utf-8")
        if name in OTHER_PROGRAMS or not OPTION.search(source):
            continue
        tree = ast.parse(source)
        inner = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                inner |= {id(each) for each in node.values}
                parts = [
                    each.value if isinstance(each, ast.Constant) else "X" for each in node.values
                ]
                yield name, node.lineno, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and id(node) not in inner:
                yield name, node.lineno, node.value if isinstance(node.value, str) else ""


def test_texts_of_all_files_name_options_of_some_command():
    known = set().union(*OPTIONS.values(), {"--help"})
    unknown = {
        (name, line, option)
        for name, line, text in texts()
        for option in OPTION.findall(text)
        if option not in known | OTHER_TOOLS.get(name, set())
    }
    assert unknown == set()
    assert sum(len(OPTION.findall(text)) for _, _, text in texts()) > 200


def test_options_behind_a_command_are_those_of_the_command():
    found, wrong = 0, set()
    for name, line, text in texts():
        for command, words in COMMAND.findall(text):
            allowed = OPTIONS.get(command)
            if allowed is None:
                continue
            for option in OPTION.findall(words.partition(" nas ")[0]):
                found += 1
                if option not in allowed:
                    wrong.add((name, line, command, option))
    assert wrong == set()
    assert found > 50


TRAIN = ("supernet", "train", "--space", "squeezenet_tiny", "--data", "digits")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("supernet", "train", "--space", "squeezenet_tiny", "--data", "a\0b"), "--data"),
        (("supernet", "train", "--space", "", "--data", "digits"), "--space"),
        (("supernet", "train", "--space", "\u4e00.py", "--data", "digits"), "--space"),
        ((*TRAIN, "--epochs", "0"), "--epochs"),
        ((*TRAIN, "--budget", "long"), "--budget"),
        ((*TRAIN, "--image-size", "5"), "--image-size"),
        ((*TRAIN, "--shift", "-2"), "--shift"),
        ((*TRAIN, "--on-bad-image", "repair"), "--on-bad-image"),
        ((*TRAIN, "--class-folders", "all"), "--class-folders"),
        (("search", "job.toml", "--trials", "0"), "--trials"),
        (("search", "job.toml", "--stall", "x"), "--stall"),
        (("search", "job.toml", "--sampler", "tarot"), "--sampler"),
        (("search", "job.toml", "--storage", "disk"), "--storage"),
        (("search", "job.toml", "--max-latency-ms", "-3"), "--max-latency-ms"),
        (("search", "job.toml", "--workers", "0"), "--workers"),
    ],
)  # fmt: skip
def test_wrong_value_of_an_option_is_named_by_the_option(invoke, job_folder, arguments, option):
    done = invoke(*arguments)
    command = " ".join(arguments[:2]) if arguments[0] == "supernet" else arguments[0]
    assert done.returncode == 2, done.stderr
    named = OPTION.findall(done.stderr)
    assert named[:1] == [option]
    assert set(named) <= OPTIONS[command]
