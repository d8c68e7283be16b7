"""A search that continues under other limits, judged against the values of the architectures."""

from dataclasses import replace

import pytest

from nas.errors import SearchError, StorageError
from nas.search import run_search
from nas.search.continuation import (
    continue_with_other_limits,
    end_processes,
    judge_again,
    limits_differ,
)
from nas.search.objectives import Estimate, Infeasible
from nas.search.storage import Storage
from tests.search.problems import make_objective
from tests.search.test_study import SPACES, error, macs
from tests.search.trials import BACKENDS, for_backends


def objectives(max_macs=None, max_params=None):
    """Return cheap multiply-accumulates, an error that costs a trial, and perhaps a limit."""
    chosen = [
        make_objective("macs", macs, cheap=True, limit=max_macs),
        make_objective("error", error),
    ]
    if max_params is not None:
        limit = {"limit": max_params, "limit_only": True}
        chosen.append(make_objective("params", lambda each: float(each.params), **limit))
    return chosen


def continued(location, study, chosen, seed=0, sampler="auto", fixed=(), **settings):
    return continue_with_other_limits(
        location,
        study,
        SPACES,
        chosen,
        seed=seed,
        fixed_settings={"sampler": sampler, **dict(fixed)},
        **settings,
    )


def search(location, limits, study="search", trials=30, **settings):
    return run_search(
        SPACES, objectives(**limits), trials=trials, storage=location, study_name=study, **settings
    )


def test_trials_are_judged_by_the_new_limits_and_values_stay(tmp_path):
    location = tmp_path / "study.journal"
    first = search(location, {})
    ordered = sorted(macs(trial.architecture) for trial in first.trials)
    limit = ordered[15]
    lower = continued(location, "search", objectives(limit))
    assert lower.study == "search.2"
    assert [limits_differ(location, name, objectives()) for name in ("search", "search.2")] == [
        False,
        True,
    ]
    assert (lower.complete, lower.infeasible, lower.forgotten) == (16, 14, 0)
    result = search(location, {"max_macs": limit}, lower.study)
    assert len(result.trials) >= 44
    assert sum(trial.state == "complete" for trial in result.trials) == 30
    for old, new in zip(first.trials, result.trials, strict=False):
        assert new.digest == old.digest
        assert new.values == old.values
        assert new.state == ("complete" if old.values["macs"] <= limit else "infeasible")
    points = [(t.values["macs"], t.values["error"]) for t in result.trials if t.state == "complete"]
    members = {
        p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
    }
    assert {(t.values["macs"], t.values["error"]) for t in result.front} == members
    back = continued(location, lower.study, objectives())
    assert back.study == "search.3"
    assert back.complete == len(result.trials) - sum(len(t.values) < 2 for t in result.trials)
    assert search(location, {}).trials == first.trials, "the earlier study is as it was"


def test_only_what_was_never_scored_is_forgotten(tmp_path):
    location = tmp_path / "study.journal"
    limit = sorted(macs(space.smallest) + 1 for space in SPACES)[-1] * 3
    first = search(location, {"max_macs": limit}, sampler="random", trials=20)
    refused = {trial.digest for trial in first.trials if trial.state == "infeasible"}
    assert refused
    raised = continued(location, "search", objectives(), sampler="random")
    assert (raised.complete, raised.infeasible, raised.forgotten) == (20, 0, len(refused))
    result = search(location, {}, raised.study, sampler="random", trials=20)
    assert not refused & {trial.digest for trial in result.trials}


def test_new_limit_is_evaluated_and_one_that_is_gone_is_left_out(tmp_path):
    location = tmp_path / "study.journal"
    first = search(location, {})
    limit = sorted(trial.architecture.params for trial in first.trials)[10]
    fewer = continued(location, "search", objectives(max_params=limit))
    small = sum(trial.architecture.params <= limit for trial in first.trials)
    assert (fewer.complete, fewer.infeasible) == (small, 30 - small)
    again = continued(location, fewer.study, objectives())
    assert (again.complete, again.infeasible, again.forgotten) == (30, 0, 0)


