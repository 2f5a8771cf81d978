"""The schema as the migrations make it, and the rules that it keeps by itself."""

import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from fastapi.testclient import TestClient
from sqlalchemy import Connection, MetaData, func, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import schema
from app.db import Database
from app.main import create_app
from app.models import Base, Image, Judgment, Participant, RecruiterId, Response, Stimulus, Study, Trial
from app.schema import SchemaError
from app.serving import prepare
from app.settings import ROOT
from ml.pack import Pack
from tests.app.conftest import begin, installation
from tests.app.databases import Databases
from tests.app.releases import RELEASES, carried

SCRIPTS = ScriptDirectory.from_config(schema.migrations())
REVISIONS = [script.revision for script in SCRIPTS.walk_revisions()][::-1]  # the first one first


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


@pytest.fixture
def database(databases: Databases, tmp_path: Path) -> Iterator[Database]:
    """An empty one."""
    database = Database(databases.new(tmp_path))
    yield database
    database.close()


@pytest.fixture
def copy(played: Database, databases: Databases, tmp_path: Path) -> Iterator[Database]:
    """What `played` is, for a test that changes it."""
    played.engine.dispose()  # nobody may be connected to what is copied
    database = Database(databases.copy(played.engine.url.render_as_string(False), tmp_path))
    yield database
    database.close()


def downgrade(database: Database, revision: str) -> None:
    with database.altering() as connection:
        config = schema.migrations()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


Described = dict[str, dict[str, Any]]


def described(connection: Connection) -> Described:
    """Everything that the server tells of its tables: types, what may be null, keys, constraints, indexes."""
    inspector = inspect(connection)
    found: Described = {}
    for table in inspector.get_table_names():
        if table == "alembic_version":
            continue
        found[table] = {
            "columns": {
                column["name"]: (
                    column["type"].compile(connection.dialect),
                    column["nullable"],
                    column["default"],
                )
                for column in inspector.get_columns(table)
            },
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": by_name(inspector.get_foreign_keys(table)),
            "unique": by_name(inspector.get_unique_constraints(table)),
            "checks": {
                check["name"]: plain(check["sqltext"]) for check in inspector.get_check_constraints(table)
            },
            "indexes": by_name(inspector.get_indexes(table)),
        }
    return found


def plain(check: str) -> str:
    """PostgreSQL writes casts and parentheses into it, and others once it was dumped and read again."""
    return re.sub(r"::[a-z ]+(\[\])?|[\s()]", "", check)


def by_name(constraints: Any) -> dict[str, Any]:
    return {c["name"]: {key: value for key, value in c.items() if key != "name"} for c in constraints}


def test_migrations_make_what_the_models_say(
    database: Database, databases: Databases, tmp_path: Path
) -> None:
    """Held against tables made from the models alone, by what the server itself tells of both."""
    database.migrate()
    with database.engine.connect() as connection:
        migrated = described(connection)
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
    (tmp_path / "models").mkdir()
    plain = Database(databases.new(tmp_path / "models"))
    with plain.altering() as connection:
        Base.metadata.create_all(connection)
        wanted = described(connection)
    plain.close()
    assert migrated == wanted
    assert sum(len(table["checks"]) for table in migrated.values()) >= 10
    assert {"ix_packs_name", "ix_stimuli_sha256"} <= {
        name for t in migrated.values() for name in t["indexes"]
    }


@pytest.fixture(scope="module")
def at(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Described]:
    """The schema as each revision makes it in an empty database."""
    database = Database(databases.new(tmp_path_factory.mktemp("at")))
    found = {}
    for revision in REVISIONS:
        with database.altering() as connection:
            schema.upgrade(connection, revision)
            found[revision] = described(connection)
    database.close()
    return found


Content = dict[str, dict[str, Counter[str]]]


def content(connection: Connection) -> Content:
    """What stands in every column of every table."""
    metadata = MetaData()
    metadata.reflect(connection)
    return {
        name: {
            column.name: Counter(map(repr, connection.scalars(select(column)))) for column in table.columns
        }
        for name, table in metadata.tables.items()
        if name != "alembic_version"
    }


def shared(content: Content, *schemas: Described) -> Content:
    """The columns that all of the schemas have."""
    return {
        table: {
            column: values
            for column, values in columns.items()
            if all(column in schema.get(table, {"columns": {}})["columns"] for schema in schemas)
        }
        for table, columns in content.items()
        if all(table in schema for schema in schemas)
    }


@pytest.mark.parametrize("revision", [*REVISIONS[:-1], "base"])
def test_down_and_up_again_with_data_in_every_table(
    databases: Databases, at: dict[str, Described], tmp_path: Path, revision: str
) -> None:
    database = Database(carried(RELEASES[-1], databases, tmp_path))
    database.migrate()
    with database.engine.connect() as connection:
        before = content(connection)
    downgrade(database, revision)
    lower = at.get(revision, {})
    with database.engine.connect() as connection:
        assert described(connection) == lower, "as if no later revision had ever been there"
        assert shared(content(connection), lower) == shared(before, lower)
    database.migrate()
    with database.engine.connect() as connection:
        assert described(connection) == at[REVISIONS[-1]]
        assert shared(content(connection), lower) == shared(before, lower), "nothing that stayed has changed"
    database.close()


