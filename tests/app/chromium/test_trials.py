"""One trial: its image is there before it begins, what is pressed is measured or refused, it fits every screen."""

import json
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, Route, expect

from app import codebook, tables
from app.db import Database
from tests.app.chromium.visitor import (
    Visit,
    advance,
    boxes,
    by_clicks,
    by_keys,
    choose,
    first_labels,
    go,
    image,
    judge_by_clicks,
    label_of,
    name_of,
    painted,
    participant_of,
    progress,
    resize,
    rows,
    saved,
    second_labels,
    token_of,
)
from tests.app.conftest import Player, begin

pytestmark = pytest.mark.quickly("sqlite")


def display_of(db: Database, token: str, position: int) -> dict[str, Any]:
    return next(row.display[0] for row in rows(db, token) if row.position == position)


def checked(page: Page) -> list[tuple[str, str]]:
    found = page.get_by_role("radio", checked=True).evaluate_all("all => all.map(i => [i.name, i.value])")
    return [(name, value) for name, value in found]


def test_no_trial_begins_before_every_image_is_there(visit: Visit, db: Database, api: httpx2.Client) -> None:
    """A failed image is said to be missing and tried again, by itself and by a button; it is never shown blank."""
    player = begin(api)
    failing = player.session()["trials"][3]["image"]
    visitor = visit()
    visitor.forgiven = "ERR_FAILED|503"
    asked: list[Route] = []

    def fail(route: Route) -> None:
        asked.append(route)
        if len(asked) == 1:
            route.abort()
        elif len(asked) == 2:
            route.fulfill(status=503)
        elif len(asked) <= 4:  # fetched anew, and then as an image
            route.fulfill(status=200, content_type="image/png", body=b"\x89PNG and then nonsense")
        else:
            route.continue_()

    visitor.context.route(f"**{failing}", fail)
    page = visitor.page(f"/s/{player.token}")
    expect(page.get_by_text("Loading the images: 31 of 32")).to_be_visible()
    bar = page.get_by_role("progressbar", name="Loading the images")
    expect(bar).to_have_attribute("value", "31")
    expect(bar).to_have_attribute("max", "32")
    expect(page.get_by_text("Images that could not be loaded yet: 1. Trying again …")).to_be_visible()
    for shown in (image(page), go(page), first_labels(page)):
        expect(shown).to_be_hidden()
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    retry = page.get_by_role("button", name="Try again now")
    for _ in range(200):
        if not retry.is_visible():
            break
        retry.evaluate_all(
            "buttons => buttons.forEach((button) => button.click())"
        )  # it may have gone by now
        page.evaluate("new Promise((done) => setTimeout(done, 50))")
    painted(page)
    by_keys(page, range(1, 6))
    expect(saved(page)).to_have_text("Saved")
    assert display_of(db, player.token, 4)["image_retries"] == 3
    assert [display_of(db, player.token, position)["image_retries"] for position in (1, 2, 3, 5)] == [0] * 4


def test_every_image_is_decoded_and_shown_whole(visit: Visit) -> None:
    page = visit().arrive()
    for position in range(1, 6):
        expect(progress(page)).to_have_text(name_of(position))
        painted(page)
        drawn = image(page).evaluate(
            """(image) => {
                const canvas = Object.assign(document.createElement("canvas"), { width: 28, height: 28 });
                const context = canvas.getContext("2d");
                context.drawImage(image, 0, 0);
                return [image.complete, new Set(context.getImageData(0, 0, 28, 28).data).size];
            }"""
        )
        assert drawn[0] is True
        assert drawn[1] > 2, "not one flat color"
        choose(page, *label_of(position))
        go(page).click()


@pytest.mark.parametrize("lost", ["session.js", "outbox.js"])
def test_where_the_scripts_do_not_come_the_plain_form_does(visit: Visit, db: Database, lost: str) -> None:
    visitor = visit()
    visitor.forgiven = "ERR_FAILED"
    visitor.context.route(f"**/static/{lost}", lambda route: route.abort())
    page = visitor.arrive()
    expect(image(page)).to_be_visible()
    by_clicks(page, range(1, 3))
    expect(progress(page)).to_have_text(name_of(3))
    assert [(row.label, row.display) for row in rows(db, token_of(page))] == [
        (label_of(position)[0], [{}]) for position in (1, 2)
    ]


