"""The schema, brought up to date: by one process at a time, whole or not at all, and only in a database of ours."""

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.pool import NullPool

from app.settings import ROOT

# Of PostgreSQL's advisory locks, the one whose holder may change the schema, the packs and the studies.
_LOCK = 0x6D697374616B65


class SchemaError(ValueError):
    """A database that this program must leave as it is; the message is one line that says why and what to do."""


def migrations() -> Config:
    """Where Alembic finds the migrations."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    return config


def known() -> set[str]:
    """The schema revisions that this version of the program knows."""
    return {script.revision for script in ScriptDirectory.from_config(migrations()).walk_revisions()}


def tables_made_by(revision: str) -> set[str]:
    """The names of the tables that the migrations up to a known revision make, Alembic's own among them."""
    with create_engine("sqlite://", poolclass=NullPool).begin() as scratch:
        upgrade(scratch, revision)
        return set(inspect(scratch).get_table_names())


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations that are missing, in the caller's transaction; of several processes one does, others wait.

    Raises SchemaError for a database of a later version of this program or of something else, and where a
    migration fails; the transaction must then be rolled back.
    """
    alone(connection)
    config = migrations()
    _refuse_others(connection, config)
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except Exception as error:
        # A database's error in one line; its statement could carry what participants wrote.
        reason = str(getattr(error, "orig", None) or error).strip().splitlines() or [type(error).__name__]
        raise SchemaError(
            f"the database could not be brought up to date and is as it was before: {reason[0]}"
        ) from error


def alone(connection: Connection) -> None:
    """Wait until no other process prepares the database; nobody else does then until the transaction ends.

    On SQLite whoever has begun to write is alone anyway.
    """
    if connection.dialect.name == "postgresql":
        for limit in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(text(f"SET LOCAL {limit} = 0"))  # those are for what a participant waits for
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


def look_first(file: Path) -> None:
    """Raises SchemaError for a SQLite file that is not ours, without writing to it.

    The app's own first connection turns a file into one with a write-ahead log.
    """
    if not file.exists() or not file.stat().st_size:
        return

    def read_only() -> sqlite3.Connection:
        return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)

    with create_engine("sqlite://", creator=read_only, poolclass=NullPool).connect() as connection:
        _refuse_others(connection, migrations())


def _refuse_others(connection: Connection, config: Config) -> None:
    """Raises SchemaError where the tables that are there are not those of a revision that is known here."""
    found = inspect(connection)
    tables = {*found.get_table_names(), *found.get_view_names()} - {"alembic_version"}
    revisions = set(MigrationContext.configure(connection).get_current_heads())
    scripts = ScriptDirectory.from_config(config)
    ours = {"participants", "trials", "responses"} <= tables
    if len(revisions) == 1 and revisions <= known() and ours:
        return
    if not tables and not revisions:
        return
    if ours and revisions:
        raise SchemaError(
            f"the database's schema is revision {', '.join(sorted(revisions))}, which this version of the program "
            f"does not know (its latest is {scripts.get_current_head()}); nothing was changed: upgrade the "
            "program, or name another database in DATABASE_URL"
        )
    some = ", ".join(sorted(tables)[:3]) + (", ..." if len(tables) > 3 else "")
    raise SchemaError(
        f"the database belongs to something else: it has {f'the tables {some}' if tables else 'no tables'} and "
        f"{f'the schema revision {min(revisions)}' if revisions else 'no schema revision'}; nothing was changed: "
        "name another database in DATABASE_URL"
    )
