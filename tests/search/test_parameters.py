import optuna
import pytest

from nas.search import GuidedSampler, run_search, suggest
from nas.search.parameters import Parameters
from nas.space import SearchSpace, Stage
from tests.search.test_study import macs, summary

SIZES = {"image_size": 8, "channels": 1, "classes": 3}


def space_with_dots(name, widths):
    """Return a space with the choices `b.width`, `c.width` and `b.kernel`."""
    stages = (
        Stage("b", "conv", widths, per_stage={"kernel": (1, 3, 5)}),
        Stage("c", "conv", (8, 16, 24), per_stage={"kernel": 1}),
        Stage("head", "linear_classifier"),
    )
    return SearchSpace(name, stages, **SIZES)


SPACES = [space_with_dots("net_x0.5", (8, 16)), space_with_dots("net_x0.75", (8, 16, 24))]


def offset(architecture):
    return 1 / macs(architecture) + len(architecture.space.name)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
@pytest.mark.parametrize("spaces", [SPACES, SPACES[:1]], ids=["several", "one"])
def test_search_resumes_over_spaces_with_dots_in_their_names(spaces, sampler, tmp_path):
    def run_test_search(trials, **settings):
        objectives = {"offset": offset, "macs": macs}
        return run_search(spaces, objectives, trials=trials, sampler=sampler, startup=4, **settings)

    expected = run_test_search(12)
    assert {trial.architecture.space.name for trial in expected.trials} == {s.name for s in spaces}
    run_test_search(5, storage=tmp_path / "study.journal")
    resumed = run_test_search(12, storage=tmp_path / "study.journal")
    assert summary(resumed) == summary(expected)


@pytest.mark.parametrize("make", [GuidedSampler, lambda _: optuna.samplers.RandomSampler(seed=0)])
def test_trials_of_a_study_are_read_back_as_their_architectures(make):
    architectures = {}

    def objective(trial):
        architectures[trial.number] = suggest(trial, SPACES)
        return macs(architectures[trial.number])

    study = optuna.create_study(sampler=make(SPACES))
    study.optimize(objective, n_trials=15)
    parameters, by_name = Parameters(SPACES), {space.name: space for space in SPACES}
    assert {each.space.name for each in architectures.values()} == set(by_name)
    for trial in study.trials:
        space = by_name[trial.params["space"]]
        choices = parameters.choices(space.name, trial.params)
        assert space.architecture(choices) == architectures[trial.number]


def test_choices_that_would_have_one_name_get_different_ones():
    stages = (Stage("b", "conv", per_stage={"kernel": 3}), Stage("head", "linear_classifier"))
    dotted = SearchSpace("a.b", stages, choices={"width": (4, 12)}, **SIZES)
    spaces = [dotted, space_with_dots("a", (8, 16))]
    parameters = Parameters(spaces)
    assert parameters.names("a")["b.width"] == "a.b.width"
    assert parameters.names("a.b")["width"] == "a.b:width"
    assert parameters.distributions["a.b.width"].choices == (8, 16)
    values = parameters.from_architecture(dotted.architecture({"width": 4}))
    assert values["a.b:width"] == 4