EAGER = """
new MutationObserver(() => {
    const stage = document.getElementById("stage");
    if (!stage?.dataset.shown || stage.dataset.shown === window.seen) return;
    window.seen = stage.dataset.shown;
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "3", bubbles: true }));
    document.querySelector("input[name=runner_up][value='5']").click();
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
    document.getElementById("continue").click();
    window.after = document.querySelectorAll("input:checked[type=radio]").length;
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["data-shown"] });
"""


def test_what_is_pressed_too_early_is_no_answer_and_recorded(visit: Visit, db: Database) -> None:
    """Within the study file's default of 200 ms after the paint."""
    visitor = visit()
    visitor.prepare = lambda page: page.add_init_script(EAGER)
    page = visitor.arrive("careful")
    token = token_of(page)
    for position in range(1, 3):
        expect(progress(page)).to_have_text(name_of(position))
        painted(page)
        assert page.evaluate("window.after") == 0
        assert checked(page) == []
        expect(page.get_by_role("alert")).to_be_hidden()
        page.evaluate("new Promise((done) => setTimeout(done, 250))")
        choose(page, *label_of(position))
        go(page).click()
    expect(saved(page)).to_have_text("Saved")
    found = rows(db, token)
    assert [(row.label, row.runner_up) for row in found] == [label_of(1), label_of(2)]
    assert [row.display[0]["too_early"] for row in found] == [4, 4]
    assert all((row.rt_ms[0] or 0) >= 250 for row in found)


def test_the_response_time_is_that_from_the_image_to_the_answer(visit: Visit, db: Database) -> None:
    page = visit().arrive()
    token = token_of(page)
    shown = page.evaluate("performance.now()")
    page.evaluate("new Promise((done) => setTimeout(done, 700))")
    choose(page, *label_of(1))
    page.evaluate(
        "document.addEventListener('submit', () => { window.sentAt = performance.now(); }, { capture: true })"
    )
    go(page).click()
    expect(saved(page)).to_have_text("Saved")
    (rt_ms,) = rows(db, token)[0].rt_ms
    assert rt_ms is not None
    assert rt_ms >= 700
    assert rt_ms >= page.evaluate("window.sentAt") - shown - 1
    assert rt_ms <= page.evaluate("window.sentAt")


def test_held_keys_and_hiding_are_recorded_and_every_record_has_its_column(
    visit: Visit, db: Database
) -> None:
    page = visit().arrive()
    token = token_of(page)
    keyboard = page.keyboard
    keyboard.down("3")
    for _ in range(3):
        keyboard.down("3")
    assert checked(page) == [("label", "3")]
    keyboard.up("3")
    keyboard.press("5")
    page.evaluate(
        """async () => {
            const hide = (hidden) => {
                Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
                document.dispatchEvent(new Event("visibilitychange"));
            };
            hide(true);
            await new Promise((done) => setTimeout(done, 300));
            hide(false);
        }"""
    )
    keyboard.press("Enter")
    expect(progress(page)).to_have_text(name_of(2))
    painted(page)
    choose(page, *label_of(2))
    go(page).click()
    expect(saved(page)).to_have_text("Saved")
    first, second = (display_of(db, token, position) for position in (1, 2))
    assert (first["held_keys"], first["too_early"], first["hidden_times"], first["input"]) == (
        3,
        0,
        1,
        "keyboard",
    )
    assert first["hidden_ms"] >= 300
    assert (second["held_keys"], second["hidden_times"], second["hidden_ms"], second["input"]) == (
        0,
        0,
        0,
        "mouse",
    )
    assert (first["viewport_width"], first["viewport_height"]) == (1280, 720)
    assert len(json.dumps(first)) < 1000
    for display in (first, second):
        assert set(display) == set(codebook.DISPLAY)
        assert tables.displayed(display) == display | {"display_left_out": 0}


