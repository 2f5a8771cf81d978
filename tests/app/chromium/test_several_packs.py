"""A study of two packs whose images have sizes of their own: nothing jumps or blurs, and sheets come in groups."""

from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from app.db import Database
from tests.app.chromium.test_pages_shown import assert_accessible
from tests.app.chromium.visitor import (
    Visit,
    advance,
    assert_crisp,
    choose,
    go,
    name_of,
    painted,
    participant_of,
    progress,
    resize,
)
from tests.app.conftest import begin

pytestmark = pytest.mark.quickly("sqlite")

WHERE = """() => {
    const box = (name) => document.querySelector(name).getBoundingClientRect();
    const image = box("#stimulus");
    return {
        native: document.querySelector("#stimulus").naturalWidth,
        width: image.width,
        center: [image.x + image.width / 2, image.y + image.height / 2].map(Math.round),
        places: ["#label", "#runner_up", "#continue"].flatMap((id) => [box(id).x, box(id).y]),
    };
}"""


SCREENS = [(360, 640), (768, 1024), (1366, 768), (1920, 1080)]


def test_images_of_two_sizes_stand_in_one_place_and_move_nothing(visit: Visit, api: httpx2.Client) -> None:
    player = begin(api, "kinds")
    page = visit(device_scale_factor=1.25).page(f"/s/{player.token}")
    seen: dict[tuple[int, int], list[dict[str, Any]]] = {screen: [] for screen in SCREENS}
    for position in range(1, 9):
        expect(progress(page)).to_have_text(name_of(position))
        painted(page)
        for screen in SCREENS:
            resize(page, *screen)
            seen[screen].append(page.evaluate(WHERE))
        choose(page, "3", "5")
        go(page).click()
    for screen, all_shown in seen.items():
        by_native = {shown["native"]: shown["width"] for shown in all_shown}
        assert set(by_native) == {28, 32}
        first = all_shown[0]
        for shown in all_shown:
            assert_crisp(shown["width"], 1.25, shown["native"])
            assert shown["places"] == pytest.approx(first["places"], abs=0.5), screen
            assert shown["center"] == pytest.approx(first["center"], abs=1), screen
        assert 0.85 < by_native[32] / by_native[28] < 1.15, "neither kind is shown larger"


def test_sheets_come_in_groups_of_one_kind_unnamed(visit: Visit, api: httpx2.Client, db: Database) -> None:
    player = begin(api, "kinds")
    advance(player, "commenting")
    page = visit().page(f"/s/{player.token}")
    headings = page.get_by_role("heading", level=2).all_inner_texts()
    assert headings == ["Sheets A, B, C", "Sheets D, E, F"]
    widths = [page.get_by_role("img", name=f"Sheet {x}:").get_attribute("width") for x in "ABCDEF"]
    own = participant_of(db, player.token).grid_order
    side = {"test-pack": "291", "larger-pack": "331"}
    assert widths == [side[name.split("/")[0]] for name in own]
    assert widths[:3] == widths[:1] * 3
    for name in ("undefended", "distilled", "gradient", "test-pack", "larger-pack"):
        assert name not in page.content()
    assert_accessible(page)