def test_reason_and_failure_of_a_trial():
    complete = search(None, {}, trials=4).trials[0]
    low = objectives(max_macs=complete.values["macs"] / 2)
    infeasible = judge_again(complete, low)
    assert "macs" in infeasible.error
    assert "beyond the limit" in infeasible.error
    assert judge_again(infeasible, objectives()) == complete
    never_scored = replace(infeasible, values={"macs": complete.values["macs"]})
    assert judge_again(never_scored, low).state == "infeasible"
    assert judge_again(never_scored, objectives()) is None
    failed = replace(complete, state="failed", values={}, error="no luck")
    assert judge_again(failed, objectives()) == failed
    nothing = [replace(each, score=lambda batch: [Infeasible("no kernel")]) for each in low]
    assert judge_again(replace(never_scored, values={}), nothing).error == "no kernel"


def test_estimate_is_scored_first_once_nothing_dominates_it(tmp_path):
    """An architecture that was scored in part may be on the front without what dominated it."""
    settings = {"trials": 30, "sampler": "random"}
    members = {trial.digest for trial in run_search(SPACES, objectives(), **settings).front}
    location = tmp_path / "study.journal"

    def error_in_part(architecture):
        variance = 0.0 if architecture.digest in members else 1e-6
        return Estimate(error(architecture), variance=variance)

    in_part = [objectives()[0], make_objective("error", error_in_part)]
    first = run_search(SPACES, in_part, storage=location, **settings)
    assert {trial.digest for trial in first.front} == members

    def with_limit(limit):
        is_member = make_objective(
            "is_member", lambda each: float(each.digest in members), limit=limit, limit_only=True
        )
        return [*objectives(), is_member]

    def without(limit):
        return continued(location, "search", with_limit(limit), sampler="random")

    dominated = without(1.0)
    assert (dominated.complete, dominated.offered, dominated.forgotten) == (30, 0, 0)
    exposed = without(0.0)
    # Each of the others is on the front once those that dominate it are not.
    assert (exposed.complete, exposed.infeasible, exposed.forgotten) == (0, len(members), 0)
    assert exposed.offered == 30 - len(members) > 0
    settings = {**settings, "trials": exposed.offered, "study_name": exposed.study}
    result = run_search(SPACES, with_limit(0.0), storage=location, **settings)
    complete = [trial for trial in result.trials if trial.state == "complete"]
    assert {t.digest for t in complete} == {t.digest for t in first.trials} - members
    assert not any(trial.variances for trial in complete)


def test_trials_for_another_device_keep_the_values_that_do_not_depend_on_it(tmp_path):
    location = tmp_path / "study.journal"
    first = search(location, {"max_macs": 1e9})
    limit = 7 * sorted(macs(trial.architecture) for trial in first.trials)[20]
    scored = []
    objectives = [
        make_objective("macs", lambda each: 7 * macs(each), cheap=True, limit=limit),
        make_objective("error", lambda each: scored.append(each.digest) or error(each)),
    ]
    device = {"device": "other"}
    continuation = continued(location, "search", objectives, fixed=device, renewed=["macs"])
    assert (continuation.complete, continuation.infeasible) == (21, 9)
    result = run_search(
        SPACES,
        objectives,
        trials=26,
        storage=location,
        study_name=continuation.study,
        fixed_settings=device,
    )
    for old, new in zip(first.trials, result.trials, strict=False):
        values = {"macs": 7 * old.values["macs"], "error": old.values["error"]}
        assert (new.digest, new.values, new.seconds) == (old.digest, values, 0.0)
        assert new.state == ("complete" if values["macs"] <= limit else "infeasible")
    assert len(scored) == 5
    assert not {trial.digest for trial in first.trials} & set(scored)


@for_backends(BACKENDS)
def test_processes_of_the_earlier_study_end(location):
    search(location, {}, trials=2)
    result = search(location, {}, trials=4, shared=True)
    assert result.stop_reason == "all trials done"
    new = continued(location, "search", objectives(1e9))
    end_processes(location, "search", new.study)
    result = search(location, {}, trials=20, shared=True)
    assert "study search.2 continues this one" in result.stop_reason
    assert len(result.trials) == 4
    result = search(location, {"max_macs": 1e9}, new.study, trials=6, shared=True)
    assert (result.stop_reason, len(result.trials)) == ("all trials done", 6)


def test_other_search_is_refused(tmp_path):
    location = tmp_path / "study.journal"
    search(location, {}, trials=4)
    with pytest.raises(SearchError, match="These settings differ: seed"):
        continued(location, "search", objectives(), seed=9)
    storage = Storage(location)
    storage._storage.set_study_user_attr(storage.get_study_id("search"), "identity", ["damage"])
    with pytest.raises(StorageError, match="is damaged"):
        continued(location, "search", objectives())
