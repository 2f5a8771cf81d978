"""What the app's tests stand on: a pack, a study, a database, the app in process and as a real server.

Each test that has a database runs on SQLite and on PostgreSQL. One that is about the one is marked `only("sqlite")`
or `only("postgresql")`. A module marked `quickly("sqlite")` reads and shows what others store: while working on
something else, that one database will do (`make test-quick`).
"""

import os
import re
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from app import auth
from app.main import create_app
from app.serving import prepare
from app.settings import Settings
from ml.pack import Pack
from tests.app import databases as kinds
from tests.app import forked
from tests.app.databases import Databases
from tests.packs import make_pack

SECRET = "a secret for the tests"
PREPARED_AT = datetime(2026, 1, 1, tzinfo=UTC)

STUDY = """
title = "A study for tests"
packs = ["test-pack"]
seed = 7
practice = 2
min_answer_ms = 0
target_participants = 3

[primary]
pack = "test-pack"

[exclusions]
min_median_label_rt_ms = 100
max_same_label_share = 0.8

[texts]
summary = "A summary."
minutes = 5
information = ["Information."]
consent = ["I agree."]
debrief = ["Debrief."]
contact = "Ask the test."
"""


@pytest.fixture(scope="session", autouse=True)
def testserver() -> Iterator[None]:
    """The test client's name for the app in process; a real server answers to no such name."""
    own: Any = vars(Settings)["allowed_hosts"]

    def hosts(settings: Settings) -> frozenset[str] | None:
        found: frozenset[str] | None = own.fget(settings)
        return None if found is None else found | {"testserver"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "allowed_hosts", property(hosts))
        yield


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return make_pack(tmp_path_factory.mktemp("packs") / "test-pack")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "databases" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("only")
        if marker is None and os.environ.get("TEST_QUICK"):
            marker = metafunc.definition.get_closest_marker("quickly")
        chosen = marker.args if marker else kinds.KINDS
        metafunc.parametrize("databases", chosen, indirect=True, scope="session")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[kinds.Server]:
    with kinds.server() as server:
        yield server


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest, postgres_server: kinds.Server) -> Databases:
    """Where databases come from: files, or a PostgreSQL server."""
    return Databases(request.param, postgres_server)


def installation(folder: Path, pack: Pack, database_url: str, study: str = STUDY) -> Settings:
    """An installation of its own in `folder`: the test pack, one study named "test"."""
    studies = folder / "studies"
    studies.mkdir()
    (studies / "test.toml").write_text(study)
    return Settings(database_url, SECRET, studies, pack.directory.parent, folder / "evaluations")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, pack: Pack, databases: Databases) -> str:
    """A database as `serve` prepares it; tests start from copies, which is quicker than preparing each."""
    folder = tmp_path_factory.mktemp("prepared")
    settings = installation(folder, pack, databases.new(folder))
    prepare(settings, PREPARED_AT)
    return settings.database_url


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path, databases: Databases) -> Iterator[str]:
    """A database of this test's own: a copy of `prepared` where the test asks for that, else an empty one."""
    if "prepared" in request.fixturenames:
        url = databases.copy(request.getfixturevalue("prepared"), tmp_path)
    else:
        url = databases.new(tmp_path)
    yield url
    databases.discard(url)


@pytest.fixture
def settings(tmp_path: Path, pack: Pack, database_url: str) -> Settings:
    return installation(tmp_path, pack, database_url)


@pytest.fixture
def client(settings: Settings, prepared: str) -> Iterator[TestClient]:
    """The app in process, nobody signed in."""
    with TestClient(create_app(settings), base_url="http://testserver") as client:
        yield client


@pytest.fixture
def researcher(client: TestClient) -> TestClient:
    """The same app, with the researcher signed in."""
    return sign_in(client)


