"""What goes out with every reply, what never does, and how many sessions one address may begin."""

import asyncio
import base64
import json
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from httpx2 import Response as Reply
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app import auth, dashboard, entrance, pages, participation, ready, study, web
from app.db import Database
from app.main import create_app
from app.models import CleanImage, Participant, Stimulus, Trial
from app.participation import ALPHABET
from app.security import CAPACITY, CONTENT_SECURITY_POLICY, HEADERS, AddressLimit
from app.serving import prepare
from app.settings import ROOT, Settings
from ml.pack import Pack
from tests.app.conftest import SECRET, STUDY, Player, Server, begin, installation, sign_in
from tests.app.databases import KINDS, contents
from tests.packs import MODELS, make_pack

Start = Callable[..., Player]

# Headers, cookies, and what pages say; how it is stored is tested elsewhere, but for the last two of the addresses.
pytestmark = pytest.mark.quickly("sqlite")

FOR_EVER = "public, max-age=31536000, immutable"


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


# Headers


def assert_guarded(reply: Reply, cache: str = "no-store") -> None:
    """It has every security header once, and says how it may be kept."""
    for name, value in HEADERS.items():
        assert reply.headers.get_list(name) == [value], (reply.url, name)
    assert reply.headers.get_list("Cache-Control") == [cache], reply.url


def test_the_policy_allows_our_own_files_and_nothing_inline() -> None:
    directives = dict(directive.split(" ", 1) for directive in CONTENT_SECURITY_POLICY.split("; "))
    assert directives == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }


def test_every_kind_of_reply_is_guarded(client: TestClient, start: Start, pack: Pack) -> None:
    def get(url: str, status: int, cache: str = "no-store") -> None:
        reply = client.get(url, follow_redirects=False)
        assert reply.status_code == status, url
        assert_guarded(reply, cache)

    player = start()
    for url in ("/", "/study/test", "/withdraw", "/healthz", "/openapi.json", player.base):
        get(url, 200)
    image = player.session()["trials"][0]["image"]
    get(image, 200, FOR_EVER)
    for name in ("session.js", "style.css", "icon.svg"):
        get(f"/static/{name}", 200, "no-cache")
    etag = client.get("/static/style.css").headers["etag"]
    kept = client.get("/static/style.css", headers={"If-None-Match": etag})
    assert kept.status_code == 304
    assert_guarded(kept, "no-cache")
    part = client.get("/static/style.css", headers={"Range": "bytes=0-9"})
    assert (part.status_code, len(part.content)) == (206, 10)
    assert_guarded(part, "no-cache")

    for url in (f"/s/{player.token}/label", "/static"):
        get(url, 303 if "label" in url else 307)
    for url in ("/nothing", "/static/nothing.js", "/stimuli/0.png", "/api/sessions/nobody", "/s/nobody"):
        get(url, 404)
    for url in ("/results", "/results/test", "/results/test.json", "/signin?key=0"):
        get(url, 401)
    for method, url in (
        ("DELETE", "/"),
        ("PUT", image),
        ("POST", "/static/style.css"),
        ("TRACE", "/healthz"),
    ):
        refused = client.request(method, url)
        assert refused.status_code == 405, url
        assert_guarded(refused)
    assert_guarded(player.put(1, label="nonsense"))
    assert_guarded(player.put(9, label="3", runner_up="4"))
    for reply in (
        client.post("/api/sessions", json={}),
        client.post("/api/sessions", content=b"{"),
        client.post("/study/test", data={}),
        client.post("/s/nobody/label", data={}),
    ):
        assert reply.status_code == 422, reply.url
        assert_guarded(reply)
    for state in ("judging", "commenting", "finished"):
        player.answer(until=state)
        get(f"/s/{player.token}", 200)
    assert_guarded(client.post(f"{player.base}/withdraw"))
    get(f"/s/{player.token}", 200)


