"""`restore`: a backup into an empty database, of SQLite or PostgreSQL, whole or not at all."""

import argparse
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Table
from sqlalchemy.orm import Session
from tqdm import tqdm

from app import audit, schema, settings
from app.backup import FORMAT, MANIFEST, BackupError, at_once, decoder, lines, member, tables_of
from app.db import Database

# What a backup cannot be: more is refused before it fills memory or disk.
MOST_MANIFEST_BYTES = 1024 * 1024
MOST_LINE_BYTES = 256 * 1024 * 1024  # a row holds a pack's manifest or an image at the most
MOST_COMPRESSED = 100  # times smaller than its content; 30 is much for real rows
ALWAYS_TAKEN_BYTES = 16 * 1024 * 1024  # however small they were compressed
AT_ONCE_BYTES = 16 * 1024 * 1024  # after which the rows that are in memory go into the database


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="what `python -m app backup` wrote")


def run(args: argparse.Namespace) -> int:
    database = Database(settings.load().database_url)
    try:
        manifest = restore(database, args.file)
    finally:
        database.close()
    rows = sum(table["rows"] for table in manifest["tables"].values())
    print(
        f"restored {rows} rows of {len(manifest['tables'])} tables, of {manifest['taken_at']}, and read them back"
    )
    return 0


