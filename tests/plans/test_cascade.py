"""Cascades of a run: what is chosen, what is said of it, and which networks are in none."""

from dataclasses import replace

import numpy as np
import pytest

from nas.errors import InfeasibleError, RequestError
from nas.opened_run import open_run
from nas.plans.cascade import Cascade, CascadePlan
from nas.plans.cascade_answers import NetworkAnswers, Setting
from nas.report.page import build
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space.exits import with_exit
from tests.commands import document
from tests.plans.cases import (
    change,
    complementary_run,
    copy_of_example,
    latencies_us,
    refit,
    run_with_exit,
    trained_ids,
    write_answers,
)
from tests.plans.split_tables import kernels_of_parts, write_table


@pytest.fixture
def run(tmp_path):
    return copy_of_example(tmp_path / "run")


@pytest.fixture
def complementary(tmp_path):
    return complementary_run(tmp_path / "run")


def test_shared_errors_count_and_thresholds_are_judged_on_the_other_half(complementary):
    plan = open_run(complementary).cascades()
    first, second = trained_ids(complementary)[:2]
    chosen = plan.choose(max_latency_ms=1)
    assert chosen.networks == (first, second)
    # Half of the 24 images of each class judge: one quarter of them are passed on.
    assert chosen.answered == pytest.approx((0.75, 0.25), abs=0.05)
    us = latencies_us(complementary)
    assert chosen.mean_us == pytest.approx(us[first] + chosen.answered[1] * us[second])
    assert chosen.worst_us == chosen.high_us == pytest.approx(us[first] + us[second])
    assert (chosen.accuracy, chosen.chosen_accuracy) == (1.0, 1.0)
    assert chosen.accuracy_low < 1
    # 120 images judge it, and the fastest network alone is wrong on a quarter of them.
    assert plan.images == "120 of the 240 hold-out images"
    assert chosen.rival.network == first
    assert chosen.rival.gain == pytest.approx(0.25, abs=0.05)
    assert chosen.is_better
    assert f"more accurate than {first}, the best network that is as fast, as a paired" in (
        chosen.verdict
    )
    assert plan.curve[-1].name == chosen.name


def test_limits_choose_the_fastest_or_the_most_accurate_cascade(complementary):
    plan = open_run(complementary).cascades()
    us, (first, *_) = latencies_us(complementary), trained_ids(complementary)
    best = plan.choose(max_latency_ms=1)
    assert best.chosen_accuracy == plan.front[-1].accuracy == 1.0
    equal = plan.choose()
    assert equal == plan.choose(max_accuracy_drop=0)
    assert plan.chosen.accuracies.max() <= equal.chosen_accuracy < best.chosen_accuracy
    cheap = plan.choose(max_accuracy_drop=0.1)
    assert us[first] < cheap.mean_us < equal.mean_us < best.mean_us
    assert cheap.chosen_accuracy >= plan.chosen.accuracies.max() - 0.1
    between = (us[first] + best.mean_us) / 2000
    tight = plan.choose(max_latency_ms=between)
    assert tight.chosen_accuracy < best.chosen_accuracy
    fast = [each for each in plan.front if each.mean_us <= 1000 * between]
    assert tight.chosen_accuracy == max(each.accuracy for each in fast)
    with pytest.raises(InfeasibleError, match="within the limits. The nearest is"):
        plan.choose(max_latency_ms=us[first] / 1000)
    with pytest.raises(InfeasibleError, match="points below"):
        plan.choose(max_latency_ms=cheap.mean_us / 1000, max_accuracy_drop=0)
    for wrong in ({"max_latency_ms": 0.0}, {"max_latency_ms": float("nan")}):
        with pytest.raises(RequestError, match="finite number above zero"):
            plan.choose(**wrong)
    for drop in (-0.1, 1.0, float("nan")):
        with pytest.raises(RequestError, match="max_accuracy_drop is"):
            plan.choose(max_accuracy_drop=drop)


def test_cascade_that_the_test_does_not_tell_from_a_network_is_said_to_be_none(run, invoke):
    """The networks of the example are nearly equal on digits."""
    shown = document(invoke("cascade", run, "--json"))
    assert shown["is_better"] is False
    assert "is not shown to be better than a single network" in shown["verdict"]
    done = invoke("cascade", run, "--stages", 3)
    assert done.returncode == 0, done.stderr
    assert "not shown" in done.stdout
    assert "120 of the 240 hold-out images" in done.stdout


def test_verdict_names_a_cascade_that_is_better_if_the_chosen_one_is_not(complementary):
    """A second network that gains nothing over the first one makes a cascade that is no better."""
    first, second, *_ = trained_ids(complementary)
    plan = open_run(complementary).cascades()
    better = plan.choose(max_latency_ms=1)
    assert plan.verdict_of(better) == better.verdict
    worse = Cascade(**{**dict(better), "networks": (second, first), "is_better": False})
    verdict = plan.verdict_of(worse)
    assert verdict.startswith(f"{second}-{first} is not shown to be better")
    best = max((each for each in plan.curve if each.is_better), key=lambda each: each.rival.gain)
    assert f"such as {best.name} with a mean of" in verdict
    assert replace(plan, front=[]).verdict_of(worse) == worse.verdict


