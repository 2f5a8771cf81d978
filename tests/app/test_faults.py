"""Servers killed, disks that fill, locks that stay, requests that come twice: no answer is lost or doubled.

Real server processes, and bots that send again what was not acknowledged. After every fault the database is held
against what the bots were told; `pytest -rP` shows the counts.
"""

import os
import random
import resource
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import make_url, text

from app.serving import prepare
from app.settings import Settings
from app.simulate import Answered, Ledger, Outbox, arrive, play
from ml.pack import Pack
from tests.app.conftest import PREPARED_AT, STUDY, Player, begin, installation
from tests.app.databases import Databases, connected
from tests.app.faults import RATES, Counts, KillableServer, Locker, count, crowd, kill_at_random, killable
from tests.packs import make_pack

ANSWERS = 2 + 8 + 1 + 8  # of one session: practice, images, a control image; then the images judged


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """A pack of 8 cells, so that many sessions are played quickly."""
    folder = tmp_path_factory.mktemp("small")
    models = ("undefended", "gradient_regularized")
    return make_pack(folder / "test-pack", labels="0123", models=models, sources=2, targets=2)


FEWER = STUDY.replace("practice = 2", "practice = 2\ncontrols = 1\ntrials = 8")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, pack: Pack, databases: Databases) -> str:
    folder = tmp_path_factory.mktemp("prepared")
    settings = installation(folder, pack, databases.new(folder), FEWER)
    prepare(settings, PREPARED_AT)
    return settings.database_url


@pytest.fixture
def settings(tmp_path: Path, pack: Pack, database_url: str, prepared: str) -> Settings:
    """With a database of this test's own, prepared already, so that the servers start quickly."""
    return installation(tmp_path, pack, database_url, FEWER)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


@pytest.fixture
def server(settings: Settings, log: Path) -> Iterator[KillableServer]:
    with killable(settings, log) as server:
        yield server


def assert_sound(database_url: str, ledger: Ledger, sessions: int) -> Counts:
    """Everything acknowledged is stored once, everything stored was sent, everybody has their code."""
    counts = count(database_url, ledger)
    print(counts, dict(Counter(ledger.failures)), sep="\n")
    assert counts.sound, counts
    assert counts.acknowledged == counts.stored == ANSWERS * sessions
    assert counts.sessions == counts.finished == sessions, "no session was begun twice, none is left"
    return counts


# Faults of the machine


def test_thirty_at_once_while_the_server_is_killed_again_and_again(
    server: KillableServer, database_url: str, pack: Pack
) -> None:
    people, kills = 30, 4
    with crowd(server.url, "test", pack, people, seed=1) as bots:
        kill_at_random([server], bots, kills, ANSWERS * people, random.Random(11))
        bots.finish()
    counts = assert_sound(database_url, bots.ledger, people)
    assert server.kills >= kills
    assert counts.requests_repeated >= kills, "the kills were felt"


@pytest.mark.only("sqlite")  # PostgreSQL writes elsewhere
def test_a_disk_that_cannot_be_written_and_can_again(
    server: KillableServer, database_url: str, log: Path, pack: Pack
) -> None:
    def limit(size: int) -> None:
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, hard))

    process = server.process
    with crowd(server.url, "test", pack, 10, seed=2) as bots:
        for fault in range(1, 3):
            bots.wait_for_answers(40 * fault)
            limit(4096)  # bytes: shorter than any of its files
            bots.wait_for_failures(5)
            limit(resource.RLIM_INFINITY)
        bots.finish()
    counts = assert_sound(database_url, bots.ledger, 10)
    assert counts.requests_repeated >= 10
    assert set(bots.ledger.failures) == {"503"}, "every failure was said: no 500, no cut connection"
    assert "disk I/O error" in log.read_text()
    assert server.process is process, "the same process went on"
    assert process.poll() is None


