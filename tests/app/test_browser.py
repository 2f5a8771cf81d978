"""Whole sessions in real Chromium against a real server process, ending in the right rows.

Every page that a test opens must be free of errors on the console and of requests to other hosts.
"""

import itertools
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect, sync_playwright
from sqlalchemy import select, update

from app.db import Database
from app.models import Comment, Judgment, Participant, RecruiterId, Response, Trial
from app.settings import Settings
from ml.pack import Pack
from tests import browser as chromium
from tests.app.conftest import STUDY, Player, Server, installation, serving

FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
NATIVE = 28  # the side of an image of the test pack

# What is answered to image 1, 2, ... (practice first), over and over: (label, runner-up).
LABELS = (("3", "5"), ("none", "none"), ("0", "none"), ("9", "8"), ("7", "1"), ("1", "7"), ("none", "none"))
VERDICTS = (True, False, False)


def label_of(position: int) -> tuple[str, str]:
    return LABELS[position % len(LABELS)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, pack: Pack) -> Settings:
    settings = installation(tmp_path_factory.mktemp("browser"), pack)
    (settings.studies / "watched.toml").write_text(STUDY)
    return settings


@pytest.fixture(scope="module")
def server(settings: Settings) -> Iterator[Server]:
    """One server for all: each test has participants of its own, the one that counts them a study of its own."""
    with serving(settings) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium.find()
    if path is None:
        pytest.fail(chromium.ADVICE, pytrace=False)
    # Chromium's sandbox refuses to work for root.
    flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else FLAGS
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@dataclass
class Visitor:
    """One person's browser. What goes wrong in it is collected, and fails the test at its end."""

    context: BrowserContext
    home: str
    faults: list[str] = field(default_factory=list)
    forgiven: str | None = None  # a pattern of console errors that the test itself provokes

    def __post_init__(self) -> None:
        self.context.set_default_timeout(15_000)
        self.context.on("page", self._watch)

    def _watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.faults.append(f"{page.url}: {error}"))
        page.on("console", lambda message: self._console(message.type, message.text))
        page.on("request", lambda request: self._request(request.url))

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not (self.forgiven and re.search(self.forgiven, text)):
            self.faults.append(f"console {kind}: {text}")

    def _request(self, url: str) -> None:
        if not url.startswith((f"{self.home}/", "data:", "blob:")):
            self.faults.append(f"a request to another host: {url}")

    def page(self, path: str = "/study/test") -> Page:
        page = self.context.new_page()
        page.goto(path)
        return page

    def begin(self, path: str = "/study/test") -> Page:
        """From the consent page to the first image."""
        page = self.page(path)
        page.get_by_role("checkbox", name="I agree to all of this").check()
        page.get_by_role("button", name="Begin").click()
        expect(progress(page)).to_have_text("Practice image 1")
        return page


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    """A new person's browser, with the context options of Playwright."""
    visitors: list[Visitor] = []

    def new(**options: Any) -> Visitor:
        visitors.append(Visitor(browser.new_context(base_url=server.url, **options), server.url))
        return visitors[-1]

    yield new
    for visitor in visitors:
        visitor.context.close()
    assert [fault for visitor in visitors for fault in visitor.faults] == []


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


@pytest.fixture
def api(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url) as client:
        yield client


def enrol(api: httpx2.Client, study: str = "test") -> Player:
    """A session that another program has begun."""
    created = api.post("/api/sessions", json={"study": study, "consent": True, "external": {}})
    return Player(api, created.json()["token"])


def advance(player: Player, until: str, most: int = 1000) -> None:
    """Answer, in as few requests as possible, until that state or for so many images."""
    here = player.session()
    while most and here["state"] != until:
        if here["state"] == "commenting":
            player.client.post(f"{player.base}/comments", json={"text": "All alike."}).raise_for_status()
            here = player.client.post(f"{player.base}/finish").raise_for_status().json()
        elif here["next_position"] is None:
            here = player.session()
        else:
            labels = {"label": "3", "runner_up": "5"}
            question = "label" if here["state"] == "labelling" else "plausibility"
            answer: dict[str, Any] = labels if question == "label" else {"plausible": True}
            here = player.put(here["next_position"], question, **answer).raise_for_status().json()
            most -= 1


