import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nas.errors import SearchError, StorageError
from nas.search import liveness
from nas.search import storage as storages
from nas.search import trials as logs
from nas.search.liveness import this_process
from nas.search.objectives import Objective
from nas.search.storage import Storage
from nas.search.trials import MOST_DEATHS, Trial, TrialLog
from nas.space import load_space

SPACE = load_space("squeezenet_tiny", image_size=8, channels=1)
OBJECTIVES = [
    Objective("macs", lambda batch: [float(each.macs) for each in batch]),
    Objective("params", lambda batch: [0.0 for _ in batch], limit=1e9, limit_only=True),
    Objective("score", lambda batch: [0.5 for _ in batch], direction="maximize"),
]

SHARED = ["journal", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]
DATABASES = SHARED[1:]


@pytest.fixture
def kind(request):
    return getattr(request, "param", "journal")


@pytest.fixture
def where(kind, request, tmp_path):
    """What a storage is opened with; None for memory."""
    if kind == "postgresql":
        return request.getfixturevalue("database")
    return {
        "memory": None,
        "journal": tmp_path / "study.journal",
        "sqlite": f"sqlite:///{tmp_path}/study.db",
    }[kind]


@pytest.fixture
def opened(where):
    """Opens the storage as a further process would; all of memory is one."""
    memory = Storage(None)
    return lambda: memory if where is None else Storage(where)


@pytest.fixture
def new_log(opened):
    return lambda **settings: TrialLog(
        opened(), [SPACE], OBJECTIVES, **{"seed": 0, "facts": {"sampler": "x"}, **settings}
    )


def backends(kinds):
    return pytest.mark.parametrize("kind", kinds, indirect=True)


def proposals(count, seed=0):
    """Trials of distinct architectures, not evaluated yet."""
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < count:
        architecture = SPACE.sample(rng, uniform_over="choices")
        digest = architecture.digest
        parameters = {f"{SPACE.name}.{key}": value for key, value in architecture.choices}
        notes = {"drawn": [1, 2]}
        found[digest] = Trial(digest, architecture, parameters, "failed", {}, 0.0, "", notes)
    return list(found.values())


def completed(trial, score=0.5):
    values = {"macs": float(trial.architecture.macs), "params": 7.0, "score": score}
    return replace(trial, state="complete", values=values, seconds=1.25)


def of_every_state(seed=0):
    first, second, third, fourth = proposals(4, seed)
    return [
        completed(first),
        replace(second, state="infeasible", error="too big", values={"macs": 5.0}, seconds=0.5),
        replace(third, error="ValueError: no luck"),
        completed(fourth, score=-1e300),
    ]


def in_storage(opened, log):
    """The states of all trials of a study by digest, as any other process reads them."""
    found = {}
    for each in opened().trials(log._study):
        found.setdefault(each.user_attrs["digest"], []).append(each.state.name)
    return found


@pytest.fixture
def elsewhere(monkeypatch, new_log):
    """Makes a log as a process of another machine would."""

    def made():
        with monkeypatch.context() as patch:
            patch.setattr(logs, "this_process", lambda: {**this_process(), "host": "elsewhere"})
            return new_log()

    return made


@pytest.fixture
def silence(monkeypatch):
    """From now on, processes of other machines are dead when they are looked at twice."""
    return lambda: monkeypatch.setattr(liveness, "SILENCE_S", -1.0)


@backends(["memory", *SHARED])
def test_trials_come_back_as_they_were_added(new_log, opened):
    log = new_log()
    trials = of_every_state()
    for trial in trials:
        log.add(trial)
    again = new_log()
    assert log.trials == again.trials == trials
    assert again.complete == [trials[0], trials[3]]
    assert all(trial.digest in again for trial in trials)
    assert proposals(5)[4].digest not in again
    assert (again.running, again.orphans, again.refresh()) == (0, [], [])


