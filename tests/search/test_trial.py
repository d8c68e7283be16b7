import pytest

from nas.errors import SearchError, StorageError
from tests.search.journal_edits import (
    ADDED,
    CLAIMED,
    ENDED,
    IDENTITY,
    RESULT,
    edit_line,
    open_log,
    put,
)
from tests.search.trials import completed, proposed_trials


@pytest.mark.parametrize(
    ("position", "edit", "reason"),
    [
        (ADDED, put(None, "user_attrs"), "trial 0"),
        (ADDED, put({}, "user_attrs"), "digest is missing"),
        (ADDED, put("other", "user_attrs", "space"), "does not have the space 'other'"),
        (ADDED, put("x", "user_attrs", "architecture"), "architecture is "),
        (ADDED, put({}, "user_attrs", "architecture", "choices"), "missing"),
        (ADDED, put({"x": 1}, "user_attrs", "architecture", "choices"), "no choice 'x'"),
        (ADDED, put(None, "user_attrs", "result"), "its result is missing"),
        (ADDED, put("failed", "user_attrs", "result", "state"), "its result is failed"),
        (ADDED, put("5", "user_attrs", "result", "values", "macs"), "result.values.macs is "),
        (ADDED, put(10**400, "user_attrs", "result", "values", "macs"), "result.values.macs is "),
        (ADDED, put({"macs": 1.0}, "user_attrs", "result", "values"), "but the search has"),
        (ADDED, put({"n": "5"}, "user_attrs", "result", "recorded"), "result.recorded.n is "),
        (ADDED, put({"n": 0.0}, "user_attrs", "result", "variances"), "result.variances.n is "),
        (ADDED, put(-1, "user_attrs", "result", "seconds"), "result.seconds is "),
        (ADDED, put(4, "state"), "WAITING"),
        (ADDED, put(0, "state"), "its state is RUNNING, but it names no process"),
        (CLAIMED, put({"log": "x"}, "user_attrs", "process"), "process.host is "),
        (CLAIMED, put("x", "user_attrs", "beat"), "beat is "),
        (RESULT, put("other", "user_attr", "result", "digest"), "belongs to another architecture"),
        (ENDED, put(2, "state"), "its result is complete"),
    ],
)
def test_damaged_trial_is_named_with_the_reason(journal, position, edit, reason):
    edit_line(journal, position, edit)
    number = 0 if position == ADDED else 1
    with pytest.raises(
        StorageError, match=rf"study\.journal, trial {number} is damaged: "
    ) as raised:
        open_log(journal)
    assert reason in str(raised.value)
    assert len(str(raised.value)) < 700


def test_lost_line_does_not_give_an_architecture_the_result_of_another(tmp_path):
    path = tmp_path / "study.journal"
    log = open_log(path)
    first, second = proposed_trials(2)
    assert log.claim(first)
    assert log.claim(second)
    log.finish(completed(first))
    lines = path.read_bytes().splitlines(keepends=True)
    assert b'"process"' in lines[3]
    path.write_bytes(b"".join(lines[:3] + lines[4:]))
    with pytest.raises(StorageError, match="trial 0 is damaged: .* to another architecture"):
        open_log(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("x", "user_attr", "identity"), "is damaged: the study's attribute 'identity' is 'x'"),
        (put({}, "user_attr", "identity"), "has format None; this version reads format 7"),
        (put(99, "user_attr", "identity", "format"), "has format 99; this version reads"),
        (put("odd", "user_attr", "identity", "added"), "These settings differ: added"),
    ],
)
def test_study_of_another_version_is_refused(journal, edit, message):
    edit_line(journal, IDENTITY, edit)
    with pytest.raises(SearchError, match=rf"study\.journal .*{message}"):
        open_log(journal)
