"""Two requests at once at two server processes: as if one had come after the other, whichever is first.

On PostgreSQL, where nothing but what the app locks makes one transaction wait for another; on SQLite there is one
writer at a time (test_db.py). The first request is stopped inside its transaction, before a statement; the
second is made, and goes on until it waits for the first or has ended; then the first may go on.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, func, select, text

from app import auth, password
from app.audit import Event
from app.cli import main
from app.db import Database
from app.main import create_app
from app.models import (
    AuditEntry,
    Comment,
    Judgment,
    Participant,
    RecruiterId,
    ResearcherSession,
    Response,
    Trial,
    Unmasking,
)
from app.serving import prepare
from app.settings import Settings
from tests.app.conftest import Player, begin, sign_in
from tests.app.databases import connected
from tests.app.small import SMALL_STUDY, db, prepared, settings, small, study

__all__ = ["db", "prepared", "settings", "small", "study"]  # fixtures
pytestmark = pytest.mark.only("postgresql")

Call = Callable[[httpx2.Client], httpx2.Response]
WAITING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@dataclass
class Race:
    """Two server processes at one database; both in this process, which they need not know."""

    one: TestClient
    two: TestClient
    url: str

    def run(
        self, first: Call, second: Call, stop_at: str = "COMMIT"
    ) -> tuple[httpx2.Response, httpx2.Response]:
        """The replies to the first, which is stopped before that statement, and to the second, made meanwhile."""
        stopped, go_on = threading.Event(), threading.Event()

        def stop(*_: object) -> None:
            if not stopped.is_set():
                stopped.set()
                assert go_on.wait(60)

        def stop_before(_c: object, _cursor: object, statement: str, *_: object) -> None:
            if statement.startswith(stop_at):
                stop()

        engine = self._engine(self.one)
        name, listener = ("commit", stop) if stop_at == "COMMIT" else ("before_cursor_execute", stop_before)
        event.listen(engine, name, listener)
        try:
            with ThreadPoolExecutor(2) as pool:
                try:
                    begun = pool.submit(first, self.one)
                    assert stopped.wait(60), begun.result()
                    followed = pool.submit(second, self.two)
                    self._wait_until_it_waits(followed.done)
                finally:
                    go_on.set()
                return begun.result(60), followed.result(60)
        finally:
            event.remove(engine, name, listener)

    def _wait_until_it_waits(self, done: Callable[[], bool]) -> None:
        with connected(self.url, isolation_level="AUTOCOMMIT") as connection:
            for _ in range(3000):
                if done() or connection.execute(WAITING).scalar_one():
                    return
                time.sleep(0.01)
        raise AssertionError("the second neither waits nor ends")

    @staticmethod
    def _engine(client: TestClient) -> Engine:
        app = client.app
        assert isinstance(app, FastAPI)
        database: Database = app.state.database
        return database.engine


@pytest.fixture
def race(settings: Settings, prepared: str) -> Iterator[Race]:
    with TestClient(create_app(settings)) as one, TestClient(create_app(settings)) as two:
        yield Race(one, two, settings.database_url)


def count(db: Database, table: type[Any]) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def beginning(study: str = "test", request_id: str | None = None, **external: str) -> Call:
    body = {"study": study, "consent": True, "external": external, "request_id": request_id}
    return lambda client: client.post("/api/sessions", json=body)


def on(player: Player, what: str, **body: Any) -> Call:
    return lambda client: client.post(f"{player.base}/{what}", json=body or None)


def label(player: Player, position: int = 1, answer_id: str | None = None, value: str = "3") -> Call:
    answer = {"label": value, "runner_up": "none", "answer_id": answer_id or str(uuid.uuid4())}
    return lambda client: Player(client, player.token).put(position, **answer)


# Beginning


def test_one_person_on_two_devices_has_one_session(race: Race, db: Database) -> None:
    one, two = race.run(beginning(PROLIFIC_PID="abc"), beginning(PROLIFIC_PID="abc"))
    assert (one.status_code, two.status_code) == (201, 201)
    assert one.json() == two.json()
    assert count(db, Participant) == 1


def test_two_persons_have_two_numbers(race: Race, db: Database) -> None:
    one, two = race.run(beginning(), beginning())
    assert (one.status_code, two.status_code) == (201, 201)
    with db.read() as session:
        assert session.scalars(select(Participant.number).order_by(Participant.number)).all() == [1, 2]
        shown = session.execute(select(Trial.stimulus_id, func.count()).group_by(Trial.stimulus_id)).all()
    assert max(n for stimulus, n in shown if stimulus) == 1, (
        "the second was assigned by what the first is shown"
    )


def test_a_crowd_of_strangers_is_numbered_in_a_row(race: Race, db: Database) -> None:
    """Of those that come together one goes first, and the others do not have to try again and again."""
    together = threading.Barrier(12, timeout=60)
    # FastAPI makes what it needs of each route when it is first asked, in a server in one thread; here the crowd's.
    assert [client.get("/nowhere").status_code for client in (race.one, race.two)] == [404, 404]

    def arrive(client: TestClient) -> int:
        together.wait()
        return beginning()(client).status_code

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(arrive, [race.one, race.two] * 6)) == [201] * 12
    with db.read() as session:
        numbers = session.scalars(select(Participant.number).order_by(Participant.number)).all()
    assert numbers == [*range(1, 13)]


def test_one_request_at_two_studies_begins_one_session(race: Race, db: Database, settings: Settings) -> None:
    (settings.studies / "other.toml").write_text(SMALL_STUDY.replace("seed = 7", "seed = 8"))
    prepare(settings)
    same = str(uuid.uuid4())
    one, two = race.run(beginning(request_id=same), beginning("other", request_id=same))
    assert (one.status_code, two.status_code) == (201, 409)
    assert "another study" in two.json()["detail"]
    assert count(db, Participant) == 1


# Answering


def test_the_first_of_two_answers_counts(race: Race, db: Database) -> None:
    player = begin(race.one)
    for stop_at in ("COMMIT", "UPDATE participants"):
        position = player.session()["next_position"]
        first, second = label(player, position, value="1"), label(player, position, value="2")
        one, two = race.run(first, second, stop_at)
        assert (one.status_code, two.status_code) == (200, 409)
        assert two.json()["stored"]["label"] == "1"
    assert count(db, Response) == 2


def test_an_answer_sent_twice_is_stored_once(race: Race, db: Database) -> None:
    player = begin(race.one)
    same = str(uuid.uuid4())
    one, two = race.run(label(player, answer_id=same), label(player, answer_id=same))
    assert (one.status_code, two.status_code) == (200, 200)
    assert one.json() == two.json()
    assert count(db, Response) == 1


def test_one_id_of_two_persons_answers_counts_once(race: Race, db: Database) -> None:
    one, two = begin(race.one), begin(race.one)
    same = str(uuid.uuid4())
    replies = race.run(label(one, answer_id=same), label(two, answer_id=same))
    assert [reply.status_code for reply in replies] == [200, 409]
    assert count(db, Response) == 1


@pytest.mark.parametrize("stop_at", ["COMMIT", "UPDATE participants"])
def test_an_answer_is_deleted_by_a_withdrawal_after_it(race: Race, db: Database, stop_at: str) -> None:
    player = begin(race.one)
    player.answer(most=3)
    one, two = race.run(label(player, 4), on(player, "withdraw"), stop_at)
    assert (one.status_code, two.status_code) == (200, 200)
    assert (two.json()["rows_deleted"]["labels"], two.json()["rows_left"]) == (4, 0)
    assert (count(db, Response), count(db, Trial)) == (0, 0)


@pytest.mark.parametrize("by_form", [False, True])
def test_no_answer_is_stored_after_a_withdrawal(race: Race, db: Database, by_form: bool) -> None:
    player = begin(race.one)
    player.answer(most=3)
    answer = {"position": "4", "answer_id": str(uuid.uuid4()), "label": "3", "runner_up": "none"}

    def form(client: httpx2.Client) -> httpx2.Response:
        return client.post(f"/s/{player.token}/label", data=answer, follow_redirects=True)

    one, two = race.run(on(player, "withdraw"), form if by_form else label(player, 4))
    assert one.status_code == 200
    assert two.status_code == (200 if by_form else 409)
    assert ("answers are deleted" if by_form else "withdrawn") in two.text
    assert (count(db, Response), count(db, Trial)) == (0, 0)


def test_a_withdrawal_pressed_twice_says_twice_what_it_deleted(race: Race, db: Database) -> None:
    player = begin(race.one)
    player.answer(most=3)
    one, two = race.run(on(player, "withdraw"), on(player, "withdraw"))
    assert one.json() == two.json()
    assert one.json()["rows_deleted"]["labels"] == 3


# Ending


@pytest.fixture
def commenting(race: Race) -> Player:
    player = begin(race.one)
    player.answer(until="commenting")
    return player


def test_two_comments_at_once_are_one(race: Race, db: Database, commenting: Player) -> None:
    one, two = race.run(on(commenting, "comments", text="First."), on(commenting, "comments", text="Second."))
    assert (one.status_code, two.status_code) == (200, 200)
    with db.read() as session:
        assert session.scalars(select(Comment.text)).all() == ["Second."]


def test_two_ends_give_one_code(race: Race, commenting: Player) -> None:
    one, two = race.run(on(commenting, "finish"), on(commenting, "finish"))
    assert (one.status_code, two.status_code) == (200, 200)
    assert one.json()["completion_code"] == two.json()["completion_code"] is not None


def test_a_session_that_ends_can_be_withdrawn_and_one_that_is_withdrawn_cannot_end(
    race: Race, db: Database, commenting: Player
) -> None:
    one, two = race.run(on(commenting, "finish"), on(commenting, "withdraw"))
    assert (one.status_code, two.status_code) == (200, 200)
    other = begin(race.one)
    other.answer(until="commenting")
    one, two = race.run(on(other, "withdraw"), on(other, "finish"))
    assert (one.status_code, two.status_code) == (200, 409)
    with db.read() as session:
        rows = session.execute(select(Participant.completion_code, Participant.finished_at)).all()
    assert rows == [(None, None)] * 2
    assert (count(db, Response), count(db, Judgment), count(db, Trial)) == (0, 0, 0)


# Erasing, by command


@pytest.fixture
def old(race: Race, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Player:
    """Somebody who was last seen long ago."""
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("SECRET_KEY", settings.secret)
    player = begin(race.one, PROLIFIC_PID="abc")
    player.answer(most=3)
    execute(race, "UPDATE participants SET last_seen_at = '2020-01-01'")
    return player


def execute(race: Race, statement: str) -> None:
    with connected(race.url) as connection:
        connection.execute(text(statement))
        connection.commit()


def erased(*options: str) -> Call:
    return lambda _client: httpx2.Response(200 if main(["erase", *options, "--yes"]) == 0 else 500)


def test_who_comes_back_while_the_old_are_anonymized_keeps_their_link(
    race: Race, db: Database, old: Player
) -> None:
    one, two = race.run(label(old, 4), erased("--anonymize", "--older-than", "30"))
    assert (one.status_code, two.status_code) == (200, 200)
    assert old.session()["next_position"] == 5
    assert count(db, RecruiterId) == 1


def test_an_answer_under_way_is_deleted_with_its_study(race: Race, db: Database, old: Player) -> None:
    execute(race, "UPDATE studies SET open = false")
    one, two = race.run(label(old, 4), erased("--all", "--study", "test"))
    assert (one.status_code, two.status_code) == (200, 200)
    assert (count(db, Participant), count(db, Trial), count(db, Response)) == (0, 0, 0)
    with db.read() as session:
        detail = select(AuditEntry.detail).where(AuditEntry.event == str(Event.ERASED))
        assert session.scalars(detail).one()["labels"] == 4, "counted with it"


# The researcher


def test_an_unmasking_is_on_record_once(race: Race, db: Database) -> None:
    for client in (race.one, race.two):
        sign_in(client)

    def unmask(client: httpx2.Client) -> httpx2.Response:
        return client.post("/results/test/unmask", follow_redirects=True)

    one, two = race.run(unmask, unmask)
    assert (one.status_code, two.status_code) == (200, 200)
    assert count(db, Unmasking) == 1


def changed(race: Race, to: str) -> Call:
    """The password, by the command."""

    def change(client: httpx2.Client) -> httpx2.Response:
        other = Database(race.url)
        with other.write() as session:
            password.change(session, to, datetime.now(UTC))
            session.commit()
        other.close()
        return httpx2.Response(200)

    return change


def test_a_sign_in_by_a_password_that_is_changed_does_not_last(race: Race, db: Database) -> None:
    changed(race, "the first of two passwords")(race.one)

    def sign_in(client: httpx2.Client) -> httpx2.Response:
        form = {"password": "the first of two passwords"}
        return client.post("/signin", data=form, follow_redirects=False)

    one, _ = race.run(sign_in, changed(race, "the second of two passwords"))
    assert one.status_code == 303
    assert count(db, ResearcherSession) == 0, "a change of the password ends every session"
    assert race.one.get("/results").status_code != 200


def test_a_sign_in_by_a_link_made_before_the_password_was_changed_does_not_last(
    race: Race, db: Database, settings: Settings
) -> None:
    for stop_at, status in (("COMMIT", 303), ("UPDATE signin_links", 401)):
        with db.write() as session:
            link = auth.new_link(session, settings.secret, datetime.now(UTC))
            session.commit()

        def sign_in(client: httpx2.Client, link: str = link) -> httpx2.Response:
            cookie = {"Cookie": f"{auth.LINK_COOKIE}={link}"}
            return client.post("/signin/link", headers=cookie, follow_redirects=False)

        one, _ = race.run(sign_in, changed(race, "another of many passwords"), stop_at)
        assert one.status_code == status
        assert count(db, ResearcherSession) == 0


# What reads


def test_a_reading_session_sees_one_instant(db: Database, race: Race) -> None:
    player = begin(race.one)
    with db.read() as session:
        assert session.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        before = session.scalar(select(func.count()).select_from(Response))
        player.answer(most=2)
        assert session.scalar(select(func.count()).select_from(Response)) == before == 0
    assert count(db, Response) == 2