@backends(SHARED)
def test_optuna_sees_complete_trials_with_their_values_and_others_as_pruned(new_log, opened):
    log = new_log()
    for trial in of_every_state():
        log.add(trial)
    shared = of_every_state(seed=1)
    for trial in shared:
        assert log.claim(trial)
        log.finish(trial)
    found = opened().trials(log._study)
    names = ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE"]
    assert [each.state.name for each in found] == names * 2
    assert [each.values for each in found if each.values] == [
        [trial.values["macs"], trial.values["score"]]
        for trial in of_every_state() + shared
        if trial.state == "complete"
    ]
    assert [dict(each.params) for each in found[4:]] == [dict(trial.parameters) for trial in shared]


@backends(["memory", *SHARED])
def test_what_one_finishes_the_others_see(new_log):
    first, second = new_log(), new_log()
    trials = of_every_state()
    for trial in trials:
        assert first.claim(trial)
        assert second.refresh() == []
        assert second.running == 1
        assert trial.digest in second
        first.finish(trial)
        assert second.refresh() == [trial]
        assert second.running == first.running == 0
    assert first.trials == second.trials == new_log().trials == trials
    assert second.orphans == []


@backends(["memory", *SHARED])
def test_of_two_claims_of_one_architecture_the_first_one_wins(new_log, opened):
    first, second = new_log(), new_log()
    (proposed,) = proposals(1)
    assert first.claim(proposed)
    assert not second.claim(proposed)
    first.finish(completed(proposed))
    assert not second.claim(proposed)
    assert in_storage(opened, first) == {proposed.digest: ["COMPLETE", "FAIL", "FAIL"]}
    assert second.refresh() == []
    assert second.trials == first.trials
    assert second.orphans == first.orphans == []


