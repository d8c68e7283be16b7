"""The section of the page about published networks, and the same in the document behind it."""

import re

import pytest

from nas.latency.moments import round_to_four_digits
from nas.report import page
from nas.report.document import ReportDocument, report_document
from tests.run.test_published import NAME, add, add_published, run

__all__ = ["run"]


def test_page_compares_published_networks_in_words_and_in_a_table(run):
    fast, slow = run.front.iloc[0], run.front.iloc[-1]
    add(run, fast, 176)
    add(run, slow, 190)
    latency_us = round_to_four_digits(2 * fast["measured_us"])
    add_published(run, latency_us, 170)
    text = page.build(run).read_text()
    section = re.search(r'<h2 id="published">.*?</section>', text, re.DOTALL)[0]
    document = report_document(run)
    (network,) = document.published.networks
    assert (network.name, network.latency_us) == (NAME, latency_us)
    assert network.at_latency.id == network.at_accuracy.id == fast["id"]
    low, high = network.at_latency.interval
    assert low < network.at_latency.accuracy_gain == 0.88 - 0.85 < high
    assert f"<li>{network.text}</li>" in section
    assert f'<td class="number strong">+3.0 <span class="interval">({100 * low:+.1f} to ' in section
    assert '<td class="number">0.50</td>' in section
    embedded = re.search(r'<script type="application/json" id="report">(.*)</script>', text)[1]
    assert ReportDocument.model_validate_json(embedded) == document


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
    (network,) = report_document(run).published.networks
    assert network.at_accuracy.interval is None
    page.build(run)


def test_page_without_published_networks_says_how_to_train_one(run):
    assert '<h2 id="published">' not in page.build(run).read_text(), "nothing to compare with"
    add(run, run.front.iloc[0], 176)
    assert report_document(run).published is None
    assert f"<code>nas retrain {run.path} --reference NAME</code>" in page.build(run).read_text()
