"""What linear probes say of image sizes."""

import re

import pytest

from nas.opened_run import open_run
from nas.report import page
from nas.run.probes import ProbeAtSize, ProbeSummary, loss, losses_text, notable, worthwhile
from tests.report.cases import change_record


def at_size(size, accuracy, macs, images=500):
    return ProbeAtSize(
        image_size=size, accuracy=accuracy, images=images, judged=accuracy, macs=macs
    )


ROWS = [at_size(96, 0.80, 70), at_size(160, 0.86, 195), at_size(224, 0.90, 380)]


def test_each_halving_of_the_network_costs_two_points():
    assert loss(1.0, 0.25) == 0
    assert loss(0.5, 0.25) == pytest.approx(0.02)
    # From 1.5 times the smallest network on, a percent less costs more than a point.
    assert loss(0.375, 0.25) == pytest.approx(0.0283, abs=1e-4)
    assert loss(0.99 * 0.375, 0.25) > loss(0.375, 0.25) + 0.01
    assert loss(0.25, 0.25) > 0.5
    # The published network may be hardly larger than the smallest one.
    assert loss(1.0, 0.9) == 0


@pytest.mark.parametrize(
    ("losses", "expected"),
    [((), 224), ((0.0, 0.0, 0.02), 224), ((0.0, 0.0, 0.05), 160), ((0.0, 0.06, 0.5), 96)],
)
def test_size_is_chosen_by_what_the_limits_leave(losses, expected):
    assert worthwhile(ROWS, losses).image_size == expected
    text = losses_text(ROWS, losses or (0.0, 0.0, 0.0))
    assert bool(text) == bool(losses)
    if 0.5 in losses:
        assert text.endswith("cost: about 6.0 points at 160 px and over 10 points at 224 px")


def test_another_size_is_advised_from_three_points_on():
    def summary(name, accuracy):
        sizes = (ROWS[0], at_size(224, accuracy, 280))
        return ProbeSummary(network=name, image_size=96, sizes=sizes)

    little, much, most = summary("a", 0.829), summary("b", 0.85), summary("c", 0.9)
    assert little.gain > 0.01
    assert not little.advice
    assert notable([]) is notable([little]) is None
    assert notable([much, most, little]) is most
    assert most.advice == (
        "Images of 224 px instead of 96 px would gain about 10.0 points, by linear probes of c on "
        "500 images (90.0% and 80.0%), for about 4.0 times the latency, estimated by the "
        "operations: set image_size = 224 in [data] of another run."
    )


@pytest.mark.parametrize("gain", [0.02, 0.1])
def test_page_and_select_advise_another_size(untrained_run, invoke, gain):
    sizes = [at_size(8, 0.8, 100), at_size(16, 0.8 + gain, 400)]
    probes = ProbeSummary(network="small", image_size=8, sizes=tuple(sizes))
    change_record(untrained_run, {"probes": {"own": probes.model_dump(mode="json")}})
    page.build(open_run(untrained_run))
    text = (untrained_run / "report.html").read_text()
    shown = re.findall(r'<p id="image-size" class="note">(.*?)</p>\s*<div id="picked">', text)
    advice = [f"{probes.advice}"] * (gain == 0.1)
    assert shown == advice
    said = invoke("select", untrained_run).stdout
    assert said.splitlines()[-1:] * (gain == 0.1) == advice
    assert ("Images of 16 px" in said) == (gain == 0.1)
    assert invoke("select", untrained_run, "--json").stdout.count("image_size") == 0
