"""What a server keeps between requests changes no number: after each step it says what a server without it says."""

import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, select, update

from app import definition as definitions
from app import observations, progress, results, warming
from app.db import Database
from app.models import Comment, Judgment, Participant, Response, SeenLook, Trial, Unmasking
from app.observations import Data, Memory
from app.results_json import results_json
from app.serving import prepare
from app.settings import Settings
from ml.pack import Pack
from tests.app.conftest import Player
from tests.app.databases import KINDS, Databases
from tests.app.oracle import at_random, play
from tests.app.small import db, prepared, settings, small, study

__all__ = ["db", "prepared", "settings", "small", "study"]  # fixtures

LATER = datetime(2030, 1, 1, tzinfo=UTC)  # everybody who has not finished has left
SHOWN: tuple[Data, Data] = ("real", "simulated")


def said(db: Database, data: Data, memory: Memory | None) -> Any:
    """Everything that is shown but the clock's time."""
    with db.read() as session:
        study = definitions.active(session, "test")
        assert study is not None
        found = results.compute(session, study, data, memory, LATER)
        return results_json(found), found.progress, results.comments(session, found)


def test_after_each_step_memory_says_what_reading_all_says(
    researcher: TestClient,
    start: Callable[..., Player],
    db: Database,
    small: Pack,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where not everybody who is new is read by one statement."""
    memory = Memory()
    told = []

    def check() -> None:
        both = []
        for data in SHOWN:
            fresh = said(db, data, None)
            with monkeypatch.context() as patch:
                patch.setattr(observations, "CHUNK", 2)
                assert said(db, data, memory) == fresh
                assert said(db, data, memory) == fresh, "nor asking again"
            both.append(fresh)
        told.append(both)

    check()
    person = start()
    check()
    for until, most in (
        ("finished", 1),
        ("finished", 5),
        ("judging", 100),
        ("finished", 3),
        ("commenting", 100),
    ):
        person.answer(until=until, most=most)
        check()
    researcher.post(f"{person.base}/comments", json={"text": "First thoughts."})
    check()
    researcher.post(f"{person.base}/comments", json={"text": "Second thoughts."})
    check()
    researcher.post(f"{person.base}/finish")
    check()
    tokens = [play(researcher, "test", [small], at_random(i, small.labels)) for i in range(3)]
    check()
    play(researcher, "test", [small], at_random(9, small.labels), simulated="yes")
    check()
    researcher.post("/results/test/unmask")
    check()
    for token in (tokens[0], person.token):
        researcher.post(f"/api/sessions/{token}/withdraw")
        check()
    file = Path(settings.studies) / "test.toml"
    file.write_text(file.read_text().replace("max_same_label_share = 0.8", "max_same_label_share = 0.3"))
    prepare(settings)
    check()
    play(researcher, "test", [small], at_random(4, small.labels))
    check()
    assert len({repr(one) for one in told}) == len(told), "each step changes something"


def test_whatever_happens_every_process_says_what_is_stored(
    researcher: TestClient, start: Callable[..., Player], db: Database, small: Pack, databases: Databases
) -> None:
    rng = random.Random(KINDS.index(databases.kind) + 1)  # other steps on each
    processes = [Memory(), Memory()]
    people: list[Player] = []

    def begin() -> None:
        people.append(start())

    def answer() -> None:
        for person in rng.sample(people, min(2, len(people))):
            if person.session()["state"] != "withdrawn":
                person.answer(by_chance, most=rng.choice([1, 2, 30]))

    def by_chance(trial: dict[str, Any]) -> dict[str, Any]:
        answer = at_random(rng.random(), small.labels)(None)
        asked = ("plausible",) if trial["state"] == "judging" else ("label", "runner_up")
        return {key: answer[key] for key in asked}

    def withdraw() -> None:
        assert researcher.post(f"{rng.choice(people).base}/withdraw").status_code == 200

    def correct() -> None:
        # Nothing of the app does so: what somebody changes by hand together with the row shows too.
        with db.write() as session:
            person = session.scalars(select(Participant).order_by(Participant.last_seen_at.desc())).first()
            assert person is not None
            person.last_seen_at += timedelta(seconds=1)
            trials = select(Trial.id).where(Trial.participant_id == person.id)
            session.execute(update(Response).where(Response.trial_id.in_(trials)).values(rt_ms=50.5))
            session.commit()

    def remove() -> None:
        """As if somebody had never been here."""
        with db.write() as session:
            gone = session.scalars(select(Participant).where(Participant.token == people.pop().token)).one()
            trials = select(Trial.id).where(Trial.participant_id == gone.id)
            for table in (Response, Judgment):
                session.execute(delete(table).where(table.trial_id.in_(trials)))
            for owned in (Trial, Comment):
                session.execute(delete(owned).where(owned.participant_id == gone.id))
            session.delete(gone)
            session.commit()

    for step in [
        begin,
        begin,
        *rng.choices([begin, answer, withdraw, correct, remove], [2, 9, 1, 2, 1], k=14),
    ]:
        if people or step is begin:
            step()
        memory = rng.choice(processes)  # the other one misses some steps
        assert said(db, "real", memory) == said(db, "real", None), step.__name__


def test_what_is_loaded_beforehand_is_not_shown(
    researcher: TestClient, db: Database, small: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):  # the target
        play(researcher, "test", [small], at_random(i, small.labels))
    memory = Memory()
    warming.warm(db, memory)
    with db.read() as session:
        assert not session.scalars(select(SeenLook)).all()
        assert not session.scalars(select(Unmasking)).all()
    fresh = said(db, "real", None)
    with monkeypatch.context() as patch:
        patch.setattr(observations, "read", lambda _session, ids, _stimuli: iter([] if not ids else [1 / 0]))
        assert said(db, "real", memory) == fresh, "nobody is read again"


def test_a_comment_after_the_end_shows(
    researcher: TestClient, start: Callable[..., Player], db: Database
) -> None:
    person, memory = start(), Memory()
    person.answer(until="commenting")
    assert researcher.post(f"{person.base}/finish").status_code == 200
    assert said(db, "real", memory)[2] == ([], 0)
    # A second tab finishes too, with a text; the participant's row stays as it is.
    assert researcher.post(f"{person.base}/comments", json={"text": "Later."}).status_code == 200
    (comment,), number = said(db, "real", memory)[2]
    assert (comment.text, number) == ("Later.", 1)


def test_numbers_are_of_one_instant_while_answers_come(
    researcher: TestClient, db: Database, small: Pack
) -> None:
    memory, stop, wrong = Memory(), threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            with db.read() as session:
                study = definitions.active(session, "test")
                assert study is not None
                kept = results_json(results.compute(session, study, "real", memory, LATER))
                fresh = results_json(results.compute(session, study, "real", None, LATER))
                if kept != fresh:
                    wrong.append((kept, fresh))

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for i in range(2):
            play(researcher, "test", [small], at_random(i, small.labels))
    finally:
        stop.set()
        for looker in lookers:
            looker.join()
    assert wrong == []


def test_what_fails_leaves_nothing_behind(
    researcher: TestClient, db: Database, small: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory()
    said(db, "real", memory)
    play(researcher, "test", [small], at_random(1, small.labels))
    with monkeypatch.context() as patch:
        patch.setattr(progress, "excluded_because", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            said(db, "real", memory)
    assert said(db, "real", memory) == said(db, "real", None)