def test_a_pause_between_blocks_and_a_rotated_order_of_questions(
    visit: Visit, db: Database, api: httpx2.Client
) -> None:
    tokens = [begin(api, "blocks").token for _ in range(2)]
    first, second = sorted(tokens, key=lambda token: participant_of(db, token).runner_up_first)
    assert [participant_of(db, token).runner_up_first for token in (first, second)] == [False, True]
    visitor = visit()
    visitor.forgiven = "ERR_INTERNET_DISCONNECTED"
    legends = []
    for token in (first, second):
        page = visitor.page(f"/s/{token}")
        painted(page)
        legends.append(page.locator("legend").all_inner_texts())
    assert legends[1] == legends[0][::-1]

    # The page's first question is the second most plausible reading, by keys too; the readings exclude each other.
    keyboard = page.keyboard
    keyboard.press("5")
    assert checked(page) == [("runner_up", "5")]
    expect(first_labels(page).get_by_role("radio", name="5", exact=True)).to_be_disabled()
    keyboard.press("5")
    assert checked(page) == [("runner_up", "5")]
    keyboard.press("3")
    assert checked(page) == [("runner_up", "5"), ("label", "3")]
    keyboard.press("Backspace")
    assert checked(page) == [("runner_up", "5")]
    keyboard.press("n")  # none is plausible: then there is no second one either
    assert checked(page) == [("runner_up", "none"), ("label", "none")]
    second_labels(page).get_by_role("radio", name="2", exact=True).check()
    assert checked(page) == [("runner_up", "2")]
    for _ in range(2):
        keyboard.press("Backspace")
    assert checked(page) == []
    keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("Choose a second reading too, or “no other”.")

    by_clicks(page, range(1, 6))
    pause = page.get_by_role("heading", name="Time for a pause")
    expect(pause).to_be_visible()
    expect(image(page)).to_be_hidden()
    expect(go(page)).to_be_hidden()
    page.reload()  # ends it, as the participant comes back of their own accord
    painted(page)
    visitor.context.set_offline(True)
    by_clicks(page, range(6, 9))
    expect(pause).to_be_visible()
    page.evaluate("new Promise((done) => setTimeout(done, 600))")
    page.get_by_role("button", name="Go on").click()
    expect(progress(page)).to_have_text(name_of(9))
    by_clicks(page, range(9, 12))
    expect(pause).to_be_visible()
    page.evaluate("new Promise((done) => setTimeout(done, 600))")
    keyboard.press("Enter")
    expect(progress(page)).to_have_text(name_of(12))
    painted(page)
    visitor.context.set_offline(False)
    expect(saved(page)).to_have_text("Saved", timeout=15_000)
    assert [(row.position, row.label, row.runner_up) for row in rows(db, second)] == [
        (position, *label_of(position)) for position in range(1, 12)
    ]
    advance(Player(api, second), "judging", most=32 - 11 - 1)
    page.reload()
    by_clicks(page, range(32, 33))
    expect(page.get_by_text("The computer’s answer:")).to_be_visible()  # no pause at the end of a part
    judge_by_clicks(page, range(1, 4))
    expect(pause).to_be_visible()


def test_single_keys_can_be_switched_off_for_good(visit: Visit, db: Database) -> None:
    """WCAG 2.1.4; what works without them, Tab, the arrows, Space and Enter, still does."""
    visitor = visit()
    page = visitor.arrive()
    token = token_of(page)
    switch = page.get_by_role("checkbox", name="Keys:")
    expect(switch).to_be_checked()
    page.keyboard.press("4")
    assert checked(page) == [("label", "4")]
    page.keyboard.press("Backspace")
    switch.uncheck()
    for key in ("4", "n", "Backspace"):
        page.keyboard.press(key)
    assert checked(page) == []
    page.reload()
    painted(page)
    expect(switch).not_to_be_checked()
    page.keyboard.press("4")
    assert checked(page) == []
    first_labels(page).get_by_role("radio", name="0", exact=True).focus()
    for key in ("Space", "ArrowRight", "ArrowRight", "ArrowRight", "Tab", "Space"):
        page.keyboard.press(key)
    assert checked(page) == [("label", "3"), ("runner_up", "0")]
    page.keyboard.press("Enter")
    expect(progress(page)).to_have_text(name_of(2))
    expect(saved(page)).to_have_text("Saved")
    assert [(row.label, row.runner_up) for row in rows(db, token)] == [("3", "0")]
    painted(page)
    switch.check()
    page.reload()
    painted(page)
    page.keyboard.press("7")
    assert checked(page) == [("label", "7")]


