"""Who gets in: sessions that expire and end everywhere, passwords, links that work once, how often one may try."""

import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import httpx2
import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient
from httpx2 import Response as Reply
from sqlalchemy import func, select

from app import auth, password, signin
from app.audit import Event
from app.cli import MOST_WORKERS
from app.db import Database
from app.main import create_app
from app.models import AuditEntry, Base, ResearcherPassword, ResearcherSession, SigninLink
from app.password import FREE_REFUSALS, IN_LINE, LONGEST_WAIT_S, TRIES, TRIES_PER_S, Tries
from app.security import AddressLimit
from app.settings import ROOT, Settings
from tests.app.conftest import SECRET, Server, sign_in
from tests.app.test_cli import app, assert_one_line

WORDS = "correct horse battery"
REAL = password._hasher
KEY = f"/signin?key={auth.sign_in_key(SECRET)}"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hashes that take no time; what they are made with is tested below."""
    monkeypatch.setattr(password, "_hasher", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    password._nobodys.cache_clear()
    yield
    password._nobodys.cache_clear()


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(auth, "now", clock)
    monkeypatch.setattr(signin, "now", clock)
    return clock


@pytest.fixture
def locked(client: TestClient, db: Database) -> TestClient:
    """The app, with a password set."""
    with db.write() as session:
        password.change(session, WORDS, datetime.now(UTC))
        session.commit()
    return client


def enter(client: TestClient, words: str = WORDS, **headers: str) -> Reply:
    return client.post("/signin", data={"password": words}, headers=headers, follow_redirects=False)


def is_in(client: httpx2.Client) -> bool:
    status = client.get("/results").status_code
    assert status in (200, 401)
    return status == 200


def new_link(db: Database, at: datetime | None = None) -> str:
    with db.write() as session:
        token = auth.new_link(session, SECRET, at or datetime.now(UTC))
        session.commit()
    return token


def events(db: Database) -> list[str]:
    with db.read() as session:
        return list(session.scalars(select(AuditEntry.event).order_by(AuditEntry.id)))


# Sessions


def test_each_sign_in_begins_a_session_of_its_own(client: TestClient, db: Database) -> None:
    """Whoever planted a cookie knows nothing of what it becomes, and a browser has one session."""
    planted = {"Cookie": f"{auth.COOKIE}=planted"}
    assert client.get("/results", headers=planted).status_code == 401
    assert client.get(KEY, headers=planted, follow_redirects=False).status_code == 303
    first = client.cookies[auth.COOKIE]
    assert first != "planted"
    assert re.fullmatch(r"[\w-]{43}", first, re.ASCII), "256 bits"
    second = sign_in(client).cookies[auth.COOKIE]
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(ResearcherSession)) == 1
    for token, signed_in in (("planted", False), (first, False), (second, True)):
        client.cookies.clear()
        client.cookies.set(auth.COOKIE, token)
        assert is_in(client) == signed_in


def test_a_session_ends_after_12_hours_without_a_visit(client: TestClient, clock: Clock) -> None:
    sign_in(client)
    for _ in range(3):
        clock.forward(hours=11, minutes=59)
        assert is_in(client)
    clock.forward(hours=12, seconds=1)
    assert not is_in(client)


def test_a_session_ends_after_14_days_whatever_happens(client: TestClient, clock: Clock) -> None:
    sign_in(client)
    for _ in range(14 * 4 - 1):
        clock.forward(hours=6)
        assert is_in(client)
    clock.forward(hours=6)
    assert not is_in(client)


def test_a_dashboard_that_refreshes_itself_keeps_nobody_signed_in(client: TestClient, clock: Clock) -> None:
    sign_in(client)
    for _ in range(3):
        clock.forward(hours=3)
        # Plain http beyond this machine: browsers say nothing of their own (Sec-Fetch-Mode) there.
        by_script = client.get("/results", headers={"X-Refresh": "yes"})
        assert by_script.status_code == 200
    clock.forward(hours=3, seconds=1)
    assert not is_in(client)
    assert f'"{auth.REFRESH}": ' in (ROOT / "static" / "live.js").read_text().lower()


def test_what_has_expired_is_swept_away(client: TestClient, clock: Clock, db: Database) -> None:
    for _ in range(3):
        client.cookies.clear()
        sign_in(client)
        new_link(db, clock.now)
        clock.forward(hours=13)
    sign_in(client)
    new_link(db, clock.now)
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(ResearcherSession)) == 1
        assert session.scalar(select(func.count()).select_from(SigninLink)) == 1


def test_signing_out_holds_in_every_process(server: Server) -> None:
    """A real server, and a second one on its database."""
    with httpx2.Client(base_url=server.url) as browser, TestClient(create_app(server.settings)) as second:
        sign_in(second)
        token = second.cookies[auth.COOKIE]
        browser.cookies.set(auth.COOKIE, token)
        assert is_in(browser)
        reply = second.post("/signout", follow_redirects=False)
        assert (reply.status_code, reply.headers["location"]) == (303, "/signin")
        assert auth.COOKIE not in second.cookies
        assert browser.cookies[auth.COOKIE] == token
        assert not is_in(browser), "kept in the browser, it opens nothing any more"
        assert browser.post("/signout").status_code == 401


def test_another_secret_or_password_ends_every_session(
    researcher: TestClient, settings: Settings, db: Database
) -> None:
    token = researcher.cookies[auth.COOKIE]
    with TestClient(create_app(replace(settings, secret=SECRET + "!"))) as changed:
        changed.cookies.set(auth.COOKIE, token)
        assert not is_in(changed)
        assert changed.get(KEY).status_code == 401, "nor does the link that was printed"
    assert is_in(researcher)
    link = new_link(db)
    with db.write() as session:
        password.change(session, WORDS, datetime.now(UTC))
        session.commit()
    assert not is_in(researcher)
    assert researcher.get(f"/signin?link={link}").status_code == 401, "nor does a link made before"


@pytest.mark.parametrize("secure", ["by the connection", "by a proxy that PUBLIC_URL names"])
def test_over_https_the_cookie_is_for_this_host_and_https_alone(
    locked: TestClient, settings: Settings, secure: str
) -> None:
    if secure == "by the connection":
        base, config = "https://testserver", settings
    else:
        base, config = "http://testserver", replace(settings, public_url="https://testserver")
    with TestClient(create_app(config), base_url=base) as browser:
        reply = enter(browser)
    name, _, rest = reply.headers["set-cookie"].partition("=")
    assert name == "__Host-researcher"
    attributes = {part.strip().lower() for part in rest.split(";")[1:]}
    assert {"httponly", "samesite=lax", "secure", "path=/", "max-age=1209600"} <= attributes
    assert not any(part.startswith("domain") for part in attributes)


def test_without_https_the_cookie_is_still_closed_to_scripts_and_other_sites(client: TestClient) -> None:
    cookie = client.get(KEY, follow_redirects=False).headers["set-cookie"].lower()
    assert cookie.startswith("researcher=")
    for part in ("httponly", "samesite=lax", "path=/"):
        assert part in cookie
    assert "secure" not in cookie


# The printed link


def test_the_printed_link_works_again_and_again_but_only_where_nobody_else_gets_in(
    client: TestClient, settings: Settings, db: Database
) -> None:
    for _ in range(3):
        client.cookies.clear()
        reply = client.get(KEY, follow_redirects=False)
        assert (reply.status_code, reply.headers["location"]) == (303, "/results")
        assert is_in(client)
    for exposed in (
        {"host": "0.0.0.0", "public_url": "https://testserver"},
        {"public_url": "https://testserver"},  # a proxy on this machine lets others in
        {"host": "192.0.2.1", "allow_http": True},
    ):
        with TestClient(create_app(replace(settings, **exposed))) as other:
            assert other.get(KEY, follow_redirects=False).status_code == 401, exposed
    for key in ("", "0", auth.sign_in_key(SECRET)[:-1], "é"):
        assert client.get("/signin", params={"key": key}).status_code == 401
    assert events(db).count("sign-in link refused") == 7


# The password


def test_the_password_signs_in_and_another_does_not(locked: TestClient, db: Database) -> None:
    page = locked.get("/signin").text
    assert 'type="password"' in page
    assert WORDS not in page
    for wrong in ("", WORDS[:-1], WORDS.upper(), WORDS + " "):
        reply = enter(locked, wrong)
        assert reply.status_code == 401
        assert "set-cookie" not in reply.headers
        assert wrong == "" or wrong not in reply.text
    reply = enter(locked)
    assert (reply.status_code, reply.headers["location"]) == (303, "/results")
    assert is_in(locked)
    assert locked.get("/signin", follow_redirects=False).headers["location"] == "/results"
    assert events(db) == ["password set", *["password refused"] * 4, "signed in"]


def test_the_same_letters_composed_otherwise_are_the_same_password(client: TestClient, db: Database) -> None:
    with db.write() as session:
        password.change(session, "caf\u00e9 cr\u00e8me glac\u00e9", datetime.now(UTC))
        session.commit()
    assert enter(client, "cafe\u0301 cre\u0300me glace\u0301").status_code == 303


def test_the_database_keeps_no_password_and_no_token(
    locked: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(password, "_hasher", REAL)
    with db.write() as session:
        password.change(session, WORDS, datetime.now(UTC))
        session.commit()
    assert enter(locked).status_code == 303
    link = new_link(db)
    with db.read() as session:
        stored = session.get_one(ResearcherPassword, 1).hash
        everything = str([session.execute(select(table)).all() for table in access_tables()])
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    for secret in (WORDS, locked.cookies[auth.COOKIE], link, SECRET):
        assert secret not in everything


def access_tables() -> list[Any]:
    names = ("researcher_password", "researcher_sessions", "signin_links", "audit_log")
    return [Base.metadata.tables[name] for name in names]


def test_without_a_password_a_try_takes_as_long_and_is_refused_the_same(
    client: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    verify = password._hasher.verify

    def counted(hashed: str, text: str) -> bool:
        compared.append(hashed)
        return verify(hashed, text)

    monkeypatch.setattr(type(password._hasher), "verify", lambda _, *given: counted(*given))
    assert 'type="password"' not in client.get("/signin").text
    nobodys = [enter(client, words) for words in ("nobody's password", WORDS)]
    with db.write() as session:
        password.change(session, WORDS, datetime.now(UTC))
        session.commit()
    wrong = enter(client, "another password")
    assert [reply.status_code for reply in (*nobodys, wrong)] == [401] * 3
    assert len(compared) == 3
    assert len({re.sub(r"[^$,]{20,}", "", hashed) for hashed in compared}) == 1, "with the same parameters"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "0 characters"),
        ("elevenchars", "11 characters"),
        ("aaaaaaaaaaaaaaa", "repeats"),
        ("121212121212121", "repeats"),
        ("x" * 30 + "abcdef" * 90, "570 characters"),
        ("correct\thorse battery", "no form sends"),
    ],
)
def test_a_weak_password_is_refused_and_says_why(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, words: str, why: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(words + "\n"))
    done = app(settings, "password", "--stdin")
    assert_one_line(done, why)
    assert not words or words not in done.stderr


def test_the_command_sets_the_password_and_ends_all_sessions(
    researcher: TestClient, settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{WORDS}\r\nand what follows\n"))
    done = app(settings, "password", "--stdin")
    assert (done.returncode, done.stderr) == (0, "")
    assert WORDS not in done.stdout
    assert not is_in(researcher)
    assert enter(researcher).status_code == 303


def test_a_terminal_is_asked_twice(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([WORDS, "something else here", "short", WORDS, WORDS])
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    assert_one_line(app(settings, "password"), "no terminal", "--stdin")
    monkeypatch.setattr("sys.stdin", Terminal())
    assert_one_line(app(settings, "password"), "the two differ")
    assert_one_line(app(settings, "password"), "5 characters")
    assert app(settings, "password").returncode == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# Links that work once


def test_the_command_prints_a_link_to_where_the_server_is(
    client: TestClient, settings: Settings, db: Database
) -> None:
    for changes, base in (
        ({}, "http://127.0.0.1:8000"),
        ({"PORT": "8123"}, "http://127.0.0.1:8123"),
        ({"PUBLIC_URL": "https://Study.example.org/"}, "https://study.example.org"),
    ):
        done = app(settings, "signin-link", **changes)
        assert done.returncode == 0
        found = re.fullmatch(re.escape(base) + r"/signin\?link=([\w-]{43})\n", done.stdout)
        assert found is not None, done.stdout
        opened = client.get(f"/signin?link={found[1]}", follow_redirects=False)
        assert (opened.status_code, opened.headers["location"]) == (303, "/signin/link")
    assert events(db) == ["sign-in link made"] * 3


def test_a_link_signs_in_once_and_not_by_being_opened(client: TestClient, db: Database) -> None:
    """Programs that show previews open links, and some browsers do before anybody clicks."""
    token = new_link(db)
    for method in ("HEAD", "GET", "GET"):
        preview = TestClient(client.app)
        opened = preview.request(method, f"/signin?link={token}", follow_redirects=True)
        assert opened.status_code == 200
        assert token not in str(opened.url) + opened.text
        assert not is_in(preview)
    opened = client.get(f"/signin?link={token}", follow_redirects=False)
    assert opened.headers["location"] == "/signin/link", "the address that stays in the history"
    assert "httponly" in opened.headers["set-cookie"].lower()
    assert "Sign in here" in client.get("/signin/link").text
    signed_in = client.post("/signin/link", follow_redirects=False)
    assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/results")
    assert is_in(client)
    assert auth.LINK_COOKIE not in client.cookies

    replayed = TestClient(client.app)
    assert replayed.get(f"/signin?link={token}").status_code == 401
    replayed.cookies.set(auth.LINK_COOKIE, token)
    assert replayed.get("/signin/link").status_code == 401
    assert replayed.post("/signin/link").status_code == 401
    assert not is_in(replayed)
    assert events(db) == ["signed in", *["sign-in link refused"] * 2]


def test_a_link_is_good_for_15_minutes(client: TestClient, db: Database, clock: Clock) -> None:
    token = new_link(db, clock.now)
    clock.forward(minutes=14, seconds=59)
    assert client.get(f"/signin?link={token}").status_code == 200
    clock.forward(seconds=1)
    assert client.post("/signin/link").status_code == 401
    assert client.get(f"/signin?link={token}").status_code == 401
    for wrong in ("", "x", token[:-1], token.swapcase()):
        assert client.get("/signin", params={"link": wrong}).status_code == 401


def test_of_two_who_use_a_link_at_once_one_gets_in(client: TestClient, db: Database) -> None:
    for _ in range(5):
        token, together = new_link(db), Barrier(2)

        def use(token: str = token, together: Barrier = together) -> int:
            browser = TestClient(client.app)
            browser.cookies.set(auth.LINK_COOKIE, token)
            together.wait()
            return browser.post("/signin/link", follow_redirects=False).status_code

        with ThreadPoolExecutor(2) as pool:
            assert sorted(future.result() for future in [pool.submit(use), pool.submit(use)]) == [303, 401]


# How often


def test_one_address_may_try_some_times_and_then_waits(
    locked: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(password, "FREE_REFUSALS", 100)
    limit = AddressLimit(TRIES, TRIES_PER_S, clock=lambda: 0.0)
    monkeypatch.setattr(locked.app.state.tries, "passwords", limit)  # type: ignore[attr-defined]
    assert [enter(locked, "not the password").status_code for _ in range(TRIES)] == [401] * TRIES
    for words in ("not the password", WORDS):
        throttled = enter(locked, words)
        assert throttled.status_code == 429
        assert throttled.headers["retry-after"] == "30"
        assert "set-cookie" not in throttled.headers
    assert events(db).count("password refused") == TRIES, "who is told to wait fills no log"
    elsewhere = TestClient(locked.app, client=("192.0.2.7", 50000))
    assert enter(elsewhere).status_code == 303


def test_all_addresses_and_processes_together_wait_longer_and_longer(
    locked: TestClient, settings: Settings, db: Database, clock: Clock
) -> None:
    """What other processes refused is on record, and each has a memory of its own."""
    for count, pause in ((1, 1), (2, 2), (3, 4), (6, 32), (7, LONGEST_WAIT_S), (30, LONGEST_WAIT_S)):
        clock.forward(hours=2)
        refuse(db, clock.now, FREE_REFUSALS + count - 1)
        with TestClient(create_app(settings)) as another:
            throttled = enter(another)
            assert throttled.status_code == 429, count
            assert throttled.headers["retry-after"] == str(pause)
            clock.forward(seconds=pause - 0.5)
            assert enter(another).status_code == 429
            clock.forward(seconds=0.5)
            assert enter(another).status_code == 303


def refuse(db: Database, at: datetime, count: int) -> None:
    with db.write() as session:
        for _ in range(count):
            session.add(AuditEntry(at=at, event=str(Event.PASSWORD_REFUSED), detail={}))
        session.commit()


def test_no_throttle_keeps_out_who_has_a_link(locked: TestClient, db: Database) -> None:
    refuse(db, datetime.now(UTC), 1000)
    for _ in range(TRIES):
        locked.get("/signin?link=wrong")
        locked.get("/signin?key=wrong")
    assert locked.get("/signin?link=wrong").status_code == 429
    assert enter(locked).status_code == 429
    locked.get(f"/signin?link={new_link(db)}")
    assert locked.post("/signin/link", follow_redirects=False).status_code == 303
    assert is_in(locked)
    locked.cookies.clear()
    assert is_in(sign_in(locked)), "nor the one who started the server"
    assert events(db).count("sign-in link refused") <= TRIES


def test_passwords_are_compared_one_at_a_time_and_few_wait() -> None:
    tries, inside, most = Tries(), [], []
    full = Barrier(2)

    def first() -> None:
        with tries.turn() as my_turn:
            assert my_turn
            full.wait()  # it has its turn
            full.wait()  # the others have come

    def another() -> bool:
        with tries.turn() as my_turn:
            if my_turn:
                inside.append(1)
                most.append(len(inside))
                inside.pop()
            return my_turn

    with ThreadPoolExecutor(IN_LINE + 2) as pool:
        begun = pool.submit(first)
        full.wait()
        waiting = [pool.submit(another) for _ in range(IN_LINE + 1)]
        done = as_completed(waiting)
        refused = [next(done).result() for _ in range(2)]
        assert refused == [False, False], "at once, while the first still has its turn"
        full.wait()
        begun.result()
        assert sorted(future.result() for future in waiting) == [False] * 2 + [True] * (IN_LINE - 1)
    assert set(most) == {1}


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8, MOST_WORKERS])
def test_one_address_alone_never_makes_everybody_wait(workers: int) -> None:
    """Whichever of a server's processes it comes to; within an hour, and whoever mistypes has some tries."""
    seconds = 0.0
    processes = [Tries(workers, clock=lambda: seconds) for _ in range(workers)]
    assert workers > 6 or processes[0].passwords.take("192.0.2.8") == 0
    for limits in ([tries.passwords for tries in processes], [tries.links for tries in processes]):
        got, seconds = 0, 0.0
        while seconds < 3600:
            got += sum(limit.take("192.0.2.7") == 0 for limit in limits for _ in range(TRIES + 1))
            seconds += 60
        assert min(TRIES, 64 // workers) <= got < FREE_REFUSALS


def test_the_app_divides_the_tries_among_its_processes(settings: Settings, prepared: object) -> None:
    with TestClient(create_app(replace(settings, workers=32))) as one_of_many:
        assert [enter(one_of_many).status_code for _ in range(3)] == [401, 401, 429]


def test_links_that_lead_nowhere_use_up_no_try_of_a_password(locked: TestClient) -> None:
    """An image of another website opens such a link in the browser of whoever looks at it."""
    opened = [locked.get("/signin?link=x").status_code for _ in range(TRIES + 1)]
    assert opened == [401] * TRIES + [429]
    assert enter(locked).status_code == 303
