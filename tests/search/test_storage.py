import contextlib
import os
import re
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from nas.errors import RequestError, StorageError
from nas.files.storage_address import redact_address
from nas.search import liveness, run_search
from nas.search import storage as storage_module
from nas.search.objectives import prepare_objectives
from nas.search.storage import Storage
from nas.search.trial_log import TrialLog
from tests.search.postgresql import PASSWORD
from tests.search.test_study import macs
from tests.search.trials import DATABASES, SPACE, for_backends, proposed_trials

OBJECTIVES = {"macs": macs, "params": lambda a: float(a.params)}

SECRET = "open-sesame"


def full_text(error):
    """Return all that can be seen of an error, as with --debug."""
    return "".join(traceback.format_exception(error)).replace(Path(__file__).read_text(), "")


def refusal_message(address):
    """Return the message with which a search refuses an address, which must hold no secret."""
    pauses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", pauses.append)
        with pytest.raises(StorageError) as raised:
            run_search(SPACE, OBJECTIVES, trials=3, storage=address)
    # The search retries for a moment only, not for `STORAGE_RETRY_SECONDS`.
    assert sum(pauses) <= sum(storage_module._OPENING_PAUSES_SECONDS)
    assert raised.value.remedy
    text = full_text(raised.value) + repr(raised.value.__cause__)
    assert SECRET not in text
    assert PASSWORD not in text
    return str(raised.value)


@pytest.mark.parametrize("host", ["127.0.0.1:9", "nowhere.invalid", ""])
def test_database_that_does_not_answer_is_an_error(host, tmp_path):
    address = f"postgresql://nas:{SECRET}@{host}/trials" + ("" if host else f"?host={tmp_path}")
    message = refusal_message(address)
    assert "Start the database" in message
    assert message.startswith(redact_address(address))


def test_database_file_that_cannot_be_opened_is_an_error(tmp_path):
    assert "unable to open" in refusal_message(f"sqlite:///{tmp_path}/missing/study.db")
    (tmp_path / "other.db").write_text("no database at all" * 100)
    assert "not a database" in refusal_message(f"sqlite:///{tmp_path}/other.db")


def test_message_of_a_driver_that_repeats_a_secret_is_redacted(monkeypatch):
    def repeat_secret(url):
        raise ValueError(f"cannot use {SECRET}, nor {SECRET}") from OSError(SECRET)

    monkeypatch.setattr(storage_module, "_open_database", repeat_secret)
    for address in (f"sqlite://u:{SECRET}@h/x", f"sqlite:///x.db?token={SECRET}"):
        with pytest.raises(RequestError) as raised:
            Storage(address)
        assert SECRET not in full_text(raised.value)


def test_damaged_database_file_is_an_error_at_once(tmp_path):
    path = tmp_path / "study.db"
    storage = Storage(f"sqlite:///{path}")
    study_id = storage.create_study("search", ["minimize"], ["macs"])
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    storage._storage.remove_session()
    with pytest.raises(StorageError, match=r"study\.db is damaged: .*malformed"):
        storage.get_trials(study_id)


def test_database_with_rows_that_optuna_cannot_read_is_an_error(tmp_path):
    path = tmp_path / "study.db"
    log = TrialLog(Storage(f"sqlite:///{path}"), [SPACE], prepare_objectives(OBJECTIVES), 0)
    assert log.claim(proposed_trials(1)[0])
    for change in (
        "UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'digest'",
        "UPDATE trials SET state = 'ODD'",
        "DROP TABLE trial_user_attributes",
    ):
        with sqlite3.connect(path) as connection:
            connection.execute(change)
        connection.close()
        with pytest.raises(StorageError, match=r"study\.db (is damaged|cannot be used)"):
            TrialLog(Storage(f"sqlite:///{path}"), [SPACE], prepare_objectives(OBJECTIVES), 0)


@pytest.mark.postgresql
def test_unknown_database_and_wrong_password_are_errors(postgresql):
    assert 'database "nothing" does not exist' in refusal_message(postgresql.address("nothing"))
    assert "password authentication failed" in refusal_message(
        postgresql.address("postgres", SECRET)
    )


@pytest.mark.postgresql
@pytest.mark.parametrize("source", ["PGPASSWORD", ".pgpass"])
def test_password_can_be_outside_of_the_address(database, source, monkeypatch, tmp_path):
    if source == "PGPASSWORD":
        monkeypatch.setenv(source, PASSWORD)
    else:
        password_file = tmp_path / source
        password_file.write_text(f"*:*:*:nas:{PASSWORD.replace(':', chr(92) + ':')}\n")
        password_file.chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(password_file))
    storage = Storage(redact_address(database))
    assert storage.name == redact_address(database)
    result = run_search(SPACE, OBJECTIVES, trials=3, storage=redact_address(database), shared=True)
    assert len(result.trials) == 3
    assert PASSWORD not in storage.name


def test_error_for_a_missing_driver_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(
        RequestError, match=re.escape("pip install 'hardware-nas[postgresql]'")
    ) as e:
        Storage(f"postgresql://nas:{SECRET}@host/trials")
    assert SECRET not in full_text(e.value)


