"""The section of the page about published networks."""

import re

import pytest

from nas.latency.rounds import round_to_four_digits
from nas.report import page
from nas.run.published import published_comparisons
from tests.run.test_published import NAME, add, add_published, run

__all__ = ["run"]


def test_page_compares_published_networks_in_words_and_in_a_table(run):
    fast, slow = run.front.iloc[0], run.front.iloc[-1]
    add(run, fast, 176)
    add(run, slow, 190)
    add_published(run, round_to_four_digits(2 * fast["measured_us"]), 170)
    text = page.build(run).read_text()
    section = re.search(r'<h2 id="published">.*?</section>', text, re.DOTALL)[0]
    (comparison,) = published_comparisons(run)
    low, high = 100 * comparison.at_latency.gain.low, 100 * comparison.at_latency.gain.high
    assert f"<li>{comparison.text}</li>" in section
    ends = f'<span class="interval">({low:+.1f} to {high:+.1f})</span>'
    assert f'<td class="number strong">+3.0 {ends}</td>' in section
    assert section.count(f"<td><code>{fast['id']}</code></td>") == 2
    assert '<td class="number">0.50</td>' in section


@pytest.mark.slow
def test_page_says_how_to_compare_where_nothing_was_trained_alike(run):
    add(run, run.front.iloc[0], 176)
    add_published(run, 5.0, 170, start="scratch")
    text = page.build(run).read_text()
    assert f"<li>No own network was trained like {NAME}, for 2 epochs from scratch. " in text
    assert '<td class="missing">none</td>' in text
    answers = run.path / "models" / NAME / "answers.json"
    answers.unlink()
    add(run, run.front.iloc[0], 176, start="scratch")
    assert '<td class="number strong">+3.0</td>' in page.build(run).read_text()


def test_page_without_published_networks_says_how_to_train_one(run):
    assert '<h2 id="published">' not in page.build(run).read_text(), "nothing to compare with"
    add(run, run.front.iloc[0], 176)
    assert f"<code>nas retrain {run.path} --reference NAME</code>" in page.build(run).read_text()