# What a participant sees


def progress(page: Page) -> Locator:
    return page.locator("#progress-text")


def image(page: Page) -> Locator:
    return page.get_by_role("img", name="The image to read")


def first_labels(page: Page) -> Locator:
    return page.get_by_role("group", name="Which label is the most plausible?")


def second_labels(page: Page) -> Locator:
    return page.get_by_role("group", name="Which is the second most plausible?")


def verdict(page: Page, name: str) -> Locator:
    return page.get_by_role("group", name="Is this a reasonable mistake?").get_by_role("radio", name=name)


def go(page: Page) -> Locator:
    return page.get_by_role("button", name="Continue")


def keys(page: Page) -> Locator:
    """The line that names the keys; it is there as soon as they work."""
    return page.get_by_text(re.compile("Enter continue"))


def name_of(position: int) -> str:
    return f"Practice image {position}" if position <= 2 else f"Image {position - 2} of 30"


def painted(page: Page) -> None:
    """Nobody answers before the image is on the screen, but a test could."""
    expect(page.locator("[data-shown]")).to_have_count(1)


def choose(page: Page, label: str, runner_up: str) -> None:
    """By mouse or touch: the visible key is pressed, the radio button under it is what reacts."""
    none, other = "None is plausible", "No other"
    first_labels(page).get_by_role("radio", name=none if label == "none" else label, exact=True).check()
    if label != "none":
        second = other if runner_up == "none" else runner_up
        second_labels(page).get_by_role("radio", name=second, exact=True).check()


def by_clicks(page: Page, positions: range, measured: bool = False) -> None:
    for position in positions:
        expect(progress(page)).to_have_text(name_of(position))
        if measured:
            painted(page)
        choose(page, *label_of(position))
        go(page).click()


def judge_by_clicks(page: Page, numbers: range, measured: bool = False) -> None:
    for number in numbers:
        expect(page.get_by_role("group", name="Is this a reasonable mistake?")).to_be_visible()
        expect(progress(page)).to_have_text(f"Image {number} of 30")
        if measured:
            painted(page)
        verdict(page, "Yes" if VERDICTS[number % len(VERDICTS)] else "No").check()
        go(page).click()


# What is in the database then


@dataclass(frozen=True)
class Row:
    position: int
    label: str
    runner_up: str | None
    plausible: bool | None
    rt_ms: list[float | None]
    display: list[dict[str, Any]]


def rows(db: Database, token: str) -> list[Row]:
    with db.read() as session:
        found = session.execute(
            select(Trial.position, Response, Judgment)
            .join(Participant, Participant.id == Trial.participant_id)
            .join(Response, Response.trial_id == Trial.id)
            .outerjoin(Judgment, Judgment.trial_id == Trial.id)
            .where(Participant.token == token)
            .order_by(Trial.position)
        ).all()
    return [
        Row(
            position,
            response.label,
            response.runner_up,
            judgment.plausible if judgment else None,
            [answer.rt_ms for answer in (response, judgment) if answer],
            [answer.display for answer in (response, judgment) if answer],
        )
        for position, response, judgment in found
    ]


def participant_of(db: Database, token: str) -> Participant:
    with db.read() as session:
        return session.scalars(select(Participant).where(Participant.token == token)).one()


def comment_of(db: Database, token: str) -> str | None:
    with db.read() as session:
        comment = session.get(Comment, participant_of(db, token).id)
    return comment.text if comment else None


def recruiter_ids_of(db: Database, token: str) -> list[str]:
    with db.read() as session:
        query = select(RecruiterId.value).where(RecruiterId.participant_id == participant_of(db, token).id)
        return list(session.scalars(query))


def token_of(page: Page) -> str:
    return page.url.split("/s/")[1].split("/")[0]


