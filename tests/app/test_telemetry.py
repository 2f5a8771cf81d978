"""What the server says of itself: logs without anybody in them, numbers that are right, whether it is ready."""

import json
import logging
import re
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, OperationalError

from app import db as databases
from app import logs, probe, ready, warming
from app.main import create_app
from app.settings import Settings
from tests.app import forked
from tests.app.conftest import Player, begin, environment, free_port

Start = Callable[..., Player]

# Logs


@contextmanager
def running(settings: Settings, *options: str, program: str | None = None, **env: str) -> Iterator[Any]:
    """A real server with these variables; gives its address and process; all it says is in `said` afterwards."""
    port = free_port()
    what = ["-c", program] if program else ["-m", "app"]
    process = forked.Popen(
        [sys.executable, *what, "serve", "--port", str(port), *options],
        env=environment(settings) | env,
        stdout=forked.PIPE,
        stderr=forked.PIPE,
    )
    assert process.stdout is not None
    while "Dashboard:" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


FAILING = """
import sys
from app import participation
from app.cli import main
whole = participation.view
def view(session, token, lock=False):
    if token.startswith("fail-"):
        raise KeyError(token)
    return whole(session, token, lock)
participation.view = view
sys.exit(main(sys.argv[1:]))
"""


def test_nobody_is_in_the_log(settings: Settings, prepared: object) -> None:
    """A whole session with everything that is somebody's; then all that the server said is searched for it."""
    secret = f"pid-{uuid4()}"
    comment = f"Remark {uuid4()}"
    code = "QQQQ-WWWW-EEEE"
    known: list[str] = [secret, comment, code, "fail-", "198.51.100.7", "browser-of-somebody"]
    with running(settings, program=FAILING, LOG_FORMAT="json") as (url, process):
        headers = {"X-Forwarded-For": "198.51.100.7", "User-Agent": "browser-of-somebody"}
        with httpx2.Client(base_url=url, headers=headers) as client:
            assert client.get(f"/study/test?PROLIFIC_PID={secret}").status_code == 200
            player = begin(client, PROLIFIC_PID=secret)
            known.append(player.token)
            known += [image["image"][9:30] for image in player.session()["trials"][:1]]
            player.answer(until="commenting")
            assert client.post(f"{player.base}/comments", json={"text": comment}).status_code == 200
            known.append(client.post(f"{player.base}/finish").json()["completion_code"])
            assert client.get(f"/s/{player.token}").status_code == 200
            # Each on a connection of its own, as the server closes it after a failure.
            failed = httpx2.get(f"{url}/api/sessions/fail-{secret}", headers=headers)
            assert failed.status_code == 500
            assert failed.json()["request_id"] == failed.headers["x-request-id"]
            page = httpx2.get(f"{url}/s/fail-{secret}", headers=headers)
            assert page.headers["x-request-id"] in page.text, "for whoever asks for help"
            for wrong in ({"text": comment, "more": secret}, {"text": 7}, {}):
                assert client.post(f"{player.base}/comments", json=wrong).status_code == 422
            client.put(f"{player.base}/trials/1/label", json={"answer_id": secret, "label": comment})
            client.post("/withdraw", data={"code": code})
            client.get(f"/{secret}/x?y={comment}")
            client.get("/results/test", headers={"Cookie": f"researcher={secret}; session={player.token}"})
            client.get(f"/signin?key={secret}")
            client.post("/signin", data={"password": secret})
            assert client.post(f"{player.base}/withdraw").status_code == 200
            given = client.get("/healthz", headers={"X-Request-ID": "from-the-proxy.1"})
            assert given.headers["x-request-id"] == "from-the-proxy.1"
            for odd in ("short", "x" * 65, "with space 1", secret + '"}'):
                got = client.get("/healthz", headers={"X-Request-ID": odd}).headers["x-request-id"]
                assert re.fullmatch("[0-9a-f]{16}", got), "made here"
        with httpx2.Client(base_url=url) as direct:
            got = direct.get("/healthz", headers={"X-Request-ID": "not-from-a-proxy"}).headers["x-request-id"]
            assert got != "not-from-a-proxy"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    for word in known:
        assert word not in said, word
    assert "127.0.0.1" not in said
    lines = [json.loads(line) for line in said.splitlines()]
    requests = [line for line in lines if line["message"] == "request"]
    assert len({line["request_id"] for line in requests}) == len(requests)
    assert all(
        {"time", "level", "pid", "method", "route", "status", "duration_ms"} <= set(r) for r in requests
    )
    routes = {(r["method"], r["route"], r["status"]) for r in requests}
    assert ("GET", "/s/{token}", 200) in routes
    assert ("PUT", "/api/sessions/{token}/trials/{position}/label", 200) in routes
    assert ("GET", "unmatched", 404) in routes
    assert ("POST", "/api/sessions/{token}/comments", 422) in routes
    errors = [line for line in lines if line["level"] == "error"]
    assert {line["request_id"] for line in errors} == {
        failed.headers["x-request-id"],
        page.headers["x-request-id"],
    }
    assert errors[0]["error"][0] == "KeyError"
    assert any(re.fullmatch(r"at app/study.py:\d+ in read_session", where) for where in errors[0]["error"])


