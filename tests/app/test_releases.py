"""A database of an earlier release, brought up to date: every row and every number is there, and people go on."""

import csv
import io
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import MetaData, select

from app.db import Database
from app.models import Participant, SeenLook, Study, Unmasking
from app.serving import prepare
from app.settings import Settings
from tests.app.conftest import Player, begin
from tests.app.databases import Databases, connected
from tests.app.releases import RELEASES, carried, shown_then
from tests.app.releases.make import SECOND


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def then(release: str, databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> str:
    """As the release left it."""
    return carried(release, databases, tmp_path_factory.mktemp("then"))


@pytest.fixture(scope="module")
def prepared(then: str, databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> str:
    """As this version makes it; tests get copies."""
    url = databases.copy(then, tmp_path_factory.mktemp("now"))
    database = Database(url)
    database.migrate()
    database.close()
    return url


def content(url: str, like: dict[str, list[str]] | None = None) -> dict[str, Counter[tuple[Any, ...]]]:
    """Every row of every table, or of the tables and columns of `like`, as the database has it."""
    found = {}
    with connected(url) as connection:
        metadata = MetaData()
        metadata.reflect(connection)
        for name, columns in (like or {t.name: list(t.c.keys()) for t in metadata.sorted_tables}).items():
            table = metadata.tables[name]
            rows = connection.execute(select(*(table.c[column] for column in columns)))
            found[name] = Counter(tuple(map(repr, row)) for row in rows)
    return found


def columns(url: str) -> dict[str, list[str]]:
    with connected(url) as connection:
        metadata = MetaData()
        metadata.reflect(connection)
        return {t.name: sorted(t.c.keys()) for t in metadata.sorted_tables if t.name != "alembic_version"}


def test_every_row_is_there_as_it_was(then: str, prepared: str) -> None:
    before = content(then, columns(then))
    assert content(prepared, columns(then)) == before
    rows = {name: table.total() for name, table in before.items()}
    assert min(rows.values()) > 0, "the release has left something in every table"
    assert (rows["participants"], rows["responses"], rows["judgments"]) == (20, 212, 149)


def test_the_numbers_are_those_that_the_release_showed(
    researcher: TestClient, release: str, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    for data, before in shown_then(release, databases).items():
        results = before["results"]
        # Who is still at it depends on when one looks.
        at = datetime.fromisoformat(results["computed_at"])
        monkeypatch.setattr("app.showing.now", lambda at=at: at)
        now = researcher.get(f"/results/test.json?data={data}").json()
        assert_holds(now, results)
        assert results["packs"]["test-pack"]["comparisons"], "there are numbers to compare"
        answers = researcher.get(f"/results/test/responses.csv?data={data}").text
        for row, old in zip(rows(answers), rows(before["responses"]), strict=True):
            assert row | old == row


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def assert_holds(now: Any, before: Any, where: str = "") -> None:
    """What was said before is said now; more may be said."""
    if isinstance(before, dict):
        for key, value in before.items():
            assert key in now, f"{where}.{key}"
            assert_holds(now[key], value, f"{where}.{key}")
    elif isinstance(before, list):
        assert len(now) == len(before), where
        for i, value in enumerate(before):
            assert_holds(now[i], value, f"{where}[{i}]")
    elif isinstance(before, float):  # sums may be added up in another order
        assert now == pytest.approx(before, rel=1e-12, abs=1e-15), where
    else:
        assert now == before, where


def test_sessions_that_were_begun_go_on(client: TestClient, settings: Settings) -> None:
    database = Database(settings.database_url)
    with database.read() as session:
        people = session.scalars(select(Participant).order_by(Participant.id)).all()
        number = max(p.number for p in people if p.study.slug == "test" and p.study.open)
    for person in people:
        player = Player(client, person.token)
        if person.withdrawn_at is not None:
            assert player.session()["state"] == "withdrawn"
            continue
        assert player.session()["state"] == ("finished" if person.finished_at else player.session()["state"])
        player.answer()
        code = client.post(f"{player.base}/finish").json()["completion_code"]
        assert code == (person.completion_code or code)
        assert player.session()["state"] == "finished"
    known = next(p for p in people if p.request_id is not None)
    request = {"study": "test", "consent": True, "external": {}, "request_id": str(known.request_id)}
    assert client.post("/api/sessions", json=request).json()["token"] == known.token, "a late repetition"
    begin(client).answer()
    with database.read() as session:
        newest = session.scalars(select(Participant).order_by(Participant.id.desc()).limit(1)).one()
        assert newest.number == number + 1
        assert session.scalars(select(Unmasking)).all()
        assert session.scalars(select(SeenLook)).all(), "what had been seen is on record"
    database.close()


def test_the_same_study_is_the_version_that_it_was(settings: Settings, prepared: str, tmp_path: Path) -> None:
    (settings.studies / "test.toml").write_text(SECOND)
    database = Database(settings.database_url)
    again = Settings(settings.database_url, settings.secret, settings.studies, tmp_path / "stimuli")
    with database.read() as session:
        before = session.execute(select(Study.id, Study.sha256, Study.open, Study.activated_at)).all()
    assert prepare(again, datetime.now(UTC)) == ["test"]
    with database.read() as session:
        assert session.execute(select(Study.id, Study.sha256, Study.open, Study.activated_at)).all() == before
    database.close()
