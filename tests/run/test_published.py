"""Published networks beside those of a run: the words, the numbers, and what to do without any."""

import json
from pathlib import Path

import pytest

from nas.files.documents import to_json
from nas.latency.rounds import round_to_four_digits
from nas.opened_run import open_run
from nas.run.published import published_comparisons
from nas.run.run import Run
from tests.run.test_answers import answers_of
from tests.run.test_models import trained

NAME = "mobilenet_v2_0.35"
DIGEST = "z" + "f" * 15


@pytest.fixture
def run(untrained_run: Path) -> Run:
    return open_run(untrained_run)


def add(run: Run, row, right: int, *, has_answers: bool = True, **changes: object) -> None:
    """Train a network of the run that gets the first images of 200 right."""
    content = trained(row, right / 200, **changes)
    folder = run.path / "models" / str(content["id"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trained.json").write_text(json.dumps(content))
    if has_answers:
        answers = answers_of([True] * right + [False] * (200 - right), (100, 100))
        (folder / "answers.json").write_text(to_json(answers))
    run.write_trials(run.trials)


def add_published(run: Run, latency_us: float | None, right: int, **changes: object) -> None:
    """Train a published network, and let it take so long."""
    fields = {"id": NAME, "digest": DIGEST, "supernet_accuracy": None, **changes}
    add(run, run.front.iloc[0], right, **fields)
    if latency_us is not None:
        line = json.loads((run.path / "measurements.jsonl").read_text().splitlines()[0])
        rounds = [latency_us] * 8
        digest = str(fields["digest"])
        line |= {"digest": digest, "measured_us": latency_us, "error": ""}
        line |= {key: rounds for key in line if key.endswith("samples_us")}
        with (run.path / "measurements.jsonl").open("a") as log:
            log.write(f"{json.dumps(line)}\n")
        assert run.measured_us[digest] == round_to_four_digits(latency_us)


def test_front_is_ahead_at_equal_latency_and_at_equal_accuracy(run):
    fast, middle, slow = (run.front.iloc[at] for at in (0, 5, -1))
    assert fast["measured_us"] < middle["measured_us"] < slow["measured_us"]
    add(run, fast, 176)
    add(run, middle, 186)
    add(run, slow, 190)
    latency_us = round_to_four_digits(1.25 * middle["measured_us"])
    assert latency_us < slow["measured_us"]
    add_published(run, latency_us, 174)
    (comparison,) = published_comparisons(run)
    assert comparison.recipe == "2 epochs from the supernet"
    best, equal = comparison.at_latency, comparison.at_accuracy
    assert (best.own.record.id, equal.own.record.id) == (middle["id"], fast["id"])
    assert best.gain.value == pytest.approx(0.06)
    assert 0 < best.gain.low < 0.06 < best.gain.high
    assert best.latency_ratio == pytest.approx(middle["measured_us"] / latency_us)
    assert equal.latency_ratio == pytest.approx(fast["measured_us"] / latency_us)
    low, high = 100 * best.gain.low, 100 * best.gain.high
    assert comparison.text == (
        f"{middle['id']} is 6.0 points ({low:.1f} to {high:.1f}) more accurate than {NAME} and "
        "takes 0.80 of its time. The fastest own network that is at least as accurate, "
        f"{fast['id']}, takes {fast['measured_us'] / latency_us:.2f} of its time."
    )


def test_losses_are_said_too(run):
    fast, slow = run.front.iloc[0], run.front.iloc[-1]
    add(run, fast, 170)
    add(run, slow, 190)
    latency_us = round_to_four_digits(2 * fast["measured_us"])
    add_published(run, latency_us, 180)
    (comparison,) = published_comparisons(run)
    gain = comparison.at_latency.gain
    assert gain.value == pytest.approx(-0.05)
    assert comparison.text == (
        f"{fast['id']} is 5.0 points ({-100 * gain.high:.1f} to {-100 * gain.low:.1f}) less "
        f"accurate than {NAME} and takes 0.50 of its time. The fastest own network that is at "
        f"least as accurate, {slow['id']}, takes "
        f"{slow['measured_us'] / latency_us:.2f} times as long."
    )
    add(run, slow, 179)
    assert published_comparisons(run)[0].text.endswith(f"No own network is as accurate as {NAME}.")
    add_published(run, fast["measured_us"] / 2, 170)
    (comparison,) = published_comparisons(run)
    assert comparison.at_latency is None
    assert comparison.text.startswith(
        f"No own network is as fast as {NAME}: {fast['id']}, the fastest, is as accurate as it "
        "(\N{MINUS SIGN}"
    )
    assert comparison.text.endswith(" points) and takes 2.00 times as long.")


def test_only_networks_of_the_same_training_are_compared(run):
    fast, *_, slow = (run.front.iloc[at] for at in range(len(run.front)))
    add(run, fast, 198)
    add_published(run, slow["measured_us"], 150, start="scratch", epochs=6)
    (comparison,) = published_comparisons(run)
    assert comparison.at_latency is comparison.at_accuracy is None
    assert comparison.text == (
        f"No own network was trained like {NAME}, for 6 epochs from scratch. This trains one to "
        f"compare with: nas retrain {run.path} --pick {slow['id']} --from-scratch --epochs 6"
    )
    for at in range(len(run.front)):
        add(run, run.front.iloc[at], 190)
    text = published_comparisons(run)[0].text
    assert f"When models/{slow['id']} is moved away, this trains one" in text


def test_network_that_was_not_timed_is_compared_with_none(run):
    add(run, run.front.iloc[0], 198)
    add_published(run, None, 150)
    (comparison,) = published_comparisons(run)
    assert comparison.at_latency is None
    assert comparison.text == (
        f"{NAME} was not timed, so it is compared with no network. On the device of the run, this "
        f"times it: nas retrain {run.path} --reference {NAME}"
    )


def test_without_answers_the_difference_has_no_interval(run):
    fast = run.front.iloc[0]
    add(run, fast, 198, has_answers=False)
    add_published(run, fast["measured_us"], 150)
    text = published_comparisons(run)[0].text
    assert text == f"{fast['id']} is 24.0 points more accurate than {NAME} and takes as long."


def test_published_network_that_the_search_scored_has_the_latency_of_its_own_timing(run):
    rows = run.trials
    scored = rows[rows["measured_us"].isna() & (rows["state"] == "complete")].iloc[0]
    add(run, run.front.iloc[0], 198)
    add_published(run, 5.0, 150, digest=scored["digest"])
    (comparison,) = published_comparisons(run)
    assert comparison.published.candidate.id == scored["id"]
    assert comparison.published.measured_us == 5.0
    assert comparison.fastest is not None


def test_run_without_published_networks_has_no_comparison(run):
    add(run, run.front.iloc[0], 198)
    assert published_comparisons(run) == []