def test_command_prints_the_cascade_that_python_chooses(complementary, invoke):
    shown = document(invoke("cascade", complementary, "--max-accuracy-drop", 0.1, "--json"))
    plan = open_run(complementary).cascades()
    assert shown["chosen"] == plan.choose(max_accuracy_drop=0.1).model_dump(mode="json")
    assert len(shown["curve"]) == len(plan.curve)
    text = invoke("cascade", complementary).stdout
    assert plan.choose().rule.split(" answers")[0] in text
    assert "as a paired test shows" in text
    assert "before their refit" not in text
    refit(complementary, plan.choose().networks[0])
    assert "before their refit" in invoke("cascade", complementary).stdout
    page = build(open_run(complementary)).read_text()
    assert "which refitted networks gave before their refit" in page


def test_cascade_whose_first_network_answers_everything_is_as_fast_as_that_network():
    images = 120  # The sum of so many latencies of 0.716, divided by 120, is less than 0.716.
    answers = NetworkAnswers(
        ("fast", "slow"),
        np.array([0.716, 2.219]),
        np.ones((2, images), bool),
        np.full((2, images), 0.9),
        np.array([images]),
        False,
    )
    setting = Setting((0, 1), (0.5,), 1.0, 1.0)
    [cascade] = CascadePlan("run", answers, answers, [setting], "images", ()).curve
    assert cascade.mean_us == 0.716
    assert cascade.answered == (1.0, 0.0)
    assert cascade.rival.network == "fast"
    assert not cascade.is_better


def test_front_without_a_cascade_is_said(run):
    """A network that is right on all images leaves nothing to gain."""
    first, *others = trained_ids(run)
    count = 240
    write_answers(run, first, np.full(count, True), np.linspace(0.5, 1, count))
    assert others
    with pytest.raises(InfeasibleError, match="There is no cascade"):
        open_run(run).cascades().choose()


def test_networks_that_cannot_be_in_a_cascade_are_named(run):
    ids = trained_ids(run)
    (run / "models" / ids[0] / "answers.json").unlink()
    change(run / "models" / ids[1] / "trained.json", calibration__images=0)
    plan = open_run(run).cascades()
    assert plan.judged.names == tuple(ids[2:])
    assert plan.notes == (
        f"{ids[0]} has no answers.json: `nas retrain` with its ID writes it",
        f"{ids[1]} has no calibrated confidences, because its last ops do not allow a temperature",
    )


@pytest.mark.parametrize("stages", [1, 4])
def test_cascade_has_two_or_three_stages(run, stages, invoke):
    done = invoke("cascade", run, "--stages", stages)
    assert done.returncode == 2
    assert f"cannot have {stages} stages" in done.stderr


def test_run_with_too_few_networks_says_why_others_are_left_out(run, invoke):
    ids = trained_ids(run)
    for name in ids[1:]:
        change(run / "models" / name / "trained.json", calibration__images=0)
    done = invoke("cascade", run)
    assert done.returncode == 2
    assert f"and {run} has 1. {ids[1]} has no calibrated confidences" in done.stderr


def test_networks_of_two_dtypes_are_in_no_common_cascade(run):
    ids = trained_ids(run)
    for name in ids[2:]:
        (run / "models" / name / "answers.json").unlink()
    change(run / "models" / ids[0] / "trained.json", architecture__choices__dtype="int8")
    with pytest.raises(RequestError, match="of one dtype, and .* has 1 in int8 and 1 in float32"):
        open_run(run).cascades()


def test_network_that_answered_other_images_is_left_out(run):
    ids = trained_ids(run)
    change(run / "run.json", data__class_counts__holdout=[24] * 9 + [23])
    with pytest.raises(RequestError, match=f"{ids[0]} answered other images"):
        open_run(run).cascades()


SERVER_US = 0.01
"""Latency of a kernel, a launch and a start on the server."""


def server_table(run, folder, *names):
    """Write a table of a server on which everything takes `SERVER_US`."""
    graphs = [open_run(run).architecture(name).graph for name in names]
    kernels = dict.fromkeys(kernel for graph in graphs for kernel in kernels_of_parts(graph))
    path, costs = folder / "server.jsonl", (SERVER_US, SERVER_US)
    write_table(path, kernels, lambda kernel: SERVER_US, *costs)
    return ["--server", path], graphs


def test_last_network_on_a_server_takes_the_link_and_the_table_of_the_server(
    complementary, tmp_path, invoke
):
    first, *_, second = trained_ids(complementary)
    server, [graph] = server_table(complementary, tmp_path, second)
    link = ["--bandwidth-mbps", "10000", "--rtt-ms", "0.0001"]
    limit = ["--max-latency-ms", "1", "--json"]
    printed = document(invoke("cascade", complementary, *server, *link, *limit))
    by_name = {"-".join(each["networks"]): each for each in printed["curve"]}
    launches = len(TvmRuntime().kernels(graph.folded))
    # The image has 8x8 pixels, and the answer 10 logits of 4 bytes behind a header of 16.
    link_us = 0.1 + 8 * (64 + 16 + 40) / 10000
    server_us = link_us + (1 + 2 * launches) * SERVER_US
    chosen = by_name[f"{first}-{second}@server"]
    us = latencies_us(complementary)[first]
    assert chosen["worst_us"] == pytest.approx(us + server_us)
    assert chosen["mean_us"] == pytest.approx(us + chosen["answered"][1] * server_us)
    assert (chosen["accuracy"], chosen["chosen_accuracy"]) == (1.0, 1.0)


