"""Whole sessions in real Chromium against a real server process, ending in the right rows."""

import random
import re
from collections.abc import Iterator

import httpx2
import pytest
from playwright.sync_api import Locator, Page, expect

from app.bot import PAPER_FOOLED, PAPER_REASONABLE, Labels, Rates, Remark, bot
from app.bot import Page as Seen
from app.db import Database
from ml.pack import Pack
from tests.app.chromium.visitor import (
    NATIVE,
    SHORT,
    VERDICTS,
    Visit,
    Visitor,
    advance,
    assert_as_planned,
    assert_crisp,
    assert_measured,
    boxes,
    choose,
    comment_of,
    first_labels,
    go,
    image,
    judge_by_clicks,
    judging_order,
    label_of,
    name_of,
    painted,
    participant_of,
    progress,
    recruiter_ids_of,
    rows,
    second_labels,
    settled,
    token_of,
    verdict,
)
from tests.app.conftest import Player, begin


def test_a_whole_session_by_keyboard_alone(visit: Visit, db: Database) -> None:
    page = visit(viewport={"width": 1280, "height": 720}).page("/study/short?PROLIFIC_PID=abc")
    keyboard = page.keyboard
    reach(page, page.get_by_role("checkbox", name="I agree to all of this"))
    keyboard.press("Space")
    reach(page, page.get_by_role("button", name="Begin"))
    keyboard.press("Enter")

    for position in range(1, SHORT + 3):
        expect(progress(page)).to_have_text(name_of(position, SHORT))
        expect(page.get_by_role("radio", checked=True)).to_have_count(0)
        painted(page)
        label, runner_up = label_of(position)
        if position == 4:  # undone: the second label, then the first one too
            for key in ("2", "3", "Backspace", "Backspace"):
                keyboard.press(key)
            expect(page.get_by_role("radio", checked=True)).to_have_count(0)
        if position == 5:  # a changed mind: the second label, thrice
            for key in ("3", "1", "n", "3"):  # 3 is the first label and cannot be the second
                keyboard.press(key)
            keyboard.press("Backspace")
            keyboard.press("Backspace")
        if position == 10:  # too early: nothing is sent before both labels are there
            keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_have_text("Choose a reading, or “none is plausible”.")
            keyboard.press(label)
            expect(page.get_by_role("alert")).to_be_hidden()
            keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_have_text("Choose a second reading too, or “no other”.")
            keyboard.press(runner_up)
        elif label == "none":
            keyboard.press("N" if position % 2 else "n")
        else:
            keyboard.press(label)
            keyboard.press("n" if runner_up == "none" else runner_up)
        if position == 7:  # by tabs alone, as with a screen reader
            reach(page, go(page))
        keyboard.press("Enter")

    for number in range(1, SHORT + 1):
        expect(page.get_by_text("The computer’s answer:")).to_be_visible()
        expect(progress(page)).to_have_text(f"Image {number} of {SHORT}")
        painted(page)
        if number == 2:
            keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_have_text("Choose yes or no.")
            keyboard.press("y")
        keyboard.press("y" if VERDICTS[number % len(VERDICTS)] else "N")
        keyboard.press("Enter")

    reach(page, page.get_by_role("textbox", name="How do the sheets differ?"))
    keyboard.type("Sheet B is the clearest: 1, 2 and n.")
    reach(page, page.get_by_role("button", name="Finish"))
    keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()

    token = token_of(page)
    assert_as_planned(db, token, SHORT)
    participant = participant_of(db, token)
    assert comment_of(db, token) == "Sheet B is the clearest: 1, 2 and n."
    assert recruiter_ids_of(db, token) == ["abc"]
    assert participant.completion_code is not None
    expect(page.locator("#completion-code")).to_have_text(participant.completion_code)