def test_sessions_of_before_they_could_come_back_get_what_they_lacked(
    copy: Database, databases: Databases
) -> None:
    """Codes, clean images, and whose the recruiter's id was."""
    before = rows(copy)
    trials = select(Trial.id, Trial.kind, Trial.clean_image_id, Trial.stimulus_id).order_by(Trial.id)
    ids = select(RecruiterId.name, RecruiterId.value, RecruiterId.identifies_in)
    with copy.write() as session:
        shown = session.execute(trials).all()
        assert session.execute(ids).all() == [("id", "x", "test")]
        codes = set(session.scalars(select(Participant.withdrawal_code)))
        leaver = session.scalars(select(Participant).where(Participant.number == 1)).one()
        leaver.withdrawn_at, leaver.deleted = datetime(2026, 1, 1, tzinfo=UTC), {}
        session.commit()
    downgrade(copy, "0001")
    with copy.altering() as connection:
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
    copy.migrate()
    assert rows(copy) == before | {"recruiter_ids": before["recruiter_ids"] + 3}
    with copy.read() as session:
        assert session.execute(trials).all() == shown
        found = session.execute(select(RecruiterId.participant_id, *ids.selected_columns)).all()
        assert set(found) == {
            (1, "PROLIFIC_PID", "A", "test"),
            (1, "id", "campaign", None),
            (2, "id", "x", None),
            (3, "id", "x", "test"),
        }
        people = session.scalars(select(Participant).order_by(Participant.id)).all()
        if databases.kind == "sqlite":
            assert session.execute(text("PRAGMA foreign_key_check")).all() == []
    new = {person.withdrawal_code for person in people}
    assert len(new) == len(people) == 3
    assert not new & codes
    assert {(p.language, p.consent_language, p.request_id) for p in people} == {("en", "en", None)}
    assert [person.deleted for person in people] == [{}, None, None], "that it had deleted is still said"


def test_migrating_again_changes_nothing(copy: Database) -> None:
    with copy.engine.connect() as connection:
        before = content(connection)
    copy.migrate()
    with copy.engine.connect() as connection:
        assert content(connection) == before
    assert rows(copy)["responses"] == 35


def rows(database: Database) -> dict[str, int]:
    with database.read() as session:
        return {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in Base.metadata.tables.items()
        }


def first(session: Session, table: Any) -> Any:
    return session.scalars(select(table).order_by(*inspect(table).primary_key).limit(1)).one()


def same(session: Session, table: Any, **change: Any) -> Any:
    """A copy of a row of the table with other values."""
    row = first(session, table)
    names = [c.key for c in inspect(table).column_attrs if c.key != "id"]
    return table(**{name: getattr(row, name) for name in names} | change)


def test_the_schema_keeps_its_rules(played: Database) -> None:
    rules: list[tuple[str, Callable[[Session], Any]]] = [
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
    ]
    before = rows(played)
    for what, breaks in rules:
        with played.write() as session:
            session.add(breaks(session))
            try:
                session.flush()
            except IntegrityError:
                session.rollback()
            else:
                pytest.fail(f"nothing keeps the rule: {what}")
    assert rows(played) == before


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


@pytest.mark.only("sqlite")
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


@pytest.fixture
def next_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives the program one more migration: the lines of its upgrade."""
    root = tmp_path / "root"
    shutil.copytree(ROOT / "migrations", root / "migrations")
    monkeypatch.setattr("app.schema.ROOT", root)

    def write(upgrade: str) -> None:
        (root / "migrations" / "versions" / "next.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n"
            f"revision, down_revision, branch_labels, depends_on = 'next', '{REVISIONS[-1]}', None, None\n"
            f"def upgrade():\n{upgrade}"
        )

    return write


ALTERING = """
    with op.batch_alter_table('participants') as batch:
        batch.alter_column('pseudonym', type_=sa.String(30), existing_type=sa.String(20))
        batch.add_column(sa.Column('shoe_size', sa.Integer()))
    op.execute("update participants set shoe_size = 43")
"""


def test_a_migration_may_alter_a_table_that_others_refer_to(
    copy: Database, databases: Databases, next_migration: Callable[[str], None]
) -> None:
    """On SQLite altering copies the table: with answers in the database that must lose no row."""
    before = rows(copy)
    next_migration(ALTERING)
    copy.migrate()
    assert rows(copy) == before
    with copy.read() as session:
        if databases.kind == "sqlite":
            assert session.scalar(text("PRAGMA foreign_keys")) == 1, "on again"
            assert session.execute(text("PRAGMA foreign_key_check")).all() == []
        assert session.scalar(text("SELECT count(shoe_size) FROM participants")) == 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("    op.execute('update no_such_table set a = 1')\n", "no_such_table"),
        ("    op.execute('update trials set position = 1')\n", "position"),
        ("    raise RuntimeError('halfway')\n", "halfway"),
    ],
    ids=["missing table", "constraint", "exception"],
)
def test_a_migration_that_fails_leaves_everything_as_it_was(
    copy: Database, next_migration: Callable[[str], None], fault: str, said: str
) -> None:
    with copy.engine.connect() as connection:
        before = described(connection), content(connection)
    next_migration(ALTERING + "    op.drop_table('judgments')\n" + fault)
    with pytest.raises(
        SchemaError, match="could not be brought up to date and is as it was before"
    ) as raised:
        copy.migrate()
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    with copy.engine.connect() as connection:
        assert (described(connection), content(connection)) == before
        assert connection.scalar(text("select version_num from alembic_version")) == REVISIONS[-1]
    next_migration(ALTERING)
    copy.migrate()
    assert sum(rows(copy).values()) > 0
