"""The database underneath: writers in order, a bounded wait, what is deleted is gone from the files."""

import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as TookTooLong

from app import db as databases
from app.db import Database
from app.main import create_app
from app.models import Participant, Response, Trial
from app.settings import Settings
from tests.app.conftest import Player, begin


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path / 'study.db'}")


def test_every_connection_has_the_settings_that_keep_answers(database: Database) -> None:
    def pragma(name: str) -> object:
        with database.read() as session:
            return session.scalar(text(f"PRAGMA {name}"))

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2, "FULL"
    assert pragma("busy_timeout") == 1000 * databases.BUSY_TIMEOUT_S
    assert (pragma("foreign_keys"), pragma("secure_delete")) == (1, 1)
    database.close()


@pytest.mark.only("postgresql")
def test_on_postgresql_no_wait_is_without_end(database_url: str) -> None:
    database = Database(f"{database_url}&options=-c%20lock_timeout%3D7s%20-c%20application_name%3Dstudy")
    with database.read() as session:

        def shown(name: str) -> object:
            return session.scalar(text(f"SHOW {name}"))

        assert (shown("statement_timeout"), shown("idle_in_transaction_session_timeout")) == ("30s", "1min")
        assert shown("synchronous_commit") == "on", "saved is said of what is on the disk"
        assert (shown("lock_timeout"), shown("application_name")) == ("7s", "study"), (
            "the operator's own come last"
        )
    database.close()
    usual = Database(database_url)
    with usual.read() as session:
        assert session.scalar(text("SHOW lock_timeout")) == f"{databases.BUSY_TIMEOUT_S:.0f}s"
    usual.close()


@pytest.mark.only("postgresql")
def test_four_processes_fit_into_a_postgresql_as_it_comes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred connections, of which three are its administrator's; each process has two more, for probes."""
    monkeypatch.setattr(databases, "BUSY_TIMEOUT_S", 0.1)
    database = Database(database_url)
    held: list[Connection] = []
    with suppress(TookTooLong):
        while len(held) < 100:
            held.append(database.engine.connect())
    assert len(held) >= 10
    assert 4 * (len(held) + 2) <= 80
    for connection in held:
        connection.close()
    database.close()


def test_writers_come_in_the_order_in_which_they_asked(database: Database) -> None:
    order: list[int] = []
    asked = [threading.Event() for _ in range(20)]

    def write(number: int) -> None:
        asked[number].set()
        with database.write() as session:
            session.execute(text("SELECT 1"))
            order.append(number)

    with ThreadPoolExecutor(20) as pool, database.write():
        for number in range(20):
            pool.submit(write, number)
            asked[number].wait(10)
            while len(database._queue._waiting) <= number:  # type: ignore[union-attr]
                threading.Event().wait(0.001)
    assert order == list(range(20))
    database.close()


def test_a_writer_waits_so_long_and_no_longer(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "BUSY_TIMEOUT_S", 0.05)

    def write() -> None:
        with database.write():
            pass

    with (
        ThreadPoolExecutor(1) as pool,
        database.write(),
        pytest.raises(OperationalError, match="database is locked"),
    ):
        pool.submit(write).result()
    write()
    with pytest.raises(ZeroDivisionError), database.write():
        raise ZeroDivisionError
    write()  # neither who gave up nor who failed blocks the next
    database.close()