@pytest.mark.parametrize(("width", "height"), [(360, 640), (1366, 768)])
def test_labels_of_several_letters_are_chosen_by_position(
    visit: Visit, db: Database, width: int, height: int
) -> None:
    visitor = visit(viewport={"width": width, "height": height})
    page = visitor.arrive("words")
    token = token_of(page)
    painted(page)
    hint = page.locator("#keys")
    expect(hint).to_contain_text("1–3 choose by position · N none")
    shown = first_labels(page).locator("kbd")
    assert shown.all_inner_texts() == ["1", "2", "3"]
    for label, digit in zip(first_labels(page).locator(".key:has(kbd)").all(), shown.all(), strict=True):
        around, inside = label.bounding_box(), digit.bounding_box()
        assert around
        assert inside
        assert around["x"] < inside["x"] < inside["x"] + inside["width"] < around["x"] + around["width"]
        assert around["y"] < inside["y"]
    for key in ("b", "4", "0"):
        page.keyboard.press(key)
    assert checked(page) == []
    page.keyboard.press("3")
    page.keyboard.press("1")
    assert checked(page) == [("label", "vertical"), ("runner_up", "box")]
    page.keyboard.press("Enter")
    expect(progress(page)).to_have_text(name_of(2))
    expect(saved(page)).to_have_text("Saved")
    assert [(row.label, row.runner_up) for row in rows(db, token)] == [("vertical", "box")]
    painted(page)
    page.get_by_role("checkbox", name="Keys:").uncheck()
    expect(shown.first).to_be_hidden()
    page.keyboard.press("2")
    assert checked(page) == []
    first_labels(page).get_by_role("radio", name="horizontal", exact=True).check()
    assert checked(page) == [("label", "horizontal")]


SCREENS = [(360, 640), (683, 657), (800, 600), (768, 1024), (1366, 768)]


def test_every_screen_shows_all_of_a_trial_at_once(visit: Visit, api: httpx2.Client) -> None:
    player = begin(api)
    for state in ("labelling", "judging"):
        advance(player, state)
        page = visit().page(f"/s/{player.token}")
        painted(page)
        for width, height in SCREENS:
            resize(page, width, height)
            assert page.evaluate("document.scrollingElement.scrollWidth") <= width
            groups = page.get_by_role("group")
            assert groups.count() == (2 if state == "labelling" else 1)
            for needed in (image(page), groups, go(page), saved(page), progress(page)):
                places = boxes(needed)
                assert places
                for box in places:
                    assert box["y"] >= 0
                    assert box["y"] + box["height"] <= height, (state, width, height, needed)
            # The target of a checkbox is its label.
            targets = "input:not([type=checkbox]):visible, button:visible, .foot a, label.tick"
            for box in boxes(page.locator(targets)):
                assert min(box["width"], box["height"]) >= 44, (state, width, box)


def test_what_the_participants_system_asks_for_is_respected(visit: Visit, api: httpx2.Client) -> None:
    player = begin(api)
    color = "e => getComputedStyle(e).color"
    motion = "e => getComputedStyle(e).transitionDuration"
    page = visit(reduced_motion="reduce", contrast="more").page(f"/s/{player.token}")
    painted(page)
    assert go(page).evaluate(motion) == "0s"
    assert page.locator(".part").evaluate(color) == page.locator("body").evaluate(color)
    page = visit(reduced_motion="no-preference").page(f"/s/{player.token}")
    painted(page)
    assert go(page).evaluate(motion) != "0s"
    assert page.locator(".part").evaluate(color) != page.locator("body").evaluate(color)
    page = visit(forced_colors="active", reduced_motion="reduce").page(f"/s/{player.token}")
    painted(page)
    key = first_labels(page).locator(".key").first
    before = key.locator("span").evaluate("e => getComputedStyle(e).backgroundColor")
    key.click()
    page.mouse.move(0, 0)
    assert key.locator("span").evaluate("e => getComputedStyle(e).backgroundColor") != before
