"""Answers that cannot be sent yet: kept through reload, crash and lost connections, then stored once each.

What counts is asserted in the database: one row for every answer, and it is the plan's answer.
"""

import json
import os
import signal
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Playwright, Route, expect

from app.db import Database
from ml.pack import Pack
from tests import browser as chromium
from tests.app.chromium.conftest import FLAGS
from tests.app.chromium.visitor import (
    CUT_OFF,
    SENT,
    SHORT,
    Visit,
    Visitor,
    assert_as_planned,
    assert_stored,
    by_clicks,
    by_keys,
    choose,
    comment_of,
    hope,
    judge_by_keys,
    kept,
    name_of,
    painted,
    progress,
    rows,
    saved,
    token_of,
    until,
)
from tests.app.conftest import Server, installation
from tests.app.faults import killable

# What the server does with an answer that comes late or twice is asked on both databases elsewhere.
pytestmark = pytest.mark.quickly("sqlite")


def test_a_participant_without_connection_goes_on_and_everything_arrives_once(
    visit: Visit, db: Database
) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF
    page = visitor.begin("/study/short")
    token = token_of(page)
    cut = visitor.context.set_offline
    by_keys(page, range(1, 4), SHORT)
    expect(progress(page)).to_have_text(name_of(4, SHORT))
    expect(saved(page)).to_have_text("Saved")
    note = page.get_by_text("No connection. You can go on")
    expect(note).to_be_hidden()
    cut(True)
    expect(note).to_be_visible()
    by_keys(page, range(4, 14), SHORT)
    expect(saved(page)).to_have_text("Not saved yet: 10")
    by_keys(page, range(14, 15), SHORT)
    expect(
        page.get_by_text("Your last answers are kept on this device but not saved yet (11)")
    ).to_be_visible()
    assert_stored(db, token, range(1, 4))
    cut(False)
    expect(page.get_by_text("The computer’s answer:")).to_be_visible(timeout=15_000)
    assert_stored(db, token, range(1, 15))

    painted(page)
    cut(True)
    judge_by_keys(page, range(1, 13), SHORT)
    expect(page.get_by_text("not saved yet (12)")).to_be_visible()
    cut(False)
    finish = page.get_by_role("button", name="Finish")
    expect(finish).to_be_visible(timeout=15_000)
    assert all(row.plausible is not None for row in rows(db, token)[2:])

    page.wait_for_load_state()  # with its scripts: what is sent before is the browser's own form
    page.get_by_role("textbox", name="How do the sheets differ?").fill("Written in a tunnel.")
    cut(True)
    finish.dblclick()
    expect(page.get_by_role("status")).to_have_text("Not saved yet. Trying again …")
    assert comment_of(db, token) is None
    expect(page.locator("#completion-code")).to_have_count(0)
    cut(False)
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    assert comment_of(db, token) == "Written in a tunnel."
    assert_as_planned(db, token, SHORT)
    waited = [display["waited_ms"] for row in rows(db, token) for display in row.display]
    assert all(isinstance(ms, int) and ms >= 0 for ms in waited)
    assert max(waited) > 0
    assert kept(page) == []
    assert page.evaluate("localStorage.length") == 0


def test_saved_is_shown_only_after_the_server_has_committed(visit: Visit, db: Database) -> None:
    visitor = visit()
    held: list[Route] = []
    page = visitor.arrive()
    token = token_of(page)
    expect(saved(page)).to_have_text("")
    page.evaluate(
        """() => {
            window.said = [];
            const box = document.getElementById("saved");
            new MutationObserver(() => window.said.push(box.textContent)).observe(box, { childList: true });
        }"""
    )

    def hold(route: Route) -> None:
        held.append(route)

    page.route(SENT, hold)
    by_clicks(page, range(1, 4))
    expect(progress(page)).to_have_text(name_of(4))
    for position in range(1, 4):
        until(page, held, position)
        expect(saved(page)).to_have_text("Saving …")
        assert "Saved" not in page.evaluate("window.said")
        assert_stored(db, token, range(1, position))
        reply = held[-1].fetch()
        assert_stored(db, token, range(1, position + 1))
        assert saved(page).inner_text() == "Saving …"
        held[-1].fulfill(response=reply)
    expect(saved(page)).to_have_text("Saved")
    assert page.evaluate("window.said") == ["Saving …", "Saved"]


def test_a_lost_acknowledgement_and_a_busy_server_store_the_answer_once(visit: Visit, db: Database) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF + "|404"
    page = visitor.arrive()
    token = token_of(page)
    sent: list[tuple[str, str]] = []

    def unreliable(route: Route) -> None:
        content = json.loads(route.request.post_data or "")
        content["display"].pop("waited_ms")
        sent.append((content["answer_id"], json.dumps(content, sort_keys=True)))
        if len(sent) == 1:  # it arrives, and the acknowledgement is lost
            route.fetch()
            route.abort()
        elif len(sent) == 2:
            route.fulfill(status=503)
        elif len(sent) == 3:
            route.fulfill(status=429, headers={"Retry-After": "1"})
        elif len(sent) == 4:  # the acknowledgement breaks off
            route.fulfill(status=200, content_type="application/json", body='{"stored": tr')
        elif len(sent) == 5:  # the page of a café's network
            route.fulfill(status=200, content_type="text/html", body="<p>Please sign in")
        elif len(sent) == 6:
            route.fulfill(status=404, content_type="text/html", body="<p>No such site")
        else:
            route.continue_()

    page.route("**/trials/2/label", unreliable)
    by_keys(page, range(1, 4))
    expect(progress(page)).to_have_text(name_of(4))
    for count in range(1, 7):
        until(page, sent, count)
        assert saved(page).inner_text() != "Saved"
        hope(page)
    expect(saved(page)).to_have_text("Saved", timeout=15_000)
    assert len(sent) >= 7
    assert len(set(sent)) == 1, "the same answer under the same id"
    assert_stored(db, token, range(1, 4))