@pytest.mark.only("sqlite")
def test_what_a_withdrawal_deletes_is_in_no_file(
    client: TestClient, settings: Settings, start: Callable[..., Player]
) -> None:
    """Among others who stay, so that the deleted rows share their pages."""
    ids, answers, comments = [], [], []
    players = []
    for number in range(8):
        ids.append(f"recruiter-{uuid.uuid4()}-{number}" + "x" * 100)
        player = start(PROLIFIC_PID=ids[-1])
        player.answer(until="commenting")
        comments.append(f"Comment {uuid.uuid4()}: " + "gooseberries under the viaduct. " * 30)
        assert player.client.post(f"{player.base}/comments", json={"text": comments[-1]}).status_code == 200
        players.append(player)
    with client.app.state.database.read() as session:  # type: ignore[attr-defined]
        for player in players:
            own = select(Trial.id).join(Participant).where(Participant.token == player.token)
            rows = session.scalars(select(Response.answer_id).where(Response.trial_id.in_(own)))
            answers.append([answer.hex.encode() for answer in rows])
    path = Path(settings.database_url.removeprefix("sqlite:///"))

    def readable(number: int) -> int:
        """How many of a participant's secrets can be read in the database's files."""
        content = b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
        secrets = [ids[number].encode(), comments[number].encode()[:60], *answers[number]]
        return sum(secret in content for secret in secrets)

    assert [readable(number) for number in range(8)] == [34] * 8
    for player in players[::2]:
        assert player.client.post(f"{player.base}/withdraw").status_code == 200
    assert [readable(number) for number in range(8)] == [0, 34] * 4


@pytest.mark.only("sqlite")
def test_what_a_reader_keeps_in_the_log_is_scrubbed_once_it_has_gone(
    client: TestClient, settings: Settings, start: Callable[..., Player]
) -> None:
    secret = f"recruiter-{uuid.uuid4()}"
    leaver, other = start(PROLIFIC_PID=secret), start()
    log = Path(settings.database_url.removeprefix("sqlite:///") + "-wal")
    with closing(sqlite3.connect(log.with_name(log.name.removesuffix("-wal")))) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM participants").fetchall()  # as a backup or a slow download does
        assert leaver.client.post(f"{leaver.base}/withdraw").status_code == 200
        other.answer(most=3)
        assert secret.encode() in log.read_bytes()
    for _ in range(100):
        if secret.encode() not in log.read_bytes():
            break
        time.sleep(0.1)
    assert secret.encode() not in log.read_bytes(), "nobody had to do anything for it"


@pytest.mark.only("sqlite")
def test_what_is_left_to_scrub_is_scrubbed_at_the_end(settings: Settings, prepared: object) -> None:
    secret = f"recruiter-{uuid.uuid4()}"
    file = Path(settings.database_url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(file)) as other:  # keeps the log from going with the last connection
        with TestClient(create_app(settings)) as client:
            leaver = begin(client, PROLIFIC_PID=secret)
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM participants").fetchall()
            assert client.post(f"{leaver.base}/withdraw").status_code == 200
            other.rollback()
        assert secret.encode() not in file.with_name(f"{file.name}-wal").read_bytes()


def test_a_withdrawal_repeated_does_no_work(
    client: TestClient, start: Callable[..., Player], monkeypatch: pytest.MonkeyPatch
) -> None:
    scrubs: list[Database] = []
    monkeypatch.setattr(Database, "scrub", lambda database: scrubs.append(database))
    player = start()
    for _ in range(3):
        assert player.client.post(f"{player.base}/withdraw").json()["rows_left"] == 0
        assert client.post(f"/s/{player.token}/withdraw").status_code == 200
    assert len(scrubs) == 1


@pytest.mark.only("sqlite")
def test_a_scrub_that_cannot_be_done_is_no_failure(
    settings: Settings, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "BUSY_TIMEOUT_S", 0.05)
    database = Database(settings.database_url)
    with database.write() as session, ThreadPoolExecutor(1) as pool:
        session.execute(text("SELECT 1"))
        pool.submit(database.scrub).result()
    database.close()


@pytest.mark.only("sqlite")
def test_the_file_and_its_log_are_their_owners_alone(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    database.migrate()
    with database.read() as session:
        session.execute(text("SELECT count(*) FROM participants"))
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.glob("new.db*")}
    database.close()
    assert modes == {"new.db": "0o600", "new.db-wal": "0o600", "new.db-shm": "0o600"}
