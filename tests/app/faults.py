"""What the fault tests and `benchmarks.faults` share: a server to kill, a crowd of bots, and the count afterwards.

The count reads the database with SQL of its own, so that it is no mirror of the app's queries.
"""

import json
import os
import random
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Any

import httpx2
from sqlalchemy import Connection, text

from app import enrollment
from app.bot import PAPER_FOOLED, PAPER_REASONABLE, Rates
from app.db import Database
from app.enrollment import SIMULATED, Beginning
from app.settings import Settings
from app.simulate import Answered, Ledger, Outbox, arrive, play
from ml.pack import Pack
from tests.app import forked
from tests.app.conftest import environment, free_port
from tests.app.databases import connected

Process = forked.Popen | subprocess.Popen[str]
RATES = Rates(PAPER_FOOLED, PAPER_REASONABLE)
PATIENCE_S = 90.0  # a restart takes seconds, on a busy machine many


class KillableServer:
    """`python -m app serve`, always at the same port, whatever happens to its processes."""

    def __init__(
        self,
        settings: Settings,
        log: Path,
        program: Sequence[str] = ("-m", "app"),
        workers: int = 1,
        popen: Callable[..., Process] = forked.Popen,
    ) -> None:
        self._popen = popen
        self._program = program
        self._workers = workers
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = settings
        self.kills = 0
        self._log: IO[str] = log.open("a")
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        assert self._process is not None, "the server was not started"
        return self._process

    def spawn(self) -> None:
        self._process = self._popen(
            [
                *(sys.executable, *self._program, "serve"),
                *("--port", str(self.port), "--workers", str(self._workers)),
            ],
            env=environment(self.settings),
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def start(self) -> None:
        """Returns once it listens."""
        self.spawn()
        self.wait()

    def wait(self) -> None:
        """Returns once what was spawned listens."""
        assert self.process.stdout is not None
        while "Dashboard:" not in (line := self.process.stdout.readline()):
            assert line, f"the server ended with {self.process.wait()}"

    def kill(self) -> None:
        """SIGKILL: no handler, no clean-up, nothing flushed."""
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL, "it had ended by itself"
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.kills += 1

    def strike(self, rng: random.Random) -> None:
        """One process killed, and in its place soon another one; some are killed a second time while they start."""
        if self._workers > 1:
            os.kill(rng.choice(self.processes), signal.SIGKILL)
            self.kills += 1
            return
        self.kill()
        if rng.random() < 0.25:
            self.spawn()
            sleep(rng.uniform(0, 0.5))
            self.kill()
        self.start()

    @property
    def processes(self) -> list[int]:
        """Those that serve, where there are several."""
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], stdout=subprocess.PIPE, text=True, check=True
        )
        return [int(pid) for pid in found.stdout.split()]

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=20)
            assert self._process.stdout is not None
            self._process.stdout.close()
        self._log.close()


@contextmanager
def killable(
    settings: Settings,
    log: Path,
    program: Sequence[str] = ("-m", "app"),
    workers: int = 1,
    popen: Callable[..., Process] = forked.Popen,
) -> Iterator[KillableServer]:
    """A server that listens, until the block ends; its errors go to `log`, `program` is what Python runs."""
    server = KillableServer(settings, log, program, workers, popen)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def several(
    settings: Settings, log: Path, servers: int, popen: Callable[..., Process] = forked.Popen
) -> Iterator[list[KillableServer]]:
    """So many servers with ports of their own behind one database, as on several machines."""
    found = [KillableServer(settings, log, popen=popen) for _ in range(servers)]
    try:
        for server in found:
            server.spawn()
        for server in found:
            server.wait()
        yield found
    finally:
        for server in found:
            server.stop()


class Moving(httpx2.BaseTransport):
    """One participant's way to several servers: to one of them, and to the next where that one does not answer."""

    def __init__(self, way: httpx2.BaseTransport, urls: Sequence[str], first: int) -> None:
        self._way = way
        self._urls = [httpx2.URL(url) for url in urls]
        self._at = first

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        url = self._urls[self._at % len(self._urls)]
        request.url = request.url.copy_with(host=url.host, port=url.port)
        try:
            return self._way.handle_request(request)
        except httpx2.TransportError:
            self._at += 1
            raise


@dataclass
class Crowd:
    """Bots that all play at once, each in a thread of its own."""

    ledger: Ledger = field(default_factory=Ledger)
    outboxes: list[Outbox] = field(default_factory=list)
    playing: list[Future[str]] = field(default_factory=list)

    def wait_until(self, true: Callable[[], bool], seconds: float = 900) -> None:
        """Returns when `true()`; raises what a bot raised, and AssertionError if it never comes true."""
        until = monotonic() + seconds
        while not true():
            self.raise_failures()
            assert monotonic() < until, "it did not come true in time"
            assert not all(bot.done() for bot in self.playing), "the bots finished before it came true"
            sleep(0.005)

    def wait_for_answers(self, count: int) -> None:
        self.wait_until(lambda: len(self.ledger.acknowledged) >= count)

    def wait_for_failures(self, more: int) -> None:
        """Returns once so many more requests have failed and are to be made again."""
        enough = len(self.ledger.failures) + more
        self.wait_until(lambda: len(self.ledger.failures) >= enough)

    def raise_failures(self) -> None:
        for bot in self.playing:
            if bot.done():
                bot.result()

    def finish(self) -> None:
        for bot in self.playing:
            bot.result(timeout=1800)


