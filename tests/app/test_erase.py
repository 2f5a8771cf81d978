"""Personal data deleted by command: gone from the database's files, with every number as it was."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from app import audit, enrollment, erase
from app.cli import main
from app.db import Database
from app.main import create_app
from app.models import Base
from app.settings import Settings
from app.withdrawal import PERSONAL
from tests.app.conftest import SECRET, Player, begin, sign_in
from tests.app.databases import connected
from tests.app.small import prepared, settings, small, study

__all__ = ["prepared", "settings", "small", "study"]  # fixtures

Capture = pytest.CaptureFixture[str]


class People:
    """Three who came long ago and finished, left and withdrew, and one who is at it; with all that is theirs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pids = [f"recruited-{uuid4()}" for _ in range(4)]
        self.remark = f"Remark {uuid4()} " + "by the viaduct " * 20
        with TestClient(create_app(settings)) as client:
            self.players = [begin(client, PROLIFIC_PID=pid, STUDY_ID="s") for pid in self.pids]
            done, left, gone, here = self.players
            done.answer(until="commenting")
            assert client.post(f"{done.base}/comments", json={"text": self.remark}).status_code == 200
            self.code = client.post(f"{done.base}/finish").json()["completion_code"]
            left.answer(most=5)
            assert client.post(f"{gone.base}/withdraw").status_code == 200
            here.answer(most=3)
        old = datetime.now(UTC) - timedelta(days=100)
        tokens = [player.token for player in self.players[:3]]
        self.run("UPDATE participants SET last_seen_at = :old WHERE token = ANY(:tokens)", old, tokens)

    def run(self, statement: str, old: datetime, tokens: list[str]) -> None:
        with connected(self.settings.database_url) as connection:
            for token in tokens:
                moment: Any = (
                    old if connection.dialect.name == "postgresql" else f"{old:%Y-%m-%d %H:%M:%S.%f}"
                )
                connection.execute(
                    text(statement.replace("= ANY(:tokens)", "= :token")), {"old": moment, "token": token}
                )
            connection.commit()

    def one(self, question: str) -> Any:
        with connected(self.settings.database_url) as connection:
            return connection.scalar(text(question))

    def results(self) -> dict[str, Any]:
        with TestClient(create_app(self.settings)) as client:
            found: dict[str, Any] = sign_in(client).get("/results/test.json?data=real").json()
            del found["computed_at"]
            return found

    def kept(self, secret: str) -> bool:
        """Whether it can be read in the database's files."""
        url = self.settings.database_url
        if url.startswith("sqlite"):
            file = Path(url.removeprefix("sqlite:///"))
            return any(secret.encode() in part.read_bytes() for part in file.parent.glob(f"{file.name}*"))
        with connected(url) as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("CHECKPOINT"))
            files = connection.execute(
                text(
                    "SELECT pg_read_binary_file(pg_relation_filepath(c.oid)) FROM pg_class c "
                    "WHERE relkind IN ('r', 'i', 't') AND relnamespace <> 'pg_catalog'::regnamespace "
                    "AND relnamespace <> 'information_schema'::regnamespace "
                    "AND pg_relation_filepath(c.oid) IS NOT NULL"
                )
            ).scalars()
            return any(secret.encode() in bytes(content) for content in files)


@pytest.fixture
def people(settings: Settings, prepared: str, monkeypatch: pytest.MonkeyPatch) -> People:
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("SECRET_KEY", SECRET)
    return People(settings)


def test_anonymized_nothing_leads_to_a_person_and_the_numbers_are_the_same(
    people: People, capsys: Capture
) -> None:
    before = people.results()
    done, left, gone, here = people.players
    secrets = [*people.pids[:2], people.remark[:40], people.code, done.token, left.token, gone.token]
    assert all(people.kept(secret) for secret in secrets), "the search finds what is there"
    capsys.readouterr()
    assert main(["erase", "--anonymize", "--older-than", "90"]) == 0
    said = capsys.readouterr().out
    assert said == (
        "would delete: 4 recruiter ids, 1 comments, 3 links and codes\nnothing was changed; --yes does it\n"
    )
    assert all(people.kept(secret) for secret in secrets)
    assert main(["erase", "--anonymize", "--older-than", "90", "--yes"]) == 0
    assert capsys.readouterr().out == "deleted: 4 recruiter ids, 1 comments, 3 links and codes\n"
    assert [secret for secret in secrets if people.kept(secret)] == []
    assert people.results() == before
    assert people.kept(people.pids[3]), "who is at it stays who they are"
    with TestClient(create_app(people.settings)) as client:
        assert [client.get(p.base).status_code for p in people.players] == [404, 404, 404, 200]
        Player(client, here.token).answer()
    assert people.one("SELECT count(*) FROM audit_log WHERE event = 'erased'") == 1
    capsys.readouterr()
    assert main(["erase", "--anonymize", "--older-than", "90", "--yes"]) == 0
    assert capsys.readouterr().out == "deleted: 0 recruiter ids, 0 comments, 0 links and codes\n"


