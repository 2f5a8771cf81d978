"""Requests for other hosts, and those with too much of anything: refused, said so, and nothing is stored."""

import gc
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from json import JSONDecodeError
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from starlette.exceptions import HTTPException

from app.bounds import (
    FOR_ANY_HOST,
    MOST_ANSWER_BYTES,
    MOST_BYTES,
    MOST_HEADER_BYTES,
    MOST_HEADERS,
    MOST_URL_BYTES,
    is_ours,
)
from app.db import Database
from app.main import create_app
from app.models import Participant
from app.security import GUESSES, HEADERS, AddressLimit
from app.settings import Settings
from tests.app.conftest import Player
from tests.app.databases import KINDS

# Refused by what stands in front of the routes, before a database is asked.
pytestmark = pytest.mark.quickly("sqlite")

Start = Callable[..., Player]


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


# Hosts

NAMES = frozenset({"localhost", "127.0.0.1", "::1", "study.example.org"})


@pytest.mark.parametrize(
    "host",
    [
        *("study.example.org", "study.example.org:443", "STUDY.example.ORG:8000", "study.example.org."),
        *(
            "localhost",
            "localhost:8000",
            "127.0.0.1:8000",
            "[::1]",
            "[::1]:8000",
            "192.0.2.7",
            "192.0.2.7:80",
        ),
        *("[2001:db8::1]:8000",),
    ],
)
def test_our_own_names_and_addresses_are_ours(host: str) -> None:
    assert is_ours(host.encode(), NAMES)


@pytest.mark.parametrize(
    "host",
    [
        *("", ":", ":80", "evil.example", "evil.example:8000", "localhost.evil.example", "evil.example."),
        *("study.example.org.evil.example", "evil-study.example.org", "x.study.example.org", "example.org"),
        *("study.example.org:80:80", "study.example.org:x", "study.example.org:", "study.example.org:123456"),
        *(
            "study.example.org@evil.example",
            "evil.example#study.example.org",
            "study.example.org/x",
            "[::1",
            "::1]",
        ),
        *(
            "127.0.0.1.evil.example",
            "127.1",
            "0x7f.1",
            "2130706433",
            "[127.0.0.1]",
            "[fe80::1%eth0]",
            "[evil]",
        ),
        *(
            "localhost evil.example",
            "localhost,evil.example",
            "localhost\x00",
            "\xe9",
            "study.example.org:\xb2",
        ),
    ],
    ids=ascii,
)
def test_others_are_not(host: str) -> None:
    assert not is_ours(host.encode("latin-1"), NAMES)
    assert is_ours(host.encode("latin-1"), None), "a closed network, whose names nobody told us"


def test_another_host_gets_nothing(client: TestClient) -> None:
    """Another website's page under its own name, resolved to this machine, is told only that it is wrong here."""
    for path in ("/", "/study/test", "/results", "/api/sessions/x", "/static/style.css", "/404"):
        reply = client.get(path, headers={"Host": "evil.example"})
        assert reply.status_code == 400, path
        assert "not reached under that name" in reply.text
        assert "evil" not in reply.text
        assert reply.headers["connection"] == "close"
        for name, value in HEADERS.items():
            assert reply.headers[name] == value


def test_another_host_begins_nothing(client: TestClient, db: Database) -> None:
    body = {"study": "test", "consent": True}
    assert client.post("/api/sessions", json=body, headers={"Host": "evil.example"}).status_code == 400
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(Participant)) == 0


def test_who_asks_whether_the_server_lives_needs_no_name(client: TestClient) -> None:
    for path in FOR_ANY_HOST:
        assert client.get(path, headers={"Host": "10-0-0-7.pods.example"}).status_code in (200, 404), path
    assert client.get("/healthz", headers={"Host": "x"}).json() == {"status": "ok"}


