"""Networks that a search finds, beside published and random ones: the study of docs/study.md.

    nas run tests/benchmarks/study_cifar10.toml
    python -m tests.benchmarks.study results/study --run results/study-cifar10
    python -m tests.benchmarks.study results/study      # only writes the report anew

Networks of the front of a run, published networks, and a random network at the predicted latency of
each of the first are timed as whole networks, in turns, and written to `study.json`. Each of them
is then trained with every seed, from newly drawn weights: all with one recipe, equally many epochs
and one teacher. A training that has ended is a row of `study.csv`, which the same command skips
when it is started again. `study.md`, `study.svg` and `study.png` say what the rows show.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

import nas
from nas.deploy.references import published_network, time_networks
from nas.deploy.retrain import Retraining
from nas.display import plotting
from nas.display.formatting import format_latency
from nas.errors import KernelError, TrainingError
from nas.run.front import representatives
from nas.run.progress import SilentProgress
from nas.search import non_dominated
from nas.supernet.evaluation import predict_network
from nas.supernet.standalone import train_network

LATENCY_TOLERANCE = 0.03
"""Largest relative difference of the predicted latencies of a random network and the found one."""

MAX_DRAWS = 5000
"""Draws for a random network; the nearest in latency is taken after these."""

REFERENCES = [
    *("mobilenet_v2_0.35", "mobilenet_v2_0.5", "mobilenet_v3_small"),
    *("shufflenet_v2_0.5", "squeezenet_1.1"),
]

COLUMNS = [
    *("network", "kind", "space", "seed", "epochs", "holdout_accuracy", "test_accuracy"),
    *("latency_us", "macs", "params", "seconds", "error"),
]

STYLES: dict[str, dict[str, Any]] = {
    "found": {"color": plotting.COLOURS[0], "marker": "o", "label": "found"},
    "published": {"color": plotting.COLOURS[1], "marker": "^", "label": "published"},
    "random": {"color": "#8a8a8a", "marker": "x", "label": "random, at the latency of a found one"},
}


# Networks and trainings


def begin_study(run: Any, setup: Retraining, options: argparse.Namespace) -> dict[str, Any]:
    """Return a study: its networks with their latencies, and what it is made with."""
    batch = run.settings.device.batch
    space_of, ids = run.spaces, dict(zip(run.trials["digest"], run.trials["id"], strict=True))

    def predict_us(architecture: nas.Architecture) -> float | None:
        try:
            return run.table.predict(architecture, batch).latency_us
        except KernelError:  # The table lacks kernels of spaces that were not searched.
            return None

    digests = representatives(run.front, run.settings.search, options.finalists)
    chosen = [(ids[digest], "found", run.architecture(digest), None) for digest in digests]
    chosen += [(name, "published", published_network(run, name), None) for name in REFERENCES]
    known = {architecture.digest for _, _, architecture, _ in chosen}
    for position, (name, _, own, _) in enumerate(chosen[: len(digests)]):
        rng = np.random.default_rng([run.settings.seed, position])
        drawn = draw_like(own, space_of[own.space.name], predict_us, rng, known)
        known.add(drawn.digest)
        chosen.append((f"random-{name}-1", "random", drawn, name))
    timed = time_networks(run, {name: each for name, _, each, _ in chosen}, SilentProgress())
    networks = [
        {
            "name": name,
            "kind": kind,
            "space": architecture.space.name,
            "architecture": architecture.to_json(),
            "macs": architecture.macs,
            "params": architecture.params,
            "predicted_us": predict_us(architecture),
            "latency_us": timed[name].fastest_us,
            "found": found,
            "samples_us": [each.samples_us for each in timed[name].rounds],
        }
        for name, kind, architecture, found in chosen
    ]
    recipe = setup.settings.identity(from_scratch=True)
    facts = {
        "images": run.data.summary,
        "device of the latencies": run.record.device.summary,
        "versions": ", ".join(f"{name} {text}" for name, text in run.record.versions.items()),
        "recipe": ", ".join(f"{name} {value}" for name, value in recipe.items()),
        "teacher": f"largest of {setup.teacher[0]}" if setup.teacher else "none",
    }
    return {"epochs": options.epochs, "seeds": options.seeds, "facts": facts, "networks": networks}


def draw_like(
    found: nas.Architecture,
    space: nas.SearchSpace,
    predict_us: Callable[[nas.Architecture], float | None],
    rng: np.random.Generator,
    known: set[str],
) -> nas.Architecture:
    """Draw a random network of a space that is as fast as a found one by prediction.

    Every choice is drawn uniformly. If no draw is within `LATENCY_TOLERANCE`, the nearest one is
    returned: few networks are about as fast as the fastest one of a space.
    """
    target_us = predict_us(found)
    nearest: tuple[float, nas.Architecture] | None = None
    for _ in range(MAX_DRAWS):
        drawn = space.sample(rng, uniform_over="choices")
        predicted_us = predict_us(drawn)
        if drawn.digest in known or predicted_us is None:
            continue
        distance = abs(predicted_us / target_us - 1)
        if nearest is None or distance < nearest[0]:
            nearest = distance, drawn
        if distance <= LATENCY_TOLERANCE:
            break
    assert nearest is not None
    return nearest[1]


def train_missing(
    folder: Path, study: dict[str, Any], train: Callable[[dict[str, Any], int], dict[str, Any]]
) -> None:
    """Do the trainings of a study that have no row in `study.csv`, and append a row for each.

    Every network is trained with the first seed before any is with the second, and kinds take
    turns, so that an interrupted study compares as much as it can.

    Args:
        folder: folder of the study.
        study: the contents of its `study.json`.
        train: trains a network with a seed, and returns the columns that result.
    """
    path = folder / "study.csv"
    done = set(zip(*(read_rows(folder)[column] for column in ("network", "seed")), strict=True))
    of_kind = [[each for each in study["networks"] if each["kind"] == kind] for kind in STYLES]
    turns = [own[at] for at in range(max(map(len, of_kind))) for own in of_kind if at < len(own)]
    for seed in range(study["seeds"]):
        for network in turns:
            if (network["name"], seed) in done:
                continue
            row = {name: network[name] for name in COLUMNS if name in network}
            row |= {"network": network["name"], "seed": seed, "epochs": study["epochs"]}
            row |= train(network, seed)
            is_new = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if is_new:
                    writer.writeheader()
                writer.writerow(row)
            print(f"{row['network']}, seed {seed}: {row.get('test_accuracy', row.get('error'))}")


def train_once(run: Any, setup: Retraining, network: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train a network of a study from newly drawn weights, and test it."""
    architecture = (
        published_network(run, network["name"])
        if network["kind"] == "published"
        else run.spaces[network["space"]].from_json(network["architecture"])
    )
    data, teacher = run.data, setup.teacher and setup.teacher[1]
    try:
        with tempfile.TemporaryDirectory() as folder:
            trained = train_network(
                architecture, data, Path(folder), setup.settings, seed=seed, teacher=teacher
            )
    except TrainingError as error:  # It would diverge again.
        return {"error": error.message}
    accuracies = {
        f"{name}_accuracy": data.score(
            predict_network(trained.network, data, images), images.labels
        )
        for name, images in (("holdout", data.holdout), ("test", data.test))
    }
    return {**accuracies, "seconds": trained.seconds}