def judging_order(db: Database, token: str) -> list[int]:
    with db.read() as session:
        query = select(Trial.position).join(Participant, Participant.id == Trial.participant_id)
        query = query.where(Participant.token == token, Trial.judging_order.is_not(None))
        return list(session.scalars(query.order_by(Trial.judging_order)))


def assert_as_planned(db: Database, token: str, measured: bool = True) -> None:
    """Every trial has exactly the answer of the plan, with its time and how it was shown."""
    found = rows(db, token)
    order = {position: number for number, position in enumerate(judging_order(db, token), start=1)}
    assert [row.position for row in found] == list(range(1, 33))
    for row in found:
        assert (row.label, row.runner_up) == label_of(row.position), row.position
        number = order.get(row.position)
        assert row.plausible == (None if number is None else VERDICTS[number % len(VERDICTS)])
        for rt_ms, display in zip(row.rt_ms, row.display, strict=True):
            if not measured:
                assert (rt_ms, display) == (None, {})
                continue
            assert rt_ms is not None
            assert rt_ms > 0
            assert_crisp(display["css_width"], display["device_pixel_ratio"])
            assert display["css_width"] == pytest.approx(display["css_height"])
            assert display["interpolation"] == "pixelated"
            assert display["zoom"] == 1
            assert display["hidden_times"] == 0
    assert participant_of(db, token).finished_at is not None


def assert_crisp(css_width: float, ratio: float, native: int = NATIVE) -> None:
    """A whole number of screen pixels per image pixel; the browser lays out in 64ths of a CSS pixel."""
    factor = css_width * ratio / native
    assert round(factor) >= 1
    assert abs(css_width * ratio - round(factor) * native) < 0.05, f"{css_width} CSS pixels at {ratio}"


# Whole sessions


def test_a_whole_session_by_keyboard_alone(visit: Visit, db: Database) -> None:
    page = visit(viewport={"width": 1280, "height": 720}).page("/study/test?PROLIFIC_PID=abc")
    keyboard = page.keyboard
    reach(page, page.get_by_role("checkbox", name="I agree to all of this"))
    keyboard.press("Space")
    reach(page, page.get_by_role("button", name="Begin"))
    keyboard.press("Enter")

    for position in range(1, 33):
        expect(progress(page)).to_have_text(name_of(position))
        expect(page.get_by_role("radio", checked=True)).to_have_count(0)
        painted(page)
        label, runner_up = label_of(position)
        if position == 4:  # undone: the second label, then the first one too
            for key in ("2", "6", "Backspace", "Backspace"):
                keyboard.press(key)
            expect(page.get_by_role("radio", checked=True)).to_have_count(0)
        if position == 5:  # a changed mind: the second label, thrice
            for key in ("9", "1", "n", "9"):  # 9 is the first label and cannot be the second
                keyboard.press(key)
            keyboard.press("Backspace")
            keyboard.press("Backspace")
        if position == 10:  # too early: nothing is sent before both labels are there
            keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_have_text("Choose a label, or “none is plausible”.")
            keyboard.press(label)
            expect(page.get_by_role("alert")).to_be_hidden()
            keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_have_text("Choose a second label too, or “no other”.")
            keyboard.press(runner_up)
        elif label == "none":
            keyboard.press("N" if position % 2 else "n")
        else:
            keyboard.press(label)
            keyboard.press("n" if runner_up == "none" else runner_up)
        if position == 7:  # by tabs alone, as with a screen reader
            reach(page, go(page))
        keyboard.press("Enter")

    for number in range(1, 31):
        expect(page.get_by_text("The computer’s answer:")).to_be_visible()
        expect(progress(page)).to_have_text(f"Image {number} of 30")
        painted(page)
        if number == 2:
            keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_have_text("Choose yes or no.")
            keyboard.press("y")
        keyboard.press("y" if VERDICTS[number % len(VERDICTS)] else "N")
        keyboard.press("Enter")

    reach(page, page.get_by_role("textbox", name="How do the sheets differ?"))
    keyboard.type("Sheet B is the clearest: 1, 7 and n.")
    reach(page, page.get_by_role("button", name="Finish"))
    keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()

    token = token_of(page)
    assert_as_planned(db, token)
    participant = participant_of(db, token)
    assert comment_of(db, token) == "Sheet B is the clearest: 1, 7 and n."
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