def test_the_public_name_is_ours_and_a_wrong_one_is_logged_once(
    settings: Settings, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    public = replace(settings, public_url="https://study.example.org:8443")
    with TestClient(create_app(public)) as visitor, caplog.at_level(logging.WARNING, "uvicorn.error"):
        assert visitor.get("/", headers={"Host": "study.example.org:8443"}).status_code == 200
        assert visitor.get("/", headers={"Host": "localhost"}).status_code == 200
        assert not caplog.messages
        for host in ("app:8000", "evil\r.example", "x" * 5000):
            assert visitor.get("/", headers={"Host": host}).status_code == 400
    (said,) = caplog.messages
    assert "'app:8000'" in said
    assert "PUBLIC_URL" in said


def test_no_address_is_made_from_what_a_client_says(client: TestClient, start: Start) -> None:
    """Neither Host nor a proxy's headers, which anybody can send, get into a page, a redirect or a reply."""
    forged = {
        "Host": "192.0.2.66:81",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Prefix": "/evil",
        "X-Original-URL": "/evil",
        "X-Forwarded-Server": "evil.example",
        "Forwarded": "host=evil.example;proto=https",
        "X-Script-Name": "/evil",
    }
    player = start()
    body = {"study": "test", "consent": True}
    assert client.post("/api/sessions", json=body, headers=forged).json()["url"].startswith("/s/")
    for path in ("/", "/study/test", "/withdraw", player.base, f"/s/{player.token}", "/404", "/openapi.json"):
        reply = client.get(path, headers=forged)
        told = reply.text + json.dumps(dict(reply.headers))
        assert "evil" not in told, path
        assert "192.0.2.66" not in told, path
    for path, to in (
        ("/static", "/static/"),
        ("/study/test/?a=b", "/study/test?a=b"),
        (f"/s/{player.token}/label", None),
    ):
        reply = client.get(path, headers=forged, follow_redirects=False)
        assert reply.status_code in (303, 307), path
        assert reply.headers["location"] == (to or f"/s/{player.token}"), path


def test_nobody_is_sent_to_another_site(client: TestClient) -> None:
    for path in (
        "//evil.example",
        "//evil.example/",
        "/%2f%2fevil.example/",
        "/\\evil.example",
        "/study//evil.example/",
        "/s//evil.example/",
    ):
        reply = client.get(f"http://testserver{path}", follow_redirects=False)
        location = reply.headers.get("location", "/")
        assert location.startswith("/"), path
        assert not location.startswith(("//", "/\\")), path


# What is too much


def test_too_long_an_address_is_refused(client: TestClient) -> None:
    assert client.get("/study/test?id=" + "x" * (MOST_URL_BYTES - 20)).status_code == 422, "an id has 200"
    for url in ("/study/test?id=" + "x" * MOST_URL_BYTES, "/" + "x" * MOST_URL_BYTES, "/?" + "a&" * 5000):
        page = client.get(url)
        assert (page.status_code, page.headers["connection"]) == (414, "close")
        assert "too long" in page.text


def test_too_many_or_too_large_headers_are_refused(client: TestClient, start: Start) -> None:
    player = start()
    many = {f"X-{i}": "x" for i in range(MOST_HEADERS)}
    for headers in (
        many,
        {"X": "x" * MOST_HEADER_BYTES},
        {"Cookie": "; ".join(f"c{i}=x" for i in range(3000))},
    ):
        assert client.get("/", headers=headers).status_code == 431
        refused = client.get(player.base, headers=headers)
        assert refused.status_code == 431
        assert "cookies" in refused.json()["detail"]
    few = dict(list(many.items())[:80])
    assert (
        client.get("/", headers=few | {"Cookie": "; ".join(f"c{i}=x" for i in range(500))}).status_code == 200
    )


def chunks(size: int) -> Iterator[bytes]:
    """A body whose length is said nowhere."""
    yield b'{"text": "'
    for _ in range(size // 1024):
        yield b"x" * 1024
    yield b'"}'


def test_too_large_a_body_is_refused(start: Start) -> None:
    player = start()
    player.answer(until="commenting")
    for chunked in (False, True):
        content: Any = chunks(MOST_BYTES) if chunked else b"".join(chunks(MOST_BYTES))
        reply = player.client.post(
            f"{player.base}/comments", content=content, headers={"Content-Type": "application/json"}
        )
        assert (reply.status_code, reply.headers["connection"]) == (413, "close")
        assert "more than this server takes" in reply.json()["detail"]
        content = iter([b"text="] + [b"x" * 1024] * 300) if chunked else b"text=" + b"x" * 300_000
        page = player.client.post(
            f"/s/{player.token}/comments",
            content=content,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        assert page.status_code == 413
        assert "more than this server takes" in page.text
        assert page.headers["content-type"].startswith("text/html")
        assert player.session()["state"] == "commenting"
    player.answer()


def test_an_answer_may_be_smaller_than_a_comment(start: Start) -> None:
    player = start()
    for size, status in ((MOST_ANSWER_BYTES - 1024, 422), (MOST_ANSWER_BYTES + 1024, 413)):
        assert player.put(1, label="3" * size).status_code == status
    assert player.put(1, label="3", runner_up="5").status_code == 200


def test_what_was_sent_is_gone_when_it_was_refused(start: Start) -> None:
    """Not when the garbage collector comes by: until then a crowd could fill the memory."""
    player = start()
    gc.collect()
    gc.disable()
    try:
        for content in (b"a" * 100_000, b"[" * 100_000, b'{"text": 7, "more": "' + b"x" * 100_000 + b'"}'):
            reply = player.client.post(
                f"{player.base}/comments", content=content, headers={"Content-Type": "application/json"}
            )
            assert reply.status_code in (400, 422)
        errors = (JSONDecodeError, RequestValidationError, HTTPException, RecursionError)
        assert [kept for kept in gc.get_objects() if issubclass(type(kept), errors)] == []
    finally:
        gc.enable()


def test_a_length_that_is_too_large_or_none_is_refused_unread(start: Start) -> None:
    player = start()

    def unread() -> Iterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    for length in ("262145", "99999999999999999999", "-1", "x", "1e3", "+5", "²"):
        headers = {b"Content-Length": length.encode("latin-1")}
        reply = player.client.post(f"{player.base}/finish", content=b"", headers=headers)
        assert reply.status_code == 413, length


def test_forms_have_few_fields_and_no_files(
    client: TestClient, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is refused before a temporary one is made, wherever a form is taken."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file was made")

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", forbidden)
    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)
    player = start()
    player.answer(until="commenting")
    for url in ("/study/test", "/withdraw", *(f"/s/{player.token}/{form}" for form in ("comments", "label"))):
        for name in ("text", "code", "consent", "other"):
            assert client.post(url, files={name: ("a.txt", b"x" * 1000)}).status_code == 400, (url, name)
        assert client.post(url, data={f"f{i}": "x" for i in range(51)}).status_code == 400, url
        parts = {f"f{i}": (None, "x") for i in range(51)}
        assert client.post(url, files=parts).status_code == 400, url
    sent = client.post(f"/s/{player.token}/comments", files={"text": (None, "In parts.")})
    assert sent.status_code == 200, "a form that is sent in parts is a form all the same"
    assert player.session()["state"] == "finished"


# How often


@pytest.mark.only(*KINDS)
def test_withdrawal_codes_cannot_be_tried_for_ever(client: TestClient, start: Start, db: Database) -> None:
    start().answer(most=1)
    with db.read() as session:
        code = session.scalars(select(Participant.withdrawal_code)).one()
    most, _ = GUESSES
    for i in range(int(most)):
        assert client.post("/withdraw", data={"code": f"AAAA-AAAA-{i:04}"}).status_code == 422
    for typed in ("AAAA-AAAA-AAAA", code):
        refused = client.post("/withdraw", data={"code": typed})
        assert refused.status_code == 429, "not even whether it is right is said"
        assert 1 <= int(refused.headers["retry-after"]) <= 10
        assert "Too many codes" in refused.text
    elsewhere = TestClient(client.app, client=("192.0.2.9", 1))
    found = elsewhere.post("/withdraw", data={"code": code}, follow_redirects=False)
    assert found.status_code == 303, "others are not kept waiting"


def test_wrong_links_are_throttled_and_right_ones_never(client: TestClient, start: Start) -> None:
    client.app.state.link_limit = AddressLimit(capacity=20, refill_per_s=0.01)  # type: ignore[attr-defined]
    player = start()
    assert [client.get(f"/api/sessions/{i}").status_code for i in range(20)] == [404] * 20
    for url in ("/api/sessions/x", "/s/x", "/s/x/withdraw"):
        refused = client.get(url)
        assert refused.status_code == 429, url
        assert 80 < int(refused.headers["retry-after"]) <= 100, url
        assert "wrong links" in refused.text, url
    assert client.get("/s/x", headers={"Accept-Language": "zh"}).status_code == 429
    player.answer()  # from the same address
    assert player.session()["state"] == "finished"
    assert TestClient(client.app, client=("192.0.2.9", 1)).get("/s/x").status_code == 404
