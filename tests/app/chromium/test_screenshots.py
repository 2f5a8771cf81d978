"""A picture of every page at two sizes, in build/screenshots/, to be looked at; what can be checked here is."""

import shutil
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect

from app.settings import ROOT
from tests.app.chromium.visitor import Visit, advance, choose, go, painted, resize
from tests.app.conftest import begin

pytestmark = pytest.mark.quickly("sqlite")

SIZES = {"phone": (360, 640), "laptop": (1366, 768)}
TABLET = (768, 1024)
FOLDER = ROOT / "build" / "screenshots"


@pytest.fixture(scope="module", autouse=True)
def folder() -> Path:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    return FOLDER


def picture(page: Page, name: str, size: str) -> None:
    assert_fits(page, f"{name} on a {size}")
    drawn = "all => Promise.all(all.map((i) => i.decode().then(() => i.naturalWidth > 0, () => false)))"
    assert all(page.locator("img:visible").evaluate_all(drawn)), f"a blank image on {name}"
    if size == "laptop":
        resize(page, *TABLET)
        assert_fits(page, f"{name} on a tablet")
        resize(page, *SIZES[size])
    page.screenshot(path=FOLDER / f"{name}-{size}.png", full_page=True)


def assert_fits(page: Page, what: str) -> None:
    wide, room = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert wide <= room, f"{what} scrolls sideways: {wide} pixels in {room}"


@pytest.mark.parametrize("size", SIZES)
def test_every_page_has_its_picture(visit: Visit, api: httpx2.Client, size: str) -> None:
    width, height = SIZES[size]
    visitor = visit(
        viewport={"width": width, "height": height},
        device_scale_factor=2 if size == "phone" else 1,
        has_touch=size == "phone",
        is_mobile=size == "phone",
    )
    visitor.forgiven = "404|422"
    page = visitor.page("/")
    picture(page, "studies", size)
    for name, path in (("information", "/study/test"), ("withdraw-code", "/withdraw"), ("not-found", "/x")):
        page.goto(path)
        picture(page, name, size)
    player = begin(api, PROLIFIC_PID=f"screenshots-{size}")
    page.goto(f"/study/test?PROLIFIC_PID=screenshots-{size}")
    picture(page, "welcome-back", size)

    page.goto(f"/s/{player.token}")
    painted(page)
    picture(page, "practice", size)
    advance(player, "judging", most=2)
    page.reload()
    painted(page)
    picture(page, "first-image", size)
    go(page).click()
    expect(page.get_by_role("alert")).to_be_visible()
    picture(page, "error", size)
    choose(page, "3", "5")
    picture(page, "chosen", size)
    for state in ("judging", "commenting", "finished"):
        advance(player, state)
        page.goto(f"/s/{player.token}")
        if state == "judging":
            painted(page)
        picture(page, state, size)
    page.goto(f"/study/test?PROLIFIC_PID=screenshots-{size}")
    expect(page.get_by_role("heading", name="You have already taken part")).to_be_visible()
    picture(page, "already-done", size)
    page.goto(f"/s/{player.token}/withdraw")
    picture(page, "withdraw", size)
    page.get_by_role("button", name="Delete everything").click()
    expect(page.get_by_role("heading", name="Receipt")).to_be_visible()
    picture(page, "withdrawn", size)
    assert len(list(FOLDER.glob(f"*-{size}.png"))) == 15