def test_a_whole_session_by_touch_on_a_small_phone(visit: Visit, db: Database) -> None:
    page = phone(visit, 1.5).page("/")
    page.get_by_role("link", name="A study for tests").first.tap()
    page.get_by_role("checkbox", name="I agree to all of this").tap()
    page.get_by_role("button", name="Begin").tap()
    for position in range(1, 33):
        expect(progress(page)).to_have_text(name_of(position))
        label, runner_up = label_of(position)
        first = "None is plausible" if label == "none" else label
        painted(page)
        first_labels(page).get_by_role("radio", name=first, exact=True).tap()
        if label != "none":
            second = "No other" if runner_up == "none" else runner_up
            second_labels(page).get_by_role("radio", name=second, exact=True).tap()
        go(page).tap()
    for number in range(1, 31):
        expect(page.get_by_text("The computer’s answer:")).to_be_visible()
        expect(progress(page)).to_have_text(f"Image {number} of 30")
        painted(page)
        verdict(page, "Yes" if VERDICTS[number % len(VERDICTS)] else "No").tap()
        go(page).tap()
    page.get_by_role("button", name="Finish").tap()
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    assert_as_planned(db, token_of(page))


def test_every_page_fits_a_small_phone(visit: Visit, api: httpx2.Client, db: Database) -> None:
    phones = {ratio: phone(visit, ratio).page("/") for ratio in (1.5, 2, 2.625)}
    player = enrol(api)

    def everywhere(path: str) -> Iterator[tuple[float, Page]]:
        for ratio, page in phones.items():
            page.goto(path)
            assert page.evaluate("devicePixelRatio") == ratio
            assert_fits(page)
            yield ratio, page

    for path in ("/", "/study/test", "/nothing"):
        list(everywhere(path))
    for state in ("labelling", "judging"):
        advance(player, state)
        for ratio, page in everywhere(f"/s/{player.token}"):
            assert_touchable(page, "input[type=radio]", "button", ".foot a")
            box = image(page).bounding_box()
            assert box is not None
            assert box["width"] >= 5 * NATIVE
            assert_crisp(box["width"], ratio)
            button = go(page).bounding_box()
            assert button is not None
            assert button["y"] + button["height"] <= 640, "all that a trial needs is on the first screen"
    advance(player, "commenting")
    for ratio, page in everywhere(f"/s/{player.token}"):
        assert_touchable(page, "textarea", "button", ".foot a")
        sheets = page.get_by_role("img", name=re.compile("^Sheet")).all()
        assert len(sheets) == 3
        for sheet in sheets:
            box = sheet.bounding_box()
            assert box is not None
            assert_crisp(box["width"], ratio, native=int(sheet.get_attribute("width") or 0))
    advance(player, "finished")
    for _, page in everywhere(f"/s/{player.token}"):
        expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    for _, page in everywhere(f"/s/{player.token}/withdraw"):
        assert_touchable(page, "button", "a.plain")
    page.get_by_role("button", name="Delete everything").tap()
    expect(page.get_by_role("heading", name="Your answers are deleted")).to_be_visible()
    for _, page in everywhere(f"/s/{player.token}"):
        expect(page.get_by_role("heading", name="Your answers are deleted")).to_be_visible()
    assert rows(db, player.token) == []


def assert_fits(page: Page) -> None:
    wide, room = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert wide <= room == 360, f"{page.url} scrolls sideways: {wide} pixels in {room}"


