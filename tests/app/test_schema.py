"""The schema as the migrations make it, and the rules that it keeps by itself."""

import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from fastapi.testclient import TestClient
from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import Database
from app.main import create_app
from app.models import Base, Image, Judgment, Participant, RecruiterId, Response, Stimulus, Study, Trial
from app.serving import prepare
from app.settings import ROOT
from ml.pack import Pack
from tests.app.conftest import begin, installation
from tests.app.databases import Databases

pytestmark = pytest.mark.only("sqlite")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, pack: Pack, databases: Databases) -> Iterator[Database]:
    """A database with three participants: at the beginning, amid labelling, finished; no test changes it."""
    folder = tmp_path_factory.mktemp("played")
    settings = installation(folder, pack, databases.new(folder))
    prepare(settings)
    with TestClient(create_app(settings)) as client:
        client.post(
            "/api/sessions",
            json={"study": "test", "consent": True, "external": {}, "request_id": str(uuid.uuid4())},
        )
        begin(client, id="x").answer(most=3)
        begin(client).answer()
    database = Database(settings.database_url)
    yield database
    database.close()


def test_migrations_make_what_the_models_say(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    database.migrate()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        found = {
            (table, " ".join(str(check["sqltext"]).split()))
            for table in Base.metadata.tables
            for check in inspect(connection).get_check_constraints(table)
        }
    wanted = {
        (table.name, str(check.sqltext))
        for table in Base.metadata.tables.values()
        for check in table.constraints
        if hasattr(check, "sqltext")
    }
    assert found == wanted, "Alembic does not compare checks, so this does"
    database.close()


def test_migrations_down_and_up_again(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    database.migrate()
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
    database.migrate()
    with database.engine.connect() as connection:
        assert set(Base.metadata.tables) <= set(inspect(connection).get_table_names())
    database.close()


def test_down_and_up_again_with_answers_keeps_every_row(played: Database, tmp_path: Path) -> None:
    """A database of before sessions could come back gets what it lacked: codes, clean images, whose id it was."""
    before = rows(played)
    database = copy_of(played, tmp_path)
    trials = select(Trial.id, Trial.kind, Trial.clean_image_id, Trial.stimulus_id).order_by(Trial.id)
    ids = select(RecruiterId.name, RecruiterId.value, RecruiterId.identifies_in)
    with database.read() as session:
        shown = session.execute(trials).all()
        assert session.execute(ids).all() == [("id", "x", "test")]
        codes = set(session.scalars(select(Participant.withdrawal_code)))
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    with closing(sqlite3.connect(tmp_path / "copy.db")) as raw:
        raw.execute("update participants set withdrawn_at = '2026-01-01', deleted = '{}' where number = 1")
        raw.commit()
    with database.engine.connect() as connection:
        connection.connection.driver_connection.execute("PRAGMA foreign_keys = OFF")  # type: ignore[union-attr]
        with connection.begin():
            config.attributes["connection"] = connection
            command.downgrade(config, "0001")
            for person, name, value in (
                (3, "id", "x"),  # the second session of a person, who finished it
                (1, "PROLIFIC_PID", "A"),
                (1, "id", "campaign"),  # the same for all who came this way
            ):
                connection.execute(
                    text(
                        "insert into recruiter_ids (participant_id, name, value) values (:person, :name, :value)"
                    ),
                    {"person": person, "name": name, "value": value},
                )
        columns = {column["name"] for column in inspect(connection).get_columns("participants")}
    assert "withdrawal_code" not in columns
    database.migrate()
    assert rows(database) == before | {"recruiter_ids": before["recruiter_ids"] + 3}
    with database.read() as session:
        assert session.execute(trials).all() == shown
        found = session.execute(select(RecruiterId.participant_id, *ids.selected_columns)).all()
        assert set(found) == {
            (1, "PROLIFIC_PID", "A", "test"),
            (1, "id", "campaign", None),
            (2, "id", "x", None),
            (3, "id", "x", "test"),
        }
        people = session.scalars(select(Participant)).all()
        assert session.execute(text("PRAGMA foreign_key_check")).all() == []
    new = {person.withdrawal_code for person in people}
    assert len(new) == len(people) == 3
    assert not new & codes
    assert {(p.language, p.consent_language, p.request_id) for p in people} == {("en", "en", None)}
    assert [person.deleted for person in people] == [{}, None, None], "that it had deleted is still said"
    database.close()


def test_migrating_again_changes_nothing(played: Database) -> None:
    before = rows(played)
    played.migrate()
    assert rows(played) == before
    assert before["responses"] == 35


def copy_of(database: Database, folder: Path) -> Database:
    source = Path(str(database.engine.url.database))
    with closing(sqlite3.connect(source)) as original, closing(sqlite3.connect(folder / "copy.db")) as copy:
        original.backup(copy)
    return Database(f"sqlite:///{folder / 'copy.db'}")


def rows(database: Database) -> dict[str, int]:
    with database.read() as session:
        return {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in Base.metadata.tables.items()
        }


def first(session: Session, table: Any) -> Any:
    return session.scalars(select(table).limit(1)).one()


def same(session: Session, table: Any, **change: Any) -> Any:
    """A copy of a row of the table with other values."""
    row = first(session, table)
    names = [c.key for c in inspect(table).column_attrs if c.key != "id"]
    return table(**{name: getattr(row, name) for name in names} | change)


@pytest.mark.parametrize(
    ("what", "breaks"),
    [
        ("one response a trial", lambda s: same(s, Response, answer_id=uuid.uuid4())),
        ("one judgment a trial", lambda s: same(s, Judgment, answer_id=uuid.uuid4())),
        ("an answer_id counts once", lambda s: same(s, Response, trial_id=unanswered(s))),
        ("a judgment's answer_id counts once", lambda s: same(s, Judgment, trial_id=unanswered(s))),
        (
            "one trial a position",
            lambda s: same(s, Trial, judging_order=99, stimulus_id=None, kind="practice"),
        ),
        (
            "a kind of trial",
            lambda s: same(s, Trial, position=99, judging_order=99, kind="other", stimulus_id=None),
        ),
        ("a stimulus once a participant", lambda s: main_trial(s, position=99, judging_order=99)),
        ("a place in judging once", lambda s: control(s, judging_order=1)),
        ("a control image is a clean one", lambda s: control(s, clean_image_id=None)),
        ("a main trial shows no clean image", lambda s: main_trial(s, position=99, clean_image_id=1)),
        (
            "a main trial has a stimulus",
            lambda s: main_trial(s, position=99, judging_order=99, stimulus_id=None),
        ),
        ("a number once a study", lambda s: another(s, number=first(s, Participant).number)),
        ("a pseudonym once a study", lambda s: another(s, pseudonym=first(s, Participant).pseudonym)),
        ("a token once", lambda s: another(s, token=first(s, Participant).token)),
        (
            "a private code once",
            lambda s: another(s, withdrawal_code=first(s, Participant).withdrawal_code),
        ),
        ("a request once", lambda s: another(s, request_id=first(s, Participant).request_id)),
        ("a withdrawal says what it deleted", lambda s: another(s, withdrawn_at=datetime.now(UTC))),
        ("a receipt needs a withdrawal", lambda s: another(s, deleted={"labels": 1})),
        ("a recruiter's id once", lambda s: same(s, RecruiterId, value="y", identifies_in=None)),
        (
            "a recruiter's id has one session in a study",
            lambda s: same(s, RecruiterId, participant_id=last(s, Participant).id),
        ),
        ("cells are unique", lambda s: same(s, Stimulus)),
        ("the target is not the source", lambda s: stimulus_to_source(s)),
        ("an image once", lambda s: same(s, Image)),
        ("a version of a study once", lambda s: same(s, Study)),
        (
            "no negative time",
            lambda s: same(s, Response, trial_id=unanswered(s), answer_id=uuid.uuid4(), rt_ms=-1),
        ),
        (
            "the runner-up differs",
            lambda s: same(
                s, Response, trial_id=unanswered(s), answer_id=uuid.uuid4(), label="3", runner_up="3"
            ),
        ),
        (
            "none has no runner-up",
            lambda s: same(
                s, Response, trial_id=unanswered(s), answer_id=uuid.uuid4(), label="none", runner_up="3"
            ),
        ),
        ("an answer belongs to a trial", lambda s: same(s, Response, trial_id=10**6, answer_id=uuid.uuid4())),
        ("a trial shows an image", lambda s: main_trial(s, position=99, judging_order=99, sha256="0" * 64)),
    ],
)
def test_the_schema_keeps_its_rules(played: Database, what: str, breaks: Callable[[Session], Any]) -> None:
    before = rows(played)
    with played.write() as session:
        session.add(breaks(session))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
    assert rows(played) == before, what


def unanswered(session: Session) -> int:
    query = select(Trial.id).outerjoin(Response).where(Response.trial_id.is_(None)).limit(1)
    return session.scalars(query).one()


def main_trial(session: Session, **change: Any) -> Trial:
    row = session.scalars(select(Trial).where(Trial.kind == "main").limit(1)).one()
    names = [c.key for c in inspect(Trial).column_attrs if c.key != "id"]
    values = {name: getattr(row, name) for name in names} | change
    return Trial(**values)


def control(session: Session, **change: Any) -> Trial:
    values = {"position": 99, "kind": "control", "stimulus_id": None, "placebo_label": None}
    return main_trial(session, **values | {"judging_order": None, "clean_image_id": 1} | change)


def another(session: Session, **change: Any) -> Participant:
    """A participant who differs from the first one in all that must differ, but for the change."""
    own = {"number": 99, "token": "t", "pseudonym": "P", "withdrawal_code": "C", "request_id": uuid.uuid4()}
    copy: Participant = same(session, Participant, **own | change)
    return copy


def last(session: Session, table: Any) -> Any:
    return session.scalars(select(table).order_by(table.id.desc()).limit(1)).one()


def stimulus_to_source(session: Session) -> Stimulus:
    row = first(session, Stimulus)
    copy: Stimulus = same(session, Stimulus, target_label=row.source_label)
    return copy


def test_what_is_acknowledged_is_durable(played: Database) -> None:
    with played.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA synchronous")) == 2, "FULL"
        assert session.scalar(text("PRAGMA foreign_keys")) == 1


def test_instants_keep_their_zone(played: Database) -> None:
    elsewhere = datetime(2026, 7, 1, 12, 0, tzinfo=timezone(timedelta(hours=8)))
    with played.write() as session:
        participant = first(session, Participant)
        participant.last_seen_at = elsewhere
        session.flush()
        session.expire_all()
        read = first(session, Participant).last_seen_at
    assert read == elsewhere
    assert read.tzinfo == UTC


def test_a_migration_may_alter_a_table_that_others_refer_to(
    played: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite altering copies the table: with answers in the database that must lose no row."""
    before = rows(played)
    database = copy_of(played, tmp_path)
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    head = ScriptDirectory(str(ROOT / "migrations")).get_current_head()
    (tmp_path / "migrations" / "versions" / "next.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision, branch_labels, depends_on = 'next', '{head}', None, None\n"
        "def upgrade():\n"
        "    with op.batch_alter_table('participants') as batch:\n"
        "        batch.alter_column('pseudonym', type_=sa.String(30), existing_type=sa.String(20))\n"
        "        batch.add_column(sa.Column('shoe_size', sa.Integer()))\n"
    )
    monkeypatch.setattr("app.schema.ROOT", tmp_path)
    database.migrate()
    assert rows(database) == before
    with database.read() as session:
        assert session.scalar(text("PRAGMA foreign_keys")) == 1, "on again"
        assert session.execute(text("PRAGMA foreign_key_check")).all() == []
        assert session.scalar(text("SELECT count(shoe_size) FROM participants")) == 0
    database.close()