def restore(database: Database, file: Path) -> dict[str, Any]:
    """Fill the empty database with the backup; returns its manifest.

    In one transaction the tables are made as they were, filled, read back, compared with the backup's checksums,
    and brought up to this version. Raises BackupError, and leaves the database empty, where anything differs.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = _manifest(archive)
            with database.altering() as connection:
                # A server that starts now fills it before the question, or not at all.
                schema.alone(connection)
                there = sa.inspect(connection)
                if there.get_table_names() or there.get_view_names():
                    raise BackupError(
                        "the database is not empty; a backup is restored into a new one (DATABASE_URL says which)"
                    )
                schema.upgrade(connection, manifest["schema"])
                _fill(connection, archive, manifest["tables"])
                schema.upgrade(connection)
                with Session(connection) as session:
                    taken_at = str(manifest.get("taken_at"))[:40]
                    audit.record(
                        session, audit.Event.RESTORED, detail={"taken_at": taken_at}, now=datetime.now(UTC)
                    )
                    session.flush()
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError: encrypted, or with rows that refer to nothing.
        raise BackupError(f"{file} is damaged or no backup: {error}") from None
    return manifest


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    """What the backup says of itself, checked against what it holds and what this program knows."""
    if MANIFEST not in archive.namelist() or archive.getinfo(MANIFEST).file_size > MOST_MANIFEST_BYTES:
        raise BackupError("this is no backup: it has no manifest")
    try:
        manifest = json.loads(archive.read(MANIFEST))
        kind, revision = manifest["format"], manifest["schema"]
        if not (isinstance(revision, str) and isinstance(manifest["taken_at"], str)):
            raise ValueError
        members = [MANIFEST] + [member(name) for name in manifest["tables"]]
        for table in manifest["tables"].values():
            if not (isinstance(table["rows"], int) and table["columns"] and table["sha256"]):
                raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BackupError("this is no backup: its manifest cannot be read") from None
    if kind != FORMAT:
        raise BackupError(f"the backup is of the format {str(kind)[:50]!r}; this version reads {FORMAT!r}")
    if revision not in schema.known():
        raise BackupError(
            f"the backup is of schema {str(revision)[:50]!r}, which this version does not know: use the version "
            f"that made it ({str(manifest.get('program'))[:50]}) or a newer one"
        )
    if sorted(archive.namelist()) != sorted(members):
        raise BackupError("the backup does not hold the files that its manifest names")
    for info in archive.infolist():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BackupError(f"{info.filename[:50]} is compressed in a way that no backup is")
        if info.file_size > ALWAYS_TAKEN_BYTES and info.file_size > MOST_COMPRESSED * info.compress_size:
            raise BackupError(
                f"{info.filename} would become suspiciously large: no backup compresses so well"
            )
    return dict(manifest)


def _fill(connection: Connection, archive: zipfile.ZipFile, described: dict[str, Any]) -> None:
    tables = tables_of(connection, sa.inspect(connection).get_table_names())
    if {table.name: [column.name for column in table.columns] for table in tables} != {
        name: table["columns"] for name, table in described.items()
    }:
        raise BackupError("the backup's tables are not those of its schema revision")
    for table in reversed(tables):  # what the migrations themselves put in is in the backup, too
        connection.execute(table.delete())
    total = 2 * sum(table["rows"] for table in described.values())
    with tqdm(total=total, desc="restoring", unit="row", unit_scale=True, disable=None, leave=False) as bar:
        for table in tables:
            _insert(connection, archive, table, described[table.name], bar)
        for table in tables:
            _read_back(connection, table, described[table.name], bar)


def _insert(
    connection: Connection,
    archive: zipfile.ZipFile,
    table: Table,
    described: dict[str, Any],
    bar: "tqdm[Any]",
) -> None:
    columns = list(table.columns)
    for column in columns:
        if isinstance(column.type, sa.JSON):
            column.type = sa.JSON(none_as_null=True)
    decoders = [decoder(column, connection.dialect.name) for column in columns]
    digest = hashlib.sha256()
    with archive.open(member(table.name)) as file:
        found = _lines(file, table.name, described["rows"], digest)
        for batch in _batches(found, at_once(table)):
            try:
                rows = [
                    {
                        column.name: value if value is None or decode is None else decode(value)
                        for column, value, decode in zip(columns, json.loads(line), decoders, strict=True)
                    }
                    for line in batch
                ]
                connection.execute(table.insert(), rows)
            except (
                ValueError,
                TypeError,
                AttributeError,
                OverflowError,
                RecursionError,
                sa.exc.StatementError,
            ) as error:
                if isinstance(error, sa.exc.OperationalError):
                    raise
                raise BackupError(f"a row of {table.name} in the backup is not one of that table") from None
            bar.update(len(batch))
    if digest.hexdigest() != described["sha256"]:
        raise BackupError(
            f"the rows of {table.name} in the backup are not those that were written: it is damaged"
        )
    if connection.dialect.name == "postgresql":
        _go_on_counting(connection, table)


def _batches(found: Iterable[bytes], most: int) -> Iterator[list[bytes]]:
    """The lines, so many at once at the most, and fewer where they are long."""
    batch, size = list[bytes](), 0
    for line in found:
        batch.append(line)
        size += len(line)
        if len(batch) == most or size > AT_ONCE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _lines(file: IO[bytes], table: str, rows: int, digest: Any) -> Iterator[bytes]:
    for number in range(rows + 1):
        line = file.readline(MOST_LINE_BYTES)
        if not line and number == rows:
            return
        if not line.endswith(b"\n") or number == rows:
            raise BackupError(f"the backup does not hold {rows} rows of {table}: it is damaged")
        digest.update(line)
        yield line


def _read_back(connection: Connection, table: Table, described: dict[str, Any], bar: "tqdm[Any]") -> None:
    """Read from the database, a table gives byte for byte what was backed up."""
    digest, rows = hashlib.sha256(), 0
    for line in lines(connection, table):
        digest.update(line)
        rows += 1
        bar.update()
    if (rows, digest.hexdigest()) != (described["rows"], described["sha256"]):
        raise BackupError(
            f"{table.name} is not the same in this database as in the backup; nothing was restored"
        )


def _go_on_counting(connection: Connection, table: Table) -> None:
    """PostgreSQL numbers new rows by a sequence of its own, which rows with a number do not move."""
    for column in table.primary_key:
        sequence = connection.scalar(sa.select(sa.func.pg_get_serial_sequence(table.name, column.name)))
        if sequence is not None and (last := connection.scalar(sa.select(sa.func.max(column)))) is not None:
            connection.execute(sa.select(sa.func.setval(sequence, last)))
