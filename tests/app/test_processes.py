"""Several server processes behind one database: nothing lost, nobody twice, images as evenly as by one process."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app import cli
from app.settings import Settings
from ml.pack import Pack
from tests.app import forked
from tests.app.conftest import Player, begin
from tests.app.databases import Databases, connected
from tests.app.faults import (
    KillableServer,
    assigned_by_one_process,
    assignment,
    crowd,
    kill_at_random,
    killable,
    several,
)
from tests.app.test_faults import ANSWERS, assert_sound, log, pack, prepared, server, settings

__all__ = ["log", "pack", "prepared", "server", "settings"]  # fixtures

BOTS = 24
KILLS = 3
PROCESSES = 4


@pytest.mark.only("postgresql")
def test_four_servers_of_which_one_is_killed_again_and_again(
    settings: Settings, prepared: str, databases: Databases, log: Path, pack: Pack, tmp_path: Path
) -> None:
    """Each at its own port; who finds theirs gone goes on at the next."""
    with several(settings, log, PROCESSES) as servers:
        play_and_kill(servers, settings, databases.copy(prepared, tmp_path / "alone"), pack)


def test_one_server_of_four_processes_of_which_one_is_killed_again_and_again(
    settings: Settings, prepared: str, databases: Databases, log: Path, pack: Pack, tmp_path: Path
) -> None:
    (tmp_path / "alone").mkdir()
    with killable(settings, log, workers=PROCESSES) as server:
        play_and_kill([server], settings, databases.copy(prepared, tmp_path / "alone"), pack)


def play_and_kill(servers: list[KillableServer], settings: Settings, another: str, pack: Pack) -> None:
    """Everybody at once; `another` is a database like the servers' before they began."""
    alone = assigned_by_one_process(another, "test", BOTS)
    with crowd([server.url for server in servers], "test", pack, BOTS, seed=6) as bots:
        kill_at_random(servers, bots, KILLS, ANSWERS * BOTS, random.Random(12))
        bots.finish()
    assert sum(server.kills for server in servers) >= KILLS
    counts = assert_sound(settings.database_url, bots.ledger, BOTS)
    assert counts.requests_repeated > 0, "the kills were felt"
    assert assignment(settings.database_url) == alone, "as evenly as by one process: the very same images"
    assert counts.uneven <= 2


@pytest.mark.only("postgresql")
def test_connections_to_the_database_that_are_cut_again_and_again(
    settings: Settings, log: Path, pack: Pack
) -> None:
    """As when the database server restarts: amid transactions, and those that are kept for later."""
    with (
        killable(settings, log) as server,
        crowd(server.url, "test", pack, 20, seed=7) as bots,
    ):
        for cut in range(1, 9):
            bots.wait_for_answers(40 * cut)
            with connected(settings.database_url) as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
        bots.finish()
    assert_sound(settings.database_url, bots.ledger, 20)
    assert set(bots.ledger.failures) <= {"503"}, "every failure was said"


# One process knows what another one stores


def test_results_show_at_once_what_another_process_stored(
    researcher: TestClient, server: KillableServer, settings: Settings
) -> None:
    def shown() -> tuple[int, int, int]:
        found = researcher.get("/results/test.json").json()
        people = found["participants"]
        return found["responses"], people["finished"], people["withdrawn"]

    def stored() -> tuple[int, int, int]:
        with connected(settings.database_url) as connection:
            responses = connection.scalar(
                text(
                    "SELECT count(*) FROM responses r JOIN trials t ON t.id = r.trial_id WHERE t.kind = 'main'"
                )
            )
            people = connection.execute(
                text("SELECT count(finished_at), count(withdrawn_at) FROM participants")
            )
            return responses or 0, *people.one()

    with httpx2.Client(base_url=server.url) as other:
        assert shown() == stored() == (0, 0, 0)
        here, there = begin(other), begin(other)
        for player, more in ((here, 1), (here, 4), (there, 5), (here, 1000), (there, 1)):
            player.answer(most=more)
            assert shown() == stored()
        assert other.post(f"{here.base}/withdraw").status_code == 200
        assert shown() == stored()
        assert stored()[1:] == (0, 1)


def test_a_session_goes_on_at_whichever_process_answers(
    client: TestClient, server: KillableServer, settings: Settings
) -> None:
    with httpx2.Client(base_url=server.url) as other:
        here = begin(client)
        at = [here, Player(other, here.token)]
        for number in range(ANSWERS):
            at[number % 2].answer(most=1)
        at[1].answer()
        assert here.session()["state"] == "finished"
        numbers = [begin((client, other)[number % 2]) for number in range(6)]
    with connected(settings.database_url) as connection:
        found = connection.scalars(text("SELECT number FROM participants ORDER BY number")).all()
    assert found == list(range(1, len(numbers) + 2))


# One command, several processes


def children(pid: int) -> set[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], stdout=subprocess.PIPE, text=True)
    return {int(child) for child in found.stdout.split()}


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come true in time")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.only("sqlite")
def test_workers_are_replaced_and_end_together(settings: Settings, log: Path) -> None:
    with killable(settings, log, workers=2) as server:
        first = children(server.process.pid)
        assert len(first) == 2
        killed = min(first)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: len(children(server.process.pid) - {killed}) == 2)
        second = children(server.process.pid)
        with httpx2.Client(base_url=server.url) as client:
            begin(client).answer()
        groups = {os.getpgid(pid) for pid in second}
        assert groups == second, "Ctrl-C reaches them through the supervisor alone"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert not any(map(alive, second))
        assert server.process.stdout is not None
        assert server.process.stdout.read() == "", "the addresses are printed once"
    assert f"server process {killed} ended by signal 9; another one is started" in log.read_text()
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.only("sqlite")
def test_workers_end_when_their_supervisor_is_killed(settings: Settings, log: Path) -> None:
    """Else they would hold the port, and the next start would fail."""
    with killable(settings, log, workers=3) as server:
        orphans = children(server.process.pid)
        server.kill()
        wait_until(lambda: not any(map(alive, orphans)))
        server.start()
        assert httpx2.get(f"{server.url}/healthz").status_code == 200


SUPERVISED = """
import os, sqlite3, sys, time
from sqlalchemy.exc import OperationalError
from app import cli, serving, workers
from app.settings import ROOT, SettingsError

def broken(listening):
    raise SettingsError("the templates\\nare gone")

def away(listening):
    raise OperationalError("SELECT secret", {"token": "secret"}, sqlite3.OperationalError("disk I/O error"))

def crashing(listening):
    os._exit(7)

def run(args):
    return workers.supervise(3, globals()[sys.argv[1]], lambda: print("announced"))

serving.serve = run
sys.exit(cli.main(["serve"]))
"""


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("broken", 2, "error: the templates are gone\n"),
        ("away", 2, "error: OperationalError: disk I/O error\n"),
        ("crashing", 7, ""),
    ],
)
def test_workers_that_cannot_start_end_the_command(fault: str, status: int, said: str) -> None:
    done = forked.run([sys.executable, "-c", SUPERVISED, fault])
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


@pytest.mark.parametrize("text", ["0", "-1", "two", "65", "1.5"])
def test_a_number_of_workers_that_is_none(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKERS", text)
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"'{text}' is no number of server processes: a number from 1 to 64" in line