def assert_touchable(page: Page, *selectors: str) -> None:
    """Keys, buttons and the links between pages are at least 44 pixels in both directions."""
    for selector in selectors:
        targets = page.locator(selector).all()
        assert targets, selector
        for target in targets:
            box = target.bounding_box()
            assert box is not None
            assert min(box["width"], box["height"]) >= 44, (page.url, target, box)


def test_a_whole_session_with_plain_forms(visit: Visit, db: Database) -> None:
    visitor = visit(java_script_enabled=False)
    visitor.forgiven = "422"  # the browser reports the pages that a test provokes
    page = visitor.begin()
    token = token_of(page)
    for position in range(1, 33):
        expect(progress(page)).to_have_text(name_of(position))
        if position == 4:
            shown = image(page).get_attribute("src")
            go(page).click()
            expect(page.get_by_role("alert")).to_have_text("Choose a label, or “none is plausible”.")
            first_labels(page).get_by_role("radio", name="0", exact=True).check()
            go(page).click()
            expect(page.get_by_role("alert")).to_have_text("Choose a second label too, or “no other”.")
            expect(first_labels(page).get_by_role("radio", name="0", exact=True)).to_be_checked()
            assert image(page).get_attribute("src") == shown
            assert [row.position for row in rows(db, token)] == [1, 2, 3]
            page.goto(page.url)  # as a phone does that had closed the page
            expect(progress(page)).to_have_text(name_of(position))
        choose(page, *label_of(position))
        go(page).click()
    expect(page.get_by_text("The computer’s answer:")).to_be_visible()
    go(page).click()
    expect(page.get_by_role("alert")).to_have_text("Choose yes or no.")
    judge_by_clicks(page, range(1, 31))
    page.get_by_role("textbox", name="How do the sheets differ?").fill("Two lines:\nthis is the second.")
    page.get_by_role("button", name="Finish").click()
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    assert_as_planned(db, token, measured=False)
    assert comment_of(db, token) == "Two lines:\nthis is the second."


# Reloads, the back button, double clicks, tabs, a lost connection


def test_a_reload_gives_the_page_before_it(visit: Visit, api: httpx2.Client) -> None:
    visitor = visit()
    page = visitor.begin()
    player = Player(api, token_of(page))
    by_clicks(page, range(1, 5))
    for position, until in ((5, "judging"), (None, "commenting"), (None, "finished")):
        if position:
            expect(progress(page)).to_have_text(name_of(position))
        assert_same_after_reload(page)
        advance(player, until)
        page.reload()
        if until == "judging":
            judge_by_clicks(page, range(1, 3))
            expect(progress(page)).to_have_text("Image 3 of 30")
            assert_same_after_reload(page)
    assert_same_after_reload(page)
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()


def assert_same_after_reload(page: Page) -> None:
    before = (
        page.get_by_role("main").inner_text(),
        page.locator("img").evaluate_all("all => all.map(i => i.src)"),
    )
    page.reload()
    after = (
        page.get_by_role("main").inner_text(),
        page.locator("img").evaluate_all("all => all.map(i => i.src)"),
    )
    assert after == before


def test_a_choice_that_was_not_sent_is_gone_after_a_reload_and_nothing_is_stored(
    visit: Visit, db: Database
) -> None:
    page = visit().begin()
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
    by_clicks(page, range(1, 4))
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
    by_clicks(page, range(4, 6))
    expect(progress(page)).to_have_text(name_of(6))
    assert [(row.position, row.label, row.runner_up) for row in rows(db, token)] == [
        (position, *label_of(position)) for position in range(1, 6)
    ]


@pytest.mark.parametrize("scripts", [True, False])
def test_a_double_click_stores_one_answer_and_skips_none(visit: Visit, db: Database, scripts: bool) -> None:
    visitor = visit(java_script_enabled=scripts)
    visitor.forgiven = "422"
    page = visitor.begin()
    token = token_of(page)
    for position in range(1, 6):
        expect(progress(page)).to_have_text(name_of(position))
        choose(page, *label_of(position))
        go(page).dblclick()
        expect(progress(page)).to_have_text(name_of(position + 1))
    assert [(row.position, row.label, row.runner_up) for row in rows(db, token)] == [
        (position, *label_of(position)) for position in range(1, 6)
    ]


