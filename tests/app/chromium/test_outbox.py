"""Answers that cannot be sent yet: kept through reload, crash and lost connections, then stored once each.

What counts is asserted in the database: one row for every answer, and it is the plan's answer.
"""

import json
import os
import signal
from collections.abc import Sized
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import BrowserContext, Dialog, Page, Playwright, Route, expect

from app.db import Database
from ml.pack import Pack
from tests import browser as chromium
from tests.app.chromium.conftest import FLAGS
from tests.app.chromium.visitor import (
    Visit,
    Visitor,
    advance,
    assert_as_planned,
    by_clicks,
    choose,
    comment_of,
    go,
    judge_by_clicks,
    label_of,
    name_of,
    painted,
    participant_of,
    progress,
    rows,
    saved,
    token_of,
)
from tests.app.conftest import Player, Server, begin, installation
from tests.app.faults import killable

CUT_OFF = (
    "ERR_INTERNET_DISCONNECTED|ERR_FAILED|ERR_CONNECTION|ERR_ABORTED|ERR_EMPTY|ERR_TIMED_OUT|50[0-9]|429"
)
LABELS = "**/trials/*/label"


def assert_stored(db: Database, token: str, positions: range) -> None:
    assert [(row.position, row.label, row.runner_up) for row in rows(db, token)] == [
        (position, *label_of(position)) for position in positions
    ]


def hope(page: Page) -> None:
    """The browser notices a connection: what waits is tried at once."""
    page.evaluate("dispatchEvent(new Event('online'))")


def kept(page: Page) -> list[dict[str, Any]]:
    """What lies in the browser's outbox."""
    found: list[dict[str, Any]] = page.evaluate(
        """() => new Promise((done) => {
            const opening = indexedDB.open("reasonable-mistakes");
            opening.onsuccess = () => {
                const all = opening.result.transaction("answers").objectStore("answers").getAll();
                all.onsuccess = () => { opening.result.close(); done(all.result); };
            };
        })"""
    )
    return found


def test_a_participant_without_connection_goes_on_and_everything_arrives_once(
    visit: Visit, db: Database
) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF
    page = visitor.begin()
    token = token_of(page)
    cut = visitor.context.set_offline
    by_clicks(page, range(1, 4))
    expect(progress(page)).to_have_text(name_of(4))
    expect(saved(page)).to_have_text("Saved")
    note = page.get_by_text("No connection. You can go on")
    expect(note).to_be_hidden()
    cut(True)
    expect(note).to_be_visible()
    by_clicks(page, range(4, 32))
    expect(saved(page)).to_have_text("Not saved yet: 28")
    by_clicks(page, range(32, 33))
    expect(
        page.get_by_text("Your last answers are kept on this device but not saved yet (29)")
    ).to_be_visible()
    assert_stored(db, token, range(1, 4))
    cut(False)
    expect(page.get_by_text("The computer’s answer:")).to_be_visible(timeout=15_000)
    assert_stored(db, token, range(1, 33))

    painted(page)
    cut(True)
    judge_by_clicks(page, range(1, 31))
    expect(page.get_by_text("not saved yet (30)")).to_be_visible()
    cut(False)
    finish = page.get_by_role("button", name="Finish")
    expect(finish).to_be_visible(timeout=15_000)
    assert all(row.plausible is not None for row in rows(db, token)[2:])

    page.get_by_role("textbox", name="How do the sheets differ?").fill("Written in a tunnel.")
    cut(True)
    finish.dblclick()
    expect(page.get_by_role("status")).to_have_text("Not saved yet. Trying again …")
    assert comment_of(db, token) is None
    expect(page.locator("#completion-code")).to_have_count(0)
    cut(False)
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    assert comment_of(db, token) == "Written in a tunnel."
    assert_as_planned(db, token)
    waited = [display["waited_ms"] for row in rows(db, token) for display in row.display]
    assert all(isinstance(ms, int) and ms >= 0 for ms in waited)
    assert max(waited) > 500
    assert kept(page) == []
    assert page.evaluate("localStorage.length") == 0


def test_saved_is_shown_only_after_the_server_has_committed(visit: Visit, db: Database) -> None:
    visitor = visit()
    held: list[Route] = []
    page = visitor.begin()
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

    page.route(LABELS, hold)
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


def until(page: Page, things: Sized, count: int) -> None:
    """Waits until there are so many things, which the browser's events bring."""
    for _ in range(1000):
        if len(things) >= count:
            return
        page.evaluate("new Promise((done) => setTimeout(done, 10))")
    raise AssertionError("waited in vain")