class Away:
    """PostgreSQL is not there: it has cut all connections to the database, and takes no new ones for now."""

    def __init__(self, database_url: str) -> None:
        self._url = make_url(database_url).set(database="postgres").render_as_string(hide_password=False)
        self._name = make_url(database_url).database

    def __enter__(self) -> None:
        self._execute(
            f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._name}'",
        )

    def __exit__(self, *error: object) -> None:
        self._execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true")

    def crash(self) -> None:
        """Kill one of its processes: it then starts anew, from what it has in its log, and cuts everybody off."""
        with connected(self._url) as connection:
            query = text("SELECT pid FROM pg_stat_activity WHERE datname = :name LIMIT 1")
            process: int = connection.execute(query, {"name": self._name}).scalar_one()
        os.kill(process, signal.SIGKILL)

    def _execute(self, *statements: str) -> None:
        with connected(self._url, isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.execute(text(statement))


@pytest.mark.only("postgresql")
def test_postgresql_goes_away_crashes_and_comes_back(
    server: KillableServer, database_url: str, log: Path, pack: Pack
) -> None:
    process, away = server.process, Away(database_url)
    with crowd(server.url, "test", pack, 20, seed=6) as bots, httpx2.Client(base_url=server.url) as visitor:
        bots.wait_for_answers(40)
        with away:
            bots.wait_for_failures(5)
            assert visitor.get("/healthz").status_code == 200
            page = visitor.get(f"/s/{bots.ledger.sent[0].token}")
            assert (page.status_code, page.headers["retry-after"]) == (503, "2")
            assert "please try again in a moment" in page.text
            assert visitor.post("/api/sessions", json={"study": "test", "consent": True}).status_code == 503
        bots.wait_for_answers(len(bots.ledger.acknowledged) + 40)
        away.crash()
        bots.finish()
    counts = assert_sound(database_url, bots.ledger, 20)
    assert counts.requests_repeated >= 5
    assert set(bots.ledger.failures) == {"503"}, "every failure was said: no 500, no cut connection"
    assert "terminating connection due to administrator command" in log.read_text()
    assert server.process is process, "the same process went on"
    assert process.poll() is None


FILLING = """
import os, sys
from sqlalchemy import Engine, event
from app.cli import main

@event.listens_for(Engine, "begin")
def fill(connection):
    # As many pages as there are, while the file is there: SQLite then says what it says on a full disk.
    raw = connection.connection.driver_connection
    full = os.path.exists(sys.argv[1])
    raw.execute("PRAGMA max_page_count = %d" % (raw.execute("PRAGMA page_count").fetchone()[0] if full else 2**30))

sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.only("sqlite")
def test_a_full_disk_that_has_room_again(
    settings: Settings, database_url: str, log: Path, tmp_path: Path, pack: Pack
) -> None:
    full = tmp_path / "full"
    with (
        killable(settings, log, ["-c", FILLING, str(full)]) as server,
        crowd(server.url, "test", pack, 10, seed=3) as bots,
    ):
        for fault in range(1, 3):
            bots.wait_for_answers(50 * fault)
            full.touch()
            bots.wait_for_failures(5)
            full.unlink()
        bots.finish()
    counts = assert_sound(database_url, bots.ledger, 10)
    assert counts.requests_repeated >= 10
    assert set(bots.ledger.failures) == {"503"}
    assert "database or disk is full" in log.read_text()


def test_a_short_lock_is_waited_out_and_a_long_one_is_said(
    server: KillableServer, database_url: str, log: Path, pack: Pack
) -> None:
    short, long = Locker(database_url), Locker(database_url)
    with crowd(server.url, "test", pack, 20, seed=4) as bots:
        bots.wait_for_answers(40)
        with short:
            threading.Event().wait(0.5)  # for the replies that were on their way
            before = len(bots.ledger.acknowledged)
            threading.Event().wait(2)
            assert len(bots.ledger.acknowledged) == before, "nobody is told that an answer is stored"
        bots.wait_for_answers(before + 40)
        assert bots.ledger.failures == [], "a lock of a few seconds is only a wait"
        with long:
            bots.wait_for_failures(5)
            assert httpx2.get(f"{server.url}/healthz").status_code == 200
            assert httpx2.get(f"{server.url}/api/sessions/{bots.ledger.sent[0].token}").status_code == 200, (
                "reading goes on"
            )
        bots.finish()
    assert_sound(database_url, bots.ledger, 20)
    assert set(bots.ledger.failures) == {"503"}
    said = "database is locked" if database_url.startswith("sqlite") else "due to lock timeout"
    assert said in log.read_text()


# Faults of the network, and of people with two devices


def content_of(here: dict[str, Any], choice: int) -> tuple[str, dict[str, Any]]:
    """(question, content) of an answer to where the session is; each choice is another answer."""
    if here["state"] == "judging":
        return "plausibility", {"plausible": choice % 2 == 0, "rt_ms": 500.0 + choice, "display": {}}
    label, runner_up = here["labels"][choice % 4], here["labels"][(choice + 1) % 4]
    return "label", {"label": label, "runner_up": runner_up, "rt_ms": 500.0 + choice, "display": {}}


def entry(token: str, position: int, question: str, content: dict[str, Any]) -> Answered:
    phase = "labelling" if question == "label" else "judging"
    return Answered(token, position, phase, str(uuid.uuid4()), content)


def put(player: Player, answer: Answered) -> int:
    question = "label" if answer.phase == "labelling" else "plausibility"
    return player.put(answer.position, question, answer_id=answer.answer_id, **answer.content).status_code


def finish(player: Player, ledger: Ledger) -> None:
    """The last page, from each device."""
    assert player.client.post(f"{player.base}/comments", json={"text": "One."}).status_code == 200
    ledger.remarks[player.token] = "One."
    code = player.client.post(f"{player.base}/finish").json()["completion_code"]
    assert ledger.codes.setdefault(player.token, code) == code


def test_two_devices_race_through_one_session(server: KillableServer, database_url: str) -> None:
    ledger, statuses = Ledger(), Counter[int]()
    with httpx2.Client(base_url=server.url) as laptop, httpx2.Client(base_url=server.url) as phone:
        token = begin(laptop).token
        line = threading.Barrier(2, timeout=60)

        def race(player: Player, choice: int) -> list[int]:
            mine = []
            while (here := player.session())["state"] != "commenting":
                question, content = content_of(here, choice + here["next_position"])
                answer = entry(token, here["next_position"], question, content)
                ledger.sent.append(answer)
                line.wait()
                mine.append(put(player, answer))
                if mine[-1] == 200:
                    ledger.acknowledged.append(answer)
                line.wait()
            return mine

        devices = [Player(laptop, token), Player(phone, token)]
        with ThreadPoolExecutor(2) as pool:
            for raced in [pool.submit(race, device, 3 * i) for i, device in enumerate(devices)]:
                statuses.update(raced.result())
        for device in devices:
            finish(device, ledger)
    assert statuses == {200: ANSWERS, 409: ANSWERS}, "one of the two is stored, the other is told so"
    assert_sound(database_url, ledger, 1)


def test_requests_that_come_twice_and_in_another_order(server: KillableServer, database_url: str) -> None:
    ledger, statuses, rng = Ledger(), Counter[int](), random.Random(5)
    with httpx2.Client(base_url=server.url) as client, ThreadPoolExecutor(4) as network:
        player = begin(client)

        def deliver(answers: list[Answered]) -> None:
            """Every answer twice, in a random order, four on their way at a time."""
            twice = rng.sample(answers * 2, 2 * len(answers))
            came = network.map(lambda answer: (answer, put(player, answer)), twice)
            for answer, status in came:
                statuses[status] += 1
                if status == 200 and answer not in ledger.acknowledged:
                    ledger.acknowledged.append(answer)

        while (here := player.session())["state"] != "commenting":
            open_now = [t["position"] for t in here["trials"] if not t["answered"]]
            if here["state"] == "labelling":  # the images that come next; in judging their order is secret
                positions = open_now[:4]
            else:
                positions = [here["next_position"], *rng.sample(open_now, min(3, len(open_now)))]
            answers = []
            for position in dict.fromkeys(positions):
                question, content = content_of(here, position)
                answers.append(entry(player.token, position, question, content))
            ledger.sent += answers
            while any(a not in ledger.acknowledged for a in answers) and here["state"] == "labelling":
                deliver(answers)
            if here["state"] == "judging":
                deliver(answers)
        finish(player, ledger)
        assert_sound(database_url, ledger, 1)
        again = list(
            network.map(lambda answer: put(player, answer), rng.sample(ledger.acknowledged, ANSWERS))
        )
        assert again == [200] * ANSWERS, "whatever comes late is known, and changes nothing"
        finish(player, ledger)
    assert set(statuses) == {200, 409}
    assert_sound(database_url, ledger, 1)


# The same bot without a network


def test_the_bot_plays_in_process(client: TestClient, database_url: str, pack: Pack) -> None:
    outbox = Outbox(client)
    for number in range(2):
        token, here = arrive(outbox, "test", pack)
        play(outbox, token, here, pack, RATES, random.Random(number), "In process.")
    counts = assert_sound(database_url, outbox.ledger, 2)
    assert counts.requests_repeated == 0
