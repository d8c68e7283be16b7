import pytest

from nas import console


def test_histogram_has_one_bar_a_count():
    bars = console.format_histogram([0, 1, 50, 100])
    assert len(bars) == 4
    assert bars[0] == " "
    assert bars[1] != " "
    assert len(set(bars)) == 4
    assert console.format_histogram([0, 0]) == "  "


def test_table_in_a_pipe_is_as_wide_as_its_content(capsys):
    long = "conv2d 116x14x14[58:116] -> 58x14x14 k1 s1 p0 g1 bias relu " * 3
    console.print_table(["kernel", "us"], [(long, 1), None, ("copy", 2)], left=("us",))
    lines = capsys.readouterr().out.splitlines()
    assert any(long in line for line in lines)
    assert len(lines) == 7


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


def test_say_escapes_control_characters(capsys):
    console.say("one\x1b[31m\n[bold]two[/bold]")
    assert capsys.readouterr().out == "one\\x1b[31m\n[bold]two[/bold]\n"
