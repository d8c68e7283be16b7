from nas.describe import table_comparison
from nas.latency import compare_tables
from nas.latency.comparison import Change, Comparison
from tests.describe.small_table import HEAD, POOL, STEM, kernel_record, write_table


def test_comparison_is_described_shown_and_drawn(tmp_path, capsys):
    before = write_table(tmp_path / "a.jsonl", kernel_record(STEM, 3.0), kernel_record(POOL, 1.0))
    after = write_table(tmp_path / "b.jsonl", kernel_record(STEM, 6.0), kernel_record(HEAD, 1.0))
    comparison = compare_tables(before, after)
    shown = table_comparison.describe_comparison(comparison)
    assert (shown["common"], shown["only_before"], shown["only_after"]) == (1, 1, 1)
    assert shown["kinds"] == {"conv 3x3": {"count": 1, "median": 2.0, "low": 2.0, "high": 2.0}}
    assert shown["changes"][0]["kind"] == "conv 3x3"
    table_comparison.show_comparison(comparison, 5)
    text = capsys.readouterr().out
    assert "1 are only in the first, 1 only in the second" in text
    assert "unstable: 0 rows of the first, 0 of the second" in text
    for suffix in ("png", "svg"):
        table_comparison.draw_comparison(comparison, ("a", "b"), tmp_path / f"diff.{suffix}")
    assert "conv 3x3: 1" in (tmp_path / "diff.svg").read_text()


def test_share_of_the_processors_speed_is_shown(capsys):
    changes = (Change("kernel global_pool 8x2x2 -> 8x1x1", 1.0, 1.05),)
    table_comparison.show_comparison(Comparison((), changes, speed_ratio=1.04), 1)
    text = " ".join(capsys.readouterr().out.split())
    assert "1.040 times as long" in text
    assert "kernels differ by 4.9% on average, at one speed by 1.0%" in text
    table_comparison.show_comparison(Comparison((), changes), 1)
    assert "at one speed" not in capsys.readouterr().out