@contextmanager
def crowd(
    urls: str | Sequence[str],
    study: str,
    pack: Pack,
    participants: int,
    seed: int,
    patience_s: float = PATIENCE_S,
) -> Iterator[Crowd]:
    """Bots that begin at once, spread over the servers; they are stopped when the block ends."""
    urls = [urls] if isinstance(urls, str) else urls
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    with httpx2.HTTPTransport(limits=limits) as way, ThreadPoolExecutor(participants) as pool:
        bots = Crowd()

        def participate(number: int) -> str:
            outbox = bots.outboxes[number]
            token, here = arrive(outbox, study, pack)
            rng = random.Random(f"{seed}/{number}")
            return play(outbox, token, here, pack, RATES, rng, f"Remark {number}.")

        for number in range(participants):
            client = httpx2.Client(base_url=urls[0], timeout=60, transport=Moving(way, urls, number))
            bots.outboxes.append(Outbox(client, patience_s, bots.ledger))
        bots.playing += [pool.submit(participate, number) for number in range(participants)]
        try:
            yield bots
        finally:
            for outbox in bots.outboxes:
                outbox.stop.set()


def kill_at_random(
    servers: Sequence[KillableServer], bots: Crowd, kills: int, answers: int, rng: random.Random
) -> None:
    """Strike one of the servers that often, spread over the play of `answers` answers in all.

    Moments are drawn in acknowledged answers, so that a fast machine is killed as often as a slow one.
    """
    for kill in range(kills):
        bots.wait_for_answers(round(answers * (kill + rng.random()) / (kills + 1)))
        sleep(rng.uniform(0, 0.02))
        rng.choice(servers).strike(rng)


@dataclass(frozen=True)
class Counts:
    """What the database holds beside what the bots were told."""

    acknowledged: int
    stored: int
    lost: int  # acknowledged, and not stored with that id and content
    doubled: int  # stored more than once: an id, or a question of one session
    unknown: int  # stored, and never sent
    unanswered: int  # questions of the sessions without an answer
    remarks_lost: int
    sessions: int
    finished: int  # with the completion code that the bot was given
    numbers_wrong: int  # of participants: missing from 1, 2, ..., or there twice
    cells_wrong: int  # (source label, model) not met exactly once by a participant
    uneven: int  # how much oftener the most shown image of a cell was assigned than the least shown
    requests_repeated: int

    @property
    def sound(self) -> bool:
        wrong = (self.lost, self.doubled, self.unknown, self.unanswered, self.remarks_lost)
        return not any((*wrong, self.numbers_wrong, self.cells_wrong))

    def __str__(self) -> str:
        return "\n".join(f"{f.name.replace('_', ' '):20}{getattr(self, f.name):>8}" for f in fields(self))


def count(database_url: str, ledger: Ledger) -> Counts:
    """Hold the ledger against the database."""
    with connected(database_url) as connection:
        if connection.dialect.name == "sqlite":
            assert connection.execute(text("PRAGMA integrity_check")).all() == [("ok",)]
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        stored = _stored(connection)
        unanswered = connection.execute(
            text(
                """
                SELECT count(*) FILTER (WHERE r.trial_id IS NULL)
                     + count(*) FILTER (WHERE t.judging_order IS NOT NULL AND j.trial_id IS NULL)
                FROM trials t LEFT JOIN responses r ON r.trial_id = t.id LEFT JOIN judgments j ON j.trial_id = t.id
                """
            )
        ).scalar_one()
        codes = connection.execute(
            text("SELECT token, completion_code FROM participants WHERE finished_at IS NOT NULL")
        ).all()
        remarks = connection.execute(
            text("SELECT p.token, c.text FROM comments c JOIN participants p ON p.id = c.participant_id")
        ).all()
        sessions = connection.execute(text("SELECT count(*) FROM participants")).scalar_one()
        numbers_wrong, cells_wrong, uneven = _assigned(connection)
    found = Counter(map(_key, stored))
    sent = set(map(_key, ledger.sent))
    places = Counter((a.token, a.position, a.phase) for a in stored)
    ids = Counter(a.answer_id for a in stored)
    return Counts(
        acknowledged=len(ledger.acknowledged),
        stored=len(stored),
        lost=sum(found[_key(a)] == 0 for a in ledger.acknowledged),
        doubled=sum(n - 1 for n in places.values()) + sum(n - 1 for n in ids.values()),
        unknown=sum(key not in sent for key in found),
        unanswered=unanswered,
        remarks_lost=sum((token, text) not in remarks for token, text in ledger.remarks.items()),
        sessions=sessions,
        finished=sum(ledger.codes.get(token) == code for token, code in codes),
        numbers_wrong=numbers_wrong,
        cells_wrong=cells_wrong,
        uneven=uneven,
        requests_repeated=len(ledger.failures),
    )