def sign_in(client: TestClient) -> TestClient:
    """Sign the researcher in, by the link that the server prints."""
    reply = client.get(f"/signin?key={auth.sign_in_key(SECRET)}", follow_redirects=False)
    assert reply.status_code == 303, reply.text
    return client


@dataclass
class Player:
    """One participant at the API, who answers as told."""

    client: httpx2.Client
    token: str

    @property
    def base(self) -> str:
        return f"/api/sessions/{self.token}"

    def session(self) -> dict[str, Any]:
        reply = self.client.get(self.base)
        assert reply.status_code == 200, reply.text
        body: dict[str, Any] = reply.json()
        return body

    def put(self, position: int, question: str = "label", **body: Any) -> httpx2.Response:
        body = {"answer_id": str(uuid.uuid4()), "rt_ms": 1000.0, "display": {}} | body
        return self.client.put(f"{self.base}/trials/{position}/{question}", json=body)

    def answer(
        self,
        choose: Callable[[dict[str, Any]], dict[str, Any]] = lambda trial: {},
        until: str = "finished",
        most: int = 1000,
    ) -> None:
        """Answer until that state, or `most` answers; `choose` gives a trial's answer over a plain default."""
        here = self.session()
        while most and here["state"] not in (until, "finished"):
            if here["state"] == "commenting":
                assert (
                    self.client.post(f"{self.base}/comments", json={"text": "All alike."}).status_code == 200
                )
                assert self.client.post(f"{self.base}/finish").status_code == 200
                return
            trial = here["trials"][here["next_position"] - 1] | {"state": here["state"]}
            if here["state"] == "labelling":
                labels = here["labels"]
                first = labels[trial["position"] % len(labels)]
                answer = {"label": first, "runner_up": "none"} | choose(trial)
                reply = self.put(trial["position"], "label", **answer)
            else:
                reply = self.put(trial["position"], "plausibility", **({"plausible": True} | choose(trial)))
            assert reply.status_code == 200, reply.text
            most -= 1
            # A part has ended where no position follows: what is shown in the next one has to be read.
            following = reply.json()["next_position"]
            here = self.session() if following is None else here | {"next_position": following}


def begin(client: httpx2.Client, study: str = "test", **external: str) -> Player:
    """Begin a session."""
    reply = client.post("/api/sessions", json={"study": study, "consent": True, "external": external})
    assert reply.status_code == 201, reply.text
    return Player(client, reply.json()["token"])


@pytest.fixture
def start(client: TestClient) -> Callable[..., Player]:
    """Begin sessions at the in-process app."""
    return partial(begin, client)


@dataclass
class Server:
    """A real server process."""

    url: str
    dashboard: str  # signs in whoever opens it
    settings: Settings
    process: forked.Popen


def environment(settings: Settings) -> dict[str, str]:
    return os.environ | {
        "DATABASE_URL": settings.database_url,
        "SECRET_KEY": settings.secret,
        "STUDIES_DIR": str(settings.studies),
        "STIMULI_DIR": str(settings.stimuli),
        "RESULTS_DIR": str(settings.results),
    }


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture
def server(settings: Settings) -> Iterator[Server]:
    with serving(settings) as server:
        yield server


@contextmanager
def serving(settings: Settings) -> Iterator[Server]:
    """`python -m app serve`, listening, until the block ends."""
    process = forked.Popen(
        [sys.executable, "-m", "app", "serve", "--port", str(free_port())],
        env=environment(settings),
        stdout=forked.PIPE,
    )
    assert process.stdout is not None
    said = ""
    while "Dashboard:" not in said:
        line = process.stdout.readline()
        assert line, f"the server ended with {process.wait()} after saying: {said}"
        said += line
    dashboard = re.search(r"^Dashboard: (\S+)$", said, re.M)
    assert dashboard is not None
    url = dashboard.group(1).split("/signin")[0]
    assert httpx2.get(f"{url}/healthz").status_code == 200
    yield Server(url, dashboard.group(1), settings, process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=10)
    process.stdout.close()
