"""The database: one engine, sessions that read, sessions that write, migrations."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.orm import Session

from app.settings import ROOT, SettingsError

BUSY_TIMEOUT_S = 15.0


class Database:
    """An engine and the two kinds of session that the handlers use.

    On SQLite a writing session takes the write lock when it begins (BEGIN IMMEDIATE): what it read is still true
    when it writes, and it never fails half-way with "database is locked". A reading session takes no lock.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._writing = self.engine.execution_options(begin="IMMEDIATE")

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose caller commits; what is not committed is rolled back."""
        with Session(self._writing, expire_on_commit=False) as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema up to date."""
        config = Config()
        config.set_main_option("script_location", str(ROOT / "migrations"))
        sqlite = self.engine.dialect.name == "sqlite"
        with self._writing.connect() as connection:
            if sqlite:
                # SQLite alters a table by copying it and dropping the old one, which rows that refer to it forbid;
                # the setting only changes outside a transaction, so it is checked by hand before the commit.
                _pragma(connection, "foreign_keys = OFF")
            try:
                with connection.begin():
                    config.attributes["connection"] = connection
                    command.upgrade(config, "head")
                    if sqlite and (broken := _pragma(connection, "foreign_key_check")):
                        raise RuntimeError(f"the migration left rows that refer to nothing: {broken[:3]}")
            finally:
                if sqlite:
                    _pragma(connection, "foreign_keys = ON")

    def scrub(self) -> None:
        """After a withdrawal: on SQLite, empty the write-ahead log too, which still holds what was deleted.

        Best effort: while others read, the log stays until it is next overwritten.
        """
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as connection:
                _pragma(connection, "wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self.engine.dispose()


def _pragma(connection: Connection, pragma: str) -> list[Any]:
    """Run a PRAGMA on SQLite's own connection, without the transaction that SQLAlchemy would begin."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw.execute(f"PRAGMA {pragma}").fetchall()


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        try:
            return create_engine(
                parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True, hide_parameters=True
            )
        except ModuleNotFoundError:
            raise SettingsError(
                "DATABASE_URL names PostgreSQL: install its driver: pip install -e '.[postgresql]'"
            ) from None
    if not parsed.database:
        raise SettingsError("DATABASE_URL must name a SQLite file, for example sqlite:///data/study.db")
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        parsed,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        hide_parameters=True,  # a database error in the log must not carry tokens or comments
        pool_size=20,
        max_overflow=20,
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy emits BEGIN itself, below
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: every commit is on the disk before the participant sees "saved". NORMAL would be faster and would
        # lose acknowledged answers at a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # What a withdrawal deletes is overwritten, not only unlinked: it must not stay readable in the file.
        connection.execute("PRAGMA secure_delete = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine
