"""Where a session meets another window, another device, a withdrawal or a browser that keeps nothing."""

import httpx2
import pytest
from playwright.sync_api import Dialog, Page, Route, expect

from app.db import Database
from tests.app.chromium.visitor import (
    CUT_OFF,
    SENT,
    Visit,
    advance,
    assert_stored,
    by_clicks,
    by_keys,
    choose,
    comment_of,
    go,
    hope,
    kept,
    label_of,
    name_of,
    painted,
    participant_of,
    progress,
    rows,
    saved,
    token_of,
    until,
)
from tests.app.conftest import Player, begin

pytestmark = pytest.mark.quickly("sqlite")


@pytest.mark.parametrize("in_touch", [True, False])
def test_two_tabs_without_connection_are_one_session(visit: Visit, db: Database, in_touch: bool) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF + "|409"
    if not in_touch:  # an older browser: what another tab has answered is found out when it is answered again
        visitor.prepare = lambda page: page.add_init_script("delete window.BroadcastChannel")
    one = visitor.arrive()
    token = token_of(one)
    two = visitor.page(f"/s/{token}")
    painted(two)
    visitor.context.set_offline(True)
    one.bring_to_front()
    by_keys(one, range(1, 5))
    two.bring_to_front()
    if not in_touch:
        expect(progress(two)).to_have_text(name_of(1))
        choose(two, "6", "8")  # the first tab's answer counts
        go(two).click()
    by_keys(two, range(5, 8))
    one.bring_to_front()
    if not in_touch:
        expect(progress(one)).to_have_text(name_of(5))
        choose(one, "6", "8")
        go(one).click()
    by_keys(one, range(8, 10))
    expect(progress(one)).to_have_text(name_of(10))
    assert len(kept(one)) == 9
    visitor.context.set_offline(False)
    for page in (one, two):
        page.bring_to_front()
        expect(saved(page)).to_have_text("Saved", timeout=15_000)
    assert_stored(db, token, range(1, 10))
    if not in_touch:
        two.reload()
    by_keys(two, range(10, 11))
    expect(saved(two)).to_have_text("Saved")
    assert_stored(db, token, range(1, 11))


def test_a_second_device_with_the_same_link_races_and_the_first_answers_count(
    visit: Visit, db: Database, api: httpx2.Client
) -> None:
    laptop, phone = visit(), visit()
    for visitor in (laptop, phone):
        visitor.forgiven = CUT_OFF + "|409"
    one = laptop.arrive()
    token = token_of(one)
    two = phone.page(f"/s/{token}")
    painted(two)
    phone.context.set_offline(True)
    for position in range(1, 6):  # on the phone, without connection, other answers to the same images
        expect(progress(two)).to_have_text(name_of(position))
        choose(two, "4", "2")
        go(two).click()
    by_keys(one, range(1, 4))
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
    page = visitor.arrive()
    token = token_of(page)
    page.route(SENT, lambda route: route.abort())
    by_keys(page, range(1, 4))
    expect(saved(page)).to_have_text("Not saved yet: 3")
    forget(page, token, 2)
    painted(page)
    page.unroute(SENT)
    hope(page)
    by_keys(page, range(2, 3))
    by_keys(page, range(4, 5))
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
    page = visitor.arrive()
    token = token_of(page)
    visitor.context.set_offline(True)
    by_keys(page, range(1, 3))
    api.post(f"/api/sessions/{token}/withdraw").raise_for_status()
    visitor.context.set_offline(False)
    expect(page.get_by_role("heading", name="Your answers are deleted")).to_be_visible()
    assert kept(page) == []
    assert rows(db, token) == []


def test_a_withdrawal_here_is_forgotten_here(visit: Visit, db: Database) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF
    page = visitor.arrive()
    token = token_of(page)
    page.evaluate("(token) => localStorage.setItem(`comment:${token}`, 'Half a thou')", token)
    page.route(SENT, lambda route: route.abort())
    by_keys(page, range(1, 3))
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
    script = {
        "missing": "Object.defineProperty(window, 'indexedDB', { value: undefined });",
        "refusing": "IDBFactory.prototype.open = () => { throw new DOMException('no', 'SecurityError'); };",
        "full": "IDBObjectStore.prototype.add = () => { throw new DOMException('no', 'QuotaExceededError'); };",
    }[broken]
    visitor.prepare = lambda page: page.add_init_script(script)
    page = visitor.arrive()
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


def test_a_store_that_fails_amid_the_session_loses_nothing(visit: Visit, db: Database) -> None:
    """What it held is sent from memory; from then on nothing counts as kept before the server has it."""
    visitor = visit()
    visitor.forgiven = CUT_OFF
    page = visitor.arrive()
    token = token_of(page)
    visitor.context.set_offline(True)
    by_keys(page, range(1, 4))
    expect(progress(page)).to_have_text(name_of(4))
    page.evaluate(
        """() => {
            IDBDatabase.prototype.transaction = () => { throw new DOMException("gone", "UnknownError"); };
        }"""
    )
    painted(page)
    choose(page, *label_of(4))
    go(page).click()
    expect(page.get_by_text("Please keep this page open until your answer is saved.")).to_be_visible()
    expect(saved(page)).to_have_text("Not saved yet: 4")
    assert progress(page).inner_text() == name_of(4), "the answer is in this page alone: it stays"
    assert rows(db, token) == []
    visitor.context.set_offline(False)
    expect(progress(page)).to_have_text(name_of(5))
    expect(saved(page)).to_have_text("Saved")
    assert_stored(db, token, range(1, 5))
    by_keys(page, range(5, 7))
    expect(progress(page)).to_have_text(name_of(7))
    assert_stored(db, token, range(1, 7))


def test_two_people_at_one_device_are_never_mixed(visit: Visit, db: Database) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF
    first = visitor.begin()
    mine = token_of(first)
    first.route(SENT, lambda route: route.abort())
    by_clicks(first, range(1, 4))
    expect(saved(first)).to_have_text("Not saved yet: 3")
    second = visitor.begin("/study/test?another=yes")
    theirs = token_of(second)
    assert theirs != mine
    by_clicks(second, range(1, 3))
    expect(saved(second)).to_have_text("Saved")
    assert_stored(db, theirs, range(1, 3))
    assert rows(db, mine) == [], "nobody sends another one's answers"
    second.get_by_role("link", name="Stop and delete my answers").click()
    second.get_by_role("button", name="Delete everything").click()
    expect(second.get_by_role("heading", name="Your answers are deleted")).to_be_visible()
    first.bring_to_front()
    first.unroute(SENT)
    hope(first)
    expect(saved(first)).to_have_text("Saved")
    assert_stored(db, mine, range(1, 4))
    assert rows(db, theirs) == []


def test_an_answer_that_is_refused_is_asked_for_again(visit: Visit, db: Database) -> None:
    """The server never takes it: the participant is told and answers once more, nothing behind it is stuck."""
    visitor = visit()
    visitor.forgiven = "422"
    page = visitor.arrive()
    token = token_of(page)
    refusals: list[Route] = []

    def refuse(route: Route) -> None:
        refusals.append(route)
        if len(refusals) == 1:
            route.fulfill(status=422, json={"detail": "no"})
        else:
            route.continue_()

    page.route("**/trials/2/label", refuse)
    by_keys(page, range(1, 3))
    expect(page.get_by_role("alert")).to_have_text(
        "This answer could not be stored. Please answer once more."
    )
    expect(progress(page)).to_have_text(name_of(2))
    by_keys(page, range(2, 5))
    expect(saved(page)).to_have_text("Saved")
    assert_stored(db, token, range(1, 5))


def test_without_connection_no_link_leads_out_of_the_session(visit: Visit, db: Database) -> None:
    """The browser's own error page has no way back."""
    visitor = visit()
    visitor.forgiven = CUT_OFF
    page = visitor.arrive()
    leave = page.get_by_role("link", name="Stop and delete my answers")
    visitor.context.set_offline(True)
    leave.click()
    expect(page.get_by_role("alert")).to_have_text(
        "There is no connection just now; this works again as soon as there is one."
    )
    expect(progress(page)).to_have_text(name_of(1))
    visitor.context.set_offline(False)
    leave.click()
    expect(page.get_by_role("heading", name="Delete all your answers?")).to_be_visible()


def test_what_another_tab_has_sent_is_trouble_no_more(visit: Visit, db: Database) -> None:
    visitor = visit()
    visitor.forgiven = CUT_OFF + "|409"
    one = visitor.arrive()
    token = token_of(one)
    one.route(SENT, lambda route: route.abort())
    by_keys(one, range(1, 4))
    expect(one.get_by_text("No connection. You can go on")).to_be_visible()
    two = visitor.page(f"/s/{token}")
    expect(saved(two)).to_have_text("Saved")
    assert_stored(db, token, range(1, 4))
    one.bring_to_front()
    one.unroute(SENT)
    hope(one)
    expect(saved(one)).to_have_text("Saved")
    expect(one.get_by_text("No connection. You can go on")).to_be_hidden()