def test_a_lost_acknowledgement_and_a_busy_server_store_the_answer_once(visit: Visit, db: Database) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF + "|404"
    page = visitor.begin()
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
    by_clicks(page, range(1, 4))
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
    visitor = visit()
    visitor.forgiven = CUT_OFF
    visitor.context.clock.install()
    page = visitor.begin()
    token = token_of(page)
    stuck: list[Route] = []

    def leave_unanswered(route: Route) -> None:
        if len(stuck) == 2:
            route.continue_()
        else:
            stuck.append(route)

    page.route(LABELS, leave_unanswered)
    by_clicks(page, range(1, 3))
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
    page = visitor.begin()
    token = token_of(page)
    ids: set[str] = set()

    def lose(route: Route) -> None:
        ids.add(json.loads(route.request.post_data or "")["answer_id"])
        route.abort()

    page.route(LABELS, lose)
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
    page.unroute(LABELS)
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
    page = visitor.begin()
    token = token_of(page)
    by_clicks(page, range(1, 3))
    expect(saved(page)).to_have_text("Saved")
    context.set_offline(True)
    by_clicks(page, range(3, 8))
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


def test_a_killed_server_loses_nothing_and_doubles_nothing(visit: Visit, pack: Pack, tmp_path: Path) -> None:
    settings = installation(tmp_path, pack)
    with killable(settings, tmp_path / "log") as server:
        visitor = visit(at=server.url)
        visitor.forgiven = CUT_OFF
        page = visitor.begin()
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


@pytest.mark.parametrize("in_touch", [True, False])
def test_two_tabs_without_connection_are_one_session(visit: Visit, db: Database, in_touch: bool) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF + "|409"
    if not in_touch:  # an older browser: what another tab has answered is found out when it is answered again
        visitor.context.add_init_script("delete window.BroadcastChannel")
    one = visitor.begin()
    token = token_of(one)
    two = visitor.page(f"/s/{token}")
    painted(two)
    visitor.context.set_offline(True)
    one.bring_to_front()
    by_clicks(one, range(1, 5))
    two.bring_to_front()
    if not in_touch:
        expect(progress(two)).to_have_text(name_of(1))
        choose(two, "6", "8")  # the first tab's answer counts
        go(two).click()
    by_clicks(two, range(5, 8))
    one.bring_to_front()
    if not in_touch:
        expect(progress(one)).to_have_text(name_of(5))
        choose(one, "6", "8")
        go(one).click()
    by_clicks(one, range(8, 10))
    expect(progress(one)).to_have_text(name_of(10))
    assert len(kept(one)) == 9
    visitor.context.set_offline(False)
    for page in (one, two):
        page.bring_to_front()
        expect(saved(page)).to_have_text("Saved", timeout=15_000)
    assert_stored(db, token, range(1, 10))
    if not in_touch:
        two.reload()
    by_clicks(two, range(10, 11))
    expect(saved(two)).to_have_text("Saved")
    assert_stored(db, token, range(1, 11))


def test_a_second_device_with_the_same_link_races_and_the_first_answers_count(
    visit: Visit, db: Database, api: httpx2.Client
) -> None:
    laptop, phone = visit(), visit()
    for visitor in (laptop, phone):
        visitor.forgiven = CUT_OFF + "|409"
    one = laptop.begin()
    token = token_of(one)
    two = phone.page(f"/s/{token}")
    painted(two)
    phone.context.set_offline(True)
    for position in range(1, 6):  # on the phone, without connection, other answers to the same images
        expect(progress(two)).to_have_text(name_of(position))
        choose(two, "4", "2")
        go(two).click()
    by_clicks(one, range(1, 4))
    expect(saved(one)).to_have_text("Saved")
    phone.context.set_offline(False)
    expect(saved(two)).to_have_text("Saved", timeout=15_000)
    expect(progress(two)).to_have_text(name_of(6))
    assert [(row.position, row.label, row.runner_up) for row in rows(db, token)] == [
        *((position, *label_of(position)) for position in range(1, 4)),
        (4, "4", "2"),
        (5, "4", "2"),
    ]
    choose(one, "0", "1")  # image 4 on the laptop, answered on the phone
    go(one).click()
    expect(progress(one)).to_have_text(name_of(6))
    # The rest is played elsewhere; what is answered here then leads to where the session is.
    advance(Player(api, token), "judging")
    choose(one, "0", "1")
    go(one).click()
    expect(one.get_by_text("The computer’s answer:")).to_be_visible()
    assert [row.label for row in rows(db, token)[:6]] == [*(label_of(p)[0] for p in (1, 2, 3)), "4", "4", "3"]


def test_an_answer_that_the_browser_lost_is_asked_for_again(visit: Visit, db: Database) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF + "|409"
    page = visitor.begin()
    token = token_of(page)
    page.route(LABELS, lambda route: route.abort())
    by_clicks(page, range(1, 4))
    expect(saved(page)).to_have_text("Not saved yet: 3")
    forget(page, token, 2)
    painted(page)
    page.unroute(LABELS)
    hope(page)
    by_clicks(page, range(2, 3))
    by_clicks(page, range(4, 5))
    expect(saved(page)).to_have_text("Saved")
    assert_stored(db, token, range(1, 5))