def test_the_researchers_replies_are_guarded(client: TestClient, start: Start) -> None:
    start().answer(most=5)
    signed_in = client.get(f"/signin?key={auth.sign_in_key(SECRET)}", follow_redirects=False)
    assert signed_in.status_code == 303
    assert_guarded(signed_in)
    for url in ("/results", "/results/test", "/results/test.json", "/results/test/responses.csv"):
        reply = client.get(url)
        assert reply.status_code == 200, url
        assert_guarded(reply)
    assert client.get("/results/test?version=x").status_code == 422
    assert_guarded(client.get("/results/test?version=x"))
    unmasked = client.post("/results/test/unmask", follow_redirects=False)
    assert unmasked.status_code == 303
    assert_guarded(unmasked)


@pytest.mark.parametrize("url", ["/s/somebody", "/api/sessions/somebody"])
@pytest.mark.parametrize(
    ("fault", "status"), [(RuntimeError("x"), 500), (OperationalError("x", {}, Exception("x")), 503)]
)
def test_faults_are_guarded(
    settings: Settings,
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    fault: Exception,
    status: int,
) -> None:
    def broken(*_: object) -> None:
        raise fault

    monkeypatch.setattr(participation, "view", broken)
    with TestClient(create_app(settings), raise_server_exceptions=False) as visitor:
        reply = visitor.get(url)
        assert reply.status_code == status
        assert_guarded(reply)
        assert visitor.head(url).status_code == status


def test_only_https_is_promised_to_stay_https(settings: Settings, client: TestClient) -> None:
    for url in ("/", "/nothing", "/static/style.css"):
        assert "strict-transport-security" not in client.get(url).headers
    with TestClient(create_app(settings), base_url="https://testserver") as visitor:
        for url in ("/", "/nothing", "/static/style.css"):
            sent = visitor.get(url).headers["strict-transport-security"]
            assert sent == "max-age=31536000", "a year, and no word about other subdomains"


