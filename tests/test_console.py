import pytest

from nas import console


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (512, "512 B"), (1_234_567, "1.23 MB"), (4e9, "4 GB")]
)
def test_sizes(count, text):
    assert console.size(count) == text


def test_bars():
    bars = console.bars_of([0, 1, 50, 100])
    assert len(bars) == 4
    assert bars[0] == " "
    assert bars[1] != " "
    assert len(set(bars)) == 4
    assert console.bars_of([0, 0]) == "  "


def test_a_table_that_is_not_on_a_terminal_is_as_wide_as_its_content(capsys):
    long = "conv2d 116x14x14[58:116] -> 58x14x14 k1 s1 p0 g1 bias relu " * 3
    console.table(["kernel", "us"], [(long, 1), None, ("copy", 2)], left=("us",))
    lines = capsys.readouterr().out.splitlines()
    assert any(long in line for line in lines)
    assert len(lines) == 7


def test_a_stage_that_is_stopped_at_its_start_is_not_called_done(capsys):
    def stopped():
        with console.Bars() as bars:
            bars.begin("latency table", "timing")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == "latency table ...\n"
