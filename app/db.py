"""The database: one engine, sessions that read, sessions that write, transactions that alter tables."""

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app import schema
from app.settings import SettingsError

# How long a writer waits for the lock before the participant is told to try again. Bounded well below a browser's
# patience, because whoever waits holds one of the server's 40 threads, and pages need those too.
BUSY_TIMEOUT_S = 5.0
# On PostgreSQL, for the same reason: for the server's answer, a statement, a transaction that does nothing.
CONNECT_S = 5
STATEMENT_S = 30.0
IDLE_S = 60.0
# Connections of one process, which has two more for its probes (app/probe.py). PostgreSQL takes 100 by default, of
# which three are its administrator's: four processes leave room for commands. All answers share one of them.
CONNECTIONS = 15
CACHE_KIB = 256
SCRUB_AGAIN_S = 1.0
# How long a process that starts waits for another one that migrates the same SQLite file, or stores its packs.
PREPARING_S = 600.0


class Database:
    """An engine and the two kinds of session that the handlers use.

    On SQLite a writing session takes the write lock when it begins (BEGIN IMMEDIATE): what it read is still true
    when it writes, and it never fails half-way with "database is locked". A reading session takes no lock.
    """

    _queue: "_Queue | nullcontext[None]"

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._queue = _Queue() if self.engine.dialect.name == "sqlite" else nullcontext()
        self._writing = self.engine.execution_options(begin="IMMEDIATE")
        self._closed = False
        self._scrubbing = threading.Lock()
        self._scrub_later: threading.Timer | None = None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session whose every statement sees the database as it was at the first."""
        with Session(self.engine, expire_on_commit=False) as session:
            if self.engine.dialect.name != "sqlite":  # on SQLite it is so by itself
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose caller commits; what is not committed is rolled back.

        Raises OperationalError where the lock was not to be had in time; nothing is stored then.
        """
        with self._queue, Session(self._writing, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def preparing(self) -> Iterator[Session]:
        """As `write`, for packs and studies: one process at a time, and the others wait for it."""
        with self._patient() as connection, Session(connection, expire_on_commit=False) as session:
            schema.alone(session.connection())
            yield session

    def migrate(self) -> None:
        """Bring the schema up to date. Raises SchemaError, and nothing was changed, where that must not be."""
        with self.altering() as connection:
            schema.upgrade(connection)

    @contextmanager
    def altering(self) -> Iterator[Connection]:
        """A transaction in which tables may change; committed at the block's end, rolled back by an error."""
        sqlite = self.engine.dialect.name == "sqlite"
        if sqlite:
            schema.look_first(Path(str(self.engine.url.database)))
        with self._patient() as connection:
            if sqlite:
                # SQLite alters a table by copying it and dropping the old one, which rows that refer to it forbid;
                # the setting only changes outside a transaction, so it is checked by hand before the commit.
                _pragma(connection, "foreign_keys = OFF")
            try:
                with connection.begin():
                    yield connection
                    if sqlite and (broken := _pragma(connection, "foreign_key_check")):
                        raise RuntimeError(f"rows that refer to nothing were left: {broken[:3]}")
            finally:
                if sqlite:
                    _pragma(connection, "foreign_keys = ON")

    @contextmanager
    def _patient(self) -> Iterator[Connection]:
        """A connection that writes, and waits long for others that do; not for what a participant waits for."""
        with self._writing.connect() as connection:
            if self.engine.dialect.name != "sqlite":
                yield connection
                return
            _pragma(connection, f"busy_timeout = {PREPARING_S * 1000:.0f}")
            try:
                yield connection
            finally:
                _pragma(connection, f"busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")

    def scrub(self) -> None:
        """After a withdrawal: on SQLite, empty the write-ahead log too, which still holds what was deleted.

        That needs a moment when nobody reads or writes. It is not waited for, as others' answers would wait too: it
        is tried now and, in the background, every SCRUB_AGAIN_S until it is done.
        """
        with self._scrubbing:
            if self._scrub_later is not None:
                self._scrub_later.cancel()
                self._scrub_later = None
            if not self._closed and not self.emptied_log():
                self._scrub_later = threading.Timer(SCRUB_AGAIN_S, self.scrub)
                self._scrub_later.daemon = True
                self._scrub_later.start()

    def emptied_log(self) -> bool:
        """Empty SQLite's write-ahead log now, if nobody reads or writes; whether it is empty. There is no other."""
        if self.engine.dialect.name != "sqlite":
            return True
        with suppress(sqlite3.OperationalError):  # locked, or the disk is full
            file = str(self.engine.url.database)
            with closing(sqlite3.connect(file, timeout=0)) as own:
                (busy, *_) = own.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                return not busy
        return False

    def close(self) -> None:
        self._closed = True
        to_scrub = self._scrub_later is not None
        self.scrub()
        self.engine.dispose()
        if to_scrub:  # the connections just closed may have been what it waited for
            self.emptied_log()


@contextmanager
def migrated(url: str) -> Iterator[Database]:
    """The database at that URL, its schema brought up to date, closed at the block's end; for one command."""
    database = Database(url)
    try:
        database.migrate()
        yield database
    finally:
        database.close()


class _Queue:
    """The writers of this process, one at a time, in the order in which they came.

    SQLite knows no queue: who finds it locked sleeps and tries again, and whoever tries at the right moment wins.
    In two pairs of runs with 200 bots at once some answered 3 questions where others answered 15, and 53 and
    170 requests ended in 503; in this queue it was 8 to 11 questions and no 503, and no fewer answers a second.
    Between two processes BEGIN IMMEDIATE still decides, after this queue.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        if mine.acquire(timeout=BUSY_TIMEOUT_S):
            return
        with self._guard:
            if mine in self._waiting:
                self._waiting.remove(mine)
                locked = sqlite3.OperationalError("database is locked by this process's other writers")
                raise OperationalError("BEGIN IMMEDIATE", None, locked)
        # Not among them any more: the turn came just after the wait had ended.

    def __exit__(self, *error: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


def _pragma(connection: Connection, pragma: str) -> list[Any]:
    """Run a PRAGMA on SQLite's own connection, without the transaction that SQLAlchemy would begin."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw.execute(f"PRAGMA {pragma}").fetchall()


def _postgresql(url: URL) -> Engine:
    """An engine whose every wait ends: for the server, a connection, a lock, a statement."""
    limits = {
        "lock_timeout": BUSY_TIMEOUT_S,
        "statement_timeout": STATEMENT_S,
        # A process that stands still in a transaction, or whose machine has gone, must not keep its locks.
        "idle_in_transaction_session_timeout": IDLE_S,
    }
    settings = " ".join(f"-c {name}={seconds * 1000:.0f}" for name, seconds in limits.items())
    settings += " -c synchronous_commit=on"  # on the disk before the participant sees "saved", as below
    own = url.query.get("options", "")
    try:
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={
                "connect_timeout": CONNECT_S,
                "options": f"{settings} {own if isinstance(own, str) else ' '.join(own)}".strip(),
                # A network that swallows everything is a lost connection too.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 1000 * CONNECT_S,
            },
            pool_pre_ping=True,  # the server may have been restarted since
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=BUSY_TIMEOUT_S,
            hide_parameters=True,
        )
    except ModuleNotFoundError:
        raise SettingsError(
            "DATABASE_URL names PostgreSQL: install its driver: pip install -e '.[postgresql]'"
        ) from None


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return _postgresql(parsed)
    if not parsed.database:
        raise SettingsError("DATABASE_URL must name a SQLite file, for example sqlite:///data/study.db")
    file = Path(parsed.database)
    file.parent.mkdir(parents=True, exist_ok=True)
    # For its owner alone, as it holds personal data; SQLite gives its log the same rights.
    if not file.exists():
        with suppress(OSError):  # SQLite says better what is wrong
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
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
        # FULL: every commit is on the disk before the participant sees "saved". NORMAL would be faster (in WAL it
        # syncs at checkpoints only) and would lose acknowledged answers at a power cut. EXTRA adds nothing in WAL.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # Of pages, for each of up to 40 connections; the 2 MiB that are usual fill as the database grows, and the
        # system keeps what is read often anyway.
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        # What a withdrawal deletes is overwritten, not only unlinked: it must not stay readable in the file.
        connection.execute("PRAGMA secure_delete = ON")
        # Nor in the log: when it starts anew, its old pages are cut off rather than left until overwritten.
        connection.execute("PRAGMA journal_size_limit = 0")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine
