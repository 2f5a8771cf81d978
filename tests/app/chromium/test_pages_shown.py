"""The last page, withdrawal, the dashboard, and WCAG on every page, as Chromium shows them."""

import re
from collections.abc import Mapping

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import update

from app.db import Database
from app.models import Participant
from ml.pack import Pack
from tests.app.chromium.visitor import (
    QUICK,
    Visit,
    advance,
    by_clicks,
    choose,
    comment_of,
    go,
    name_of,
    participant_of,
    progress,
    recruiter_ids_of,
    rows,
    token_of,
)
from tests.app.conftest import Server, begin

pytestmark = pytest.mark.quickly("sqlite")


def test_the_sheets_are_unnamed_and_in_the_sessions_order(
    visit: Visit, api: httpx2.Client, db: Database, pack: Pack
) -> None:
    player = begin(api)
    advance(player, "commenting")
    page = visit().page(f"/s/{player.token}")
    own = participant_of(db, player.token).grid_order
    assert sorted(own) == sorted(f"test-pack/{model}" for model in pack.models)
    # Three orders, in which each sheet is once in each place.
    for order in (own, own[1:] + own[:1], own[2:] + own[:2]):
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
    advance(begin(api, "watched"), "finished")
    papers = []
    for scheme in ("light", "dark"):
        visitor = visit(color_scheme=scheme)
        visitor.prepare = lambda page: page.add_init_script(QUICK)
        visitor.forgiven = "401"
        page = visitor.page("/results/watched")
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.goto(server.dashboard)
        assert page.url == f"{server.url}/results", "the key is not left in the address"
        page.locator('a[href="/results/watched"]').click()
        expect(tile(page, "images labeled")).to_have_text(re.compile(r"^\s*30\s"))
        expect(tile(page, "finished")).to_have_text(re.compile(r"^\s*1\s"))
        expect(page.get_by_text("All alike.")).to_be_visible()
        assert page.url == f"{server.url}/results/watched"
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    light, dark = (sum(int(part) for part in re.findall(r"\d+", paper)[:3]) for paper in papers)
    assert light > 600
    assert dark < 150
    page.evaluate("window.sameDocument = true")
    advance(begin(api, "watched"), "judging", most=2 + 5)
    expect(tile(page, "images labeled")).to_have_text(re.compile(r"^\s*35\s"), timeout=15_000)
    expect(tile(page, "started")).to_have_text(re.compile(r"^\s*2\s"))
    assert page.evaluate("window.sameDocument"), "the page was not loaded anew"


def tile(page: Page, name: str) -> Locator:
    return page.get_by_role("listitem").filter(has_text=name)


def test_no_page_has_a_wcag_violation(visit: Visit, server: Server, api: httpx2.Client) -> None:
    visitor = visit(viewport={"width": 1280, "height": 720})
    visitor.forgiven = "404|422"
    page = visitor.page("/")
    player, leaver = begin(api), begin(api)
    api.post(f"/api/sessions/{leaver.token}/withdraw").raise_for_status()
    paths = ["/", "/study/test", "/nothing", f"/s/{player.token}", f"/s/{player.token}/withdraw"]
    paths += [f"/s/{leaver.token}", server.dashboard, "/results/test"]
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
        page.goto(f"/s/{player.token}")
        assert_accessible(page)


TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
ALL_RULES = {"type": "tag", "values": TAGS}
# Dark pages are the light ones in other colors (static/style.css): the other rules would find the same once more.
COLORS = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}


def assert_accessible(page: Page, dark: bool = True) -> None:
    """As it is, and then in dark."""
    assert_no_violation(page, ALL_RULES)
    if dark:
        page.emulate_media(
            color_scheme="dark", reduced_motion="reduce"
        )  # at once, without a color in between
        assert_no_violation(page, COLORS)
        page.emulate_media(color_scheme="light", reduced_motion="no-preference")


def assert_no_violation(page: Page, rules: Mapping[str, object]) -> None:
    # Of what passes, one example each: the list of all is long on a page with figures.
    found = Axe().run(page, options={"runOnly": rules, "resultTypes": ["violations"]})
    assert "color-contrast" in {rule["id"] for rule in found.response["passes"]}, "axe has looked at the page"
    told = [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in found.response["violations"]
        for node in violation["nodes"]
    ]
    assert told == [], page.url