def read_rows(folder: Path) -> pd.DataFrame:
    """Return the rows of `study.csv`; none if no training has ended."""
    path = folder / "study.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)


# Comparison


def by_network(study: dict[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    """Return the networks that were trained, the fastest first.

    `accuracies` are those on the test images, one for each seed, and `accuracy` is their mean.
    """
    accuracies = rows.dropna(subset="test_accuracy").groupby("network")["test_accuracy"].apply(list)
    networks = pd.DataFrame(study["networks"]).set_index("name", drop=False)
    networks = networks.loc[networks.index.isin(accuracies.index)].sort_values("latency_us")
    networks["accuracies"] = accuracies
    networks["accuracy"] = networks["accuracies"].map(np.mean)
    return networks


class Curve:
    """The front of networks of one kind: mean test accuracy over measured latency.

    It is linear in the logarithm of the latency between its members, and ends, flat, at the slowest
    network of the kind.

    Args:
        networks: at least one row of `by_network`.
    """

    def __init__(self, networks: pd.DataFrame) -> None:
        points = np.column_stack([networks["latency_us"], -networks["accuracy"]])
        self.members = networks.iloc[non_dominated(points)]
        self.log_us = np.log(self.members["latency_us"].to_numpy())
        self.accuracies = self.members["accuracy"].to_numpy()
        self.slowest_us = float(networks["latency_us"].max())

    def weights(self, latencies_us: Any) -> Any:
        """Return the weight of each member's accuracy in the curve, `latencies x members`."""
        identity = np.eye(len(self.log_us))
        return np.stack([np.interp(np.log(latencies_us), self.log_us, e) for e in identity], -1)

    def accuracy(self, latencies_us: Any) -> Any:
        """Return the accuracy of the curve at some latencies."""
        return self.weights(latencies_us) @ self.accuracies

    def latency_us(self, accuracies: Any) -> Any:
        """Return the latency at which the curve reaches some accuracies within its range."""
        return np.exp(np.interp(accuracies, self.accuracies, self.log_us))

    def variance(self, weights: Any) -> float:
        """Return the variance of a weighted sum, as a multiple of that of one accuracy."""
        return float((weights**2 / self.members["accuracies"].map(len).to_numpy()).sum())


class SeedNoise:
    """The standard deviation of an accuracy between trainings of one network.

    It is taken to be the same for all networks, and pooled, as in an analysis of variance.

    Args:
        networks: rows of `by_network`.
    """

    def __init__(self, networks: pd.DataFrame) -> None:
        squares = networks["accuracies"].map(lambda own: len(own) * np.var(own)).sum()
        self.freedom = int(networks["accuracies"].map(len).sum()) - len(networks)
        self.deviation = math.sqrt(squares / self.freedom) if self.freedom else math.nan

    def half_interval(self, variance: float) -> float:
        """Return half of the 95% interval of a sum with this multiple of the variance."""
        return stats.t.ppf(0.975, self.freedom) * self.deviation * math.sqrt(variance)


def compare_published(found: Curve, published: Curve, noise: SeedNoise) -> list[str]:
    """Return the comparison of two curves, over the range that both have, in sentences."""
    grid = np.geomspace(
        math.exp(max(found.log_us[0], published.log_us[0])),
        min(found.slowest_us, published.slowest_us),
        400,
    )
    if grid[0] >= grid[-1]:
        return ["No latency is common to the networks found and the published ones."]
    gains = found.accuracy(grid) - published.accuracy(grid)
    variance = sum(curve.variance(curve.weights(grid).mean(0)) for curve in (found, published))
    low, high = format_latency(grid[0]), format_latency(grid[-1])
    texts = [
        f"At equal measured latency, from {low} to {high}, the networks found are "
        f"{points_text(gains.mean(), noise.half_interval(variance))} than the best published "
        "ones, on average over the logarithm of the latency. They are more accurate over "
        f"{np.mean(gains > 0):.0%} of this range."
    ]
    lowest = max(found.accuracies[0], published.accuracies[0])
    highest = min(found.accuracies[-1], published.accuracies[-1])
    if lowest < highest:
        common = np.linspace(lowest, highest, 400)
        ratios = found.latency_us(common) / published.latency_us(common)
        texts.append(
            f"At equal accuracy, from {lowest:.1%} to {highest:.1%}, they take "
            f"{stats.gmean(ratios):.2f} of the latency of the published ones (the geometric mean), "
            f"and are faster over {np.mean(ratios < 1):.0%} of this range."
        )
    return texts


def random_gains(networks: pd.DataFrame) -> pd.Series:
    """Return the accuracy of each found network minus that of its random one, by its name."""
    drawn = networks[networks["kind"] == "random"].set_index("found")["accuracy"]
    return (networks["accuracy"] - drawn).dropna()


def statements(networks: pd.DataFrame) -> list[str]:
    """Return what a study shows, in sentences."""
    kinds = {kind: networks[networks["kind"] == kind] for kind in STYLES}
    noise, texts = SeedNoise(networks), []
    if not (kinds["found"].empty or kinds["published"].empty):
        texts += compare_published(Curve(kinds["found"]), Curve(kinds["published"]), noise)
    gains = random_gains(networks)
    if not gains.empty:
        latencies = kinds["random"].set_index("found")["latency_us"]
        mismatch = (latencies / networks["latency_us"] - 1).abs().max()
        half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
        texts.append(
            "Against random networks of the same space and latency, the networks found are "
            f"{points_text(gains.mean(), half)}, on average over {len(gains)} of them; "
            f"{(gains > 0).sum()} of {len(gains)} are more accurate. The measured latencies of a "
            f"pair differ by at most {mismatch:.0%}."
        )
    if noise.freedom:
        texts.append(
            "Between two trainings of one network, the accuracy has a standard deviation of "
            f"{100 * noise.deviation:.2f} points."
        )
    return texts


def points_text(gain: float, half: float) -> str:
    """Return a difference of accuracies in words: "1.2 points (0.4 to 2.0) more accurate"."""
    size, half = 100 * abs(gain), 100 * half
    bounds = "" if math.isnan(half) else f" ({size - half:.1f} to {size + half:.1f})"
    return f"{size:.1f} points{bounds} {'less' if gain < 0 else 'more'} accurate"


# Report


def write_report(folder: Path) -> None:
    """Write `study.md` and the figure of a study, as far as it has been trained."""
    study, rows = json.loads((folder / "study.json").read_text()), read_rows(folder)
    networks = by_network(study, rows)
    (folder / "study.md").write_text(report(study, rows, networks))
    if not networks.empty:
        figure = draw(study, networks)
        for suffix in plotting.PICTURE_SUFFIXES:
            plotting.save(figure, folder / f"study{suffix}")


def report(study: dict[str, Any], rows: pd.DataFrame, networks: pd.DataFrame) -> str:
    """Return the text of a study in Markdown: statements, networks, and how they were trained."""
    total = len(study["networks"]) * study["seeds"]
    parts = ["# Study", "![Test accuracy over measured latency](study.svg)"]
    if len(rows) < total:
        parts.append(f"{len(rows)} of {total} trainings have ended.")
    parts += statements(networks)
    parts.append(
        f"All networks start from newly drawn weights and are trained for {study['epochs']} epochs "
        "with one recipe and one teacher. Accuracies are those on the test images, which no "
        "training and no search has used. An interval is 95%: against published networks over the "
        "seeds, against random ones over the networks found."
    )
    found, published = (networks[networks["kind"] == kind] for kind in ("found", "published"))
    gains = random_gains(networks)
    if not found.empty:
        curve, noise = Curve(found), SeedNoise(networks)
        header = ["network", "latency", "test accuracy", "those found, at its latency"]
        header.append("latency of those found, at its accuracy")
        lines = [[*described(each), *rival(each, curve, noise)] for _, each in published.iterrows()]
        parts += ["## Published networks", table([header, *lines])]
        header = ["network", "latency", "test accuracy", "space"]
        header.append("points above a random one of its latency")
        lines = [
            [*described(each), each["space"], f"{100 * gains[name]:+.1f}" if name in gains else ""]
            for name, each in found.iterrows()
        ]
        parts += ["## Networks found", table([header, *lines])]
    facts = "\n".join(f"- {name}: {fact}" for name, fact in study["facts"].items())
    return "\n\n".join([*parts, "## Made by", facts]) + "\n"


def described(network: pd.Series) -> list[str]:
    """Return the name, the latency and the mean accuracy of a network, with the seeds' range."""
    low, high = (100 * end for end in (min(network["accuracies"]), max(network["accuracies"])))
    accuracy = f"{network['accuracy']:.1%} ({low:.1f} to {high:.1f})"
    return [network["name"], format_latency(network["latency_us"]), accuracy]


def rival(network: pd.Series, found: Curve, noise: SeedNoise) -> tuple[str, str]:
    """Return what the found networks gain at the latency of another, and their latency ratio.

    An end is empty where the found ones have no network that is as fast, or as accurate.
    """
    gain = ratio = ""
    at_us = network["latency_us"]
    if math.log(at_us) >= found.log_us[0]:
        variance = found.variance(found.weights(at_us)) + 1 / len(network["accuracies"])
        difference = float(found.accuracy(at_us)) - network["accuracy"]
        gain = points_text(difference, noise.half_interval(variance))
    if network["accuracy"] <= found.accuracies[-1]:
        ratio = f"{found.latency_us(network['accuracy']) / at_us:.2f}"
    return gain, ratio


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, whose first line is its header."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@mpl.rc_context(plotting.STYLE)
def draw(study: dict[str, Any], networks: pd.DataFrame) -> Figure:
    """Return accuracy over measured latency: the mean, and the range over the seeds.

    The line is the front of the found networks.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for kind, style in STYLES.items():
        own = networks[networks["kind"] == kind]
        if own.empty:
            continue
        if kind == "found":
            members = Curve(own).members
            axes.plot(members["latency_us"] / 1000, 100 * members["accuracy"], style["color"])
        ends = [own["accuracy"] - own["accuracies"].map(min), own["accuracies"].map(max)]
        ends[1] -= own["accuracy"]
        axes.errorbar(
            own["latency_us"] / 1000, 100 * own["accuracy"], yerr=100 * np.array(ends),
            linestyle="none", markersize=6, elinewidth=1.2, capsize=2, **style,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("measured latency, ms (logarithmic)")
    axes.set_ylabel("test accuracy, %")
    title = f"{study['epochs']} epochs from newly drawn weights"
    axes.set_title(f"{title}, mean and range over {study['seeds']} seeds", fontsize=10, loc="left")
    axes.legend(loc="lower right", frameon=False)
    plotting.set_plain_ticks(axes, "x")
    figure.draw_without_rendering()
    points = zip(networks["latency_us"] / 1000, 100 * networks["accuracy"], strict=True)
    named, others = [], []
    for (x, y), name, kind in zip(points, networks["name"], networks["kind"], strict=True):
        if kind == "random":
            others.append((x, y))
        else:
            named.append((x, y, name, STYLES[kind]["color"]))
    plotting.label_points(axes, named, others)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the study")
    parser.add_argument("--run", type=Path, help="run whose networks are compared and trained")
    parser.add_argument("--finalists", type=int, default=5, help="networks of the front")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    if options.run is not None:
        run = nas.open_run(options.run)
        path = options.out / "study.json"
        setup = Retraining(run, options.epochs, from_scratch=True)
        if not path.exists():
            options.out.mkdir(parents=True, exist_ok=True)
            study = begin_study(run, setup, options)
            path.write_text(json.dumps(study, indent=1) + "\n")
        study = json.loads(path.read_text())
        train_missing(
            options.out, study, lambda network, seed: train_once(run, setup, network, seed)
        )
    write_report(options.out)


if __name__ == "__main__":
    main()