def test_enter_held_down_answers_once(visit: Visit, db: Database) -> None:
    page = visit().begin()
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
    assert len(rows(db, token_of(page))) == 1


def test_two_tabs_are_one_session(visit: Visit, db: Database) -> None:
    visitor = visit()
    visitor.forgiven = "409"  # how the second tab learns that it is behind
    one = visitor.begin()
    token = token_of(one)
    two = visitor.page(f"/s/{token}")
    expect(progress(two)).to_have_text(name_of(1))
    one.bring_to_front()
    by_clicks(one, range(1, 4), measured=True)
    expect(progress(one)).to_have_text(name_of(4))
    two.bring_to_front()
    choose(two, "6", "8")  # image 1, which the first tab has answered
    go(two).click()
    expect(progress(two)).to_have_text(name_of(4))
    by_clicks(two, range(4, 33), measured=True)
    expect(two.get_by_text("The computer’s answer:")).to_be_visible()
    one.bring_to_front()
    choose(one, "6", "8")  # image 4, and the session is in judging by now
    go(one).click()
    expect(one.get_by_text("The computer’s answer:")).to_be_visible()
    judge_by_clicks(one, range(1, 31), measured=True)
    expect(one.get_by_role("button", name="Finish")).to_be_visible()
    two.bring_to_front()
    verdict(two, "No").check()
    go(two).click()
    for page in (one, two):
        page.bring_to_front()
        expect(page.get_by_role("button", name="Finish")).to_be_visible()
        page.get_by_role("button", name="Finish").click()
        expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    assert_as_planned(db, token)


def test_a_lost_connection_stores_the_answer_once_when_it_is_back(visit: Visit, db: Database) -> None:
    visitor = visit()
    visitor.forgiven = "ERR_INTERNET_DISCONNECTED|ERR_FAILED|ERR_CONNECTION|503"
    page = visitor.begin()
    token = token_of(page)
    page.wait_for_load_state("networkidle")
    choose(page, *label_of(1))
    visitor.context.set_offline(True)
    go(page).click()
    expect(page.get_by_role("status")).to_have_text("Not saved yet; trying again …")
    expect(progress(page)).to_have_text(name_of(1))
    expect(go(page)).to_be_disabled()
    page.keyboard.press("Enter")  # impatience sends nothing more
    assert rows(db, token) == []
    visitor.context.set_offline(False)
    expect(progress(page)).to_have_text(name_of(2))
    expect(page.get_by_role("status")).to_have_text("")

    # The answer arrives and its acknowledgement is lost; a busy server refuses once; then all is well.
    replies: list[str] = []

    def unreliable(route: Route) -> None:
        replies.append(json.loads(route.request.post_data or "")["answer_id"])
        if len(replies) == 1:
            route.fetch()
            route.abort()
        elif len(replies) == 2:
            route.fulfill(status=503)
        else:
            route.continue_()

    page.route("**/trials/2/label", unreliable)
    by_clicks(page, range(2, 4))
    expect(progress(page)).to_have_text(name_of(4))
    assert len(replies) == 3
    assert len({uuid.UUID(answer_id) for answer_id in replies}) == 1
    assert [(row.position, row.label, row.runner_up) for row in rows(db, token)] == [
        (position, *label_of(position)) for position in range(1, 4)
    ]


