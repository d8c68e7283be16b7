import optuna
import pytest

from nas.search import GuidedSampler, run_search, suggest
from nas.search.parameters import Parameters
from nas.space import Architecture, SearchSpace, Stage
from tests.search.test_study import macs

HEAD = Stage("head", "linear_classifier")
SIZES = {"image_size": 8, "channels": 1, "classes": 3}


def space_with_stages(name, widths):
    """Return a space with the choices `b.width`, `c.width` and `b.kernel`."""
    stages = (
        Stage("b", "conv", widths, per_stage={"kernel": (1, 3, 5)}),
        Stage("c", "conv", (8, 16, 24), per_stage={"kernel": 1}),
        HEAD,
    )
    return SearchSpace(name, stages, **SIZES)


def space_with_width(name, widths):
    """Return a space with the choices `width` and `b.kernel`."""
    stages = (Stage("b", "conv", per_stage={"kernel": (1, 3, 5, 7)}), HEAD)
    return SearchSpace(name, stages, choices={"width": widths}, **SIZES)


DOTTED = [space_with_stages("net_x0.5", (8, 16)), space_with_stages("net_x0.75", (8, 16, 24))]
AMBIGUOUS = [space_with_width("a.b", (4, 12, 20)), space_with_stages("a", (8, 16))]
"""`width` of the first space and `b.width` of the second would get the same parameter name."""


def offset(architecture):
    return 1 / macs(architecture) + len(architecture.space.name)


def summary(result):
    return [(trial.architecture, trial.state, trial.values) for trial in result.trials]


@pytest.mark.parametrize("sampler", ["guided", "tpe", "nsga2"])
@pytest.mark.parametrize(
    "spaces", [DOTTED, DOTTED[:1], AMBIGUOUS], ids=["several", "one", "ambiguous"]
)
def test_search_resumes_over_spaces_with_dots_in_their_names(spaces, sampler, tmp_path):
    def run_test_search(trials, **settings):
        objectives = {"offset": offset, "macs": macs}
        return run_search(spaces, objectives, trials=trials, sampler=sampler, startup=4, **settings)

    expected = run_test_search(12)
    assert {trial.architecture.space.name for trial in expected.trials} == {s.name for s in spaces}
    run_test_search(5, storage=tmp_path / "study.journal")
    resumed = run_test_search(12, storage=tmp_path / "study.journal")
    assert summary(resumed) == summary(expected)


@pytest.mark.parametrize("spaces", [DOTTED, AMBIGUOUS], ids=["several", "ambiguous"])
@pytest.mark.parametrize("make", [GuidedSampler, lambda _: optuna.samplers.RandomSampler(seed=0)])
def test_trials_of_a_study_are_read_back_as_their_architectures(spaces, make):
    architectures = {}

    def objective(trial):
        architectures[trial.number] = suggest(trial, spaces)
        return macs(architectures[trial.number])

    study = optuna.create_study(sampler=make(spaces))
    study.optimize(objective, n_trials=15)
    parameters, by_name = Parameters(spaces), {space.name: space for space in spaces}
    assert {each.space.name for each in architectures.values()} == set(by_name)
    for trial in study.trials:
        space = by_name[trial.params["space"]]
        choices = parameters.choices(space.name, trial.params)
        assert space.architecture(choices) == architectures[trial.number]


@pytest.mark.parametrize("spaces", [AMBIGUOUS, AMBIGUOUS[::-1]])
def test_ambiguous_choices_get_different_names(spaces):
    parameters = Parameters(spaces)
    assert parameters.names("a")["b.width"] == "a.b.width"
    assert parameters.names("a.b")["width"] == "a.b:width"
    assert len(parameters.distributions) == 1 + sum(len(space.parameters) for space in spaces)
    assert parameters.distributions["a.b.width"].choices == (8, 16)
    assert parameters.distributions["a.b:width"].choices == (4, 12, 20)
    (space,) = (space for space in spaces if space.name == "a.b")
    values = parameters.from_architecture(Architecture(space, (("width", 4),)))
    assert values == {"space": "a.b", "a.b:width": 4}
