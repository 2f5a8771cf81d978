"""What a server keeps between requests changes no number: after each step it says what a server without it says."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import definition as definitions
from app import observations, progress, results
from app.db import Database
from app.observations import Data, Memory
from app.results_json import results_json
from app.serving import prepare
from app.settings import Settings
from ml.pack import Pack
from tests.app.conftest import Player
from tests.app.oracle import at_random, play
from tests.app.small import db, prepared, settings, small, study

__all__ = ["db", "prepared", "settings", "small", "study"]  # fixtures

LATER = datetime(2030, 1, 1, tzinfo=UTC)  # everybody who has not finished has left
KINDS: tuple[Data, Data] = ("real", "simulated")


def said(db: Database, data: Data, memory: Memory | None) -> Any:
    """Everything that is shown but the clock's time."""
    with db.read() as session:
        study = definitions.active(session, "test")
        assert study is not None
        found = results.compute(session, study, data, memory, LATER)
        return results_json(found), found.progress, results.comments(session, found)


@pytest.mark.parametrize("chunk", [1, 500])
def test_after_each_step_memory_says_what_reading_all_says(
    researcher: TestClient,
    start: Callable[..., Player],
    db: Database,
    small: Pack,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
) -> None:
    monkeypatch.setattr(observations, "CHUNK", chunk)
    memory = Memory()
    told = []

    def check() -> None:
        both = []
        for data in KINDS:
            fresh = said(db, data, None)
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
        for i in range(3):
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