def test_a_late_image_is_waited_for(visit: Visit, db: Database) -> None:
    """The question never stands beside the image of the trial before."""
    visitor = visit()
    visitor.forgiven = "ERR_FAILED"
    held: list[Route] = []
    session: dict[str, Any] = {}
    visitor.context.route("**/api/sessions/*", lambda route: keep(route, session))

    def hold(route: Route) -> None:
        late = session and route.request.url.endswith(session["trials"][1]["image"])
        if late and len(held) < 2:
            held.append(route)
            if len(held) == 2:
                route.abort()
        else:
            route.continue_()

    visitor.context.route("**/stimuli/*", hold)
    page = visitor.begin()
    shown = image(page).get_attribute("src")
    expect(progress(page)).to_have_text(name_of(1))
    wait_until(page, lambda: bool(held))
    choose(page, *label_of(1))
    with page.expect_response("**/trials/1/label"):
        go(page).click()
    page.evaluate("new Promise((done) => setTimeout(done))")  # the page has taken the reply in
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert len(rows(db, token_of(page))) == 1
    assert progress(page).inner_text() == name_of(1)
    assert image(page).get_attribute("src") == shown
    expect(go(page)).to_be_disabled()
    held[0].abort()
    expect(progress(page)).to_have_text(name_of(2))
    expect(image(page)).to_have_attribute("src", session["trials"][1]["image"])
    assert len(rows(db, token_of(page))) == 1


def keep(route: Route, session: dict[str, Any]) -> None:
    reply = route.fetch()
    session.update(reply.json())
    route.fulfill(response=reply)


