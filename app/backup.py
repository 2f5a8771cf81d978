"""`backup`: everything in the database as one file, taken while the server runs.

The file is a ZIP: `tables/NAME.jsonl` with a row a line, as a JSON list, and last of all `manifest.json`, which
says their schema revision, columns and numbers of rows, and the SHA-256 of each file. Bytes are base64, instants
ISO 8601 in UTC, UUIDs 32 hexadecimal digits: the same rows give the same lines on SQLite and on PostgreSQL.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import secrets
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, MetaData, Table, select
from tqdm import tqdm

from app import audit, schema, settings
from app.db import Database

FORMAT = "study-backup/1"
MANIFEST = "manifest.json"
REVISION = "alembic_version"  # Alembic's own table; the manifest says what is in it
# Who is signed in at the moment, and links that sign in once: a restored database knows neither.
LEFT_OUT = frozenset({REVISION, "researcher_sessions", "signin_links"})
ROWS_AT_ONCE = 1000
IMAGES_AT_ONCE = 10  # of up to some MB each


class BackupError(ValueError):
    """A backup that cannot be made or restored; the message is one line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="for example study-2026-05-01.zip")
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")


def run(args: argparse.Namespace) -> int:
    url = settings.load().database_url
    file = sa.make_url(url).database
    if url.startswith("sqlite") and not (file and Path(file).is_file()):
        raise BackupError(f"there is no database at {file} (DATABASE_URL says where it is)")
    database = Database(url)
    try:
        manifest = write(database, args.file, args.force, on_record=True)
    finally:
        database.close()
    rows = sum(table["rows"] for table in manifest["tables"].values())
    print(
        f"{args.file}: {rows} rows of {len(manifest['tables'])} tables, of {manifest['taken_at']}; "
        "it holds personal data"
    )
    return 0


def _record(database: Database) -> None:
    """Before there is a whole file; a database of an earlier version may have no log for it."""
    with database.engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    if revision == ScriptDirectory.from_config(schema.migrations()).get_current_head():
        with database.write() as session:
            audit.record(session, audit.Event.BACKED_UP, now=datetime.now(UTC))
            session.commit()


def write(database: Database, file: Path, replace: bool = False, on_record: bool = False) -> dict[str, Any]:
    """Write all of the database, as it is at one instant, to `file`, which only its owner can read.

    Others go on reading and writing meanwhile. The file is there whole or not at all. With `on_record`
    the audit log has it, once the file can be written. Returns its manifest; raises BackupError.
    """
    if file.exists() and not replace:
        raise BackupError(f"{file} is there already (--force replaces it)")
    # With the same ending, so that whatever deletes old backups takes what a kill has left of one, too.
    partial = file.with_name(f".{secrets.token_hex(4)}.{file.name}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise BackupError(f"{file} cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as target:
        try:
            if on_record:
                _record(database)
            with database.read() as session:
                manifest = _write(session.connection(), target)
            target.flush()
            os.fsync(target.fileno())
            partial.replace(file)
            _sync_folder(file.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return manifest


def _write(connection: Connection, target: IO[bytes]) -> dict[str, Any]:
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision is None:
        raise BackupError("there is no study in this database (DATABASE_URL says which it is)")
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "program": version("reasonable-mistakes"),
        "schema": revision,
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "database": connection.dialect.name,
        "tables": {},
    }
    tables = tables_of(connection, _ours(connection, revision))
    total = sum(connection.scalar(select(sa.func.count()).select_from(table)) or 0 for table in tables)
    with (
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive,
        tqdm(total=total, desc="backing up", unit="row", unit_scale=True, disable=None, leave=False) as bar,
    ):
        for table in tables:
            rows, digest = 0, hashlib.sha256()
            with archive.open(member(table.name), "w", force_zip64=True) as file:
                for line in lines(connection, table):
                    file.write(line)
                    digest.update(line)
                    rows += 1
                    bar.update()
            columns = [column.name for column in table.columns]
            manifest["tables"][table.name] = {"rows": rows, "sha256": digest.hexdigest(), "columns": columns}
        archive.writestr(MANIFEST, json.dumps(manifest, indent=1))
    return manifest


def member(table: str) -> str:
    """The name of a table's rows in the archive."""
    return f"tables/{table}.jsonl"


def _ours(connection: Connection, revision: str) -> set[str]:
    """The names of this program's tables; others' are left out, and said: no restore would know them."""
    if revision not in schema.known():
        raise BackupError(
            f"the database's schema is revision {revision}, which this version of the program does not know: use "
            "the version that serves it"
        )
    there, made = set(sa.inspect(connection).get_table_names()), schema.tables_made_by(revision)
    if others := sorted(there - made):
        print(f"left out, as this program did not make them: {', '.join(others)}", file=sys.stderr)
    return there & made


def tables_of(connection: Connection, names: Iterable[str]) -> list[Table]:
    """Those of these tables that are backed up, as they are in the database, each after those it refers to."""
    found = MetaData()
    found.reflect(connection, only=list(names))
    return [table for table in found.sorted_tables if table.name not in LEFT_OUT]


def lines(connection: Connection, table: Table) -> Iterator[bytes]:
    """The rows as they stand in the archive, in the order of the primary key; few are in memory at a time."""
    encoders = [_encoder(column) for column in table.columns]
    # Letters in one order everywhere, whatever the language of a PostgreSQL server.
    letters = "C" if connection.dialect.name == "postgresql" else "BINARY"
    order = [
        column.collate(letters) if isinstance(column.type, sa.String) else column
        for column in table.primary_key
    ]
    query = select(table).order_by(*order)
    for row in connection.execute(query, execution_options={"yield_per": at_once(table)}):
        values = [
            value if value is None or encode is None else encode(value)
            for value, encode in zip(row, encoders, strict=True)
        ]
        yield json.dumps(values, separators=(",", ":")).encode() + b"\n"


def _encoder(column: Column[Any]) -> Callable[[Any], Any] | None:
    if isinstance(column.type, sa.LargeBinary):
        return lambda value: base64.b64encode(value).decode()
    if isinstance(column.type, sa.DateTime):
        return lambda value: _utc(value).isoformat(timespec="microseconds")
    if isinstance(column.type, sa.Uuid):
        return lambda value: value.hex
    return None


def at_once(table: Table) -> int:
    """How many of its rows are in memory together."""
    return IMAGES_AT_ONCE if any(isinstance(c.type, sa.LargeBinary) for c in table.columns) else ROWS_AT_ONCE


def decoder(column: Column[Any], dialect: str) -> Callable[[Any], Any] | None:
    """From what stands in the archive to what the database takes; `_encoder` the other way round."""
    if isinstance(column.type, sa.LargeBinary):
        return lambda value: base64.b64decode(value, validate=True)
    if isinstance(column.type, sa.DateTime):
        if dialect == "sqlite":  # which keeps no time zone
            return lambda value: datetime.fromisoformat(value).astimezone(UTC).replace(tzinfo=None)
        return datetime.fromisoformat
    if isinstance(column.type, sa.Uuid):
        return uuid.UUID
    return None


def _utc(instant: datetime) -> datetime:
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too, where the system can be asked for that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
