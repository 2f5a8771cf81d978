"""Reloads, the back button, double clicks, two tabs, a lost connection: one coherent session, nothing twice."""

import httpx2
import pytest
from playwright.sync_api import Page, expect

from app.db import Database
from tests.app.chromium.visitor import (
    VERDICTS,
    Visit,
    advance,
    by_clicks,
    by_keys,
    choose,
    go,
    judge_by_keys,
    judging_order,
    keys,
    label_of,
    name_of,
    painted,
    progress,
    rows,
    saved,
    settled,
    token_of,
    verdict,
)
from tests.app.conftest import Player

pytestmark = pytest.mark.quickly("sqlite")


def test_a_reload_gives_the_page_before_it(visit: Visit, api: httpx2.Client) -> None:
    visitor = visit()
    page = visitor.arrive()
    player = Player(api, token_of(page))
    by_keys(page, range(1, 5))
    for position, until in ((5, "judging"), (None, "commenting"), (None, "finished")):
        if position:
            expect(progress(page)).to_have_text(name_of(position))
        assert_same_after_reload(page)
        advance(player, until)
        page.reload()
        if until == "judging":
            judge_by_keys(page, range(1, 3))
            expect(progress(page)).to_have_text("Image 3 of 30")
            assert_same_after_reload(page)
    assert_same_after_reload(page)
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()


def assert_same_after_reload(page: Page) -> None:
    before = content(page)
    page.reload()
    assert content(page) == before


def content(page: Page) -> tuple[str, list[str]]:
    settled(page)
    sources: list[str] = page.locator("img").evaluate_all("all => all.map(i => i.src)")
    return page.get_by_role("main").inner_text(), sources


def test_a_choice_that_was_not_sent_is_gone_after_a_reload_and_nothing_is_stored(
    visit: Visit, db: Database
) -> None:
    page = visit().arrive()
    choose(page, "3", "5")
    page.reload()
    expect(page.get_by_role("radio", checked=True)).to_have_count(0)
    assert rows(db, token_of(page)) == []


@pytest.mark.parametrize("scripts", [True, False])
def test_the_back_button_shows_no_trial_that_could_be_answered_twice(
    visit: Visit, db: Database, scripts: bool
) -> None:
    page = visit(java_script_enabled=scripts).begin()
    token = token_of(page)
    answer = by_keys if scripts else by_clicks
    answer(page, range(1, 4))
    expect(progress(page)).to_have_text(name_of(4))
    page.go_back()
    if "/s/" not in page.url:
        page.go_forward()
    # An old page may come back without scripts; what it sends leads to the right image and changes nothing.
    if progress(page).inner_text() != name_of(4):
        assert not scripts
        choose(page, "8", "6")
        go(page).click()
    expect(progress(page)).to_have_text(name_of(4))
    answer(page, range(4, 6))
    expect(progress(page)).to_have_text(name_of(6))
    if scripts:
        expect(saved(page)).to_have_text("Saved")
    assert [(row.position, row.label, row.runner_up) for row in rows(db, token)] == [
        (position, *label_of(position)) for position in range(1, 6)
    ]


@pytest.mark.parametrize("scripts", [True, False])
def test_a_double_click_stores_one_answer_and_skips_none(visit: Visit, db: Database, scripts: bool) -> None:
    visitor = visit(java_script_enabled=scripts)
    visitor.forgiven = "422"
    page = visitor.arrive()
    token = token_of(page)
    for position in range(1, 6):
        expect(progress(page)).to_have_text(name_of(position))
        choose(page, *label_of(position))
        go(page).dblclick()
        expect(progress(page)).to_have_text(name_of(position + 1))
    if scripts:
        expect(saved(page)).to_have_text("Saved")
    assert [(row.position, row.label, row.runner_up) for row in rows(db, token)] == [
        (position, *label_of(position)) for position in range(1, 6)
    ]


