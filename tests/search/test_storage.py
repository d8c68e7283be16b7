import re
import sqlite3
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest
from optuna.study import StudyDirection

from nas.errors import RequestError, StorageError
from nas.search import liveness, search
from nas.search import storage as storages
from nas.search import trials as logs
from nas.search.liveness import this_process
from nas.search.objectives import ready
from nas.search.storage import Storage, shown
from nas.search.trials import Trial, TrialLog
from nas.space import load_space
from tests.search.postgresql import PASSWORD

SPACE = load_space("squeezenet_tiny", image_size=8, channels=1)


def macs(architecture):
    return float(architecture.macs)


OBJECTIVES = {"macs": macs, "params": lambda a: float(a.params)}

SECRET = "open-sesame"


def blank(architecture):
    digest = architecture.digest
    return Trial(digest, architecture, {}, "failed", {}, 0.0)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (f"postgresql://nas:{SECRET}@host:5433/trials", "postgresql://nas@host:5433/trials"),
        (
            f"postgresql+psycopg://nas:{SECRET}@/t?host=/run",
            "postgresql+psycopg://nas@/t?host=%2Frun",
        ),
        (f"postgresql://nas@h/t?password={SECRET}&sslpassword={SECRET}", "postgresql://nas@h/t"),
        (f"postgres://nas:{SECRET}%40:/?#[]@h/t", "postgres://nas@h/t"),
        *(
            (
                f"postgresql://nas@h/t?{key}={SECRET}&sslmode=require",
                "postgresql://nas@h/t?sslmode=require",
            )
            for key in ("passwd", "pwd", "pass", "PASSWORD", "secret", "token", "api_key", "odd")
        ),
        (f"postgresql://h/t?sslcert=c.pem&x={SECRET}&x=2", "postgresql://h/t?sslcert=c.pem"),
        ("postgresql://nas@host/trials", "postgresql://nas@host/trials"),
        ("sqlite:///folder/study.db", "sqlite:///folder/study.db"),
        ("results/run/study.journal", "results/run/study.journal"),
        (Path("C:/study.journal"), "C:/study.journal"),
    ],
)
def test_an_address_is_shown_without_its_password(address, expected):
    assert shown(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        "://",
        f"postgresql://nas:{SECRET}",
        f"postgresql://nas:@{SECRET}@host/trials",
        f"postgresql://nas:x@{SECRET}@host/trials",
        f"postgresql:/nas:{SECRET}@host/trials",
        f"postgresql:nas:{SECRET}@host/trials",
        f"postgresql://host:{SECRET}/trials",
        f"nothing://nas:{SECRET}@host/trials",
        f"https://nas:{SECRET}@host/trials",
        f"postgresql:///nas:{SECRET}@host/trials",
        f"POSTGRESQL://nas:{SECRET}@host/trials",
        f"sqlite://nas:{SECRET}@host/trials",
        f"sqlite:///a%00?x={SECRET}\0",
        "sqlite:///x.db?timeout=soon",
        f"redis://nas:{SECRET}@host/trials",
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_a_password(address):
    with pytest.raises(RequestError) as raised:
        Storage(address)
    assert SECRET not in in_full(raised.value)
    assert raised.value.remedy


def in_full(error):
    """All that can be seen of an error, as with --debug."""
    return "".join(traceback.format_exception(error)).replace(Path(__file__).read_text(), "")


def refused(address):
    start = time.monotonic()
    with pytest.raises(StorageError) as raised:
        search(SPACE, OBJECTIVES, trials=3, storage=address)
    assert time.monotonic() - start < 20
    assert raised.value.remedy
    text = in_full(raised.value) + repr(raised.value.__cause__)
    assert SECRET not in text
    assert PASSWORD not in text
    return str(raised.value)


@pytest.mark.parametrize("host", ["127.0.0.1:9", "nowhere.invalid", ""])
def test_a_database_that_does_not_answer_is_an_error_soon(host, tmp_path):
    address = f"postgresql://nas:{SECRET}@{host}/trials" + ("" if host else f"?host={tmp_path}")
    told = refused(address)
    assert "Start the database" in told
    assert told.startswith(shown(address))


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path):
    assert "unable to open" in refused(f"sqlite:///{tmp_path}/missing/study.db")
    (tmp_path / "other.db").write_text("no database at all" * 100)
    assert "not a database" in refused(f"sqlite:///{tmp_path}/other.db")


def test_a_driver_that_repeats_a_secret_is_not_quoted(monkeypatch):
    def repeating(self, address):
        raise ValueError(f"cannot use {SECRET}, nor {SECRET}") from OSError(SECRET)

    monkeypatch.setattr(storages._Database, "__init__", repeating)
    for address in (f"sqlite://u:{SECRET}@h/x", f"sqlite:///x.db?token={SECRET}"):
        with pytest.raises(RequestError) as raised:
            Storage(address)
        assert SECRET not in in_full(raised.value)


def test_a_database_file_that_is_damaged_is_an_error_at_once(tmp_path):
    path = tmp_path / "study.db"
    storage = Storage(f"sqlite:///{path}")
    study = storage.study("search", [StudyDirection.MINIMIZE])
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    storage._storage.remove_session()
    with pytest.raises(StorageError, match=r"study\.db is damaged: .*malformed"):
        storage.trials(study)


def test_a_database_with_rows_that_optuna_cannot_read_is_an_error(tmp_path):
    path = tmp_path / "study.db"
    log = TrialLog(Storage(f"sqlite:///{path}"), [SPACE], ready(OBJECTIVES), 0)
    assert log.claim(blank(SPACE.smallest))
    for change in (
        "UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'digest'",
        "UPDATE trials SET state = 'ODD'",
        "DROP TABLE trial_user_attributes",
    ):
        with sqlite3.connect(path) as connection:
            connection.execute(change)
        connection.close()
        with pytest.raises(StorageError, match=r"study\.db (is damaged|cannot be used)"):
            TrialLog(Storage(f"sqlite:///{path}"), [SPACE], ready(OBJECTIVES), 0)