@pytest.mark.postgresql
def test_tables_of_another_version_of_optuna_are_refused(database, postgresql):
    Storage(database)
    name = re.search(r"/(d\w+)\?", database).group(1)
    postgresql.run_sql(name, "UPDATE alembic_version SET version_num = 'v2.4.0.a'")
    assert "no longer compatible with the table schema" in refusal_message(database)


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_search_continues_after_an_outage_of_the_database(postgresql, database, mode, capfd):
    messages, calls = [], Counter()
    restart = threading.Timer(0.5, postgresql.start)

    def counted_macs(architecture):
        calls[architecture.digest] += 1
        return macs(architecture)

    def begin_outage(trial, progress):
        if progress.completed == 6:
            postgresql.stop(mode)
            restart.start()

    result = run_search(
        SPACE,
        {"macs": counted_macs},
        trials=12,
        sampler="random",
        storage=database,
        on_trial=begin_outage,
        on_message=messages.append,
    )
    restart.join()
    assert [trial.state for trial in result.trials] == ["complete"] * 12
    assert list(calls.values()) == [1] * 12
    assert len(messages) == 2
    assert messages[0].startswith(f"{redact_address(database)} does not answer (")
    assert messages[0].endswith("waiting up to 10 minutes")
    assert messages[1] == f"{redact_address(database)} answers again"
    assert PASSWORD not in "".join(messages)
    stored = Storage(database).get_trials(1)
    complete = [each for each in stored if each.state.name == "COMPLETE"]
    assert Counter(each.user_attrs["digest"] for each in complete) == calls
    assert {each.state.name for each in stored} <= {"COMPLETE", "FAIL"}
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.postgresql
def test_connection_whose_server_is_frozen_is_replaced(database, monkeypatch):
    """The system still takes what is sent to a frozen process, so that the driver would wait."""
    storage = Storage(database)
    storage.create_study("frozen", ["minimize"], ["macs"])

    def server_process():
        with storage._storage._backend.engine.connect() as connection:
            return connection.exec_driver_sql("select pg_backend_pid()").scalar()

    frozen = server_process()
    monkeypatch.setattr(storage_module, "ANSWER_SECONDS", 0.5)
    os.kill(frozen, signal.SIGSTOP)
    try:
        assert storage.get_study_names() == ["frozen"]
        assert server_process() != frozen
    finally:
        os.kill(frozen, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.postgresql
def test_search_stops_after_a_long_outage_and_can_be_resumed(postgresql, database, monkeypatch):
    def stop_server(trial, progress):
        if progress.completed == 4:
            postgresql.stop()

    settings = {"trials": 8, "sampler": "random", "storage": database}
    with monkeypatch.context() as patch:
        patch.setattr(storage_module, "STORAGE_RETRY_SECONDS", 0.5)
        with pytest.raises(StorageError, match=r"did not answer for .* Run the same command again"):
            run_search(SPACE, OBJECTIVES, **settings, on_trial=stop_server)
    postgresql.start()
    result = run_search(SPACE, OBJECTIVES, **settings)
    assert [trial.state for trial in result.trials] == ["complete"] * 8
    stored = Storage(database).get_trials(1)
    assert Counter(each.state.name for each in stored)["COMPLETE"] == 8


@for_backends(DATABASES[1:])
def test_remote_process_is_not_dead_directly_after_an_outage(
    postgresql, new_log, new_remote_log, monkeypatch
):
    working, watching = new_remote_log(), new_log()
    monkeypatch.setattr(liveness, "HEARTBEAT_TIMEOUT_SECONDS", 0.4)
    assert working.claim(proposed_trials(1)[0])
    watching.refresh()
    postgresql.stop()
    time.sleep(0.5)
    working.record_heartbeat()
    watching.record_heartbeat()
    restart = threading.Timer(0.3, postgresql.start)
    restart.start()
    watching.refresh()
    restart.join()
    watching.refresh()
    assert watching.num_running == 1
    time.sleep(0.5)
    watching.refresh()
    assert watching.num_running == 0


def test_database_has_whole_tables_after_a_process_failed_while_it_made_them(tmp_path):
    address, failed = f"sqlite:///{tmp_path}/study.db", []

    def fail_once(connection, cursor, statement, *_):
        if statement.lstrip().startswith("CREATE UNIQUE INDEX") and not failed:
            failed.append(statement)
            raise OperationalError(statement, None, Exception("table trials already exists"))

    event.listen(Engine, "before_cursor_execute", fail_once)
    try:
        storages = [Storage(address) for _ in range(2)]
    finally:
        event.remove(Engine, "before_cursor_execute", fail_once)
    assert failed
    studies = {each.create_study("search", ["minimize"], ["macs"]) for each in storages}
    assert len(studies) == 1
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as database:
        for table in ("studies", "trials", "version_info"):
            declared = {each.name for each in BaseModel.metadata.tables[table].indexes}
            made = {row[1] for row in database.execute(f"PRAGMA index_list({table})")}
            assert declared <= made