def wait_until(page: Page, condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        page.evaluate("new Promise(requestAnimationFrame)")  # lets the browser's events arrive
    raise AssertionError("waited in vain")


def test_nothing_moves_around_the_image(visit: Visit) -> None:
    """The image, the keys and the button stay where they are while notes and errors come and go."""
    for size in ({"width": 1280, "height": 720}, {"width": 360, "height": 640}):
        page = visit(viewport=size).begin()
        places = []
        for position in range(1, 5):
            expect(progress(page)).to_have_text(name_of(position))
            places.append(where(page))
            go(page).click()
            expect(page.get_by_role("alert")).to_be_visible()
            page.evaluate("scrollTo(0, 0)")
            places.append(where(page))
            choose(page, *label_of(position))
            page.evaluate("scrollTo(0, 0)")
            places.append(where(page))
            go(page).click()
        assert all(place == places[0] for place in places), places


def where(page: Page) -> list[object]:
    things = (image(page), first_labels(page), second_labels(page), go(page))
    return [thing.bounding_box() for thing in things]


# The last page, withdrawal, the dashboard, accessibility


def test_the_sheets_are_unnamed_and_in_the_sessions_order(
    visit: Visit, api: httpx2.Client, db: Database, pack: Pack
) -> None:
    player = enrol(api)
    advance(player, "commenting")
    page = visit().page(f"/s/{player.token}")
    own = participant_of(db, player.token).grid_order
    assert sorted(own) == sorted(f"test-pack/{model}" for model in pack.models)
    for order in (own, *map(list, itertools.permutations(own))):
        with db.write() as session:
            session.execute(
                update(Participant).where(Participant.token == player.token).values(grid_order=order)
            )
            session.commit()
        page.reload()
        sheets = page.get_by_role("img", name=re.compile("^Sheet [ABC]:"))
        sources = [sheet.get_attribute("src") for sheet in sheets.all()]
        assert sources == [f"/stimuli/{pack.grids[name.rsplit('/', 1)[1]]}.png" for name in order]
        assert page.locator("figcaption").all_inner_texts() == ["Sheet A", "Sheet B", "Sheet C"]
        for name in (*pack.models, "undefended", "distilled", "gradient", pack.name):
            assert name not in page.content()
    page.get_by_role("textbox", name="How do the sheets differ?").fill("<b>A</b> & B")
    page.get_by_role("button", name="Finish").dblclick()
    code = page.locator("#completion-code").inner_text()
    assert re.fullmatch(r"[2-9A-Z]{4}-[2-9A-Z]{4}", code)
    assert comment_of(db, player.token) == "<b>A</b> & B"
    assert participant_of(db, player.token).completion_code == code


def test_withdrawal_deletes_from_the_middle_of_a_session(visit: Visit, db: Database) -> None:
    page = visit().begin("/study/test?id=7")
    token = token_of(page)
    by_clicks(page, range(1, 4))
    expect(progress(page)).to_have_text(name_of(4))
    page.get_by_role("link", name="Stop and delete my answers").click()
    page.get_by_role("link", name="Keep my answers").click()
    expect(progress(page)).to_have_text(name_of(4))
    assert len(rows(db, token)) == 3
    assert recruiter_ids_of(db, token) == ["7"]
    page.get_by_role("link", name="Stop and delete my answers").click()
    page.get_by_role("button", name="Delete everything").click()
    expect(page.get_by_role("heading", name="Your answers are deleted")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Your answers are deleted")).to_be_visible()
    page.go_back()
    page.reload()
    expect(page.get_by_role("heading", name="Your answers are deleted")).to_be_visible()
    assert rows(db, token) == []
    assert recruiter_ids_of(db, token) == []


def test_the_dashboard_signs_in_and_follows_the_study(
    visit: Visit, server: Server, api: httpx2.Client
) -> None:
    advance(enrol(api, "watched"), "finished")
    papers = []
    for scheme in ("light", "dark"):
        visitor = visit(color_scheme=scheme)
        visitor.forgiven = "401"
        page = visitor.page("/results/watched")
        expect(page.get_by_role("heading", name="Please sign in")).to_be_visible()
        page.goto(server.dashboard)
        assert page.url == f"{server.url}/results", "the key is not left in the address"
        page.goto(page.get_by_role("link", name="A study for tests").last.get_attribute("href") or "")
        expect(tile(page, "images labeled")).to_have_text(re.compile(r"^\s*30\s"))
        expect(tile(page, "finished")).to_have_text(re.compile(r"^\s*1\s"))
        expect(page.get_by_text("All alike.")).to_be_visible()
        assert page.url == f"{server.url}/results/watched"
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    light, dark = (sum(int(part) for part in re.findall(r"\d+", paper)[:3]) for paper in papers)
    assert light > 600
    assert dark < 150
    page.evaluate("window.sameDocument = true")
    advance(enrol(api, "watched"), "judging", most=2 + 5)
    expect(tile(page, "images labeled")).to_have_text(re.compile(r"^\s*35\s"), timeout=15_000)
    expect(tile(page, "started")).to_have_text(re.compile(r"^\s*2\s"))
    assert page.evaluate("window.sameDocument"), "the page was not loaded anew"


def tile(page: Page, name: str) -> Locator:
    return page.get_by_role("listitem").filter(has_text=name)


def test_no_page_has_a_wcag_violation(visit: Visit, server: Server, api: httpx2.Client) -> None:
    pages = []
    for scheme in ("light", "dark"):
        visitor = visit(color_scheme=scheme, viewport={"width": 1280, "height": 720})
        visitor.forgiven = "404|422"
        pages.append(visitor.page("/"))
    player, leaver = enrol(api), enrol(api)
    api.post(f"/api/sessions/{leaver.token}/withdraw").raise_for_status()
    paths = ["/", "/study/test", "/nothing", f"/s/{player.token}", f"/s/{player.token}/withdraw"]
    paths += [f"/s/{leaver.token}", server.dashboard, "/results/test"]
    for page in pages:
        for path in paths:
            page.goto(path)
            assert_accessible(page)
        page.goto("/study/test")
        page.get_by_role("checkbox").evaluate("box => { box.required = false; }")
        page.get_by_role("button", name="Begin").click()
        expect(page.get_by_role("alert")).to_be_visible()
        assert_accessible(page)
        page.goto(f"/s/{player.token}")
        go(page).click()
        expect(page.get_by_role("alert")).to_be_visible()
        assert_accessible(page)
        choose(page, "3", "5")
        assert_accessible(page)
    for state in ("judging", "commenting", "finished"):
        advance(player, state)
        for page in pages:
            page.goto(f"/s/{player.token}")
            assert_accessible(page)


def assert_accessible(page: Page) -> None:
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}})
    assert found.response["passes"], "axe has looked at the page"
    told = [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in found.response["violations"]
        for node in violation["nodes"]
    ]
    assert told == [], page.url
