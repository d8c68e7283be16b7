"""Wrong values of the public functions' arguments are refused where they are given, by name."""

import math
import re

import pytest

import nas
from nas.errors import RequestError
from nas.search import Objective

SPACE = nas.load_space("squeezenet_tiny", image_size=8, channels=1)


def objective(**options):
    return Objective("size", lambda batch: [each.macs for each in batch], **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objective(direction="minimise"), "direction of size is 'minimise'. Give 'minim"),
        (lambda: objective(limit=math.nan), "limit of size is nan. Give a finite number."),
        (lambda: nas.Recipe(epochs=0), "epochs cannot be 0"),
        (lambda: nas.Recipe(epochs=math.nan), "epochs cannot be nan"),
        (lambda: nas.load_space("mobilenet_tiny", classes=0), "classes is 0"),
        (lambda: nas.load_space("mobilenet_tny"), "no space 'mobilenet_tny'"),
        (lambda: SPACE.sample(uniform_over="networkz"), "Give 'networks' or 'choices'."),
        (lambda: nas.measure_sustained("model", minutes=0), "more than 0 minutes"),
        (lambda: nas.measure_sustained("model", minutes=1, rate=-1), "at a rate of -1"),
        (lambda: nas.measure_sustained("model", minutes=1, processes=0), "Use 1 or more."),
        (lambda: nas.benchmark("model", threads=0), "Use 1 or more."),
    ],
)
def test_wrong_values_are_refused(call, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        call()
