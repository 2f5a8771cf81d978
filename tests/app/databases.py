"""New databases for the tests, of either kind: empty, or as copies of one that was prepared before."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import Connection, MetaData, create_engine, make_url, select, text
from sqlalchemy.pool import NullPool

from app import backup, restore
from app.db import Database
from tests import postgres

Kind = Literal["sqlite", "postgresql"]
KINDS: tuple[Kind, ...] = ("sqlite", "postgresql")


class Databases:
    """Databases of one kind: SQLite files, or those of a PostgreSQL server that is started for the first."""

    def __init__(self, kind: Kind, server: "Server") -> None:
        self.kind = kind
        self._server = server

    def new(self, folder: Path) -> str:
        """The URL of an empty database; a file is `study.db` in `folder`."""
        return _file(folder) if self.kind == "sqlite" else self._server.create()

    def copy(self, url: str, folder: Path) -> str:
        """The URL of a new database with what the one at `url` holds, which nobody may be connected to."""
        if self.kind == "postgresql":
            return self._server.create(url)
        shutil.copy(path(url), path(_file(folder)))
        return _file(folder)

    def played(self, url: str, folder: Path) -> str:
        """The URL of a database with what was played on the SQLite file at `url`, which stays as it is.

        Playing takes long: it is done once, and PostgreSQL gets it by a backup.
        """
        if self.kind == "sqlite":
            return self.copy(url, folder)
        source, target = Database(url), Database(self.new(folder))
        try:
            backup.write(source, folder / "played.zip")
            restore.restore(target, folder / "played.zip")
            return target.engine.url.render_as_string(False)
        finally:
            source.close()
            target.close()

    def discard(self, url: str) -> None:
        """It is no longer needed; files go with their folder."""
        if self.kind == "postgresql":
            self._server.discarded.append(url)


class Server:
    """The PostgreSQL server of this process, once something has asked for it."""

    def __init__(self, stack: ExitStack) -> None:
        self.discarded: list[str] = []
        self._stack = stack
        self._numbers = count(1)
        self._url: str | None = None

    @property
    def url(self) -> str:
        """Of its own database, `postgres`."""
        if self._url is None:
            try:
                self._url = self._stack.enter_context(postgres.running())
            except RuntimeError as error:
                pytest.fail(str(error), pytrace=False)
        return self._url

    def create(self, template: str | None = None) -> str:
        """A database, empty or like the one at that URL."""
        name = f"test{next(self._numbers)}"
        like = f" TEMPLATE {make_url(template).database}" if template else ""
        # Those of tests before this one are dropped now: their last connections are closed by now, which
        # dropping them at once would wait for, a tenth of a second each.
        drops = [f"DROP DATABASE {make_url(url).database} WITH (FORCE)" for url in self.discarded]
        self.discarded.clear()
        self.execute(*drops, f"CREATE DATABASE {name}{like}")
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def execute(self, *statements: str) -> None:
        with connected(self.url, isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.execute(text(statement))


@contextmanager
def server() -> Iterator[Server]:
    """A server that starts when it is first needed and ends with the block."""
    with ExitStack() as stack:
        yield Server(stack)


def path(url: str) -> Path:
    """The file of a SQLite database, for tests that are about it."""
    return Path(url.removeprefix("sqlite:///"))


@contextmanager
def connected(url: str, **options: Any) -> Iterator[Connection]:
    """A connection without the app's settings, for a test that looks for itself."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        parsed = parsed.set(drivername="postgresql+psycopg")
    with create_engine(parsed, poolclass=NullPool, **options).connect() as connection:
        yield connection


def contents(url: str) -> bytes:
    """All that a database holds; of a file every byte, also where something was deleted."""
    if url.startswith("sqlite:"):
        return b"".join(file.read_bytes() for file in path(url).parent.glob(f"{path(url).name}*"))
    with connected(url) as connection:
        tables = MetaData()
        tables.reflect(connection)
        rows = [connection.execute(select(table)).all() for table in tables.sorted_tables]
    return repr(rows).encode()


def _file(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"