def reach(page: Page, target: Locator) -> None:
    """Press Tab until the target has the focus, which must then be visible."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            assert target.evaluate("element => element.matches(':focus-visible')")
            return
    raise AssertionError(f"the keyboard does not reach {target}")


def phone(visit: Visit, ratio: float) -> Visitor:
    size = {"width": 360, "height": 640}
    visitor = visit(viewport=size, device_scale_factor=ratio, has_touch=True, is_mobile=True)
    visitor.forgiven = "404"
    return visitor


@pytest.mark.quickly("sqlite")  # what is stored is stored as in the session by keyboard
def test_the_bot_plays_a_whole_session_by_touch_on_a_small_phone(
    visit: Visit, db: Database, short: Pack
) -> None:
    """The bot of `simulate` sees what a participant sees, and taps what they tap."""
    page = phone(visit, 1.5).page("/")
    page.get_by_role("link", name="A short study").tap()
    page.get_by_role("checkbox", name="I agree to all of this").tap()
    page.get_by_role("button", name="Begin").tap()
    labels: list[tuple[str, str | None]] = []
    verdicts: list[bool] = []
    playing = bot(seen(page), short, Rates(PAPER_FOOLED, PAPER_REASONABLE), random.Random(5), "By a bot.")
    answer = next(playing)
    while not isinstance(answer, Remark):
        if isinstance(answer, Labels):
            labels.append((answer.label, answer.runner_up))
            first = "None is plausible" if answer.label == "none" else answer.label
            first_labels(page).get_by_role("radio", name=first, exact=True).tap()
            if answer.label != "none":
                second = "No other" if answer.runner_up == "none" else answer.runner_up
                second_labels(page).get_by_role("radio", name=second, exact=True).tap()
        else:
            verdicts.append(answer.plausible)
            verdict(page, "Yes" if answer.plausible else "No").tap()
        stage = page.locator("#stage")
        phase, shown = (stage.get_attribute(f"data-{name}") for name in ("phase", "shown"))
        go(page).tap()
        expect(page.locator(f"[data-phase={phase}][data-shown='{shown}']")).to_have_count(0)
        answer = playing.send(seen(page))
    page.get_by_role("textbox", name="How do the sheets differ?").fill(answer.text)
    page.get_by_role("button", name="Finish").tap()
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    token = token_of(page)
    found = rows(db, token)
    assert [(row.label, row.runner_up) for row in found] == labels
    plausible = {row.position: row.plausible for row in found}
    assert [plausible[position] for position in judging_order(db, token)] == verdicts
    assert comment_of(db, token) == "By a bot."
    for row in found:
        assert_measured(row)
        assert {display["input"] for display in row.display} == {"touch"}


def seen(page: Page) -> Seen:
    """What the page shows, once it shows a trial or the last page."""
    labels = tuple("0123")  # of the short study
    questions = ("label", "runner_up", "plausibility")
    expect(page.locator("[data-shown], #comment")).to_have_count(1)
    stage = page.locator("#stage")
    if stage.count() == 0:
        return Seen("commenting", labels, questions)
    judging = stage.get_attribute("data-phase") == "judging"
    return Seen(
        "judging" if judging else "labelling",
        labels,
        questions,
        position=int(stage.get_attribute("data-shown") or 0),
        image=(image(page).get_attribute("src") or "").removeprefix("/stimuli/").removesuffix(".png"),
        prediction=page.locator("#prediction").inner_text() if judging else None,
        practice=progress(page).inner_text().startswith("Practice"),
    )


@pytest.mark.quickly("sqlite")  # nothing of it is stored
def test_every_page_fits_a_small_phone(visit: Visit, api: httpx2.Client, db: Database) -> None:
    """The pages with images are looked at on two kinds of screen: what else there is, is as wide on each."""
    phones = {ratio: phone(visit, ratio).page("/") for ratio in (1.5, 2.625)}
    page = phones[1.5]
    player = begin(api)

    def open_on(page: Page, path: str) -> None:
        page.goto(path)
        assert_fits(page)

    def everywhere(path: str) -> Iterator[tuple[float, Page]]:
        for ratio, page in phones.items():
            open_on(page, path)
            assert page.evaluate("devicePixelRatio") == ratio
            yield ratio, page

    for path in ("/", "/study/test", "/nothing"):
        open_on(page, path)
    for state in ("labelling", "judging"):
        advance(player, state)
        for ratio, screen in everywhere(f"/s/{player.token}"):
            settled(screen)
            assert_touchable(screen, "input[type=radio]", "button:visible", ".foot a")
            box = image(screen).bounding_box()
            assert box is not None
            assert box["width"] >= 5 * NATIVE
            assert_crisp(box["width"], ratio)
            button = go(screen).bounding_box()
            assert button is not None
            assert button["y"] + button["height"] <= 640, "all that a trial needs is on the first screen"
    advance(player, "commenting")
    for ratio, screen in everywhere(f"/s/{player.token}"):
        assert_touchable(screen, "textarea", "button", ".foot a")
        sheets = screen.get_by_role("img", name=re.compile("^Sheet")).all()
        assert len(sheets) == 3
        for sheet in sheets:
            box = sheet.bounding_box()
            assert box is not None
            assert_crisp(box["width"], ratio, native=int(sheet.get_attribute("width") or 0))
    advance(player, "finished")
    open_on(page, f"/s/{player.token}")
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    open_on(page, f"/s/{player.token}/withdraw")
    assert_touchable(page, "button", "a.plain")
    page.get_by_role("button", name="Delete everything").tap()
    expect(page.get_by_role("heading", name="Your answers are deleted")).to_be_visible()
    open_on(page, f"/s/{player.token}")
    expect(page.get_by_role("heading", name="Your answers are deleted")).to_be_visible()
    assert rows(db, player.token) == []


def assert_fits(page: Page) -> None:
    wide, room = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert wide <= room == 360, f"{page.url} scrolls sideways: {wide} pixels in {room}"


def assert_touchable(page: Page, *selectors: str) -> None:
    """Keys, buttons and the links between pages are at least 44 pixels in both directions."""
    for selector in selectors:
        targets = boxes(page.locator(selector))
        assert targets, selector
        for box in targets:
            assert min(box["width"], box["height"]) >= 44, (page.url, box)


@pytest.mark.quickly("sqlite")  # tests/app/test_pages.py sends forms to both
def test_a_whole_session_with_plain_forms(visit: Visit, db: Database, api: httpx2.Client) -> None:
    """The beginning and the end of each part; what lies between is answered at the API."""
    visitor = visit(java_script_enabled=False)
    visitor.forgiven = "422"  # the browser reports the pages that a test provokes
    page = visitor.begin("/study/short")
    token = token_of(page)
    player = Player(api, token)
    for position in (*range(1, 7), SHORT + 1, SHORT + 2):
        if position == SHORT + 1:
            for between in range(7, SHORT + 1):
                label, runner_up = label_of(between)
                player.put(between, label=label, runner_up=runner_up, rt_ms=None).raise_for_status()
            page.reload()
        expect(progress(page)).to_have_text(name_of(position, SHORT))
        if position == 4:
            shown = image(page).get_attribute("src")
            go(page).click()
            expect(page.get_by_role("alert")).to_have_text("Choose a reading, or “none is plausible”.")
            first_labels(page).get_by_role("radio", name="0", exact=True).check()
            go(page).click()
            expect(page.get_by_role("alert")).to_have_text("Choose a second reading too, or “no other”.")
            expect(first_labels(page).get_by_role("radio", name="0", exact=True)).to_be_checked()
            assert image(page).get_attribute("src") == shown
            assert [row.position for row in rows(db, token)] == [1, 2, 3]
            page.goto(page.url)  # as a phone does that had closed the page
            expect(progress(page)).to_have_text(name_of(position, SHORT))
        choose(page, *label_of(position))
        go(page).click()
    expect(page.get_by_text("The computer’s answer:")).to_be_visible()
    go(page).click()
    expect(page.get_by_role("alert")).to_have_text("Choose yes or no.")
    judge_by_clicks(page, range(1, 4), SHORT)
    expect(progress(page)).to_have_text(f"Image 4 of {SHORT}")
    for number, position in list(enumerate(judging_order(db, token), start=1))[3 : SHORT - 2]:
        plausible = VERDICTS[number % len(VERDICTS)]
        player.put(position, "plausibility", plausible=plausible, rt_ms=None).raise_for_status()
    page.reload()
    judge_by_clicks(page, range(SHORT - 1, SHORT + 1), SHORT)
    page.get_by_role("textbox", name="How do the sheets differ?").fill("Two lines:\nthis is the second.")
    page.get_by_role("button", name="Finish").click()
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    assert_as_planned(db, token, SHORT, measured=False)
    assert comment_of(db, token) == "Two lines:\nthis is the second."