@pytest.mark.postgresql
def test_an_unknown_database_and_a_wrong_password_are_errors(postgresql):
    assert 'database "nothing" does not exist' in refused(postgresql.address("nothing"))
    assert "password authentication failed" in refused(postgresql.address("postgres", SECRET))


@pytest.mark.postgresql
@pytest.mark.parametrize("way", ["PGPASSWORD", ".pgpass"])
def test_a_password_need_not_stand_in_the_address(database, way, monkeypatch, tmp_path):
    if way == "PGPASSWORD":
        monkeypatch.setenv(way, PASSWORD)
    else:
        kept = tmp_path / way
        kept.write_text(f"*:*:*:nas:{PASSWORD.replace(':', chr(92) + ':')}\n")
        kept.chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(kept))
    storage = Storage(shown(database))
    assert storage.name == shown(database)
    result = search(SPACE, OBJECTIVES, trials=3, storage=shown(database), shared=True)
    assert len(result.trials) == 3
    assert PASSWORD not in storage.name


def test_a_missing_driver_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(
        RequestError, match=re.escape("pip install 'hardware-nas[postgresql]'")
    ) as e:
        Storage(f"postgresql://nas:{SECRET}@host/trials")
    assert SECRET not in in_full(e.value)


@pytest.mark.postgresql
def test_tables_of_another_version_of_optuna_are_refused(database, postgresql):
    Storage(database)
    name = re.search(r"/(d\w+)\?", database).group(1)
    postgresql.run_sql(name, "UPDATE alembic_version SET version_num = 'v2.4.0.a'")
    assert "no longer compatible with the table schema" in refused(database)


class Outage:
    """Stops the server after so many trials, and starts it again some seconds later."""

    def __init__(self, server, *, after, seconds, mode="fast"):
        self._server, self._after, self._mode = server, after, mode
        self._back = threading.Timer(seconds, server.start)
        self.begun = False

    def __call__(self, trial, progress):
        if progress.completed == self._after and not self.begun:
            self.begun = True
            self._server.stop(self._mode)
            self._back.start()

    def over(self):
        self._back.join()


@pytest.mark.postgresql
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_search_waits_for_a_database_that_goes_away_and_goes_on(
    postgresql, database, shared, mode, capfd
):
    said, calls = [], Counter()

    def counted(architecture):
        calls[architecture.digest] += 1
        return macs(architecture)

    outage = Outage(postgresql, after=12, seconds=1.0, mode=mode)
    result = search(
        SPACE,
        {"macs": counted},
        trials=25,
        sampler="random",
        storage=database,
        shared=shared,
        on_trial=outage,
        told=said.append,
    )
    outage.over()
    assert [trial.state for trial in result.trials] == ["complete"] * 25
    assert len(calls) == 25
    assert set(calls.values()) == {1}
    assert len(said) == 2
    assert said[0].startswith(f"{shown(database)} does not answer (")
    assert said[0].endswith("waiting up to 10 minutes")
    assert said[1] == f"{shown(database)} answers again"
    assert PASSWORD not in "".join(said)
    kept = Storage(database).trials(1)
    assert [each.state.name for each in kept] == ["COMPLETE"] * 25
    assert Counter(each.user_attrs["digest"] for each in kept) == calls
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.postgresql
def test_a_search_ends_when_its_patience_does_and_can_be_continued(
    postgresql, database, monkeypatch
):
    def searched(**settings):
        return search(
            SPACE,
            OBJECTIVES,
            trials=12,
            sampler="random",
            storage=database,
            shared=True,
            **settings,
        )

    with monkeypatch.context() as patch:
        patch.setattr(storages, "PATIENCE_S", 0.5)
        outage = Outage(postgresql, after=6, seconds=600)
        with pytest.raises(StorageError, match=r"did not answer for .* Run the same command again"):
            searched(on_trial=outage)
        outage._back.cancel()
    postgresql.start()
    result = searched()
    assert [trial.state for trial in result.trials] == ["complete"] * 12
    kept = Storage(database).trials(1)
    assert Counter(each.state.name for each in kept)["COMPLETE"] == 12


@pytest.mark.postgresql
def test_after_a_database_was_away_nobody_is_taken_for_dead_at_once(
    postgresql, database, monkeypatch
):
    objectives = ready(OBJECTIVES)
    with monkeypatch.context() as patch:
        patch.setattr(logs, "this_process", lambda: {**this_process(), "host": "elsewhere"})
        working = TrialLog(Storage(database), [SPACE], objectives, 0)
    watching = TrialLog(Storage(database), [SPACE], objectives, 0)
    monkeypatch.setattr(liveness, "SILENCE_S", 0.4)
    assert working.claim(blank(SPACE.smallest))
    watching.refresh()
    postgresql.stop()
    time.sleep(0.5)
    working.beat()
    watching.beat()
    back = threading.Timer(0.3, postgresql.start)
    back.start()
    watching.refresh()
    back.join()
    watching.refresh()
    assert watching.running == 1
    time.sleep(0.5)
    watching.refresh()
    assert watching.running == 0


@pytest.mark.parametrize(
    "kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]
)
def test_processes_that_open_an_empty_database_at_once_all_succeed(kind, request, tmp_path):
    where = f"sqlite:///{tmp_path}/study.db"
    if kind == "postgresql":
        where = request.getfixturevalue("database")
    together = threading.Barrier(6)
    names = []

    def begin():
        together.wait(60)
        names.append(Storage(where).name)

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == [shown(where)] * 6
