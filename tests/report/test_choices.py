"""What the good networks of a run share, against networks whose quality is known."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from nas.opened_run import open_run
from nas.report import page
from nas.report.choices import (
    ABSENT,
    choices_section,
    dead_options,
    groups_of,
    shared_options,
    space_choices,
)
from nas.run.objectives import run_objectives
from nas.run.settings import SearchSettings
from nas.space import SearchSpace, Stage, load_space

BODY = {"kernel": (3, 5, 7), "expand": (3, 6)}
SPACE = SearchSpace(
    "made",
    stages=(
        Stage("stem", "conv", width=(8, 16, 24), per_stage={"kernel": 3}),
        Stage("one", "inverted_residual", width=(16, 24), depth=(1, 2), per_block=BODY),
        Stage("two", "inverted_residual", width=(16, 24), depth=(1, 2), per_block=BODY),
        Stage("head", "linear_classifier"),
    ),
    image_size=8,
    classes=10,
)


def latency_of(choices) -> float:
    """A latency that adds up: widths and blocks cost most, kernels and expand ratios little."""
    cost = {"width": 1.0, "depth": 10.0, "kernel": 0.3, "expand": 0.5}
    return 20 + sum(cost[name.split(".")[-1]] * value for name, value in choices.items())


def accuracy_of(choices) -> float:
    """An accuracy to which the stem's width gives most; every kernel of 7 takes much of it."""
    sevens = sum(v == 7 for name, v in choices.items() if name.endswith("kernel"))
    blocks = choices["one.depth"] + choices["two.depth"]
    return 0.5 + 0.01 * choices["stem.width"] + 0.01 * blocks - 0.05 * sevens


def make_rows(space: SearchSpace, count: int, accuracy=accuracy_of, seed: int = 0) -> pd.DataFrame:
    """Return random networks as complete candidates, those columns that are read."""
    rng = np.random.default_rng(seed)
    drawn = [space.sample(rng, uniform_over="choices") for _ in range(count)]
    drawn = list(dict.fromkeys(drawn))
    return pd.DataFrame(
        {
            "id": [f"g{at:03x}" for at in range(len(drawn))],
            "state": "complete",
            "predicted_us": [latency_of(each.choices) for each in drawn],
            "measured_us": np.nan,
            "validation_accuracy": [accuracy(each.choices) for each in drawn],
            "corrected_accuracy": np.nan,
            "architecture": [json.dumps(each.to_json()) for each in drawn],
        },
    )


made_choices = partial(space_choices, objectives=run_objectives(SearchSettings(), ()))


def test_choices_of_the_blocks_of_a_stage_are_one_group():
    groups = groups_of(SPACE)
    assert list(groups) == [
        "stem.width", "one.width", "one.depth", "one.kernel", "one.expand",
        "two.width", "two.depth", "two.kernel", "two.expand",
    ]  # fmt: skip
    assert groups["one.kernel"] == ["one.0.kernel", "one.1.kernel"]
    assert [name for names in groups.values() for name in names if "." not in name] == []
    # Network-wide choices, and stages whose blocks each are a stage.
    squeezenet = groups_of(load_space("squeezenet"))
    assert squeezenet["pooling"] == ["pooling"]
    assert sum(len(names) for names in groups_of(load_space("mobilenet")).values()) == len(
        load_space("mobilenet").parameters
    )
    assert len(groups_of(load_space("mobilenet"))) < 30


def test_columns_hold_the_choices_of_every_network():
    rows = make_rows(SPACE, 60)
    result = made_choices(SPACE, rows)
    assert result.networks == rows["id"].tolist()
    for position, text in enumerate(rows["architecture"]):
        read = {
            column.name: column.options[column.chosen[position]]
            for column in result.choices
            if column.chosen[position] != ABSENT
        }
        assert read == json.loads(text)["choices"]


def test_importance_finds_what_the_accuracy_and_the_latency_are_made_of():
    result = made_choices(SPACE, make_rows(SPACE, 400))
    assert min(result.accuracy_explained, result.latency_explained) > 0.9
    by_accuracy = {group.name: group.accuracy.share for group in result.groups}
    by_latency = {group.name: group.latency_us.share for group in result.groups}
    assert max(by_latency, key=by_latency.get) in ("one.depth", "two.depth")
    # Variances of the terms of `accuracy_of`: a kernel of 7 in one of three cases, and in a second
    # block in half of the networks; depth gives a block and the kernel in it.
    stem = np.var([0.08, 0.16, 0.24])
    kernel = 1.5 * 0.05**2 * 2 / 9
    assert by_accuracy["stem.width"] / by_accuracy["one.kernel"] == pytest.approx(
        stem / kernel, rel=0.35
    )
    assert max(by_accuracy["one.width"], by_accuracy["two.expand"]) < 0.02
    first = result.important[0]
    assert max(first.accuracy.share, first.latency_us.share) == max(
        *by_accuracy.values(), *by_latency.values()
    )


