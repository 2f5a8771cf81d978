"""No number shown is wrong: every one is worked out anew from the CSV, or was written down by hand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from app import definition as definitions
from app.db import Database
from app.main import create_app
from app.models import Participant, Response, Study, Trial
from app.progress import excluded_because
from app.serving import prepare
from app.settings import Settings
from ml.pack import Pack
from tests.app.conftest import SECRET, STUDY, Player, sign_in
from tests.app.databases import KINDS, Databases
from tests.app.oracle import (
    COMPARED,
    OUTCOMES,
    Choose,
    assert_close,
    at_random,
    expected_packs,
    play,
    read_csv,
    strict,
)
from tests.app.reading import Page, assert_no_nonsense, assert_page_says
from tests.packs import make_pack

# PostgreSQL where the database is asked; how numbers come onto the page does not depend on it.
pytestmark = pytest.mark.quickly("sqlite")

TEXTS = STUDY[STUDY.index("[texts]") :]
SEED = 11
FILES = {
    "mixed": """packs = ["five"]
trials = 15
target_participants = 3
[primary]
pack = "five"
[exclusions]
min_median_label_rt_ms = 100
max_same_label_share = 0.6
""",
    # The primary comparison is b against a of the usual order, in the second pack.
    "two": """packs = ["four", "four-b"]
trials = 12
target_participants = 4
[primary]
pack = "four-b"
a = "gradient_regularized"
b = "undefended"
outcome = "human_fooled"
""",
    "labels": """packs = ["four"]
trials = 12
target_participants = 2
questions = ["label"]
[primary]
pack = "four"
""",
    "once": """packs = ["four"]