def test_enter_held_down_answers_once(visit: Visit, db: Database) -> None:
    page = visit().arrive()
    expect(keys(page)).to_be_visible()
    for key in ("3", "5"):
        page.keyboard.press(key)
    page.keyboard.down("Enter")
    expect(progress(page)).to_have_text(name_of(2))
    for _ in range(5):
        page.keyboard.down("Enter")  # the browser's own repetition of a key that stays down
    expect(page.get_by_role("alert")).to_be_hidden()
    page.keyboard.up("Enter")
    expect(progress(page)).to_have_text(name_of(2))
    page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    expect(page.get_by_role("alert")).to_be_visible()  # a new press is a new attempt, and nothing is chosen
    expect(saved(page)).to_have_text("Saved")
    assert len(rows(db, token_of(page))) == 1


@pytest.mark.parametrize("in_touch", [True, False])
def test_two_tabs_are_one_session(visit: Visit, db: Database, api: httpx2.Client, in_touch: bool) -> None:
    visitor = visit()
    visitor.forgiven = "409"  # how a tab learns that it is behind
    if not in_touch:
        visitor.prepare = lambda page: page.add_init_script("delete window.BroadcastChannel")
    one = visitor.arrive()
    token = token_of(one)
    two = visitor.page(f"/s/{token}")
    painted(two)
    one.bring_to_front()
    by_keys(one, range(1, 4))
    expect(saved(one)).to_have_text("Saved")
    two.bring_to_front()
    if in_touch:
        expect(progress(two)).to_have_text(name_of(4))
    else:
        choose(two, "6", "8")  # image 1, which the first tab has answered
        go(two).click()
    by_keys(two, range(4, 6))
    expect(saved(two)).to_have_text("Saved")
    advance(Player(api, token), "judging", most=32 - 5 - 1)
    two.reload()
    by_keys(two, range(32, 33))
    expect(two.get_by_text("The computer’s answer:")).to_be_visible()
    one.bring_to_front()
    choose(one, "6", "8")  # an image in the middle, and the session is in judging by now
    go(one).click()
    judge_by_keys(one, range(1, 3))
    expect(saved(one)).to_have_text("Saved")
    two.bring_to_front()
    if not in_touch:
        settled(two)
        verdict(two, "Yes").check()  # the first image, judged by the first tab
        go(two).click()
    judge_by_keys(two, range(3, 4))
    expect(saved(two)).to_have_text("Saved")
    found = rows(db, token)
    assert [
        (row.position, row.label, row.runner_up) for row in found if row.position in (*range(1, 6), 32)
    ] == [(position, *label_of(position)) for position in (*range(1, 6), 32)]
    plausible = {row.position: row.plausible for row in found}
    judged = [plausible[position] for position in judging_order(db, token)]
    assert judged == [*(VERDICTS[number % 3] for number in range(1, 4)), *[None] * 27]
    advance(Player(api, token), "commenting")
    for page in (one, two):
        page.reload()
        expect(page.get_by_role("button", name="Finish")).to_be_visible()
    for page in (one, two):
        page.bring_to_front()
        page.get_by_role("button", name="Finish").click()
        expect(page.get_by_role("heading", name="Thank you")).to_be_visible()


def test_nothing_moves_around_the_image(visit: Visit) -> None:
    """The image, the keys and the button stay where they are while notes and errors come and go."""
    for size in ({"width": 1280, "height": 720}, {"width": 360, "height": 640}):
        page = visit(viewport=size).arrive()
        places = []
        for position in range(1, 5):
            expect(progress(page)).to_have_text(name_of(position))
            places.append(where(page))
            go(page).click()
            expect(page.get_by_role("alert")).to_be_visible()
            places.append(where(page))
            choose(page, *label_of(position))
            places.append(where(page))
            go(page).click()
        assert all(place == places[0] for place in places), places


def where(page: Page) -> list[object]:
    """The places of the image, both questions and the button, with the page at its top."""
    places: list[object] = page.evaluate(
        """() => {
            scrollTo(0, 0);
            const ids = ["stimulus", "label", "runner_up", "continue"];
            return ids.map((id) => document.getElementById(id).getBoundingClientRect().toJSON());
        }"""
    )
    return places
