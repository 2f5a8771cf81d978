"""Looks that the study file declares: each over the first so many to finish, against its own boundary."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.sequential import boundaries
from ml.pack import Pack
from tests.app.databases import KINDS
from tests.app.oracle import Choose, by_labels, expected_comparison, main_trials, play, strict
from tests.app.reading import Page, assert_no_nonsense, assert_page_says, p_value, points
from tests.app.small import SMALL_STUDY, prepared, settings, small

__all__ = ["prepared", "settings", "small"]  # fixtures

# PostgreSQL for what is put on record.
pytestmark = pytest.mark.quickly("sqlite")

FAR = by_labels({"undefended": (0, 0, 0, 0), "distilled": (0, 1, 0, 0), "gradient_regularized": (2, 1, 0, 2)})
NEAR = by_labels(
    {"undefended": (1, 1, 0, 0), "distilled": (0, 1, 0, 0), "gradient_regularized": (1, 0, 0, 2)}
)
PLAIN = by_labels(
    {"undefended": (0, 2, 0, 0), "distilled": (0, 1, 0, 0), "gradient_regularized": (0, 1, 0, 0)}
)
TARGET = 8
AT = [7]


@pytest.fixture(scope="module")
def study() -> str:
    text = SMALL_STUDY.replace("target_participants = 3", f"target_participants = {TARGET}")
    return text.replace("[exclusions]", f"[looks]\nat = {AT}\n\n[exclusions]")


def test_each_look_is_over_the_first_to_finish_and_against_its_own_boundary(
    researcher: TestClient, small: Pack
) -> None:
    limits = boundaries([7 / 8, 1])

    def see() -> dict[str, Any]:
        found = strict(researcher.get("/results/test.json").text)
        page = Page(researcher.get("/results/test").text)
        assert_page_says(page, found)
        assert_no_nonsense(page)
        _, *rows = page.tables["Planned looks"]
        for row, look, limit in zip(rows, found["looks"], limits, strict=True):
            c = look["comparison"]
            assert (look["boundary"], row[:2]) == (limit, [str(look["n"]), p_value(limit)])
            if c is None:
                assert (look["crossed"], row[2:]) == (None, ["–", "–", "–", "not reached"])
                continue
            assert look["crossed"] == (c["p"] <= limit)
            assert row[2:4] == [p_value(c["p"]), points(c["difference"])]
            assert row[5].startswith("boundary crossed" if look["crossed"] else "not crossed")
            assert "as first seen on" in row[5], "the JSON before it has shown it"
        seen: dict[str, Any] = found
        return seen

    def expected(order: list[str]) -> dict[str, Any]:
        rows = main_trials(researcher.get("/results/test/responses.csv").text, [small], 7)
        rows = rows[rows["participant"].isin(order)]
        comparison: dict[str, Any] = expected_comparison(
            rows, "undefended", "gradient_regularized", "mistake_reasonable"
        )
        return comparison

    order: list[str] = []

    def finish(choose: Choose) -> None:
        play(researcher, "test", [small], choose)
        rows = main_trials(researcher.get("/results/test/responses.csv").text, [small], 7)
        order.extend(set(rows["participant"]) - set(order))

    for _ in range(6):
        finish(FAR)
    found = see()
    assert (found["masked"], [look["comparison"] for look in found["looks"]]) == (True, [None, None])

    finish(FAR)
    found = see()
    assert not found["masked"], "a look that decides opens the results"
    assert found["unmasked"] is None, "and that is not early"
    first = found["looks"][0]["comparison"]
    assert (first["p"], first["participants"], first["difference"]) == (2 / 2**7, 7, -0.75)
    assert found["looks"][0]["crossed"]
    for key, value in expected(order).items():
        assert first[key] == (value if isinstance(value, bool) else pytest.approx(value)), key

    finish(NEAR)
    found = see()
    assert not found["masked"]
    assert found["looks"][0]["comparison"] == first, "who comes later changes no look"
    last = found["looks"][1]["comparison"]
    assert last["p"] == pytest.approx(expected(order)["p"])
    (primary,) = (c for c in found["packs"]["test-pack"]["comparisons"] if c["primary"])
    assert primary == last
    (sentence,) = Page(researcher.get("/results/test").text).findings
    assert "Over 7 participants, " in sentence, "the look that decided is the headline"
    assert f"at the level of {p_value(limits[0])} that was fixed beforehand" in sentence
    assert "It was decided at the declared look at 7 participants." in sentence
    assert "Over all 8 who are complete and included by now" in sentence

    finish(NEAR)
    found = see()
    assert found["looks"][1]["comparison"] == last
    (primary,) = (c for c in found["packs"]["test-pack"]["comparisons"] if c["primary"])
    assert primary["participants"] == 9


@pytest.mark.only(*KINDS)
def test_a_look_that_was_seen_stays_what_it_was(researcher: TestClient, small: Pack) -> None:
    tokens = [play(researcher, "test", [small], FAR) for _ in range(7)]
    before = strict(researcher.get("/results/test.json").text)["looks"][0]
    assert (before["crossed"], before["still"]) == (True, True)
    researcher.post(f"/api/sessions/{tokens[0]}/withdraw").raise_for_status()
    after = strict(researcher.get("/results/test.json").text)["looks"][0]
    assert after == before | {"still": False, "seen_at": after["seen_at"]}
    play(researcher, "test", [small], NEAR)
    found = strict(researcher.get("/results/test.json").text)
    assert found["looks"][0] == after, "nobody gets a second try at the same boundary"
    assert not found["masked"]
    (sentence,) = Page(researcher.get("/results/test").text).findings
    assert "has withdrawn since it was first shown" in sentence


def test_a_look_that_decides_nothing_leaves_the_mask_on(researcher: TestClient, small: Pack) -> None:
    for choose in (FAR, NEAR, PLAIN, FAR, NEAR, PLAIN, NEAR):
        play(researcher, "test", [small], choose)
    found = strict(researcher.get("/results/test.json").text)
    assert found["looks"][0]["crossed"] is False
    assert found["masked"]
    assert all(pack["comparisons"] == [] and pack["views"] is None for pack in found["packs"].values())
