"""Signing in as a researcher does it, and what a page of another site can make their browser do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import delete, func, select

from app import auth, password
from app.db import Database
from app.models import Participant, ResearcherPassword, Study, Unmasking
from tests.app.chromium.test_pages_shown import assert_accessible
from tests.app.chromium.visitor import Visit
from tests.app.conftest import SECRET, Server

# The browser's part, which no database changes; what the server stores of it has tests of its own on both.
pytestmark = pytest.mark.quickly("sqlite")

WORDS = "correct horse battery"


@pytest.fixture
def locked(db: Database) -> Iterator[None]:
    """A password is set; afterwards none is, as for the other tests at this server."""
    with db.write() as session:
        password.change(session, WORDS, datetime.now(UTC))
        session.commit()
    yield
    with db.write() as session:
        session.execute(delete(ResearcherPassword))
        session.commit()


def heading(page: Page, name: str) -> None:
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible(timeout=15_000)


@pytest.mark.only("sqlite", "postgresql")
@pytest.mark.usefixtures("locked")
def test_a_researcher_signs_in_by_password_and_out(visit: Visit) -> None:
    visitor = visit()
    visitor.forgiven = "401"
    page = visitor.page("/signin")
    assert_accessible(page)
    page.get_by_label("Password").fill("not the password")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("That is not the password.", timeout=15_000)
    assert_accessible(page)
    page.get_by_label("Password").fill(WORDS)
    page.keyboard.press("Enter")
    heading(page, "Results")
    assert_accessible(page)
    page.get_by_role("link", name="Who signed in").click()
    heading(page, "Audit log")
    expect(page.get_by_role("row", name="password refused").first).to_be_visible()
    assert_accessible(page)
    page.get_by_role("button", name="Sign out").click()
    heading(page, "Sign in")
    page.go_back()
    heading(page, "Sign in")


def test_a_link_that_works_once_is_confirmed_and_leaves_no_trace(visit: Visit, db: Database) -> None:
    with db.write() as session:
        token = auth.new_link(session, SECRET, datetime.now(UTC))
        session.commit()
    visitor = visit()
    page = visitor.page(f"/signin?link={token}")
    heading(page, "Sign in")
    assert_accessible(page)
    seen = [page.url, page.evaluate("document.referrer")]
    page.get_by_role("button", name="Sign in here").click()
    heading(page, "Results")
    seen += [page.url, page.evaluate("document.referrer"), page.evaluate("document.cookie")]
    visitor.forgiven = "401"
    page.go_back()
    heading(page, "Sign in")
    seen += [page.url, page.evaluate("performance.getEntriesByType('navigation')[0].name")]
    assert [urlsplit(url).path for url in (seen[0], seen[2], seen[5])] == [
        "/signin/link",
        "/results",
        "/signin/link",
    ]
    assert not any(token in place for place in seen)


def test_the_printed_link_leaves_no_trace(visit: Visit, server: Server) -> None:
    page = visit().page(server.dashboard)
    page.goto("/results/test")
    seen = [page.evaluate("document.referrer"), page.evaluate("document.cookie")]
    page.go_back()
    heading(page, "Results")
    seen += [page.url, page.evaluate("document.referrer")]
    assert page.url == f"{server.url}/results"
    key = server.dashboard.split("key=")[1]
    assert not any(key in place for place in seen)
    assert seen[1] == "", "no script sees a cookie"


@contextmanager
def another_site(html: str) -> Iterator[int]:
    """A web server of somebody else, which has this page; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = html.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield site.server_port
        site.shutdown()
        thread.join()


def unmasked(db: Database, slug: str) -> int:
    with db.read() as session:
        query = select(func.count()).select_from(Unmasking).join(Study).where(Study.slug == slug)
        return session.scalar(query) or 0


def participants(db: Database, slug: str) -> int:
    with db.read() as session:
        query = select(func.count()).select_from(Participant).join(Study).where(Study.slug == slug)
        return session.scalar(query) or 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_site_changes_nothing(
    visit: Visit, server: Server, db: Database, host: str
) -> None:
    """On another port of this host, which the browser counts as the same site and sends the cookie along, and on
    another host, to which it does not."""
    form = '<form method="post" action="{}"><input name="consent" value="yes"><button>Go</button></form>'
    pages = {
        f"{server.url}/results/blocks/unmask": 403 if host == "127.0.0.1" else 401,
        f"{server.url}/signout": 403 if host == "127.0.0.1" else 401,
        f"{server.url}/study/blocks": 422,
    }
    visitor = visit()
    visitor.forgiven = "40[13]|422|NotSameOrigin"
    page = visitor.page(server.dashboard)
    heading(page, "Results")
    before = participants(db, "blocks")
    for action, status in pages.items():
        with another_site(form.format(action)) as port:
            page.goto(f"http://{host}:{port}/")
            with page.expect_response(action) as refused:
                page.get_by_role("button", name="Go").click()
            assert refused.value.status == status
            if "/study/" not in action:
                page.goto(f"http://{host}:{port}/")
                how = "{method: 'POST', mode: 'no-cors', credentials: 'include'}"
                script = f"url => fetch(url, {how}).then(() => 'sent', () => 'sent, and the reply withheld')"
                assert "sent" in page.evaluate(script, action)
    assert unmasked(db, "blocks") == 0
    assert participants(db, "blocks") == before
    page.goto("/results/blocks")
    heading(page, "With pauses")  # still signed in
    page.get_by_role("checkbox", name="I know that unmasking").check()
    if host == "localhost":  # the last: what is unmasked stays so
        page.get_by_role("button", name="Unmask now").click()
        expect(page.get_by_role("button", name="Unmask now")).to_have_count(0)
        assert unmasked(db, "blocks") == 1
    visitor.faults.clear()  # the other site was meant
