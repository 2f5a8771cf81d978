"""A server that is told to stop: what it has begun is finished, what it acknowledged is stored, and it ends."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from app.settings import Settings
from ml.pack import Pack
from tests.app.conftest import begin
from tests.app.faults import KillableServer, count, crowd, killable
from tests.app.small import prepared, settings, small, study

__all__ = ["prepared", "settings", "small", "study"]  # fixtures

IMPATIENT = """
import sys
from app import serving
from app.cli import main
serving.GRACE_S, serving.FORCED_S = 1, 0.5
sys.exit(main(sys.argv[1:]))
"""
HANGING = """
import sys, time
from app import participation, serving
from app.cli import main
participation.view = lambda *_, **__: time.sleep(600)
serving.FORCED_S = 0.5
GRACE
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def server_of(settings: Settings, tmp_path: Path, program: str) -> Iterator[KillableServer]:
    server = KillableServer(settings, tmp_path / "server.log", ["-c", program])
    server.start()
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
        server.stop()


def test_every_answer_that_is_stored_was_acknowledged_and_the_other_way_round(
    settings: Settings, prepared: str, small: Pack, tmp_path: Path
) -> None:
    """Unlike after a kill, nobody has to ask again whether an answer arrived."""
    with (
        killable(settings, tmp_path / "server.log") as server,
        crowd(server.url, "test", small, 12, seed=8) as bots,
    ):
        for stop in range(1, 3):
            bots.wait_for_answers(90 * stop)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
            assert server.process.stdout is not None
            server.process.stdout.close()
            stored = count(settings.database_url, bots.ledger).stored
            for _ in range(1000):  # their last replies are on their way
                if len(bots.ledger.acknowledged) >= stored:
                    break
                time.sleep(0.01)
            counts = count(settings.database_url, bots.ledger)
            assert (counts.lost, counts.doubled, counts.unknown) == (0, 0, 0)
            assert counts.stored == counts.acknowledged
            server.start()
        bots.finish()
    counts = count(settings.database_url, bots.ledger)
    print(counts)
    assert counts.sound
    assert counts.sessions == counts.finished == 12
    assert (tmp_path / "server.log").read_text() == "", "nothing went wrong"


@pytest.mark.only("sqlite")
def test_nobody_slow_or_idle_holds_it(settings: Settings, prepared: str, tmp_path: Path) -> None:
    with server_of(settings, tmp_path, IMPATIENT) as server, httpx2.Client(base_url=server.url) as idle:
        player = begin(idle)
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(
                f"PUT {player.base}/trials/1/label HTTP/1.1\r\nHost: localhost\r\n"
                "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
            )
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
    counted = (tmp_path / "server.log").read_text()
    assert "timeout graceful shutdown exceeded" in counted


@pytest.mark.only("sqlite")
@pytest.mark.parametrize("twice", [False, True], ids=["grace over", "told twice"])
def test_a_database_that_never_answers_does_not_keep_the_process(
    settings: Settings, prepared: str, tmp_path: Path, twice: bool
) -> None:
    grace = "" if twice else "serving.GRACE_S = 1"
    with (
        server_of(settings, tmp_path, HANGING.replace("GRACE", grace)) as server,
        socket.create_connection(("127.0.0.1", server.port)) as waiting,
    ):
        waiting.sendall(b"GET /api/sessions/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        if twice:
            time.sleep(0.3)
            assert server.process.poll() is None, "it waits for the request"
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(25) == 1