def test_one_kind_alone_and_one_study_alone(people: People, capsys: Capture) -> None:
    before = people.results()
    assert main(["erase", "--recruiter-ids", "--older-than", "90", "--study", "test", "--yes"]) == 0
    assert (people.kept(people.pids[0]), people.kept(people.remark[:40])) == (False, True)
    assert main(["erase", "--comments", "--older-than", "90", "--yes"]) == 0
    assert not people.kept(people.remark[:40])
    assert people.results() == before
    with TestClient(create_app(people.settings)) as client:
        assert client.get(people.players[0].base).json()["state"] == "finished", "the link is theirs still"
    assert main(["erase", "--comments", "--older-than", "90", "--study", "other"]) == 2
    assert "no study 'other'" in capsys.readouterr().err


def test_a_participant_who_asks_is_withdrawn(people: People, capsys: Capture) -> None:
    token = people.players[0].token
    name = people.one(f"SELECT pseudonym FROM participants WHERE token = '{token}'")
    assert main(["erase", "--participant", name]) == 0
    assert people.one("SELECT count(*) FROM comments") == 1
    assert main(["erase", "--participant", name, "--yes"]) == 0
    assert "1 comments, 2 recruiter ids" in capsys.readouterr().out
    assert [people.kept(secret) for secret in (people.pids[0], people.remark[:40])] == [False, False]
    with TestClient(create_app(people.settings)) as client:
        assert client.get(f"/api/sessions/{token}").json()["state"] == "withdrawn"
    assert people.results()["participants"]["withdrawn"] == 2
    assert main(["erase", "--participant", "P-NOBODY", "--yes"]) == 2
    assert "no participant" in capsys.readouterr().err


def test_a_deletion_and_its_entry_are_one_transaction(
    people: People, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    token = people.players[0].token
    name = people.one(f"SELECT pseudonym FROM participants WHERE token = '{token}'")
    record = audit.record

    def fail(session: Session, event: audit.Event, **more: Any) -> None:
        if event is audit.Event.ERASED:
            raise ValueError("not on record")
        record(session, event, **more)

    monkeypatch.setattr(audit, "record", fail)
    entries = people.one("SELECT count(*) FROM audit_log")
    assert main(["erase", "--participant", name, "--yes"]) == 2
    assert "not on record" in capsys.readouterr().err
    assert people.kept(people.remark[:40])
    assert people.one("SELECT count(*) FROM audit_log") == entries


def test_a_study_that_is_over_is_deleted_whole(people: People, capsys: Capture) -> None:
    assert main(["erase", "--all", "--study", "test", "--yes"]) == 2
    assert "is open" in capsys.readouterr().err
    with connected(people.settings.database_url) as connection:
        connection.execute(text("UPDATE studies SET open = false"))
        connection.commit()
    assert main(["erase", "--all", "--study", "test"]) == 0
    assert people.one("SELECT count(*) FROM participants") == 4
    assert main(["erase", "--all", "--study", "test", "--yes"]) == 0
    for table in ("participants", "trials", "responses", "judgments", "comments", "recruiter_ids"):
        assert people.one(f"SELECT count(*) FROM {table}") == 0, table
    assert not any(people.kept(secret) for secret in (*people.pids, people.remark[:40]))
    assert people.results()["participants"]["started"] == 0


@pytest.mark.only("postgresql")  # SQLite has one writer
def test_a_study_is_not_deleted_while_somebody_begins_it(people: People) -> None:
    with connected(people.settings.database_url) as connection:
        connection.execute(text("UPDATE studies SET open = false"))
        connection.commit()
    db = Database(people.settings.database_url)
    with ThreadPoolExecutor(1) as pool:
        with db.write() as session:
            enrollment.queue(session, "test")
            erasing = pool.submit(main, ["erase", "--all", "--study", "test", "--yes"])
            with pytest.raises(TimeoutError):
                erasing.result(timeout=1)
        assert erasing.result() == 0
    db.close()


@pytest.mark.only("sqlite")
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--recruiter-ids"],
        ["--all"],
        ["--all", "--study", "test", "--older-than", "3"],
        ["--participant", "P-X", "--comments", "--older-than", "3"],
        ["--comments", "--older-than", "-1"],
        ["--comments", "--older-than", "soon"],
        ["--anonymize", "--older-than", "0"],
    ],
    ids=lambda options: " ".join(options) or "nothing",
)
def test_what_makes_no_sense_is_refused(
    settings: Settings,
    prepared: str,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("SECRET_KEY", SECRET)
    try:
        status = main(["erase", *options, "--yes"])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    assert status == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.only("postgresql")
def test_tables_are_written_anew_however_long_it_takes(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def look(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("VACUUM"):
            with connection.connection.cursor() as own:
                limits.extend(own.execute("SHOW statement_timeout").fetchone())

    database = Database(people.settings.database_url)
    event.listen(database.engine, "before_cursor_execute", look)
    erase.scrub(database)
    database.close()
    assert limits == ["0"] * (1 + len(PERSONAL))


def test_no_table_that_refers_to_people_is_forgotten() -> None:
    """Withdrawal, `erase` and the emptying of files go by one list."""
    referring = {"participants"}
    while more := {
        table.name
        for table in Base.metadata.sorted_tables
        if table.name not in referring and {key.column.table.name for key in table.foreign_keys} & referring
    }:
        referring |= more
    assert {table.__tablename__ for table in PERSONAL} == referring - {"participants"}