def test_cascade_on_two_machines_is_not_exported(complementary, tmp_path, invoke):
    first, *_, second = trained_ids(complementary)
    server, _ = server_table(complementary, tmp_path, second)
    link = ["--bandwidth-mbps", "1e6", "--rtt-ms", "0"]
    limit = ["--max-latency-ms", "1", "--format", "onnx"]
    refused = invoke("cascade", complementary, *server, *link, *limit)
    assert refused.returncode == 2
    assert f"{first}-{second}@server runs on two machines" in refused.stderr


def test_wrong_servers_are_one_message(complementary, tmp_path, invoke):
    server, _ = server_table(complementary, tmp_path)
    refused = invoke("cascade", complementary, *server)
    assert refused.returncode == 2
    assert "The bandwidth is nan Mbit/s" in refused.stderr
    refused = invoke("cascade", complementary, *server, "--bandwidth-mbps", 1, "--rtt-ms", 1)
    assert refused.returncode == 2
    assert "The server can run no trained network" in refused.stderr
    assert "server.jsonl lacks" in refused.stderr


def test_a_network_with_an_exit_is_a_cascade_by_the_table_and_the_answers(tmp_path, invoke):
    run, name = run_with_exit(tmp_path / "run")
    plan = open_run(run).cascades()
    assert plan.judged.names == (name, f"{name}@exit", name)
    network = open_run(run).architecture(name)
    parts = with_exit(network)
    # A network costs a start, and each kernel and its launch, which all take equally long.
    whole, *shares = (
        1 + 2 * len(TvmRuntime().kernels(graph))
        for graph in (network.graph, parts.prefix, parts.rest)
    )
    prefix_us, rest_us = (share / whole * latencies_us(run)[name] for share in shares)
    chosen = plan.choose(max_latency_ms=1)
    assert (chosen.name, chosen.networks) == (f"{name}@exit", (f"{name}@exit", name))
    assert chosen.has_exit
    # The exit is right where it is sure, and the rest on the other quarter of the images.
    assert (chosen.accuracy, chosen.chosen_accuracy) == (1.0, 1.0)
    assert chosen.answered == pytest.approx((0.75, 0.25), abs=0.05)
    assert chosen.mean_us == pytest.approx(prefix_us + chosen.answered[1] * rest_us)
    assert chosen.worst_us == pytest.approx(prefix_us + rest_us)
    # The rest is no rival, though it is as accurate as the whole network and faster.
    for rival in (chosen.rival, chosen.best):
        assert (rival.network, rival.latency_us) == (name, latencies_us(run)[name])
    shown = invoke("cascade", run, "--max-latency-ms", 1)
    assert shown.returncode == 0, shown.stderr
    assert f"{name}@exit answers from a confidence of" in shown.stdout
    assert f"and {name} the rest" in shown.stdout
    assert "Latency, in predicted shares: " in shown.stdout
    assert "behind it are predicted" in shown.stdout
    assert "(@exit)" in build(open_run(run)).read_text()


def test_an_exit_without_a_predicted_latency_is_said_with_the_remedy(tmp_path, invoke):
    run, name = run_with_exit(tmp_path / "run")
    table = next((run / "tables").iterdir())
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if "-> 128x" not in line))
    refused = invoke("cascade", run)
    assert refused.returncode == 2
    assert f"{name}@exit has no predicted latency: {table.name} lacks " in refused.stderr
    assert "`nas run " in refused.stderr
    table.unlink()
    assert "has no predicted latency" in invoke("cascade", run).stderr
    change(run / "run.json", job__device__batch=2)
    assert "an exit decides image by image, in float32" in invoke("cascade", run).stderr


def test_rests_dominate_nothing_and_are_no_rivals():
    """The rest of a network is as fast as nothing and as accurate as the network."""
    answers = NetworkAnswers(
        ("whole", "whole@exit", "whole"),
        np.array([10.0, 4.0, 0.5]),
        np.array([[True] * 4, [True, True, False, False], [True] * 4]),
        np.array([[0.9] * 4, [0.9, 0.8, 0.5, 0.4], [0.9] * 4]),
        np.array([4]),
        False,
        frozenset({2}),
    )
    front = answers.front([(1, 2)])
    assert [(each.mean_us, each.accuracy) for each in front] == [(4.125, 0.75), (4.25, 1.0)]
    assert answers.of(np.array([True] * 4)).rivals == [0, 1]
    cascade = CascadePlan("run", answers, answers, front, "images", ()).curve[-1]
    assert (cascade.rival.network, cascade.best.network) == ("whole@exit", "whole")