def test_a_request_that_is_never_answered_is_given_up_and_made_again(visit: Visit, db: Database) -> None:
    visitor = visit(own=True)
    visitor.forgiven = CUT_OFF
    visitor.context.clock.install()
    page = visitor.arrive()
    token = token_of(page)
    stuck: list[Route] = []

    def leave_unanswered(route: Route) -> None:
        if len(stuck) == 2:
            route.continue_()
        else:
            stuck.append(route)

    page.route(SENT, leave_unanswered)
    by_keys(page, range(1, 3))
    until(page, stuck, 1)
    hope(page)  # the network has changed: what hangs on the old one is left
    until(page, stuck, 2)
    expect(saved(page)).to_have_text("Not saved yet: 2")
    visitor.context.clock.fast_forward(14_000)
    assert saved(page).inner_text() == "Not saved yet: 2"
    visitor.context.clock.fast_forward(12_000)
    expect(saved(page)).to_have_text("Saved")
    assert_stored(db, token, range(1, 3))


def test_unsaved_answers_survive_a_reload(visit: Visit, db: Database) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF
    page = visitor.arrive()
    token = token_of(page)
    ids: set[str] = set()

    def lose(route: Route) -> None:
        ids.add(json.loads(route.request.post_data or "")["answer_id"])
        route.abort()

    page.route(SENT, lose)
    by_clicks(page, range(1, 4))
    expect(saved(page)).to_have_text("Not saved yet: 3")
    expect(progress(page)).to_have_text(name_of(4))
    choose(page, "8", "6")  # in the middle of the fourth answer
    page.reload()
    expect(progress(page)).to_have_text(name_of(4))
    painted(page)
    expect(page.get_by_role("radio", checked=True)).to_have_count(0)
    expect(saved(page)).to_have_text("Not saved yet: 3")
    assert rows(db, token) == []
    before = {entry["answer_id"] for entry in kept(page)}
    assert ids <= before
    page.unroute(SENT)
    hope(page)
    expect(saved(page)).to_have_text("Saved")
    assert_stored(db, token, range(1, 4))
    by_clicks(page, range(4, 5))
    expect(saved(page)).to_have_text("Saved")
    assert_stored(db, token, range(1, 5))


def test_unsaved_answers_survive_the_death_of_the_browser(
    playwright: Playwright, server: Server, db: Database, tmp_path: Path
) -> None:
    def open_browser() -> tuple[Visitor, BrowserContext]:
        context = playwright.chromium.launch_persistent_context(
            tmp_path, executable_path=chromium.find(), args=FLAGS, base_url=server.url
        )
        visitor = Visitor(context, server.url)
        visitor.forgiven = CUT_OFF
        return visitor, context

    visitor, context = open_browser()
    page = visitor.arrive()
    token = token_of(page)
    by_keys(page, range(1, 3))
    expect(saved(page)).to_have_text("Saved")
    context.set_offline(True)
    by_keys(page, range(3, 8))
    expect(progress(page)).to_have_text(name_of(8))
    kill_processes(str(tmp_path))
    assert_stored(db, token, range(1, 3))

    visitor, context = open_browser()
    page = visitor.page(f"/s/{token}")
    expect(progress(page)).to_have_text(name_of(8))
    expect(saved(page)).to_have_text("Saved")
    assert_stored(db, token, range(1, 8))
    context.close()
    assert visitor.faults == []


def kill_processes(profile: str) -> None:
    """SIGKILL to the browser of that profile and all its children at once."""
    mine = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"--user-data-dir={profile}" in (process / "cmdline").read_text().split("\0"):
                mine.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert mine
    for pid in mine:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.only("sqlite", "postgresql")
def test_a_killed_server_loses_nothing_and_doubles_nothing(
    visit: Visit, pack: Pack, tmp_path: Path, database_url: str
) -> None:
    settings = installation(tmp_path, pack, database_url)
    with killable(settings, tmp_path / "log") as server:
        visitor = visit(at=server.url)
        visitor.forgiven = CUT_OFF
        page = visitor.arrive()
        token = token_of(page)
        by_clicks(page, range(1, 4))
        server.kill()
        by_clicks(page, range(4, 8))
        expect(page.get_by_text("No connection. You can go on")).to_be_visible()
        server.start()
        by_clicks(page, range(8, 10))
        hope(page)
        expect(saved(page)).to_have_text("Saved", timeout=15_000)
        expect(page.get_by_text("No connection. You can go on")).to_be_hidden()
        database = Database(settings.database_url)
        assert_stored(database, token, range(1, 10))
        database.close()
