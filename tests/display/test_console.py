import io
import sys
from types import ModuleType

import pytest
from rich.console import Console

import nas
from nas.display import console
from nas.run.progress import SilentProgress, shown
from tests.latency.fake_runtime import FakeRuntime


def test_table_in_a_pipe_is_as_wide_as_its_content(capsys):
    long = "conv2d 116x14x14[58:116] -> 58x14x14 k1 s1 p0 g1 bias relu " * 3
    console.print_table(["kernel", "us"], [(long, 1), None, ("copy", 2)], left=("us",))
    lines = capsys.readouterr().out.splitlines()
    assert any(long in line for line in lines)
    assert len(lines) == 7


def test_records_are_printed_with_a_declared_column_each(capsys):
    columns = {"name": str, "half": lambda record: record / 2 if record else None}
    console.print_records([3, 0], columns)
    _, *rows = [line.split("│") for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert [cell.strip() for cell in rows[1][1:3]] == ["3", "1.5"]
    assert [cell.strip() for cell in rows[2][1:3]] == ["0", ""]


def test_interrupted_stage_is_not_reported_as_finished(capsys):
    def interrupt():
        with console.ProgressBars() as bars:
            bars.begin("latency table", "timing")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert capsys.readouterr().err == "latency table ...\n"


def test_finished_stages_are_reported_without_a_terminal(capsys):
    with console.ProgressBars() as bars:
        bars.begin("latency table", "timing")
        bars.advance(3, 3)
        bars.note("a warning\x1b[2J")
        bars.begin("search", "trial")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "latency table ...",
        "a warning\\x1b[2J",
        "latency table: 3 timings in 0 s",
        "search ...",
        "search: nothing left to do",
    ]


def test_time_left_counts_what_was_done_since_the_stage_began(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    bars = console.ProgressBars()
    bars.begin("study", "training")
    for clock[0], done in ((60.0, 15), (120.0, 15), (180.0, 20)):
        bars.advance(done, 30)
    assert capsys.readouterr().err.splitlines()[1:] == [
        "study: 15 of 30 trainings in 60 s",
        "study: 15 of 30 trainings in 2 min",
        "study: 20 of 30 trainings in 3 min, 4 min left",
    ]


def test_say_escapes_control_characters(capsys):
    console.say("one\x1b[31m\n[bold]two[/bold]")
    assert capsys.readouterr().out == "one\\x1b[31m\n[bold]two[/bold]\n"


# Progress of functions that are called from Python

SPACE = nas.load_space("mobilenet_tiny", image_size=8, channels=1)


@pytest.fixture
def terminal(monkeypatch):
    """What is written to stderr, which is a terminal."""
    written = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=written, force_terminal=True, width=120))
    return written


class Notebook:
    """Stands in for IPython, which is not installed with this package."""

    def __init__(self):
        self.shown = []

    def display(self, data, *, raw, display_id):
        assert raw
        assert display_id
        self.shown.append(data["text/plain"])
        return self

    def update(self, data, *, raw):
        assert raw
        self.shown.append(data["text/plain"])


@pytest.fixture
def notebook(monkeypatch):
    notebook = Notebook()
    module = ModuleType("IPython.display")
    module.display = notebook.display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(console, "err", Console(file=io.StringIO(), force_jupyter=True))
    monkeypatch.setattr(console, "NOTEBOOK_UPDATE_SECONDS", 0.0)
    return notebook


def build(folder, **options):
    runtime = FakeRuntime()
    table = nas.LatencyTable.open_or_create(folder, runtime)
    nas.build_table(table, nas.space_kernels(SPACE, runtime)[:3], runtime, **options)


def search(folder, **options):
    nas.run_search(SPACE, {"macs": lambda each: each.macs}, trials=5, **options)


LONG = {"latency table": build, "search": search}


@pytest.mark.parametrize("stage", LONG)
def test_long_functions_show_a_bar_on_a_terminal(stage, terminal, tmp_path):
    LONG[stage](tmp_path)
    assert stage in terminal.getvalue()


def test_long_function_shows_a_line_in_a_notebook(notebook, tmp_path):
    search(tmp_path)
    assert notebook.shown[0] == "search ..."
    assert all(line.startswith("search") for line in notebook.shown)
    assert any(" of " in line and " left" in line for line in notebook.shown)
    assert " in " in notebook.shown[-1]


@pytest.mark.parametrize("progress", [False, None])
@pytest.mark.parametrize("function", [build, search])
def test_long_functions_are_silent_on_request(function, progress, terminal, tmp_path):
    function(tmp_path, progress=progress)
    assert terminal.getvalue() == ""


def test_long_function_is_silent_without_a_terminal(tmp_path, capsys):
    search(tmp_path)
    assert capsys.readouterr() == ("", "")


def test_own_function_receives_the_progress_instead_of_a_bar(terminal, tmp_path):
    calls = []
    build(tmp_path, progress=lambda done, total, text: calls.append((done, total)))
    done, total = calls[-1]
    assert done == total
    assert terminal.getvalue() == ""


def test_function_inside_of_another_one_shows_no_second_bar(terminal, tmp_path):
    with console.ProgressBars() as bars:
        bars.begin("outer", "step")
        search(tmp_path)
    assert "search" not in terminal.getvalue()
    search(tmp_path)
    assert "search" in terminal.getvalue()


def test_job_shows_its_stages_on_a_terminal(terminal):
    with shown(True) as bars:
        assert isinstance(bars, console.ProgressBars)
        with shown(True) as inner:
            assert isinstance(inner, SilentProgress)
    own = SilentProgress()
    with shown(own) as given:
        assert given is own
    for progress in (False, None):
        with shown(progress) as silent:
            assert isinstance(silent, SilentProgress)