@pytest.mark.only("sqlite")
def test_text_is_quiet_and_as_private(settings: Settings, prepared: object) -> None:
    with running(settings, program=FAILING) as (url, process):
        with httpx2.Client(base_url=url) as client:
            begin(client, PROLIFIC_PID="somebody").answer(most=2)
            number = client.get("/api/sessions/fail-somebody").headers["x-request-id"]
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert "somebody" not in said
    first, second, *frames = said.splitlines()
    assert first == f"ERROR: Exception in ASGI application (request {number})"
    assert second == "  KeyError"
    assert all(frame.startswith("  at ") for frame in frames)


@pytest.mark.only("sqlite")
def test_what_is_not_http_does_not_fill_the_log(settings: Settings, prepared: object) -> None:
    with running(settings) as (url, process):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=30) as stranger:
                stranger.sendall(b"no request\r\n\r\n")
                assert stranger.recv(100).startswith(b"HTTP/1.1 400")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert said.count("Invalid HTTP request") == 1


WARMING = """
import gc, sys
from app import warming
from app.cli import main
warm = warming.warm
def told(database, memory):
    warm(database, memory)
    print("frozen", gc.get_freeze_count(), *gc.get_threshold(), file=sys.stderr, flush=True)
warming.AFTER_S, warming.warm = 0, told
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.only("sqlite")
def test_a_server_loads_what_the_first_page_needs_and_the_collector_leaves_it_out(
    settings: Settings, prepared: object
) -> None:
    with running(settings, program=WARMING) as (_, process):
        given_up = threading.Timer(120, process.kill)
        given_up.start()
        frozen, *thresholds = map(int, re.findall(r"\d+", process.stderr.readline()))
        given_up.cancel()
    assert frozen > 50_000
    assert thresholds == list(warming.THRESHOLDS)


def test_only_a_proxy_says_how_a_request_is_called(client: TestClient) -> None:
    """Who comes directly has a port; uvicorn puts 0 there where a proxy that it believes named the visitor."""
    headers = {"X-Forwarded-For": "198.51.100.7", "X-Request-ID": "my-own-choice"}
    assert client.get("/healthz", headers=headers).headers["x-request-id"] != "my-own-choice"


def test_a_warning_is_said_again_after_a_minute() -> None:
    now = 1000.0
    seldom = logs.Seldom(lambda: now)

    def said(text: str, level: int = logging.WARNING) -> bool:
        return seldom.filter(logging.makeLogRecord({"msg": text, "levelno": level}))

    assert said("one")
    assert not said("one")
    assert said("another")
    assert said("one", logging.ERROR)
    assert said("one", logging.ERROR), "an error is always said"
    values = logging.makeLogRecord({"msg": "%s", "args": ("lock",), "levelno": logging.WARNING})
    assert seldom.filter(values)
    assert seldom.filter(values)
    now += 59.9
    assert not said("one")
    now += 0.2
    assert said("one")


def test_an_error_is_told_without_its_values() -> None:
    def fail(error: BaseException) -> list[str]:
        try:
            try:
                raise ValueError("token-1")
            except ValueError:
                raise error  # noqa: B904 (the context is what is tested)
        except BaseException as caught:
            return list(logs.without_values(caught))

    for error in (
        KeyError("token-1"),
        IntegrityError("INSERT", {"token": "token-1"}, Exception("Key (token)=(token-1) already exists.")),
        FileNotFoundError(2, "No such file or directory", "/home/token-1"),
        ExceptionGroup("token-1", [KeyError("token-1")]),
    ):
        told = fail(error)
        assert "token-1" not in "".join(told)
        assert told[0] == "ValueError"
        assert type(error).__name__ in "".join(told)
    assert logs.reason(AttributeError("'NoneType' object has no attribute 'x'")).endswith("'x'")
    full = OperationalError("INSERT", {"a": "token-1"}, sqlite3.OperationalError("database or disk is full"))
    assert logs.reason(full) == "OperationalError: database or disk is full"
    record = logging.LogRecord("asyncio", 40, "", 0, "Task failed\nfuture: KeyError('token-1')", (), None)
    assert logs.message_of(record) == "Task failed"


# Metrics


def numbers(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found: dict[Any, float], name: str, **labels: str) -> float:
    return sum(
        value
        for (called, has), value in found.items()
        if called == name and labels.items() <= dict(has).items()
    )


@pytest.fixture
def local(client: TestClient) -> TestClient:
    """The same app, asked from this machine."""
    return TestClient(client.app, base_url="http://127.0.0.1", client=("127.0.0.1", 50000))


LABEL = "/api/sessions/{token}/trials/{position}/label"


def test_what_is_counted_is_what_happened(
    client: TestClient, local: TestClient, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "FRESH_S", -1.0)
    start().answer()
    gone, here = start(), start()
    gone.answer(most=4)
    assert client.post(f"{gone.base}/withdraw").status_code == 200
    here.answer(most=3)
    assert here.put(1, label="9", runner_up="none").status_code == 409
    client.get("/nothing")
    client.head("/")
    client.get("/static/style.css")
    client.request("BREW", "/healthz")
    found = numbers(local.get("/metrics").text)
    labels = 32 + 4 + 3  # 30 images and 2 for practice
    assert total(found, "http_requests_total", route=LABEL, status="200") == labels
    assert total(found, "http_requests_total", route=LABEL, status="409") == 1
    assert total(found, "http_requests_total", route=LABEL) == labels + 1
    assert total(found, "http_request_duration_seconds_count", route=LABEL) == labels + 1
    assert total(found, "http_requests_total", route="unmatched", status="404") == 1
    assert total(found, "http_requests_total", method="HEAD", route="/") == 1
    assert total(found, "http_requests_total", route="/static") == 1
    assert total(found, "http_requests_total", method="OTHER", route="/healthz", status="405") == 1
    assert total(found, "study_answers", question="label") == 32 + 3
    assert total(found, "study_answers", question="plausibility") == 30
    states = {
        s: total(found, "study_sessions", study="test", state=s) for s in ("finished", "withdrawn", "active")
    }
    assert states == {"finished": 1, "withdrawn": 1, "active": 1}
    assert total(found, "study_database_up") == 1
    assert total(found, "study_build_info") == 1
    assert not any("P-" in str(key) or here.token in str(key) for key in found)


def test_strangers_addresses_and_methods_are_one_label(client: TestClient, local: TestClient) -> None:
    before = len(numbers(local.get("/metrics").text))
    for number in range(30):
        client.request(f"M{number}", f"/{number}/{uuid4()}")
        client.get(f"/s/{uuid4()}")
    assert len(numbers(local.get("/metrics").text)) <= before + 4 * (2 + 20)


def test_metrics_are_for_this_machine_or_who_has_the_token(client: TestClient, local: TestClient) -> None:
    assert local.get("/metrics").status_code == 200
    assert client.get("/metrics").status_code == 404, "somebody else's address"
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Proto", "Via"):
        assert local.get("/metrics", headers={name: "x"}).status_code == 404, "through a proxy here"
    for host in ("evil.example", "evil.example:8000", ""):
        refused = local.get("/metrics", headers={"Host": host})
        assert refused.status_code == 404, "another website's name for this machine"
    token = "a long token for metrics"
    client.app.state.settings = replace(client.app.state.settings, metrics_token=token)  # type: ignore[attr-defined]
    assert local.get("/metrics").status_code == 404, "once there is a token, it is asked for"
    for wrong in ("", "Bearer ", f"Bearer {token}x", token, f"Basic {token}"):
        assert client.get("/metrics", headers={"Authorization": wrong}).status_code == 404
    scraper = {"Authorization": f"Bearer {token}", "X-Forwarded-For": "x", "Host": "web:8000"}
    got = client.get("/metrics", headers=scraper)
    assert got.status_code == 200
    assert got.headers["cache-control"] == "no-store"
    assert got.headers["content-type"].startswith("text/plain")


def test_a_database_that_fails_is_counted_and_leaves_the_rest(
    client: TestClient, local: TestClient, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = start()

    def locked(self: object) -> Any:
        raise OperationalError("BEGIN", None, Exception("locked"))

    monkeypatch.setattr(databases.Database, "write", locked)
    reply = player.put(1, label="1", runner_up="none")
    assert (reply.status_code, reply.json()["request_id"]) == (503, reply.headers["x-request-id"])
    monkeypatch.setattr(client.app.state.study_counts, "_ask", lambda engine: 1 / 0)  # type: ignore[attr-defined]
    found = numbers(local.get("/metrics").text)
    assert total(found, "database_errors_total") == 1
    assert total(found, "http_requests_total", route=LABEL, status="503") == 1
    assert total(found, "study_database_up") == 0
    assert total(found, "study_answers") == 0


@pytest.mark.only("postgresql")
def test_several_processes_are_counted_together(settings: Settings, prepared: object) -> None:
    each_anew = httpx2.Limits(max_keepalive_connections=0)
    with (
        running(settings, "--workers", "2") as (url, _),
        httpx2.Client(base_url=url, limits=each_anew) as client,
    ):
        for _ in range(40):
            assert client.get("/healthz").status_code == 200
        asked = whole = 0
        while whole < 40:  # whichever process is asked
            found = numbers(client.get("/metrics").text)
            counted = [total(found, "http_requests_total", route=f"/{r}") for r in ("healthz", "metrics")]
            whole += counted == [40, asked]
            asked += 1
            # A request is counted when its reply is out, and another process may be quicker.
            assert asked < 1000, counted


# Readiness


def test_ready_is_what_can_carry_a_study(client: TestClient) -> None:
    reply = client.get("/readyz")
    assert (reply.status_code, reply.headers["cache-control"]) == (200, "no-store")
    ok = dict.fromkeys(("database", "writable", "schema", "studies", "packs"), "ok")
    assert reply.json() == {"status": "ready", "checks": ok}


@pytest.mark.parametrize(
    ("statements", "check"),
    [
        (["UPDATE studies SET open = false"], {"studies": "none is open"}),
        (["DELETE FROM study_packs"], {"packs": "missing for test"}),
        (["UPDATE packs SET sha256 = 'other'"], {"packs": "missing for test"}),
        (["DELETE FROM stimuli"], {"packs": "missing for test"}),
        (
            ["UPDATE alembic_version SET version_num = '0001'"],
            {"schema": "not of this version of the program"},
        ),
    ],
    ids=["closed", "no pack", "another pack", "no images", "schema"],
)
def test_not_ready_and_why(client: TestClient, statements: list[str], check: dict[str, str]) -> None:
    with client.app.state.database.write() as session:  # type: ignore[attr-defined]
        for statement in statements:
            session.execute(text(statement))
        session.commit()
    reply = client.get("/readyz")
    assert reply.status_code == 503
    assert check.items() <= reply.json()["checks"].items()
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_database_that_hangs_or_is_away(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "WITHIN_S", 0.2)
    monkeypatch.setattr(probe, "FRESH_S", -1.0)
    readiness = client.app.state.readiness  # type: ignore[attr-defined]
    hung, asked = threading.Event(), []

    def hang(engine: object) -> dict[str, str]:
        asked.append(engine)
        hung.wait(60)
        return {}

    whole = readiness._ask
    readiness._ask = hang
    for _ in range(5):
        reply = client.get("/readyz")
        assert (reply.status_code, reply.json()["checks"]) == (503, {"database": "no answer within 0.2 s"})
    assert len(asked) == 1, "one waits, however often it is asked"
    assert client.get("/healthz").status_code == 200
    hung.set()
    readiness._ask = lambda engine: 1 / 0
    monkeypatch.setattr(ready, "WITHIN_S", 30)
    client.get("/readyz")
    assert client.get("/readyz").json()["checks"] == {"database": "away, or refuses"}
    readiness._ask = whole
    assert client.get("/readyz").status_code == 200, "and is back"


@pytest.mark.only("sqlite")
def test_a_file_that_is_locked_and_one_that_cannot_be_written(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "FRESH_S", -1.0)
    with closing(sqlite3.connect(settings.database_url.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN IMMEDIATE")
        reply = client.get("/readyz")
        assert (reply.status_code, reply.json()["checks"]["writable"]) == (200, "busy"), (
            "answers wait their turn"
        )
    full = OSError(28, "No space left on device")

    def no_room(**_: object) -> Any:
        raise full

    monkeypatch.setattr(tempfile, "TemporaryFile", no_room)
    reply = client.get("/readyz")
    assert (reply.status_code, reply.json()["checks"]["writable"]) == (503, "no: No space left on device")


@pytest.mark.only("postgresql")
def test_a_server_that_only_reads(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "FRESH_S", -1.0)
    engine = client.app.state.readiness._engine  # type: ignore[attr-defined]
    event.listen(engine, "connect", lambda raw, _: setattr(raw, "read_only", True))
    reply = client.get("/readyz")
    assert (reply.status_code, reply.json()["checks"]["writable"]) == (503, "read-only")


def test_while_it_stops_it_is_not_ready(settings: Settings, prepared: object) -> None:
    app = create_app(settings)
    app.state.stopping = lambda: True
    with TestClient(app) as client:
        reply = client.get("/readyz")
        assert (reply.status_code, reply.json()) == (503, {"status": "stopping", "checks": {}})