def test_few_networks_and_noise_have_no_importance():
    few = made_choices(SPACE, make_rows(SPACE, 30))
    assert few.accuracy_explained is None
    assert few.important == []
    noise = np.random.default_rng(0)
    noisy = made_choices(SPACE, make_rows(SPACE, 150, lambda _: noise.random()))
    assert noisy.accuracy_explained < 0.3
    assert all(group.accuracy is None and group.latency_us for group in noisy.groups)


def test_grid_has_the_options_of_the_front_the_fastest_first():
    rows = make_rows(SPACE, 200)
    result = made_choices(SPACE, rows)
    latencies = rows.set_index("id")["predicted_us"][result.front]
    assert latencies.is_monotonic_increasing
    grid = dict(result.grid)
    assert list(grid) == [group.name for group in result.groups]
    for position, member in enumerate(result.front):
        text = rows.set_index("id")["architecture"][member]
        choices = json.loads(text)["choices"]
        assert grid["stem.width"][position].options == str(choices["stem.width"])
        assert grid["stem.width"][position].level == (8, 16, 24).index(choices["stem.width"]) / 2
        kernels = [choices.get("one.0.kernel"), choices.get("one.1.kernel")]
        assert grid["one.kernel"][position].options == " ".join(str(k) for k in kernels if k)


def kernels_of(choices: dict, stage: str = "") -> list[int]:
    """Return the kernels of all blocks, or of those of a stage."""
    return [v for k, v in choices.items() if k.startswith(stage) and k.endswith("kernel")]


def sampled_choices(count: int) -> list[dict]:
    return [json.loads(text)["choices"] for text in make_rows(SPACE, count)["architecture"]]


def dead_by_option(networks: list[dict], is_good: list[bool]) -> dict[str, int]:
    chosen = pd.DataFrame(networks, columns=list(SPACE.parameters))
    return {each.option: each.scored for each in dead_options(SPACE, chosen, pd.Series(is_good))}


def test_a_dead_option_is_stated_once_as_widely_as_it_holds():
    networks = sampled_choices(400)
    dead = dead_by_option(networks, [7 not in kernels_of(each) for each in networks])
    assert dead == {"kernel 7": sum(7 in kernels_of(each) for each in networks)}
    dead = dead_by_option(networks, [7 not in kernels_of(each, "two") for each in networks])
    assert dead == {"two.kernel 7": sum(7 in kernels_of(each, "two") for each in networks)}
    dead = dead_by_option(networks, [each.get("one.1.kernel") != 7 for each in networks])
    assert dead == {"one.1.kernel 7": sum(each.get("one.1.kernel") == 7 for each in networks)}


def test_the_options_of_a_block_that_no_good_network_has_are_not_dead_but_the_depth_is():
    networks = sampled_choices(400)
    dead = dead_by_option(networks, [each["one.depth"] == 1 for each in networks])
    assert dead == {"one.depth 2": sum(each["one.depth"] == 2 for each in networks)}


def test_an_option_whose_absence_chance_may_explain_is_not_dead():
    networks = sampled_choices(400)
    good = [at for at, each in enumerate(networks) if 7 not in kernels_of(each)]
    few_good = [at in good[:4] for at in range(len(networks))]
    assert "one.1.kernel 7" not in dead_by_option(networks, few_good)
    few_scored = [each for each in networks if 7 not in kernels_of(each)]
    few_scored += [each for each in networks if 7 in kernels_of(each)][:3]
    is_good = [at < len(few_scored) // 2 for at in range(len(few_scored))]
    assert not [name for name in dead_by_option(few_scored, is_good) if name.endswith("7")]


def test_what_all_members_of_the_front_have_is_said_once():
    networks = [each for each in sampled_choices(2000) if set(kernels_of(each)) == {5}]
    networks = [each for each in networks if each["two.0.expand"] == 3]
    assert len(networks) > 5
    members = pd.DataFrame(networks, columns=list(SPACE.parameters))
    assert shared_options(SPACE, members) == ["kernel 5", "two.0.expand 3"]
    assert shared_options(SPACE, members[:2]) == [], "two networks share something by chance"


def test_section_of_a_run_has_the_spaces_that_were_scored(untrained_run):
    run = open_run(untrained_run)
    section = choices_section(run)
    counts = run.trials["space"].value_counts()
    assert {each.space: len(each.networks) for each in section.spaces} == counts.to_dict()
    for each in section.spaces:
        own = set(run.front["id"]) & set(each.networks)
        assert own <= set(each.front), "who is on the front of all is on that of the space"
    rows = run.trials.assign(state="failed")
    rows.to_csv(untrained_run / "trials.csv", index=False)
    assert choices_section(open_run(untrained_run)) is None


def test_page_has_the_choices_and_stays_without_them_if_a_space_cannot_be_loaded(untrained_run):
    run = open_run(untrained_run)
    text = page.build(run).read_text()
    assert text.count("<div data-choices=") == run.trials["space"].nunique()
    first, *_ = choices_section(run).spaces
    for name in [group.name for group in first.important]:
        assert f'<th scope="row">{name}</th>' in text
    for copy in (untrained_run / "spaces").glob("*.py"):
        copy.write_text("raise ValueError")
    text = page.build(open_run(untrained_run)).read_text()
    assert "data-choices=" not in text.split("<script")[0]