def assignment(database_url: str) -> dict[int, list[tuple[Any, ...]]]:
    """What each participant was assigned, by number: (position, kind, image, place in judging)."""
    found: dict[int, list[tuple[Any, ...]]] = {}
    with connected(database_url) as connection:
        for number, *trial in connection.execute(
            text(
                """
                SELECT p.number, t.position, t.kind, t.sha256, t.judging_order
                FROM trials t JOIN participants p ON p.id = t.participant_id ORDER BY p.number, t.position
                """
            )
        ):
            found.setdefault(number, []).append(tuple(trial))
    return found


def assigned_by_one_process(
    database_url: str, study: str, participants: int
) -> dict[int, list[tuple[Any, ...]]]:
    """Who would be shown what, had everybody come one after the other to one process; begins those sessions."""
    database = Database(database_url)
    for _ in range(participants):
        with database.write() as session:
            enrollment.start(session, Beginning(study, {SIMULATED: "yes"}), datetime.now(UTC))
    database.close()
    return assignment(database_url)


def _assigned(connection: Connection) -> tuple[int, int, int]:
    """Of the one study that was played: numbers_wrong, cells_wrong, uneven."""
    numbers = Counter(connection.execute(text("SELECT number FROM participants")).scalars())
    wrong = Counter(range(1, numbers.total() + 1))
    cells: dict[tuple[str, str], dict[int, int]] = {}
    for label, model, stimulus, shown in connection.execute(
        text(
            """
            SELECT s.source_label, s.model, s.id, count(t.id) FROM stimuli s
            LEFT JOIN trials t ON t.stimulus_id = s.id
            WHERE s.pack_id IN
                (SELECT pack_id FROM study_packs WHERE study_id IN (SELECT study_id FROM participants))
            GROUP BY s.source_label, s.model, s.id
            """
        )
    ):
        cells.setdefault((label, model), {})[stimulus] = shown
    met = Counter(
        tuple(row)
        for row in connection.execute(
            text(
                """
                SELECT t.participant_id, s.source_label, s.model
                FROM trials t JOIN stimuli s ON s.id = t.stimulus_id
                """
            )
        ).all()
    )
    every = {(participant, *cell) for participant, *_ in met for cell in cells}
    return (
        ((numbers - wrong) + (wrong - numbers)).total(),
        sum(met[place] != 1 for place in every | set(met)),
        max((max(shown.values()) - min(shown.values()) for shown in cells.values()), default=0),
    )


def _stored(connection: Connection) -> list[Answered]:
    labels = connection.execute(
        text(
            """
            SELECT p.token, t.position, r.answer_id, r.label, r.runner_up, r.rt_ms, r.display
            FROM responses r JOIN trials t ON t.id = r.trial_id JOIN participants p ON p.id = t.participant_id
            """
        )
    )
    verdicts = connection.execute(
        text(
            """
            SELECT p.token, t.position, j.answer_id, j.plausible, j.rt_ms, j.display
            FROM judgments j JOIN trials t ON t.id = j.trial_id JOIN participants p ON p.id = t.participant_id
            """
        )
    )

    def display(stored: Any) -> Any:
        return json.loads(stored) if isinstance(stored, str) else stored  # SQLite has text

    found = []
    for token, position, answer_id, label, runner_up, rt_ms, shown in labels:
        content = {"label": label, "runner_up": runner_up, "rt_ms": rt_ms, "display": display(shown)}
        if runner_up is None:
            del content["runner_up"]
        found.append(Answered(token, position, "labelling", str(uuid.UUID(str(answer_id))), content))
    for token, position, answer_id, plausible, rt_ms, shown in verdicts:
        content = {"plausible": bool(plausible), "rt_ms": rt_ms, "display": display(shown)}
        found.append(Answered(token, position, "judging", str(uuid.UUID(str(answer_id))), content))
    return found


def _key(answer: Answered) -> tuple[Any, ...]:
    content = json.dumps(answer.content, sort_keys=True)
    return answer.token, answer.position, answer.phase, answer.answer_id, content


class Locker:
    """Another process that holds what a writer needs: SQLite's write lock, or PostgreSQL's tables of answers.

    It is ready once it is made, and holds it while its block lasts.
    """

    def __init__(self, database_url: str) -> None:
        program = (
            "import sys; from sqlalchemy import text; from tests.app.databases import connected\n"
            "with connected(sys.argv[1]) as c:\n"
            "    sqlite = c.dialect.name == 'sqlite'; print('ready', flush=True); sys.stdin.readline()\n"
            "    if sqlite: c.connection.driver_connection.execute('PRAGMA busy_timeout = 60000')\n"
            "    c.execute(text('BEGIN IMMEDIATE' if sqlite else sys.argv[2]))\n"
            "    print('locked', flush=True); sys.stdin.read(); c.rollback()"
        )
        self._process = forked.Popen(
            [
                sys.executable,
                "-c",
                program,
                database_url,
                "LOCK TABLE responses, judgments IN EXCLUSIVE MODE",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __enter__(self) -> "Locker":
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("lock\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "locked\n"
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0