trials = 12
target_participants = 2
questions = ["label", "plausibility"]
[primary]
pack = "four"
outcome = "mistake_reasonable_direct"
""",
}
PRIMARY = {
    "mixed": ("five", "undefended", "gradient_regularized", "mistake_reasonable"),
    "two": ("four-b", "gradient_regularized", "undefended", "human_fooled"),
    "labels": ("four", "undefended", "gradient_regularized", "mistake_reasonable"),
    "once": ("four", "undefended", "gradient_regularized", "mistake_reasonable_direct"),
}
COMPARED_IN = {"labels": COMPARED[:2]}
PLAYED = [("mixed", "real"), ("mixed", "simulated"), ("two", "real"), ("labels", "real"), ("once", "real")]


@dataclass
class World:
    """A server with studies that all kinds of participants took part in; nothing in it changes any more."""

    client: TestClient  # the researcher's
    db: Database
    packs: dict[str, list[Pack]]  # by study
    tokens: dict[str, str]  # role -> token, of the study "mixed"

    def get(self, study: str, data: str = "real", what: str = ".json") -> str:
        reply = self.client.get(f"/results/{study}{what}?data={data}")
        assert reply.status_code == 200, reply.text
        return reply.text

    def finished(self, study: str) -> list[str]:
        """Pseudonyms: that somebody pressed "finish" is not in the CSV."""
        with self.db.read() as session:
            query = select(Participant.pseudonym).join(Study, Study.id == Participant.study_id)
            return list(
                session.scalars(query.where(Study.slug == study, Participant.finished_at.is_not(None)))
            )

    def pseudonym(self, role: str) -> str:
        with self.db.read() as session:
            return session.scalars(
                select(Participant.pseudonym).where(Participant.token == self.tokens[role])
            ).one()


@dataclass
class Played:
    """What everybody did, on SQLite."""

    settings: Settings
    packs: dict[str, list[Pack]]
    tokens: dict[str, str]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    root = tmp_path_factory.mktemp("played")
    five = make_pack(root / "packs" / "five", "five", tuple("01234"), targets=2)
    four = make_pack(root / "packs" / "four", "four", tuple("0123"), targets=2)
    four_b = make_pack(root / "packs" / "four-b", "four-b", tuple("0123"), targets=2, seed=1)
    packs = {"mixed": [five], "two": [four, four_b], "labels": [four], "once": [four]}
    (root / "studies").mkdir()
    for slug, text in FILES.items():
        head = f'title = "{slug}"\nseed = {SEED}\n'
        (root / "studies" / f"{slug}.toml").write_text(head + text + TEXTS)
    settings = Settings(f"sqlite:///{root / 'study.db'}", SECRET, root / "studies", root / "packs")
    prepare(settings)
    with TestClient(create_app(settings)) as client:
        return Played(settings, packs, _play_all(client, packs))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, played: Played, databases: Databases) -> Iterator[World]:
    url = databases.played(played.settings.database_url, tmp_path_factory.mktemp("world"))
    db = Database(url)
    with TestClient(create_app(replace(played.settings, database_url=url))) as client:
        yield World(sign_in(client), db, played.packs, played.tokens)
    db.close()


def _play_all(client: TestClient, packs: dict[str, list[Pack]]) -> dict[str, str]:
    def go(study: str, role: str, choose: Choose | None = None, **options: Any) -> str:
        labels = packs[study][0].labels
        chosen = choose or at_random(f"{study} {role}", labels, runner_up=study in ("mixed", "two"))
        return play(client, study, packs[study], chosen, **options)

    tokens: dict[str, str] = {}
    for number in range(3):
        tokens[f"finished {number}"] = go("mixed", f"finished {number}")
    tokens["began"] = go("mixed", "began", labels=0)
    tokens["practiced"] = go("mixed", "practiced", labels=2)
    tokens["labelling"] = go("mixed", "labelling", labels=11)
    tokens["judging"] = go("mixed", "judging", judgments=7)
    tokens["commenting"] = go("mixed", "commenting", finish=False)
    for role, labels in (("withdrawn at the end", 1000), ("withdrawn midway", 9)):
        tokens[role] = go("mixed", role, labels=labels)
        assert client.post(f"/api/sessions/{tokens[role]}/withdraw").status_code == 200
    tokens["too fast"] = go("mixed", "too fast", _all_times(packs["mixed"][0], "too fast", 99.96))
    tokens["one label"] = go("mixed", "one label", _shares(15))
    # Both rules at their very edge: three in five answers one label, and a median of 100 ms, are still allowed.
    tokens["edge"] = go("mixed", "edge", _shares(9), rt_ms=100.0)
    for number in range(3):
        tokens[f"simulated {number}"] = go("mixed", f"simulated {number}", simulated="yes")
    tokens["simulated too fast"] = go(
        "mixed", "fast bot", _all_times(packs["mixed"][0], "bot", 1), simulated="yes"
    )
    tokens["simulated midway"] = go("mixed", "midway", labels=6, simulated="yes")
    for number in range(6):
        go("two", str(number))
    go("two", "midway", labels=8)
    for number in range(7):
        go("labels", str(number))
    for number in range(3):
        go("once", str(number))
    return tokens


def _all_times(pack: Pack, seed: str, rt_ms: float) -> Choose:
    chance = at_random(seed, pack.labels)
    return lambda stimulus: chance(stimulus) | {"rt_ms": rt_ms}


def _shares(same: int) -> Choose:
    """So many times the label 0, then others."""
    given = iter(["0"] * same + ["1", "2", "none"] * 6)
    return lambda stimulus: {
        "label": "3" if stimulus is None else next(given),
        "runner_up": "none",
        "plausible": False,
    }


# Numbers


@pytest.mark.only(*KINDS)
@pytest.mark.parametrize(("study", "data"), PLAYED)
def test_every_rate_and_comparison_can_be_recomputed_from_the_csv(
    world: World, study: str, data: str
) -> None:
    found = strict(world.get(study, data))
    assert (found["masked"], found["unmasked"], found["data"]) == (False, None, data)
    expected = expected_packs(
        world.get(study, data, "/responses.csv"),
        world.packs[study],
        SEED,
        world.finished(study),
        PRIMARY[study],
        COMPARED_IN.get(study, COMPARED),
    )
    assert set(found["packs"]) == set(expected)
    for name, pack in expected.items():
        for part in ("models", "together"):
            assert_close(found["packs"][name][part], pack[part], f"{name}/{part}")
        comparisons = {}
        for c in found["packs"][name]["comparisons"]:
            assert (c.pop("reason") is None) == (c["low"] is not None)
            assert (c.pop("reason_new_images") is None) == (c["p_new_images"] is not None)
            comparisons[c.pop("a"), c.pop("b"), c.pop("outcome")] = c
        assert_close(comparisons, pack["comparisons"], name)
    every = [c for pack in expected.values() for c in pack["comparisons"].values()]
    assert sum(c["primary"] for c in every) == 1
    assert [c["p_holm"] for c in every if c["primary"]] == [None]


def test_the_played_data_are_worth_testing(world: World) -> None:
    """The checks above would pass for a long time on data in which nothing happens."""
    mixed, two = (strict(world.get(study))["packs"] for study in ("mixed", "two"))
    for pack in (mixed["five"], two["four"], two["four-b"]):
        for outcome in OUTCOMES:
            rates = [model[outcome]["rate"] for model in pack["models"].values()]
            assert len(set(rates)) > 1, outcome
        assert all(0 < c["p"] <= 1 and 0 < c["p_naive"] <= 1 for c in pack["comparisons"])
    assert {c["participants"] for c in two["four"]["comparisons"]} != {6}, "some met one model only"
    sizes = {m["human_fooled"]["n"] for p in two.values() for m in p["models"].values()}
    assert len(sizes) > 1, "packs are drawn, so denominators differ"
    labels = strict(world.get("labels"))["packs"]["four"]
    adjusted = [c["p_holm"] for c in labels["comparisons"] if not c["primary"]]
    assert len(adjusted) == 5
    assert any(p < 1 for p in adjusted)


@pytest.mark.only(*KINDS)
def test_participants_are_counted_by_what_they_did(world: World) -> None:
    found = strict(world.get("mixed"))
    assert found["participants"] == {
        "started": 13,
        "finished": 6,
        "excluded": 2,
        "withdrawn": 2,
        "included": 4,
    }
    # 6 finished, one commenting and one judging with 15 each, one with 11 - 2: practice never counts.
    assert found["responses"] == 8 * 15 + 9
    rows = read_csv(world.get("mixed", what="/responses.csv"))
    assert found["responses"] == (rows["kind"] == "main").sum()
    n = sum(model["human_fooled"]["n"] for model in found["packs"]["five"]["models"].values())
    assert n == found["responses"] - 2 * 15, "excluded participants are out of rates"
    direct = sum(m["mistake_reasonable_direct"]["n"] for m in found["packs"]["five"]["models"].values())
    assert direct == (4 + 1) * 15 + 7, "judgments are counted by themselves"
    assert strict(world.get("mixed", "simulated"))["participants"] == {
        "started": 5,
        "finished": 4,
        "excluded": 1,
        "withdrawn": 0,
        "included": 3,
    }


def test_a_question_that_was_not_asked_has_no_rate(world: World) -> None:
    for study, asked, n in (("labels", set(), 28), ("once", {"mistake_reasonable_direct"}, 12)):
        for rates in strict(world.get(study))["packs"]["four"]["models"].values():
            for outcome in ("target_second", "mistake_reasonable_direct"):
                assert rates[outcome]["n"] == (n if outcome in asked else 0)
                assert (rates[outcome]["rate"] is None) == (outcome not in asked)
            assert rates["mistake_reasonable"]["n"] == n
    page = Page(world.get("labels", what=""))
    rows = {row[0]: row[1:] for row in page.tables["Rates per model, four"]}
    assert rows["target named second the second label is the network’s answer"] == ["not asked"] * 3
    assert "This study does not ask for a second label" in page.text
    assert "when asked" not in page.figures[0][0]
    assert "does not ask for a second" not in Page(world.get("mixed", what="")).text


def test_the_rules_of_the_study_file_exclude_and_nothing_else_does(world: World) -> None:
    rows = read_csv(world.get("mixed", what="/responses.csv"))
    flagged = set(rows[rows["excluded"] == "1"]["participant"])
    assert flagged == {world.pseudonym("too fast"), world.pseudonym("one label")}
    finished = set(world.finished("mixed"))
    for who, own in rows[rows["kind"] == "main"].groupby("participant"):
        median = own["label_rt_ms"][own["label_rt_ms"] != ""].astype(float).median()
        share = own["label"].value_counts().max() / len(own)
        assert (who in flagged) == (who in finished and (median < 100 or share > 0.6)), who
    assert world.pseudonym("edge") in finished


def test_a_share_in_the_reason_is_not_rounded() -> None:
    content = {
        "title": "t",
        "packs": ["p"],
        "seed": 1,
        "target_participants": 2,
        "primary": {"pack": "p"},
        "texts": {
            "summary": "",
            "minutes": 1,
            "information": [],
            "consent": [],
            "debrief": [],
            "contact": "",
        },
        "exclusions": {"max_same_label_share": 0.925, "min_median_label_rt_ms": 250.5},
    }
    definition = definitions.Definition.model_validate(content)
    assert (
        excluded_because(definition, [("3", None)] * 30, 0) == "one label in more than 92.5 % of answers"
    ), "and no times were measured"
    times: list[tuple[str, float | None]] = [("3", 250.0), ("4", 250.4), ("5", 9000.0)]
    assert excluded_because(definition, times, 0) == "median response time under 250.5 ms"
    assert excluded_because(definition, [*times, ("6", 9000.0)], 0) is None
    assert excluded_because(definition, [], 0) is None


def test_practice_decides_no_exclusion(
    researcher: TestClient, pack: Pack, start: Callable[..., Player]
) -> None:
    """Practice answers that alone would carry the median time, and the share of one label, over their rules."""
    labels = list(pack.labels)

    def choose(trial: dict[str, Any]) -> dict[str, Any]:
        if trial["state"] == "judging":
            return {}
        if trial["practice"]:
            return {"label": labels[0], "runner_up": "none", "rt_ms": 1.0}
        # 15 answers of 90 ms, 15 of 110 ms: their median is the rule's 100 ms, with practice it is 90.
        slow = trial["position"] % 2 == 0
        label = (
            labels[0] if trial["position"] - 2 <= 24 else labels[1]
        )  # 24 of 30: the rule's 80 %, with practice more
        return {"label": label, "runner_up": "none", "rt_ms": 110.0 if slow else 90.0}

    start().answer(choose)
    found = researcher.get("/results/test.json").json()["participants"]
    assert (found["finished"], found["excluded"]) == (1, 0)


# The page


@pytest.mark.parametrize(("study", "data"), PLAYED)
def test_the_page_prints_the_numbers_of_the_json(world: World, study: str, data: str) -> None:
    page = Page(world.get(study, data, ""))
    assert_page_says(page, strict(world.get(study, data)))
    assert_no_nonsense(page)
    assert ("Simulated participants." in page.text) == (data == "simulated")
    assert len(page.findings) == 1


@pytest.mark.only(*KINDS)
def test_the_monitor_says_where_everybody_is(world: World) -> None:
    page = Page(world.get("mixed", what=""))
    header, *rows = page.tables["Participants"]
    assert header == [
        "Participant",
        "State",
        "Answers",
        "Minutes",
        "Median, s",
        "Began",
        "Last seen",
        "Excluded",
    ]
    by_name = {row[0]: row[1:] for row in rows}
    assert len(by_name) == len(rows) == 13
    for role, state, answers, excluded in (
        ("finished 0", "finished", "32 of 32", ""),
        ("began", "labelling", "0 of 32", ""),
        ("practiced", "labelling", "2 of 32", ""),
        ("labelling", "labelling", "11 of 32", ""),
        ("judging", "judging", "24 of 32", ""),
        ("commenting", "commenting", "32 of 32", ""),
        ("withdrawn at the end", "withdrawn", "deleted", ""),
        ("withdrawn midway", "withdrawn", "deleted", ""),
        ("too fast", "finished", "32 of 32", "median response time under 100 ms"),
        ("one label", "finished", "32 of 32", "one label in more than 60 % of answers"),
        ("edge", "finished", "32 of 32", ""),
    ):
        row = by_name[world.pseudonym(role)]
        assert (row[0], row[1], row[6]) == (state, answers, excluded), role
    with world.db.read() as session:
        for person in session.scalars(select(Participant)):
            if person.pseudonym in by_name:
                minutes, median, began, seen = by_name[person.pseudonym][2:6]
                until = person.finished_at or person.last_seen_at
                assert minutes == f"{(until - person.consented_at).total_seconds() / 60:.1f}"
                times = session.scalars(
                    select(Response.rt_ms)
                    .join(Trial, Trial.id == Response.trial_id)
                    .where(
                        Trial.participant_id == person.id, Trial.kind == "main", Response.rt_ms.is_not(None)
                    )
                ).all()
                assert median == (
                    f"{float(np.median([ms for ms in times if ms is not None])) / 1000:.1f}" if times else "–"
                )
                assert began == person.consented_at.strftime("%Y-%m-%d %H:%M:%S")
                assert seen == person.last_seen_at.strftime("%Y-%m-%d %H:%M:%S")


def test_comments_name_the_grids_as_each_participant_saw_them(world: World) -> None:
    html = world.get("two", what="")
    with world.db.read() as session:
        query = select(Participant).join(Study, Study.id == Participant.study_id)
        people = session.scalars(query.where(Study.slug == "two", Participant.finished_at.is_not(None))).all()
    assert len(people) == html.count("<blockquote>") == 6
    for person in people:
        letters = ", ".join(f"{chr(65 + i)}: {grid}" for i, grid in enumerate(person.grid_order))
        assert f"{person.pseudonym} · {letters}" in html


@pytest.mark.only(*KINDS)
def test_the_overview_counts_real_participants(world: World) -> None:
    text = Page(world.client.get("/results").text).text
    assert "13 started · 6 finished, excluded ones too · target N 3 · 5 simulated, counted apart ·" in text
    assert "7 started · 6 finished, excluded ones too · target N 4 · link" in text
