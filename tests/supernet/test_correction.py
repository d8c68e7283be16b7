import math

import numpy as np
import pytest
from scipy.special import expit, logit

from nas.supernet import correction
from nas.supernet.ranking_records import RankedNetworkRecord
from nas.supernet.records import ScoreCorrection

ENDS = {
    "mobilenet_tiny": [(10_000, 0.4), (1_000_000, 0.7)],
    "squeezenet_tiny": [(40_000, 0.5), (4_000_000, 0.8)],
}


def ranked(space: str, macs: int, score: float, standalone: float) -> RankedNetworkRecord:
    return RankedNetworkRecord(
        architecture={"space": space, "choices": {}},
        digest="g" + "0" * 15,
        macs=macs,
        supernet_accuracy=score,
        standalone_accuracy=standalone,
    )


def biased_networks(offsets: dict[str, float], noise: float) -> dict[str, list]:
    """Return networks that are better than their corrected scores by an offset, in logits."""
    rng = np.random.default_rng(0)
    plain = correction.fit_correction(ENDS, {})
    networks = {}
    for space, offset in offsets.items():
        networks[space] = []
        for _ in range(8):
            macs, score = int(rng.integers(10_000, 1_000_000)), rng.uniform(0.4, 0.8)
            mean = logit(plain.correct(score, macs, space)) + offset
            standalone = float(expit(mean + rng.normal(scale=noise)))
            networks[space].append(ranked(space, macs, score, standalone))
    return networks


def test_slope_and_scale_are_those_of_scipy_on_logits():
    fitted = correction.fit_correction(ENDS, {})
    assert fitted.reference_macs == pytest.approx(200_000)
    assert fitted.reference_accuracy == pytest.approx(0.6)
    assert (fitted.slope, fitted.offsets, fitted.networks) == (correction.SLOPE, {}, 0)
    distance = logit(0.7) - logit(0.6) + correction.SLOPE * math.log(3)
    expected = expit(logit(0.6) + correction.SCALES[0] * distance)
    assert fitted.correct(0.7, 600_000, "mobilenet_tiny") == pytest.approx(expected)
    assert fitted.correct(0.6, 200_000, "squeezenet_tiny") == pytest.approx(0.6)
    assert "spaces may not be comparable" in fitted.summary


@pytest.mark.parametrize("accuracy", [0.0, 0.9999])
def test_extreme_accuracy_stays_a_fraction_and_larger_networks_come_first(accuracy):
    fitted = ScoreCorrection(slope=0.3, scale=1, reference_macs=1000, reference_accuracy=0.5)
    corrected = [fitted.correct(accuracy, macs, "any") for macs in (1, 1000, 10**9)]
    assert 0 < corrected[0] < corrected[1] < corrected[2] < 1
    assert corrected[1] == pytest.approx(accuracy, abs=1.1e-4)


def test_networks_that_are_right_on_all_images_are_equal():
    fitted = ScoreCorrection(
        slope=0.3, scale=0.6, reference_macs=1000, reference_accuracy=0.5, offsets={"any": -1.0}
    )
    assert {fitted.correct(1.0, macs, "any") for macs in (1, 1000, 10**9)} == {1.0}


def test_offsets_of_families_are_recovered():
    true = {"mobilenet_tiny": -0.4, "squeezenet_tiny": 0.3}
    networks = biased_networks(true, noise=0.05)
    fitted = correction.fit_correction(ENDS, networks)
    assert fitted.networks == 16
    assert fitted.offsets == pytest.approx(true, abs=0.06)
    for own in networks.values():
        errors = [
            each.standalone_accuracy
            - fitted.correct(each.supernet_accuracy, each.macs, each.architecture.space)
            for each in own
        ]
        assert abs(np.mean(errors)) < 0.01, "within one point, as a family"
    assert "on one scale by 16 networks" in fitted.summary


def test_noise_between_families_gives_them_one_offset():
    networks = biased_networks({"mobilenet_tiny": 0.2, "squeezenet_tiny": 0.2}, noise=0.5)
    fitted = correction.fit_correction(ENDS, networks)
    assert len(set(fitted.offsets.values())) == 1
    everything = [each for own in networks.values() for each in own]
    corrected = [
        fitted.correct(each.supernet_accuracy, each.macs, each.architecture.space)
        for each in everything
    ]
    truth = [each.standalone_accuracy for each in everything]
    assert np.mean(corrected) == pytest.approx(np.mean(truth), abs=1e-4)


@pytest.mark.parametrize("missing", ["a space", "networks"])
def test_too_few_networks_give_no_offsets(missing):
    networks = biased_networks({"mobilenet_tiny": -1.0, "squeezenet_tiny": 1.0}, noise=0.01)
    if missing == "a space":
        del networks["squeezenet_tiny"]
    else:
        networks["squeezenet_tiny"] = networks["squeezenet_tiny"][:3]
    fitted = correction.fit_correction(ENDS, networks)
    assert (fitted.offsets, fitted.networks) == ({}, 0)