@backends(["memory", *SHARED])
def test_of_claims_at_the_same_time_exactly_one_wins(new_log, opened):
    proposed = proposals(6)
    together = threading.Barrier(3)
    won = []

    def contend():
        log = new_log()
        for trial in proposed:
            together.wait(60)
            if log.claim(trial):
                won.append(trial.digest)
                log.finish(completed(trial))

    threads = [threading.Thread(target=contend) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = new_log()
    assert sorted(won) == sorted(trial.digest for trial in log.complete)
    # All three may give way to one another's claim; then it is an orphan, and nobody's.
    left = {trial.digest for trial in log.orphans}
    assert left | set(won) == {trial.digest for trial in proposed}
    assert not left & set(won)
    assert all(states.count("COMPLETE") <= 1 for states in in_storage(opened, log).values())
    assert log.running == 0


@backends(["memory", *SHARED])
def test_no_more_are_claimed_than_are_wanted(new_log):
    first, second = new_log(), new_log()
    a, b, c, d = proposals(4)
    first.add(completed(a))
    assert first.claim(b, most=3)
    assert second.claim(c, most=3)
    assert not first.claim(d, most=3)
    # An orphan now, since one of the others may fail.
    assert [trial.digest for trial in second.orphans] == []
    second.refresh()
    assert [trial.digest for trial in second.orphans] == [d.digest]
    second.finish(replace(c, state="infeasible", error="too big"))
    assert first.claim(d, most=3)
    first.finish(completed(b))
    first.finish(completed(d))
    assert len(new_log().complete) == 3
    assert not second.claim(proposals(5)[4], most=3)


@backends(["memory", *SHARED])
def test_what_is_abandoned_becomes_an_orphan_and_is_tried_again(new_log):
    first, second = new_log(), new_log()
    proposed, other = proposals(2)
    assert first.claim(proposed)
    assert second.claim(other)
    first.abandon()
    second.refresh()
    assert second.running == 1
    (orphan,) = second.orphans
    assert (orphan.architecture, dict(orphan.parameters)) == (
        proposed.architecture,
        dict(proposed.parameters),
    )
    assert second.claim(proposed)
    assert second.orphans == []
    second.finish(completed(proposed))
    second.finish(completed(other))
    first.refresh()
    assert {trial.digest for trial in first.complete} == {proposed.digest, other.digest}
    assert first.orphans == second.orphans == []


@backends(SHARED)
def test_a_claim_is_taken_back_even_if_its_number_was_never_learned(new_log, monkeypatch):
    """As when Ctrl-C comes just after the claim was written."""
    log = new_log()
    with monkeypatch.context() as patch:
        patch.setattr(log, "refresh", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            log.claim(proposals(1)[0])
    log.abandon()
    assert [trial.digest for trial in new_log().orphans] == [proposals(1)[0].digest]


CLAIMS = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.search.test_trials import OBJECTIVES, SPACE, Storage, TrialLog, proposals
where = sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1])
log = TrialLog(Storage(where), [SPACE], OBJECTIVES, 0, facts={"sampler": "x"})
assert log.claim(proposals(1)[0])
print("claimed", flush=True)
time.sleep(600)
"""


@backends(SHARED)
def test_the_claim_of_a_killed_process_is_noticed_and_offered_again(new_log, where, opened):
    watching = new_log()
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CLAIMS, str(where), root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "claimed\n"
        watching.refresh()
        assert (watching.running, watching.orphans) == (1, [])
        process.send_signal(signal.SIGKILL)
        process.wait()
    watching.refresh()
    assert watching.running == 0
    (orphan,) = watching.orphans
    assert orphan.digest == proposals(1)[0].digest
    assert watching.claim(orphan)
    watching.finish(completed(orphan))
    assert new_log().complete == [completed(orphan)]
    assert in_storage(opened, watching) == {orphan.digest: ["FAIL", "COMPLETE"]}


@backends(["memory", *SHARED])
def test_a_claim_from_elsewhere_stays_while_it_is_heard_of(new_log, elsewhere, monkeypatch):
    working, watching = elsewhere(), new_log()
    assert working.claim(proposals(1)[0])
    monkeypatch.setattr(liveness, "SILENCE_S", 0.05)
    for _ in range(4):
        working.beat()
        time.sleep(0.06)
        watching.refresh()
        assert watching.running == 1
    time.sleep(0.06)
    watching.refresh()
    assert [trial.digest for trial in watching.orphans] == [proposals(1)[0].digest]


@backends(["memory", *SHARED])
def test_who_was_taken_for_dead_and_finishes_later_loses_nothing(
    new_log, elsewhere, silence, opened
):
    slow, watching = elsewhere(), new_log()
    (proposed,) = proposals(1)
    assert slow.claim(proposed)
    silence()
    watching.refresh()
    watching.refresh()
    assert [trial.digest for trial in watching.orphans] == [proposed.digest]
    slow.finish(completed(proposed))
    watching.refresh()
    assert watching.trials == slow.trials == [completed(proposed)]
    assert watching.orphans == slow.orphans == []
    assert in_storage(opened, slow) == {proposed.digest: ["FAIL", "COMPLETE"]}


@backends(["memory", *SHARED])
@pytest.mark.parametrize("done", [False, True])
def test_who_was_taken_for_dead_and_finishes_later_duplicates_nothing(
    new_log, elsewhere, silence, opened, done
):
    slow, watching = elsewhere(), new_log()
    (proposed,) = proposals(1)
    assert slow.claim(proposed)
    silence()
    watching.refresh()
    watching.refresh()
    assert watching.claim(proposed)
    if done:
        watching.finish(completed(proposed))
        slow.finish(completed(proposed))
    else:
        slow.finish(completed(proposed))
        watching.finish(completed(proposed))
    slow.refresh()
    watching.refresh()
    assert slow.trials == watching.trials == new_log().trials == [completed(proposed)]
    assert in_storage(opened, slow)[proposed.digest].count("COMPLETE") == 1
    assert slow.orphans == watching.orphans == []


@backends(SHARED)
def test_who_ends_its_trial_just_before_it_is_given_up_has_ended_it(
    new_log, elsewhere, silence, monkeypatch, opened
):
    slow, watching = elsewhere(), new_log()
    proposed, other = proposals(2)
    assert slow.claim(proposed)
    silence()
    watching.refresh()
    give_up = watching._storage.give_up

    def late(number, why):
        slow.finish(completed(proposed))
        give_up(number, why)

    with monkeypatch.context() as patch:
        patch.setattr(watching._storage, "give_up", late)
        assert watching.refresh() == [completed(proposed)]
    assert not watching.claim(proposed)
    assert watching.claim(other)
    assert watching.orphans == []
    assert in_storage(opened, slow)[proposed.digest] == ["COMPLETE", "FAIL"]


@backends(DATABASES)
@pytest.mark.parametrize("state", ["complete", "failed"])
def test_a_result_that_comes_in_while_its_trial_is_given_up_does_not_count_twice(
    new_log, elsewhere, silence, monkeypatch, opened, state
):
    """The result is written, then the trial given up, then its own process wants to end it."""
    slow, watching = elsewhere(), new_log()
    (proposed,) = proposals(1)
    found = completed(proposed) if state == "complete" else replace(proposed, error="no luck")
    assert slow.claim(proposed)
    silence()
    watching.refresh()
    backend = slow._storage._storage
    end = backend.set_trial_state_values

    def after_the_other(*arguments):
        patch.undo()
        watching.refresh()
        assert watching.trials == []
        assert [trial.digest for trial in watching.orphans] == [proposed.digest]
        return end(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "set_trial_state_values", after_the_other)
        slow.finish(found)
    watching.refresh()
    assert watching.trials == slow.trials == new_log().trials == [found]
    ended = "COMPLETE" if state == "complete" else "PRUNED"
    assert in_storage(opened, slow) == {proposed.digest: ["FAIL", ended]}


@backends(DATABASES)
def test_of_two_processes_that_end_one_trial_at_once_only_one_does(new_log, opened):
    log = new_log()
    for trial in proposals(12):
        assert log.claim(trial)
        (number,) = log._own.values()
        together = threading.Barrier(2)
        ended = []

        def end(work, together=together, ended=ended):
            together.wait(60)
            ended.append(work())

        result, values = logs._outcome(completed(trial), OBJECTIVES)
        threads = [
            threading.Thread(
                target=end, args=(partial(Storage.finish, opened(), number, result, values),)
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ended) == [False, True]
        log._own.clear()


@contextmanager
def breaking(log, times, *, when, how):
    """So many commits in a row lose their connection, "before" or "after" they reach the server."""
    engine = log._storage._storage._backend.engine
    commit, left = engine.dialect.do_commit, [times]

    def broken(connection):
        if left[0] > 0:
            left[0] -= 1
            if when == "after":
                commit(connection)
            how(connection)
            if when == "after":
                raise engine.dialect.dbapi.OperationalError("connection lost")
        commit(connection)

    engine.dialect.do_commit = broken
    try:
        yield
    finally:
        del engine.dialect.do_commit
    assert left == [0]


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(storages, "_PAUSES_S", (0.01,))


@backends(DATABASES)
@pytest.mark.parametrize("breaks", [1, 6])
def test_nothing_is_duplicated_when_the_connection_breaks_after_it_was_written(
    new_log, opened, hasty, breaks
):
    log = new_log()
    lost = partial(
        breaking,
        log,
        breaks,
        when="after",
        how=lambda connection: connection.driver_connection.close(),
    )
    first, second, third = proposals(3)
    with lost():
        log.add(completed(first))
    with lost():
        assert log.claim(second)
    with lost():
        log.finish(completed(second))
    with lost():
        assert log.claim(third)
    with lost():
        log._storage.give_up(log._own.pop(third.digest), "enough of it")
    assert log.trials == new_log().trials == [completed(first), completed(second)]
    assert in_storage(opened, log) == {
        first.digest: ["COMPLETE"],
        second.digest: ["COMPLETE"],
        third.digest: ["FAIL"],
    }


@pytest.mark.postgresql
@backends(DATABASES[1:])
@pytest.mark.parametrize("breaks", [1, 6])
def test_nothing_is_lost_when_the_server_ends_the_connection_before_it_was_written(
    new_log, opened, hasty, postgresql, breaks
):
    log = new_log()

    def ended(connection):
        number = connection.driver_connection.info.backend_pid
        postgresql.run_sql("postgres", f"SELECT pg_terminate_backend({number}, 10000)")

    lost = partial(breaking, log, breaks, when="before", how=ended)
    first, second = proposals(2)
    with lost():
        log.add(completed(first))
    with lost():
        assert log.claim(second)
    with lost():
        log.finish(completed(second))
    with lost():
        log.refresh()
    assert log.trials == new_log().trials == [completed(first), completed(second)]
    assert in_storage(opened, log) == {first.digest: ["COMPLETE"], second.digest: ["COMPLETE"]}


@pytest.mark.postgresql
@backends(DATABASES[1:])
def test_a_process_that_is_stopped_while_it_writes_does_not_stop_the_others(new_log, monkeypatch):
    monkeypatch.setattr(storages, "LOCKED_S", 1)
    stopped, working = new_log(), new_log()
    first, second = proposals(2)
    dialect = stopped._storage._storage._backend.engine.dialect
    inside, over = threading.Event(), threading.Event()

    def halted(connection):
        del dialect.do_commit
        inside.set()
        over.wait(60)
        dialect.do_commit(connection)

    dialect.do_commit = halted
    thread = threading.Thread(target=stopped.claim, args=(first,))
    thread.start()
    assert inside.wait(60)
    assert working.claim(second)
    working.finish(completed(second))
    over.set()
    thread.join()
    # What the stopped one had begun was undone, and it made it again.
    working.refresh()
    assert working.running == 1
    stopped.finish(completed(first))
    assert [trial.digest for trial in new_log().complete] == [second.digest, first.digest]


@backends(["memory", *SHARED])
def test_an_architecture_at_which_processes_die_becomes_deadly(new_log, monkeypatch):
    proposed, other = proposals(2)
    watching = new_log()
    for _ in range(MOST_DEATHS):
        assert not watching.is_deadly(proposed.digest)
        with monkeypatch.context() as patch:
            patch.setattr(logs, "this_process", lambda: {**this_process(), "started": -1e9})
            dying = new_log()
        assert dying.claim(proposed)
        watching.refresh()
        assert [trial.digest for trial in watching.orphans] == [proposed.digest]
    assert watching.is_deadly(proposed.digest)
    assert new_log().is_deadly(proposed.digest)
    assert watching.claim(other)
    watching.abandon()
    watching.refresh()
    assert not watching.is_deadly(other.digest)


@backends(["memory", *SHARED])
def test_another_search_is_refused(new_log):
    new_log()
    for settings, named in [({"seed": 1}, "seed"), ({"facts": {"sampler": "y"}}, "sampler")]:
        with pytest.raises(SearchError, match=f"belongs to another search: other {named}"):
            new_log(**settings)
    new_log(study="beside it", seed=1)


@backends(SHARED)
def test_another_search_of_other_spaces_and_objectives_is_refused(new_log, opened):
    new_log()
    other = load_space("mobilenet_tiny", image_size=8, channels=1)
    with pytest.raises(SearchError, match="other spaces and objectives"):
        TrialLog(opened(), [other], OBJECTIVES[:2], 0, facts={"sampler": "x"})


@backends(SHARED)
def test_processes_that_begin_a_search_at_once_begin_the_same_one(new_log):
    logs_made = []
    together = threading.Barrier(4)

    def begin():
        together.wait(60)
        logs_made.append(new_log())

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({log._study for log in logs_made}) == 1
    assert len(logs_made) == 4


@backends(SHARED)
def test_signs_of_life_and_trials_do_not_disturb_each_other(new_log):
    log = new_log()
    over = threading.Event()

    def beating():
        while not over.wait(0.001):
            log.beat()

    thread = threading.Thread(target=beating)
    thread.start()
    try:
        for trial in proposals(25):
            assert log.claim(trial)
            log.finish(completed(trial))
    finally:
        over.set()
        thread.join()
    assert log.trials == new_log().trials == [completed(trial) for trial in proposals(25)]
    assert log._beats > 0


def test_a_journal_half_a_line_of_which_was_written_by_a_killed_process(tmp_path):
    """The rest of the line never comes; whoever writes next removes it."""
    journal = tmp_path / "study.journal"
    make = lambda: TrialLog(Storage(journal), [SPACE], OBJECTIVES, 0)  # noqa: E731
    first, second = make(), make()
    a, b, c = proposals(3)
    assert first.claim(a)
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "torn')
    # Reading takes no notice: another process may be writing the rest.
    second.refresh()
    assert journal.read_bytes().endswith(b"torn")
    with pytest.warns(UserWarning, match="half-written"):
        assert second.claim(b)
    first.finish(completed(a))
    second.finish(completed(b))
    assert first.claim(c)
    first.finish(completed(c))
    second.refresh()
    assert second.trials == make().trials == [completed(a), completed(b), completed(c)]


@pytest.fixture
def journal(tmp_path):
    """A journal of two trials, the second one claimed and finished."""
    path = tmp_path / "study.journal"
    log = TrialLog(Storage(path), [SPACE], OBJECTIVES, 0)
    first, second = proposals(2)
    log.add(completed(first))
    assert log.claim(second)
    log.finish(completed(second))
    return path


def operations(journal):
    """The operations of a journal: the study, its identity, a trial, a claim, and its end."""
    return [json.loads(line) for line in journal.read_text().splitlines()]


def line(operation):
    return json.dumps(operation, separators=(",", ":")).encode()


def changed(journal, position, change):
    """Replaces a line of the journal, by its position, with `change(operation)`."""
    lines = journal.read_bytes().splitlines()
    found = change(json.loads(lines[position]))
    lines[position] = found if isinstance(found, bytes) else line(found)
    journal.write_bytes(b"\n".join(lines) + b"\n")


def reopened(journal):
    return TrialLog(Storage(journal), [SPACE], OBJECTIVES, 0)


def without(key):
    return lambda operation: {k: v for k, v in operation.items() if k != key}


def having(value, *keys):
    """Sets what is found along the keys."""

    def change(operation):
        inner = operation
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return operation

    return change


STUDY, IDENTITY, ADDED, CLAIMED, RESULT, ENDED = range(6)


def test_the_operations_are_where_the_tests_below_expect_them(journal):
    found = operations(journal)
    assert [each["op_code"] for each in found] == [0, 2, 4, 4, 8, 6]
    assert "result" in found[ADDED]["user_attrs"]
    assert "process" in found[CLAIMED]["user_attrs"]
    assert found[RESULT]["user_attr"]["result"]["digest"] == proposals(2)[1].digest
    assert reopened(journal).trials == [completed(trial) for trial in proposals(2)]


@pytest.mark.parametrize(
    ("position", "change"),
    [
        (ADDED, lambda _: b'{"op_code": 4, damaged'),
        (ADDED, lambda operation: line(operation).replace(b"squeeze", b"\xff\xfe", 1)),
        (ADDED, lambda _: b"[4]"),
        (ADDED, lambda _: b""),
        (ADDED, lambda _: b"\0" * 300),
        (ADDED, lambda _: b"[" * 200_000),
        (ADDED, lambda _: b'{"op_code":4,"a":' + b"[" * 200_000),
        (ADDED, lambda _: b'{"op_code":4,"a":' + b"9" * 5000 + b"}"),
        (ADDED, lambda _: b'{"op_code":4,"a":"' + b"x" * 9_000_000 + b'"}'),
        (ADDED, having(99, "op_code")),
        (ADDED, having(True, "op_code")),
        (ADDED, having("4", "op_code")),
        (ADDED, without("op_code")),
        (ADDED, without("worker_id")),
        (ADDED, without("study_id")),
        (ADDED, having(1, "study_id")),
        (ADDED, having([], "study_id")),
        (ADDED, without("datetime_start")),
        (ADDED, having("yesterday", "datetime_complete")),
        (ADDED, having(9, "state")),
        (ADDED, having("x", "distributions")),
        (ADDED, having({"x": "{"}, "distributions")),
        (ADDED, having({"unknown": 1}, "params")),
        (ADDED, having(1, "value")),
        (ADDED, having(5, "values")),
        (ADDED, having(float("nan"), "values", 0)),
        (STUDY, having(["up"], "directions")),
        (IDENTITY, without("user_attr")),
        (IDENTITY, having([], "user_attr")),
        (RESULT, having(7, "trial_id")),
        (RESULT, having(-1, "trial_id")),
        (RESULT, without("user_attr")),
        (ENDED, having(None, "trial_id")),
        (ENDED, having(4.5, "values")),
        (ENDED, without("datetime_complete")),
    ],
)
def test_a_damaged_line_of_a_journal_is_an_error_that_names_it(journal, position, change):
    changed(journal, position, change)
    content = journal.read_bytes()
    expected = rf"study\.journal, line {position + 1} is damaged: .*\. Restore it"
    with pytest.raises(StorageError, match=expected) as raised:
        reopened(journal)
    assert len(str(raised.value)) < 700
    assert journal.read_bytes() == content


@pytest.mark.parametrize(
    ("position", "change", "words"),
    [
        (ADDED, having("x", "user_attrs"), "trial 0"),
        (ADDED, having(None, "user_attrs"), "trial 0"),
        (ADDED, having({}, "user_attrs"), "digest is missing"),
        (ADDED, having(5, "user_attrs", "digest"), "digest is "),
        (ADDED, having("", "user_attrs", "digest"), "digest is "),
        (ADDED, having("elsewhere", "user_attrs", "space"), "'elsewhere' is not searched"),
        (ADDED, having([], "user_attrs", "space"), "space is "),
        (ADDED, having("x", "user_attrs", "architecture"), "architecture is "),
        (ADDED, having([], "user_attrs", "architecture", "choices"), "architecture.choices is "),
        (ADDED, having({}, "user_attrs", "architecture", "choices"), "missing"),
        (ADDED, having({"x": 1}, "user_attrs", "architecture", "choices"), "no choice 'x'"),
        (ADDED, having({"x": []}, "user_attrs", "architecture", "choices"), "choices.x"),
        (ADDED, having("y", "user_attrs", "architecture", "space"), "is of space y"),
        (ADDED, having(None, "user_attrs", "result"), "its result is missing"),
        (ADDED, having("odd", "user_attrs", "result", "state"), "result.state is "),
        (ADDED, having("failed", "user_attrs", "result", "state"), "its result is failed"),
        (ADDED, having([], "user_attrs", "result", "values"), "result.values is "),
        (ADDED, having("5", "user_attrs", "result", "values", "macs"), "result.values.macs is "),
        (ADDED, having(True, "user_attrs", "result", "values", "macs"), "result.values.macs is "),
        (
            ADDED,
            having(10**400, "user_attrs", "result", "values", "macs"),
            "result.values.macs is ",
        ),
        (ADDED, having(6.0, "user_attrs", "result", "values", "macs"), "and Optuna"),
        (ADDED, having({"macs": 1.0}, "user_attrs", "result", "values"), "no params, no score"),
        (ADDED, having(1.0, "user_attrs", "result", "values", "odd"), "its values are of"),
        (ADDED, having(-1, "user_attrs", "result", "seconds"), "result.seconds is "),
        (ADDED, having("now", "user_attrs", "result", "ended"), "result.ended is "),
        (ADDED, having("abc", "values"), "and Optuna"),
        (ADDED, having([1.0], "values"), "and Optuna"),
        (ADDED, having(4, "state"), "WAITING"),
        (ADDED, having(0, "state"), "running, and in no process"),
        (ADDED, having(2, "state"), "its result is complete"),
        (CLAIMED, having([], "user_attrs", "process"), "process is "),
        (CLAIMED, having({"log": "x"}, "user_attrs", "process"), "process.host is "),
        (CLAIMED, having(10**30, "user_attrs", "process", "pid"), "process.pid is "),
        (CLAIMED, having("x", "user_attrs", "beat"), "beat is "),
        (RESULT, having("x", "user_attr", "result"), "result is "),
        (RESULT, having("other", "user_attr", "result", "digest"), "of another architecture"),
        (ENDED, having([1.0, 2.0], "values"), "and Optuna"),
        (ENDED, having(None, "values"), "and Optuna"),
        (ENDED, having(2, "state"), "its result is complete"),
    ],
)
def test_a_damaged_trial_is_an_error_that_names_it(journal, position, change, words):
    changed(journal, position, change)
    number = 0 if position == ADDED else 1
    with pytest.raises(
        StorageError, match=rf"study\.journal, trial {number} is damaged: "
    ) as raised:
        reopened(journal)
    assert words in str(raised.value)
    assert len(str(raised.value)) < 700


def test_a_number_beyond_all_floats_is_damage(journal):
    changed(journal, ADDED, lambda o: re.sub(rb'"seconds":[^,]*', b'"seconds":1e999', line(o)))
    with pytest.raises(StorageError, match=r"trial 0 is damaged: result.seconds is inf: .*finite"):
        reopened(journal)


def test_a_parameter_that_the_spaces_do_not_have_is_damage(journal):
    def renamed(operation):
        for part in ("params", "distributions"):
            operation[part] = {f"odd.{key}": value for key, value in operation[part].items()}
        return operation

    changed(journal, ADDED, renamed)
    with pytest.raises(StorageError, match=r"trial 0 is damaged: parameter 'odd\."):
        reopened(journal)


def test_a_lost_line_does_not_give_an_architecture_the_result_of_another(tmp_path):
    path = tmp_path / "study.journal"
    log = reopened(path)
    first, second = proposals(2)
    assert log.claim(first)
    assert log.claim(second)
    log.finish(completed(first))
    lines = path.read_bytes().splitlines(keepends=True)
    assert b'"process"' in lines[2]
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(StorageError, match="trial 0 is damaged: .* of another architecture"):
        reopened(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (having("x", "user_attr", "identity"), "does not say what is searched"),
        (having({}, "user_attr", "identity"), "has format None; this version reads format 4"),
        (having(99, "user_attr", "identity", "format"), "has format 99; this version reads"),
        (having("odd", "user_attr", "identity", "added"), "another search: other added"),
    ],
)
def test_a_study_that_another_version_wrote_is_refused(journal, change, words):
    changed(journal, IDENTITY, change)
    with pytest.raises(SearchError, match=rf"study\.journal .*{words}"):
        reopened(journal)


def test_a_study_of_other_directions_is_damaged(journal):
    changed(journal, STUDY, having([2, 2], "directions"))
    with pytest.raises(StorageError, match=r"study\.journal is damaged: .* other directions"):
        reopened(journal)


def test_a_study_that_was_made_twice_is_one(journal):
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], lines[0], *lines[2:]]))
    assert len(reopened(journal).trials) == 2


def test_damage_that_appears_during_a_search_is_told_to_every_caller(journal):
    log = reopened(journal)
    assert log.claim(proposals(3)[2])
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, damaged\n')
    log.beat()
    for _ in range(2):
        with pytest.raises(StorageError, match=r"is damaged: it is not JSON"):
            log.refresh()
    log.abandon()


def test_a_journal_that_vanishes_is_not_begun_anew(journal):
    log = reopened(journal)
    journal.unlink()
    with pytest.raises(StorageError, match=r"study\.journal cannot be used: No such file"):
        log.add(completed(proposals(3)[2]))
    assert not journal.exists()


def test_an_operation_of_a_trial_that_was_given_up_may_follow(journal):
    """What a process that was taken for dead still writes is no damage."""
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines, lines[RESULT], lines[ENDED]]))
    assert len(reopened(journal).trials) == 2
