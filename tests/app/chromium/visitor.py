"""A person at a browser: what they see and do, and what is in the database then."""

import re
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, ViewportSize, expect
from sqlalchemy import select

from app.db import Database
from app.models import Comment, Judgment, Participant, RecruiterId, Response, Trial
from tests.app.conftest import Player

NATIVE = 28  # the side of an image of the test pack
TRIALS = 30  # of a study of that pack, after two for practice
SHORT = 12  # of the short study, which is as quick to play to its end

# What is answered to image 1, 2, ... (practice first), over and over: (label, runner-up).
# All of it is among the labels of the short study, too.
LABELS = (("3", "1"), ("none", "none"), ("0", "none"), ("2", "3"), ("1", "0"), ("0", "2"), ("none", "none"))
VERDICTS = (True, False, False)

# For the dashboard, which asks again every few seconds: ten times as often. In a session it would shorten what a
# request may take.
QUICK = """
const wait = window.setTimeout;
window.setTimeout = (act, ms, ...more) => wait(act, ms / 10, ...more);
"""

# What the console says while a test keeps the server away; and the requests that carry labels.
CUT_OFF = (
    "ERR_(INTERNET_DISCONNECTED|FAILED|CONNECTION|ABORTED|EMPTY|TIMED_OUT|SOCKET_NOT_CONNECTED)|50[0-9]|429"
)
SENT = "**/trials/*/label"


def label_of(position: int) -> tuple[str, str]:
    return LABELS[position % len(LABELS)]


@dataclass
class Visitor:
    """One person's browser. What goes wrong in it is collected, and fails the test at its end."""

    context: BrowserContext
    home: str
    faults: list[str] = field(default_factory=list)
    forgiven: str | None = None  # a pattern of console errors that the test itself provokes
    # What holds for each page that is opened from here on.
    viewport: ViewportSize | None = None
    media: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Page], object] = lambda page: None

    def __post_init__(self) -> None:
        self.context.set_default_timeout(15_000)
        self.context.on("page", self._watch)

    def leave(self) -> None:
        """Somebody else may come to this browser."""
        self.context.remove_listener("page", self._watch)

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
        page = self.blank()
        page.goto(path)
        return page

    def blank(self) -> Page:
        page = self.context.new_page()
        if self.viewport:
            page.set_viewport_size(self.viewport)
        if self.media:
            page.emulate_media(**self.media)
        self.prepare(page)
        return page

    def arrive(self, study: str = "test") -> Page:
        """At the first image of a session that has begun elsewhere."""
        agreed = self.context.request.post("/api/sessions", data={"study": study, "consent": True})
        assert agreed.status == 201, agreed.text()
        page = self.page(f"/s/{agreed.json()['token']}")
        expect(progress(page)).to_have_text("Practice 1 of 2")
        settled(page)
        return page

    def begin(self, path: str = "/study/test") -> Page:
        """From the consent page to the first image."""
        page = self.page(path)
        page.get_by_role("checkbox", name="I agree to all of this").check()
        page.get_by_role("button", name="Begin").click()
        expect(progress(page)).to_have_text("Practice 1 of 2")
        settled(page)
        return page


Visit = Callable[..., Visitor]


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
            labels = {"label": "3", "runner_up": "1"}
            question = "label" if here["state"] == "labelling" else "plausibility"
            answer: dict[str, Any] = labels if question == "label" else {"plausible": True}
            here = player.put(here["next_position"], question, **answer).raise_for_status().json()
            most -= 1


def resize(page: Page, width: int, height: int) -> None:
    """Until the page has seen it, and what it does then is painted."""
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate(
        """(width) => new Promise((done) => {
            const seen = () => (innerWidth === width ? requestAnimationFrame(done) : look());
            const look = () => requestAnimationFrame(seen);
            look();
        })""",
        width,
    )


# What a participant sees


def progress(page: Page) -> Locator:
    return page.locator("#progress-text")


def image(page: Page) -> Locator:
    return page.get_by_role("img", name="The image to read")


def boxes(shown: Locator) -> list[dict[str, Any]]:
    """Where each of them is, how large, and what it is."""
    found: list[dict[str, Any]] = shown.evaluate_all(
        "all => all.map((e) => ({ ...e.getBoundingClientRect().toJSON(), html: e.outerHTML }))"
    )
    return found


def first_labels(page: Page) -> Locator:
    return page.get_by_role("group", name="Which reading is the most plausible?")


def second_labels(page: Page) -> Locator:
    return page.get_by_role("group", name="Which is the second most plausible?")


def verdict(page: Page, name: str) -> Locator:
    return page.get_by_role("group", name="Is this a reasonable mistake?").get_by_role("radio", name=name)


def go(page: Page) -> Locator:
    return page.get_by_role("button", name="Continue")


def keys(page: Page) -> Locator:
    """The line that names the keys; it is there as soon as they work."""
    return page.get_by_text(re.compile("Enter continue"))


def name_of(position: int, of: int = TRIALS) -> str:
    return f"Practice {position} of 2" if position <= 2 else f"Image {position - 2} of {of}"


def painted(page: Page) -> None:
    """Nobody answers before the image is on the screen, but a test could; the page takes no answer then."""
    expect(page.locator("[data-shown]")).to_have_count(1)


def saved(page: Page) -> Locator:
    """What the page says about the answers: saved, or not yet."""
    return page.locator("#saved")


def settled(page: Page) -> None:
    """A trial's page shows its image once all images are loaded; one without scripts is there at once."""
    if page.locator("html.scripted").count():
        expect(page.locator("[data-shown], html.plain")).to_have_count(1)


def choose(page: Page, label: str, runner_up: str) -> None:
    """By mouse or touch: the visible key is pressed, the radio button under it is what reacts."""
    settled(page)
    none, other = "None is plausible", "No other"
    first_labels(page).get_by_role("radio", name=none if label == "none" else label, exact=True).check()
    if label != "none":
        second = other if runner_up == "none" else runner_up
        second_labels(page).get_by_role("radio", name=second, exact=True).check()


def by_clicks(page: Page, positions: range, of: int = TRIALS) -> None:
    for position in positions:
        expect(progress(page)).to_have_text(name_of(position, of))
        choose(page, *label_of(position))
        go(page).click()


def judge_by_clicks(page: Page, numbers: range, of: int = TRIALS) -> None:
    for number in numbers:
        expect(page.get_by_role("group", name="Is this a reasonable mistake?")).to_be_visible()
        expect(progress(page)).to_have_text(f"Image {number} of {of}")
        settled(page)
        verdict(page, "Yes" if VERDICTS[number % len(VERDICTS)] else "No").check()
        go(page).click()


def by_keys(page: Page, positions: range, of: int = TRIALS) -> None:
    """The same answers in a third of the time, for tests that are about what happens to them."""
    for position in positions:
        expect(progress(page)).to_have_text(name_of(position, of))
        painted(page)
        label, runner_up = label_of(position)
        for answer in (label,) if label == "none" else (label, runner_up):
            page.keyboard.press("n" if answer == "none" else answer)
        page.keyboard.press("Enter")


def judge_by_keys(page: Page, numbers: range, of: int = TRIALS) -> None:
    for number in numbers:
        expect(page.get_by_role("group", name="Is this a reasonable mistake?")).to_be_visible()
        expect(progress(page)).to_have_text(f"Image {number} of {of}")
        painted(page)
        page.keyboard.press("y" if VERDICTS[number % len(VERDICTS)] else "n")
        page.keyboard.press("Enter")


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


def assert_as_planned(db: Database, token: str, of: int, measured: bool = True) -> None:
    """Every trial has exactly the answer of the plan, with its time and how it was shown."""
    found = rows(db, token)
    order = {position: number for number, position in enumerate(judging_order(db, token), start=1)}
    assert [row.position for row in found] == list(range(1, of + 3))
    for row in found:
        assert (row.label, row.runner_up) == label_of(row.position), row.position
        number = order.get(row.position)
        assert row.plausible == (None if number is None else VERDICTS[number % len(VERDICTS)])
        if measured:
            assert_measured(row)
        else:
            assert set(row.rt_ms) == {None}
            assert not any(row.display)
    assert participant_of(db, token).finished_at is not None


def assert_measured(row: Row) -> None:
    """Every answer has its time and says how its image was shown."""
    for rt_ms, display in zip(row.rt_ms, row.display, strict=True):
        assert rt_ms is not None
        assert rt_ms > 0
        assert_crisp(display["css_width"], display["device_pixel_ratio"])
        assert display["css_width"] == pytest.approx(display["css_height"])
        assert display["interpolation"] == "pixelated"
        assert display["zoom"] == 1
        assert display["hidden_times"] == 0
        assert display["image_retries"] == 0


def assert_crisp(css_width: float, ratio: float, native: int = NATIVE) -> None:
    """A whole number of screen pixels per image pixel; the browser lays out in 64ths of a CSS pixel."""
    factor = css_width * ratio / native
    assert round(factor) >= 1
    assert abs(css_width * ratio - round(factor) * native) < 0.05, f"{css_width} CSS pixels at {ratio}"


# What waits in the browser


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


def until(page: Page, things: Sized, count: int) -> None:
    """Waits until there are so many things, which the browser's events bring."""
    for _ in range(1000):
        if len(things) >= count:
            return
        page.evaluate("new Promise((done) => setTimeout(done, 10))")
    raise AssertionError("waited in vain")
