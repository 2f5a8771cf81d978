"""What a page of another site can make a browser send, and that it changes nothing."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from httpx2 import Response as Reply
from sqlalchemy import func, select

from app import auth
from app.db import Database
from app.main import create_app
from app.models import Participant, Unmasking
from app.settings import Settings
from tests.app.conftest import sign_in

# All of it is decided by headers and cookies; what the requests then store is the same on PostgreSQL.
pytestmark = pytest.mark.quickly("sqlite")

OWN = {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}
ELSEWHERE = {
    "another site": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    "another host of the site": {"Origin": "http://www.testserver", "Sec-Fetch-Site": "same-site"},
    "another port": {"Origin": "http://testserver:8001"},
    "an older browser": {"Origin": "https://evil.example"},
    "a sandboxed frame": {"Origin": "null"},
    "no origin": {"Sec-Fetch-Site": "cross-site"},
    "a name that begins as ours": {"Origin": "http://testserver.evil.example"},
    "a user of that name": {"Origin": "http://testserver@evil.example"},
}


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


def token_of(client: TestClient, path: str = "/results") -> str:
    found = re.search(r'name="csrf" value="(\w+)"', client.get(path).text)
    assert found is not None, "each page of the researcher has the button that signs out"
    return found[1]


def unmask(client: TestClient, headers: dict[str, str] | None = None, csrf: str | None = None) -> Reply:
    form = {} if csrf is None else {"csrf": csrf}
    return client.post("/results/test/unmask", data=form, headers=headers, follow_redirects=False)


def unmasked(db: Database) -> bool:
    with db.read() as session:
        return bool(session.scalar(select(func.count()).select_from(Unmasking)))


def test_another_site_unmasks_nothing_and_signs_nobody_out(researcher: TestClient, db: Database) -> None:
    mine = token_of(researcher)
    for where, headers in ELSEWHERE.items():
        for csrf in (None, "", "0", mine):  # the last: should it ever get out
            assert unmask(researcher, headers, csrf).status_code == 403, where
            reply = researcher.post("/signout", data={"csrf": csrf} if csrf else {}, headers=headers)
            assert reply.status_code == 403, where
    assert not unmasked(db)
    assert researcher.get("/results").status_code == 200


def test_our_own_form_needs_its_sessions_token(
    researcher: TestClient, db: Database, settings: Settings
) -> None:
    with TestClient(create_app(settings)) as other:
        others = token_of(sign_in(other))
    mine = token_of(researcher)
    assert mine != others
    for wrong in (None, "", others, mine[:-1], mine.upper(), "é"):
        assert unmask(researcher, OWN, wrong).status_code == 403
    assert unmask(researcher, None, others).status_code == 403, "nor does a program guess"
    assert not unmasked(db)
    assert token_of(researcher, "/results/test") == mine
    assert unmask(researcher, OWN, mine).status_code == 303
    assert unmasked(db)


def test_an_older_browsers_own_form_is_taken(researcher: TestClient) -> None:
    for origin in ({"Origin": "http://testserver"}, {"Sec-Fetch-Site": "same-origin"}, OWN):
        assert unmask(researcher, origin).status_code == 403, origin
        assert unmask(researcher, origin, token_of(researcher)).status_code == 303, origin


def test_a_program_needs_the_cookie_alone(client: TestClient, db: Database) -> None:
    """The contract: other programs unmask by POST; what they send, no browser leaves unsaid."""
    assert unmask(client).status_code == 401
    assert unmask(sign_in(client)).status_code == 303
    assert unmasked(db)


def test_behind_a_proxy_the_public_address_is_our_own(client: TestClient, settings: Settings) -> None:
    config = replace(settings, public_url="https://study.example.org")
    with TestClient(create_app(config)) as browser:
        for origin, status in (("https://study.example.org", 303), ("https://example.org", 422)):
            reply = browser.post(
                "/study/test",
                data={"consent": "yes", "another": "yes"},
                headers={"Origin": origin},
                follow_redirects=False,
            )
            assert reply.status_code == status


def test_another_site_enrolls_nobody(client: TestClient, db: Database) -> None:
    form = {"consent": "yes", "PROLIFIC_PID": "a"}
    body = {"study": "test", "consent": True, "external": {}}
    for where, headers in ELSEWHERE.items():
        refused = client.post("/study/test?STUDY_ID=s", data=form, headers=headers, follow_redirects=False)
        assert refused.status_code == 422, where
        assert "please agree here" in refused.text
        assert 'value="yes"' in refused.text, "with the form, and what the link carried"
        assert "set-cookie" not in refused.headers
        assert client.post("/api/sessions", json=body, headers=headers).status_code == 403, where
        link = client.get("/study/test?PROLIFIC_PID=a", headers=headers)
        assert link.status_code == 200, "a recruiter's link"
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(Participant)) == 0
    for headers in (OWN, {}):
        assert client.post("/api/sessions", json=body, headers=headers).status_code == 201
    begun = client.post("/study/test", data=form, headers=OWN, follow_redirects=False)
    assert begun.status_code == 303


def test_a_session_is_not_begun_by_what_a_form_can_send(client: TestClient, db: Database) -> None:
    """Without a word about where it comes from, as browsers sent it once, no form makes a body of JSON."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        body = b'{"study": "test", "consent": true, "external": {}}'
        reply = client.post("/api/sessions", content=body, headers={"Content-Type": kind})
        assert reply.status_code == 422, kind
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(Participant)) == 0


def test_nobody_is_signed_in_by_another_site(client: TestClient) -> None:
    for where, headers in ELSEWHERE.items():
        for path in ("/signin", "/signin/link"):
            reply = client.post(path, data={"password": "correct horse battery"}, headers=headers)
            assert reply.status_code == 403, where
            assert "set-cookie" not in reply.headers


def routes(router: Any) -> Iterator[APIRoute]:
    """Every route of the app; FastAPI keeps the routers that it includes."""
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        elif (included := getattr(route, "original_router", None)) is not None:
            yield from routes(included)


def test_every_request_of_the_researcher_that_changes_something_is_guarded(researcher: TestClient) -> None:
    """Whatever is added: a route that is not a participant's refuses what another site sends."""
    changing = [
        (method, route.path.format(slug="test"))
        for route in routes(researcher.app)
        for method in sorted((route.methods or set()) - {"GET", "HEAD", "OPTIONS"})
        if not route.path.startswith(("/api/", "/s/", "/study/", "/withdraw"))
    ]
    assert {("POST", "/results/test/unmask"), ("POST", "/signout"), ("POST", "/signin")} <= set(changing)
    for method, path in changing:
        reply = researcher.request(method, path, headers=ELSEWHERE["another site"])
        assert reply.status_code == 403, (method, path)
    assert researcher.get("/results").status_code == 200
    assert auth.COOKIE in researcher.cookies


def test_every_page_of_the_researcher_signs_out(client: TestClient) -> None:
    for page in ("", "/test", "/test/images", "/test/models", "/test/power"):
        csrf = token_of(sign_in(client), f"/results{page}")
        assert client.post("/signout", data={"csrf": csrf}, headers=OWN).status_code == 200
        assert client.get("/results").status_code == 401, page