def forget(page: Page, token: str, position: int) -> None:
    page.evaluate(
        """(key) => new Promise((done) => {
            const opening = indexedDB.open("reasonable-mistakes");
            opening.onsuccess = () => {
                const change = opening.result.transaction("answers", "readwrite");
                change.objectStore("answers").delete(key);
                change.oncomplete = () => { opening.result.close(); done(); };
            };
        })""",
        [token, "labelling", position],
    )


def test_a_withdrawal_elsewhere_empties_the_outbox(visit: Visit, db: Database, api: httpx2.Client) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF + "|409"
    page = visitor.begin()
    token = token_of(page)
    visitor.context.set_offline(True)
    by_clicks(page, range(1, 3))
    api.post(f"/api/sessions/{token}/withdraw").raise_for_status()
    visitor.context.set_offline(False)
    expect(page.get_by_role("heading", name="Your answers are deleted")).to_be_visible()
    assert kept(page) == []
    assert rows(db, token) == []


def test_a_withdrawal_here_is_forgotten_here(visit: Visit, db: Database) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF
    page = visitor.begin()
    token = token_of(page)
    page.evaluate("(token) => localStorage.setItem(`comment:${token}`, 'Half a thou')", token)
    page.route(LABELS, lambda route: route.abort())
    by_clicks(page, range(1, 3))
    expect(saved(page)).to_have_text("Not saved yet: 2")
    page.get_by_role("link", name="Stop and delete my answers").click()
    page.get_by_role("button", name="Delete everything").click()
    expect(page.get_by_role("heading", name="Your answers are deleted")).to_be_visible()
    page.wait_for_load_state("networkidle")
    assert kept(page) == []
    assert page.evaluate("localStorage.length") == 0
    assert rows(db, token) == []


@pytest.mark.parametrize("broken", ["missing", "refusing", "full"])
def test_without_a_store_the_page_waits_for_the_server(visit: Visit, db: Database, broken: str) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF
    visitor.context.add_init_script(
        {
            "missing": "Object.defineProperty(window, 'indexedDB', { value: undefined });",
            "refusing": "IDBFactory.prototype.open = () => { throw new DOMException('no', 'SecurityError'); };",
            "full": "IDBObjectStore.prototype.add = () => { throw new DOMException('no', 'QuotaExceededError'); };",
        }[broken]
    )
    page = visitor.begin()
    token = token_of(page)
    by_clicks(page, range(1, 3))
    expect(progress(page)).to_have_text(name_of(3))
    assert_stored(db, token, range(1, 3))
    painted(page)
    choose(page, *label_of(3))
    visitor.context.set_offline(True)
    go(page).click()
    expect(page.get_by_text("Please keep this page open until your answer is saved.")).to_be_visible()
    expect(go(page)).to_be_disabled()
    page.keyboard.press("Enter")  # impatience sends nothing more
    assert progress(page).inner_text() == name_of(3)
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    page.close(run_before_unload=True)
    until(page, asked, 1)
    assert asked == ["beforeunload"]
    visitor.context.set_offline(False)
    expect(progress(page)).to_have_text(name_of(4))
    expect(saved(page)).to_have_text("Saved")
    assert_stored(db, token, range(1, 4))


def test_a_comment_survives_a_reload_and_is_forgotten_once_it_is_stored(
    visit: Visit, db: Database, api: httpx2.Client
) -> None:
    player = begin(api)
    advance(player, "commenting")
    visitor = visit()
    visitor.forgiven = CUT_OFF + "|409"
    page = visitor.page(f"/s/{player.token}")
    box = page.get_by_role("textbox", name="How do the sheets differ?")
    box.fill("Half a thou")
    page.reload()
    expect(box).to_have_value("Half a thou")
    box.fill("A whole thought.")
    elsewhere = visit()
    elsewhere.forgiven = "409"
    other = elsewhere.page(f"/s/{player.token}")
    replies: list[Route] = []

    def lose(route: Route) -> None:
        replies.append(route)
        if len(replies) == 1:
            route.fetch()
            route.abort()
        else:
            route.continue_()

    page.route("**/comments", lose)
    page.get_by_role("button", name="Finish").click()
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    assert comment_of(db, player.token) == "A whole thought."
    assert participant_of(db, player.token).finished_at is not None
    assert page.evaluate("localStorage.length") == 0

    # A second window that was open all the while: what is written there comes too late, and that is said.
    other.get_by_role("textbox").fill("Another thought.")
    other.get_by_role("button", name="Finish").click()
    expect(other.get_by_role("alert")).to_have_text(
        "The session is finished; its comment can no longer be changed."
    )
    other.get_by_role("link", name="Go on").click()
    expect(other.get_by_role("heading", name="Thank you")).to_be_visible()
    assert comment_of(db, player.token) == "A whole thought."
