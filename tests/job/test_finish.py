"""The networks of a job that are timed as a whole."""

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from nas.job import run_job
from nas.job.finish import _saturation
from nas.job.settings import load_job
from nas.opened_run import open_run
from tests.job.runs import OUT

torch.set_num_threads(1)


def test_later_start_times_disturbed_networks_again(copy_of_fake_folder):
    log = OUT / "measurements.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    disturbed = open_run(OUT).members[0].digest
    slow_us = 10 * max(line["reading_us"] for line in lines)
    for line in lines:
        if line["digest"] == disturbed:
            line["reading_us"] = slow_us
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_job(load_job(Path("job.toml")), OUT)
    new = [json.loads(line) for line in log.read_text().splitlines()[len(lines) :]]
    assert disturbed in {line["digest"] for line in new}
    assert not open_run(OUT).latencies[disturbed].is_disturbed


@pytest.mark.parametrize(
    ("right", "is_balanced", "is_saturated"),
    [
        ([220] * 5 + [219] * 5, False, True),
        ([220] * 9 + [218] * 5, False, False),
        ([220] * 9, False, False),  # Too few networks to say so.
        ([220] * 9 + [216], True, False),
        ([220] * 9 + [218.9], True, True),  # An image of the rare class counts for more.
    ],
)
def test_accuracies_within_one_image_are_called_saturated(right, is_balanced, is_saturated):
    run = SimpleNamespace(
        trials=pd.DataFrame({"holdout_accuracy": [each / 220 for each in right] + [None, 0.3]}),
        images=SimpleNamespace(class_counts={"holdout": [120, 100]}, is_balanced=is_balanced),
    )
    said = _saturation(run)
    assert said.startswith("the accuracies of the 10 best networks differ") == is_saturated
    assert ("one of 220 hold-out images" in said) == is_saturated
