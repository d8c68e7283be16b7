from itertools import product

import numpy as np
import pytest

from nas.search.importance import MIN_EXPLAINED, choice_importance
from nas.space import SearchSpace, Stage

KERNELS = {"kernel": (3, 5, 7)}
FIXED = SearchSpace(
    "fixed",
    stages=(
        Stage("stem", "conv", width=(8, 16, 24, 32), per_stage=KERNELS),
        Stage("body", "conv", width=(8, 16, 24), per_stage=KERNELS),
        Stage("tail", "conv", width=(8, 16), per_stage={"kernel": (3, 5)}),
        Stage("head", "pool_classifier", width=(32, 64)),
    ),
    image_size=8,
    classes=10,
)
ELASTIC = SearchSpace(
    "elastic",
    stages=(
        Stage("stem", "conv", width=(8, 16, 24), per_stage={"kernel": 3}),
        Stage("body", "inverted_residual", width=16, depth=(1, 2, 3),
              per_block={"kernel": (3, 5, 7), "expand": 3}),
        Stage("head", "linear_classifier"),
    ),
    image_size=8,
    classes=10,
)  # fmt: skip
KERNEL_GROUP = ["body.0.kernel", "body.1.kernel", "body.2.kernel"]


def effects_of(space: SearchSpace) -> dict[str, np.ndarray]:
    """Return a value for each option of each choice; the choices differ in their spread."""
    rng = np.random.default_rng(7)
    scales = np.geomspace(2.0, 0.1, len(space.parameters))
    return {
        name: scale * rng.permutation(np.linspace(-1, 1, len(options)))
        for scale, (name, options) in zip(scales, space.parameters.items(), strict=True)
    }


def additive(space: SearchSpace, effects: dict[str, np.ndarray], choices) -> float:
    return sum(effects[name][space.parameters[name].index(v)] for name, v in choices.items())


def samples(space: SearchSpace, count: int):
    rng = np.random.default_rng(3)
    drawn = [space.sample(rng, uniform_over="choices") for _ in range(count)]
    return list(dict.fromkeys(drawn))


def test_shares_are_those_of_the_variances_wherever_the_search_looked():
    effects = effects_of(FIXED)
    drawn = samples(FIXED, 1200)
    values = np.array([additive(FIXED, effects, each.choices) for each in drawn])
    # A search scores mostly good networks, in which the most important choice hardly varies.
    best, others = np.split(np.argsort(-values), [250])
    chosen = np.random.default_rng(0).permutation([*best, *others[::20]])
    groups = {name: [name] for name in FIXED.parameters}
    (result,) = choice_importance(
        FIXED, groups, [drawn[index] for index in chosen], [values[chosen]]
    )
    variances = {name: each.var() for name, each in effects.items()}
    total = sum(variances.values())
    for name, variance in variances.items():
        assert result.effects[name].share == pytest.approx(variance / total, abs=0.1)
    assert sum(each.share for each in result.effects.values()) == pytest.approx(1)
    assert result.explained > 0.9
    widest = max(variances, key=variances.__getitem__)
    pairs = [(a - b) ** 2 for a, b in product(effects[widest], repeat=2) if a != b]
    assert result.effects[widest].change == pytest.approx(np.mean(pairs) ** 0.5, rel=0.15)


def test_choices_of_blocks_count_as_often_as_networks_have_them():
    """The total effects by brute force: all networks, each choice changed to every option."""
    effects = effects_of(ELASTIC)

    def value(raw: dict) -> float:
        depth = raw["body.depth"]
        used = {n: v for n, v in raw.items() if n not in KERNEL_GROUP[depth:]}
        return additive(ELASTIC, effects, used)

    names = list(ELASTIC.parameters)
    combinations = list(product(*ELASTIC.parameters.values()))
    groups = {"stem.width": ["stem.width"], "body.depth": ["body.depth"], "kernel": KERNEL_GROUP}
    variances = {}
    for group, members in groups.items():
        fixed = [name for name in names if name not in members]
        by_others: dict[tuple, list[float]] = {}
        for combination in combinations:
            raw = dict(zip(names, combination, strict=True))
            by_others.setdefault(tuple(raw[name] for name in fixed), []).append(value(raw))
        variances[group] = np.mean([np.var(values) for values in by_others.values()])
    drawn = samples(ELASTIC, 300)
    values = np.array([additive(ELASTIC, effects, each.choices) for each in drawn])
    (result,) = choice_importance(ELASTIC, groups, drawn, [values])
    total = sum(variances.values())
    for group, variance in variances.items():
        assert result.effects[group].share == pytest.approx(variance / total, abs=0.08)


def test_noise_and_a_constant_have_no_shares():
    drawn = samples(FIXED, 200)
    noise = np.random.default_rng(0).random(len(drawn))
    groups = {name: [name] for name in FIXED.parameters}
    for result in choice_importance(FIXED, groups, drawn, [noise, np.ones(len(drawn))]):
        assert result.explained < MIN_EXPLAINED
        assert not result.effects