def test_no_page_asks_another_host_for_anything(client: TestClient, start: Start) -> None:
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    assert client.get("/openapi.json").json()["paths"]["/api/sessions"]
    player = start()
    texts = [client.get(url).text for url in ("/", "/study/test", "/withdraw", "/nothing")]
    for state in ("labelling", "judging", "commenting", "finished"):
        player.answer(until=state)
        texts.append(client.get(f"/s/{player.token}").text)
    sign_in(client)
    texts += [client.get(url).text for url in ("/results", "/results/test")]
    for text in texts:
        for url in re.findall(r"""\s(?:src|href|action|srcset)=["']([^"']*)""", text):
            assert not urlsplit(url).netloc, url
        assert not re.search(
            r"<style|\sstyle=|\son\w+=|<script(?! (src=|type=\"application/json\"))|javascript:", text
        )
    for file in (ROOT / "static").iterdir():
        told = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.|url\(|@import|import\(|\beval\b|new Function", told), file.name


# HEAD


def routes() -> list[APIRoute]:
    routers: tuple[APIRouter, ...] = (
        ready.router,
        study.router,
        entrance.router,
        pages.router,
        dashboard.router,
    )
    found = [r for router in (*routers, dashboard.researcher) for r in router.routes]
    return [r for r in found if isinstance(r, APIRoute) and "GET" in (r.methods or ())]


def test_head_is_get_without_the_body(researcher: TestClient, start: Start) -> None:
    player = start()
    sha256 = player.session()["trials"][0]["image"][9:73]
    urls = [r.path.format(slug="test", token=player.token, sha256=sha256) for r in routes()]
    assert {"/", "/healthz", f"/stimuli/{sha256}.png", f"/s/{player.token}", "/results/test"} <= set(urls)
    for url in (*urls, "/openapi.json", "/static/style.css", "/nothing", "/study/nothing", "/static"):
        got, head = (researcher.request(m, url, follow_redirects=False) for m in ("GET", "HEAD"))
        assert head.status_code == got.status_code, url
        assert head.headers.pop("x-request-id") != got.headers.pop("x-request-id"), url
        assert dict(head.headers) == dict(got.headers), url
        messages = ask(researcher.app, "HEAD", url, f"{auth.COOKIE}={researcher.cookies[auth.COOKIE]}")
        assert [m["type"] for m in messages] == ["http.response.start", "http.response.body"], url
        assert messages[1].get("body", b"") == b"", url


def ask(app: Any, method: str, path: str, cookie: str) -> list[dict[str, Any]]:
    """What the app says to a server that asks on behalf of the researcher."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"cookie", cookie.encode())],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
        "extensions": {"http.response.pathsend": {}},
    }
    asyncio.run(app(scope, receive, send))
    return sent


def test_head_of_what_can_only_be_posted_is_refused(client: TestClient) -> None:
    reply = client.head("/api/sessions")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    allowed = client.delete("/healthz").headers["allow"].split(", ")
    assert sorted(allowed) == ["GET", "HEAD"]


def test_head_on_a_real_connection(server: Server) -> None:
    """Several on one connection: a body that went out, or a length that is wrong, would garble what follows."""
    host, port = urlsplit(server.url).hostname, urlsplit(server.url).port
    with socket.create_connection((host, port), timeout=10) as connection:
        replies = connection.makefile("rb")
        for path in ("/", "/healthz", "/static/style.css", "/nothing", "/"):
            lengths = []
            for method in ("HEAD", "GET"):
                connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert replies.readline().startswith(
                    b"HTTP/1.1 404" if path == "/nothing" else b"HTTP/1.1 200"
                )
                headers = dict(line.split(b": ", 1) for line in iter(replies.readline, b"\r\n"))
                lengths.append(int(headers[b"content-length"]))
            assert lengths[0] == lengths[1] > 0
            assert len(replies.read(lengths[1])) == lengths[1]


# Tokens and cookies


def test_no_cookie_before_consent(client: TestClient, start: Start) -> None:
    player = start()
    urls = [
        r.path.format(slug="test", token=player.token, sha256="0") for r in routes() if r.path != "/signin"
    ]
    for url in (*urls, "/openapi.json", "/static/session.js", "/nothing", "/signin?key=0"):
        assert "set-cookie" not in client.get(url).headers, url
    for body in ({}, {"consent": "no"}, {"consent": ""}):
        assert "set-cookie" not in client.post("/study/test", data=body).headers
    assert not client.cookies
    client.post("/study/test", data={"consent": "yes"}, follow_redirects=False)
    (cookie,) = client.cookies.jar
    assert (cookie.name, cookie.path) == (web.SESSION_COOKIE, "/study/test")


def test_tokens_cannot_be_guessed(client: TestClient, start: Start, db: Database) -> None:
    tokens = [start().token for _ in range(40)]
    assert all(re.fullmatch(r"[\w-]{32}", token, re.ASCII) for token in tokens)
    numbers = [int.from_bytes(base64.urlsafe_b64decode(token)) for token in tokens]
    bits = [sum(number >> bit & 1 for number in numbers) for bit in range(192)]
    assert all(4 <= ones <= 36 for ones in bits), "all 192 bits vary: six sigma"
    assert len(set(tokens)) == len(tokens)
    token = tokens[0]
    for wrong in (token[:-1], token + "A", token.swapcase(), token[::-1], "%", "_" * 32, "0", "1"):
        assert client.get(f"/api/sessions/{wrong}").status_code == 404
    with db.read() as session:
        people = session.scalars(select(Participant)).all()
    codes = [person.withdrawal_code.replace("-", "") for person in people]
    assert len(set(codes)) == len(codes) == 40
    assert all(len(code) == 12 and set(code) <= set(ALPHABET) for code in codes), "60 bits"
    for person in people:
        public = {str(person.number), person.pseudonym}
        assert not any(
            part in person.token or part in person.withdrawal_code for part in public if len(part) > 2
        )


def test_no_secret_of_a_participant_is_among_the_results(
    researcher: TestClient, start: Start, db: Database
) -> None:
    player = start()
    player.answer()
    with db.read() as session:
        person = session.scalars(select(Participant)).one()
    for url in ("/results", "/results/test", "/results/test.json", "/results/test/responses.csv"):
        shown = researcher.get(url).text
        for secret in (player.token, person.withdrawal_code, person.completion_code or "-"):
            assert secret not in shown, url


# How many sessions one address may begin


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.1

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_class_behind_one_address_does_not_meet_the_limit(clock: Clock) -> None:
    limit = AddressLimit(clock=clock)
    assert [limit.take("192.0.2.1") for _ in range(450)] == [0] * 450, "each of 200 more than twice"
    clock.now += 3600
    assert [limit.take("192.0.2.1") for _ in range(450)] == [0] * 450, "and the next class an hour later"


def test_a_flood_waits_and_goes_on_as_time_passes(clock: Clock) -> None:
    limit = AddressLimit(clock=clock)
    assert all(limit.take("192.0.2.1") == 0 for _ in range(CAPACITY))
    assert limit.take("192.0.2.1") == pytest.approx(1)
    assert limit.take("192.0.2.2") == 0, "nobody else waits"
    clock.now += 0.25
    assert limit.take("192.0.2.1") == pytest.approx(0.75), "asking costs nothing"
    clock.now += 0.75
    assert [limit.take("192.0.2.1") > 0 for _ in range(3)] == [False, True, True]
    clock.now += 10
    assert [limit.take("192.0.2.1") > 0 for _ in range(11)] == [False] * 10 + [True]
    clock.now += CAPACITY
    assert sum(limit.take("192.0.2.1") == 0 for _ in range(2 * CAPACITY)) == CAPACITY, "never more than full"


def test_a_wait_that_was_waited_is_enough(clock: Clock) -> None:
    """For a rate and a clock that floating point does not hold exactly."""
    limit = AddressLimit(capacity=3, refill_per_s=0.3, clock=clock)
    for _ in range(1000):
        if wait := limit.take("192.0.2.1"):
            clock.now += wait + 1e-6
            assert limit.take("192.0.2.1") == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:0DB8:0001:0002::1", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("testclient", "testclient", True),
        ("testclient", "", False),
        ("x" * 1000, "x" * 2000, True),
    ],
)
def test_whose_bucket_it_is(clock: Clock, one: str, other: str, same: bool) -> None:
    limit = AddressLimit(capacity=1, clock=clock)
    assert limit.take(one) == 0
    assert (limit.take(other) > 0) == same


def test_addresses_are_forgotten(clock: Clock) -> None:
    limit = AddressLimit(capacity=5, refill_per_s=1, most_addresses=100, clock=clock)
    for i in range(1000):
        limit.take(f"192.0.{i // 250}.{i % 250}")
        assert len(limit) <= 100
    clock.now += 5
    limit.take("198.51.100.1")
    assert len(limit) == 1, "a bucket that had the time to fill up is as none"


def test_who_keeps_asking_is_not_forgotten(clock: Clock) -> None:
    limit = AddressLimit(capacity=1, refill_per_s=0.001, most_addresses=10, clock=clock)
    assert limit.take("192.0.2.1") == 0
    for i in range(100):
        limit.take(f"198.51.100.{i}")
        clock.now += 0.1
        assert limit.take("192.0.2.1") > 0


def test_many_threads_take_no_token_twice(clock: Clock) -> None:
    limit = AddressLimit(capacity=500, clock=clock)
    with ThreadPoolExecutor(16) as pool:
        waits = list(pool.map(lambda _: limit.take("192.0.2.1"), range(3000)))
    assert waits.count(0) == 500


def limited(app: FastAPI, capacity: int, clock: Clock) -> None:
    app.state.creation_limit = AddressLimit(capacity, clock=clock)


def consent(client: TestClient, **fields: str) -> Reply:
    return client.post("/study/test", data={"consent": "yes", **fields}, follow_redirects=False)


def test_too_many_are_told_to_wait(settings: Settings, client: TestClient, clock: Clock) -> None:
    app = create_app(settings)
    assert isinstance(app.state.creation_limit, AddressLimit)
    limited(app, 2, clock)
    body = {"study": "test", "consent": True}
    with TestClient(app, client=("192.0.2.1", 1)) as flood, TestClient(app, client=("192.0.2.2", 1)) as other:
        tokens = [flood.post("/api/sessions", json=body).json()["token"] for _ in range(2)]
        clock.now += 0.4
        refused = flood.post("/api/sessions", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["retry_after"] == 1
        assert "try again in a minute" in refused.json()["detail"]
        assert_guarded(refused)
        shown = consent(flood)
        assert (shown.status_code, shown.headers["retry-after"]) == (429, "1")
        assert "try again in a minute" in shown.text
        assert "set-cookie" not in shown.headers
        assert_guarded(shown)
        for token in tokens:
            assert flood.get(f"/s/{token}").status_code == 200, "who has begun goes on"
        assert flood.get("/study/test").status_code == 200
        assert other.post("/api/sessions", json=body).status_code == 201
        clock.now += 0.6
        assert consent(flood).status_code == 303
        assert consent(TestClient(app, client=("192.0.2.1", 2))).status_code == 429


def test_coming_back_costs_nothing(settings: Settings, client: TestClient, clock: Clock) -> None:
    app = create_app(settings)
    limited(app, 1, clock)
    with TestClient(app) as visitor:
        first = consent(visitor, PROLIFIC_PID="abc")
        for _ in range(3):
            again = consent(visitor, PROLIFIC_PID="abc")
            assert (again.status_code, again.headers["location"]) == (303, first.headers["location"])


def test_behind_a_trusted_proxy_each_address_counts_for_itself(
    settings: Settings, client: TestClient, clock: Clock
) -> None:
    app = create_app(settings)
    limited(app, 1, clock)
    body = {"study": "test", "consent": True}

    def begun(sender: str, forwarded: str) -> int:
        asgi: Any = app  # uvicorn and Starlette write the same types differently
        proxied: Any = ProxyHeadersMiddleware(asgi, trusted_hosts="127.0.0.1")
        headers = {"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"}
        reply = TestClient(proxied, client=(sender, 1)).post("/api/sessions", json=body, headers=headers)
        assert ("strict-transport-security" in reply.headers) == (sender == "127.0.0.1")
        return reply.status_code

    assert begun("127.0.0.1", "192.0.2.1") == 201
    assert begun("127.0.0.1", "192.0.2.2") == 201
    assert begun("127.0.0.1", "192.0.2.1") == 429
    assert begun("198.51.100.1", "192.0.2.3") == 201
    assert begun("198.51.100.1", "192.0.2.4") == 429, "who is no trusted proxy cannot make up addresses"
    app.state.database.close()


@pytest.mark.only(*KINDS)
def test_an_address_is_kept_nowhere(
    settings: Settings, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings)
    limited(app, 1, Clock())
    address = "203.0.113.77"
    with TestClient(app, client=(address, 1)) as visitor:
        assert consent(visitor, PROLIFIC_PID="kept").status_code == 303
        visitor.cookies.clear()
        assert consent(visitor).status_code == 429
    stored = contents(settings.database_url)
    assert b"kept" in stored
    assert address.encode() not in stored
    assert address not in caplog.text


# What a participant can find out


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Five labels, as everything is fetched again and again."""
    return make_pack(tmp_path_factory.mktemp("packs") / "test-pack", labels=tuple("01234"), targets=2)


@pytest.fixture
def blind(tmp_path: Path, few: Pack, database_url: str) -> Iterator[TestClient]:
    """The app with a study that has control images too: 19 images to read, 15 to judge."""
    text = STUDY.replace("practice = 2", "practice = 2\ntrials = 15\ncontrols = 2\npause_after = 5")
    own = installation(tmp_path, few, database_url, text)
    prepare(own)
    with TestClient(create_app(own)) as client:
        yield client


STARTS = (
    *("/", "/study/test", "/withdraw", "/healthz", "/openapi.json", "/docs", "/redoc", "/robots.txt"),
    *(
        "/results",
        "/results/test",
        "/results/test.json",
        "/results/test/responses.csv",
        "/results/test/export.zip",
        "/results/test/models",
        "/results/test/models/test/report.html",
    ),
    *(
        "/stimuli",
        "/stimuli/",
        "/stimuli/manifest.json",
        "/stimuli/test-pack/manifest.json",
        "/static",
        "/static/",
    ),
    *("/static/%2e%2e/app/study.py", "/static/..%2fstudies/test.toml", "/study.db", "/api/sessions", "/api/"),
)
SESSION = ("", "/label", "/plausibility", "/comments", "/pause", "/withdraw", "/language")
LINK = re.compile(r"""(?:\s(?:href|src|action)=["']|"image": ?"|from "|import ")([^"']+)""")


def everything(player: Player) -> dict[str, str]:
    """What a participant can read by following every link from every address: address -> reply, head and body.

    Then what the API says to requests that it must refuse. What is drawn for each page (ids of forms) is left out.
    """
    found: dict[str, str] = {}
    waiting = [*STARTS, player.base, *(f"/s/{player.token}{more}" for more in SESSION)]
    while waiting:
        url = waiting.pop()
        if url in found:
            continue
        reply = player.client.get(url, follow_redirects=False)
        found[url] = told(reply)
        kind = reply.headers.get("content-type", "").split(";")[0]
        if kind in ("text/html", "application/json", "text/javascript"):
            links = (
                urljoin(url, link.replace("&amp;", "&")).split("#")[0] for link in LINK.findall(reply.text)
            )
            waiting += [link for link in links if not urlsplit(link).netloc]
        if "location" in reply.headers:
            waiting.append(urljoin(url, reply.headers["location"]))
    here = player.session()
    for position in {1, 3, 18, 99} - {here["next_position"]}:
        for question, body in (
            ("label", {"label": "3", "runner_up": "3"}),
            ("plausibility", {"plausible": True}),
        ):
            found[f"PUT {position} {question}"] = told(player.put(position, question, **body))
    if here["next_position"] is not None:
        found["PUT next"] = told(player.put(here["next_position"], label="?"))
        found["finish"] = told(player.client.post(f"{player.base}/finish"))
    found["HEAD"] = told(player.client.head(f"/s/{player.token}"))
    return found


def told(reply: Reply) -> str:
    headers = {name: value for name, value in reply.headers.items() if name != "x-request-id"}  # at random
    text = f"{reply.status_code} {json.dumps(headers)}\n{reply.content.decode('latin-1')}"
    return re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "DRAWN", text)


def test_no_name_or_truth_shows_before_labelling_is_over(blind: TestClient, few: Pack) -> None:
    player = begin(blind)
    names = (*few.models, "undefended", "distilled", "regularized", "adversarially", "backprop", few.name)
    words = ("source_label", "target_label", "source_index", "placebo", "control", "iterations", "linf")
    while (here := player.session())["state"] == "labelling":
        if here["next_position"] in (1, 3, 10, 19):
            seen = everything(player)
            images = {t["image"] for t in here["trials"]}
            assert images | {f"/s/{player.token}", "/static/server.js"} <= set(seen), "it was all fetched"
            for url in seen.keys() - images:
                body = seen[url].split("\n", 1)[1].lower()
                for name in (*names, *(() if url.startswith("/static/") else words)):
                    assert name not in body, (url, name)
            assert all(re.fullmatch(r"/stimuli/[0-9a-f]{64}\.png", image) for image in images)
            assert {t["prediction"] for t in here["trials"]} == {None}
            assert all(
                seen[url].startswith("401") for url in ("/results", "/results/test", "/results/test.json")
            )
        player.answer(most=1)


def falsify(db: Database, pack: Pack, predictions: bool) -> Callable[[], None]:
    """Make the database claim another truth about every image; returns what puts the old one back."""
    labels = list(pack.labels)

    def other(label: str, by: int) -> str:
        return labels[(labels.index(label) + by) % len(labels)]

    def write(rows: list[dict[str, Any]], clean: list[dict[str, Any]], trials: list[dict[str, Any]]) -> None:
        with db.write() as session:
            session.execute(update(Stimulus), rows)
            session.execute(update(CleanImage), clean)
            if trials:
                session.execute(update(Trial), trials)
            session.commit()

    with db.read() as session:
        stimuli = session.scalars(select(Stimulus)).all()
        clean = session.scalars(select(CleanImage)).all()
        trials = session.scalars(select(Trial).where(Trial.placebo_label.is_not(None))).all()
    true = [
        {
            "id": s.id,
            "model": s.model,
            "source_index": s.source_index,
            "source_label": s.source_label,
            "target_label": s.target_label,
            "prediction": s.prediction,
            "iterations": s.iterations,
        }
        for s in stimuli
    ]
    claimed = [
        {
            "id": s.id,
            "model": MODELS[(MODELS.index(s.model) + 1) % 3],
            "source_index": 70_000 + s.id,
            "source_label": other(s.source_label, 3),
            "target_label": other(s.target_label, 4),
            "prediction": other(s.prediction, 4) if predictions else s.prediction,
            "iterations": 1,
        }
        for s in stimuli
    ]
    true_clean = [{"id": c.id, "source_index": c.source_index, "source_label": c.source_label} for c in clean]
    claimed_clean = [
        {"id": c.id, "source_index": 80_000 + c.id, "source_label": other(c.source_label, 2)} for c in clean
    ]
    true_trials = [{"id": t.id, "placebo_label": t.placebo_label} for t in trials]
    claimed_trials = [{"id": t.id, "placebo_label": other(t.placebo_label or "0", 1)} for t in trials]
    write(claimed, claimed_clean, claimed_trials)
    return lambda: write(true, true_clean, true_trials)


def test_what_is_shown_depends_on_no_truth_but_the_predictions_in_judging(
    blind: TestClient, few: Pack
) -> None:
    """Everything within reach is the same, to the byte, when the database claims something else."""
    player = begin(blind)
    db: Database = blind.app.state.database  # type: ignore[attr-defined]

    def compare(predictions: bool) -> set[str]:
        """The addresses whose replies differ."""
        before = everything(player)
        restore = falsify(db, few, predictions)
        after = everything(player)
        restore()
        assert before.keys() == after.keys()
        return {url for url, text in before.items() if after[url] != text}

    while (here := player.session())["state"] == "labelling":
        if here["next_position"] in (1, 19):
            assert compare(predictions=True) == set(), here["next_position"]
        player.answer(most=1)
    for state in ("judging", "commenting", "finished"):
        player.answer(until=state)
        assert compare(predictions=False) == set(), state
    player = begin(blind)
    player.answer(until="judging")
    assert player.base in compare(predictions=True), "the comparison does find what differs"


def test_judging_adds_nothing_but_the_predictions(blind: TestClient, few: Pack) -> None:
    player = begin(blind)
    hidden = {s.sha256: s.prediction for s in few.stimuli}
    before = player.session()
    player.answer(until="judging")
    after = player.session()
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {"state", "order", "next_position", "trials"}
    for old, new in zip(before["trials"], after["trials"], strict=True):
        assert set(new) == set(old)
        assert {key for key in new if new[key] != old[key]} <= {"answered", "prediction"}
        assert new["prediction"] == hidden.get(new["image"][9:73])
    page = blind.get(f"/s/{player.token}").text
    for name in (*few.models, few.name, "source", "target"):
        assert name not in page


def chunks(png: bytes) -> set[bytes]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    found, at = set(), 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4])
        found.add(png[at + 4 : at + 8])
        at += 12 + length
    assert at == len(png), "nothing behind the image"
    return found


def test_images_are_nothing_but_pixels(blind: TestClient) -> None:
    player = begin(blind)
    player.answer(until="commenting")
    urls = {url for url in everything(player) if re.fullmatch(r"/stimuli/[0-9a-f]{64}\.png", url)}
    assert len(urls) == 2 + 2 + 15 + 3
    for url in urls:
        reply = blind.get(url)
        assert chunks(reply.content) == {b"IHDR", b"IDAT", b"IEND"}
        assert not {"etag", "last-modified", "content-disposition"} & set(reply.headers)
    bundled = list((ROOT / "stimuli").glob("*/images/*.png"))
    assert bundled
    for path in bundled:
        assert chunks(path.read_bytes()) == {b"IHDR", b"IDAT", b"IEND"}, path
