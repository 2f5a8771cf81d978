"""What a study file may ask for beyond the paper's protocol: control images, pauses, rotated questions."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.db import Database
from app.main import create_app
from app.models import CleanImage, Participant, Trial
from app.serving import prepare
from app.settings import Settings
from ml.pack import Pack
from tests.app.conftest import Player, begin, installation
from tests.app.databases import KINDS, Databases
from tests.app.oracle import read_csv
from tests.app.small import SMALL_STUDY, db, prepared, settings, small
from tests.app.test_pages import Fields, form, post

__all__ = ["db", "prepared", "settings", "small"]  # fixtures

# PostgreSQL for what is counted, and for whose turn it is; the rest is drawn and shown without the database.
pytestmark = pytest.mark.quickly("sqlite")

Start = Callable[..., Player]

CONTROLS = 2


@pytest.fixture(scope="module")
def study() -> str:
    """With every option."""
    text = SMALL_STUDY.replace(
        "practice = 2", f"practice = 2\ncontrols = {CONTROLS}\nrotate_questions = true"
    )
    text = text.replace("seed = 7", "seed = 7\npause_after = 4")
    return text.replace("[exclusions]", f"[exclusions]\nmin_controls_right = {CONTROLS}")


def clean_labels(pack: Pack) -> dict[str, str]:
    return {image.sha256: image.source_label for image in pack.clean}


def sha256(trial: dict[str, Any]) -> str:
    return str(trial["image"][9:73])


# Control images


def test_control_images_stand_among_the_others_and_nothing_tells_them(
    start: Start, small: Pack, db: Database
) -> None:
    clean = clean_labels(small)
    places: set[int] = set()
    for _ in range(12):
        trials = start().session()["trials"]
        assert len(trials) == 2 + 12 + CONTROLS
        assert [t["practice"] for t in trials] == [True] * 2 + [False] * (12 + CONTROLS)
        found = [t["position"] for t in trials if sha256(t) in clean and not t["practice"]]
        assert len(found) == CONTROLS
        assert len({sha256(t) for t in trials}) == len(trials), "no image comes twice"
        assert len({frozenset(t) for t in trials}) == 1, "all trials have the same fields"
        places.update(found)
    assert min(places) < 6, "not only at the end"
    assert max(places) > 12
    with db.read() as session:
        rows = session.execute(
            select(Trial.kind, CleanImage.role, Trial.judging_order, Trial.stimulus_id)
            .join(CleanImage, CleanImage.id == Trial.clean_image_id)
            .where(Trial.kind == "control")
        ).all()
    assert set(rows) == {("control", "clean", None, None)}


def play(player: Player, pack: Pack, wrong: int = 0) -> None:
    """Every control image read right but `wrong` of them; the others by turns."""
    clean = clean_labels(pack)
    left = wrong

    def choose(trial: dict[str, Any]) -> dict[str, Any]:
        nonlocal left
        label = clean.get(sha256(trial))
        if label is None or trial["practice"] or trial["state"] == "judging":
            return {}
        if left:
            left -= 1
            return {"label": "none", "runner_up": "none"}
        return {"label": label, "runner_up": "none"}

    player.answer(choose)


@pytest.mark.only(*KINDS)
def test_control_answers_are_never_in_the_rates_and_exclude_by_the_rule(
    researcher: TestClient, start: Start, small: Pack
) -> None:
    for wrong in (0, 1, 0):
        play(start(), small, wrong)
    found = researcher.get("/results/test.json").json()
    assert found["participants"] | {"withdrawn": 0} == {
        "started": 3,
        "finished": 3,
        "excluded": 1,
        "withdrawn": 0,
        "included": 2,
    }
    for model in found["packs"]["test-pack"]["models"].values():
        assert model["mistake_reasonable"]["n"] == 8, "2 included participants, 4 images of each model"
    assert found["responses"] == 36, "main trials alone"
    rows = read_csv(researcher.get("/results/test/responses.csv").text)
    assert Counter(rows["kind"]) == {"main": 36, "practice": 6, "control": 6}
    controls = rows[rows["kind"] == "control"]
    clean = clean_labels(small)
    for row in controls.to_dict("records"):
        assert row["source_label"] == clean[str(row["stimulus"])]
        assert row["pack"] == "test-pack"
        assert (row["model"], row["target_label"], row["plausible"]) == ("", "", "")
        assert (row["fooled"], row["reasonable"]) == ("", "")
    assert Counter(rows[rows["excluded"] == "1"]["kind"]) == {"main": 12, "practice": 2, "control": 2}
    page = researcher.get("/results/test").text
    assert "fewer than 2 of 2 control images read right" in page


def test_judging_leaves_control_images_out(start: Start, small: Pack) -> None:
    player = start()
    player.answer(until="judging")
    here = player.session()
    clean = clean_labels(small)
    for trial in here["trials"]:
        assert (trial["prediction"] is None) == (sha256(trial) in clean)
    player.answer(until="commenting")
    assert player.client.post(f"{player.base}/finish").status_code == 200


# Pauses, without JavaScript


def test_a_pause_comes_after_each_block_in_both_parts(client: TestClient, start: Start) -> None:
    player = start()
    pauses: list[tuple[str, int]] = []
    for state, questions in (("labelling", 2 + 12 + CONTROLS), ("judging", 12)):
        for answered in range(1, questions + 1):
            chosen = {"label": "none"} if state == "labelling" else {"plausible": "yes"}
            reply = post(player, form(player), **chosen)
            assert reply.status_code == 303
            if reply.headers["location"] == f"/s/{player.token}":
                continue
            assert reply.headers["location"] == f"/s/{player.token}/pause"
            pauses.append((state, answered - (2 if state == "labelling" else 0)))
            page = client.get(reply.headers["location"]).text
            assert "Time for a pause" in page
            assert f'href="/s/{player.token}"' in page
            assert "stimuli" not in page, "no image is shown, nothing is timed"
    assert pauses == [(state, block) for state in ("labelling", "judging") for block in (4, 8, 12)][:5]
    assert "pause" not in str(client.get(f"/s/{player.token}/pause").url), "at no other time"


# Rotated questions


@pytest.mark.only(*KINDS)
def test_every_second_participant_is_asked_for_the_runner_up_first(start: Start, db: Database) -> None:
    orders = []
    for _ in range(4):
        player = start()
        questions = player.session()["questions"]
        page = player.client.get(f"/s/{player.token}").text
        first, second = page.index('id="label"'), page.index('id="runner_up"')
        assert (first < second) == (questions == ["label", "runner_up", "plausibility"])
        orders.append(questions)
    usual, rotated = ["label", "runner_up", "plausibility"], ["runner_up", "label", "plausibility"]
    assert orders == [usual, rotated, usual, rotated]
    with db.read() as session:
        stored = session.scalars(select(Participant.runner_up_first).order_by(Participant.number)).all()
    assert stored == [False, True, False, True], "recorded with the participant"
    player.answer()
    assert player.session()["state"] == "finished"


@pytest.mark.only(*KINDS)
def test_the_order_of_the_file_is_the_usual_one_and_rotates_too(
    settings: Settings, client: TestClient, db: Database
) -> None:
    reverse = 'questions = ["runner_up", "label", "plausibility"]'
    for name, rotate in (("rotated", "rotate_questions = true"), ("fixed", "")):
        (settings.studies / f"{name}.toml").write_text(
            SMALL_STUDY.replace("seed = 7", f"seed = 7\n{reverse}\n{rotate}")
        )
    prepare(settings)
    for name, expected in (("rotated", [True, False, True]), ("fixed", [True, True, True])):
        players = [begin(client, name) for _ in expected]
        assert [p.session()["questions"][0] == "runner_up" for p in players] == expected
        with db.read() as session:
            stored = [
                session.scalars(select(Participant.runner_up_first).where(Participant.token == p.token)).one()
                for p in players
            ]
        assert stored == expected, "as it was asked"


def test_the_defaults_are_the_papers(plain: TestClient) -> None:
    player = begin(plain)
    here = player.session()
    assert len(here["trials"]) == 32
    assert here["questions"] == ["label", "runner_up", "plausibility"]
    assert begin(plain).session()["questions"] == here["questions"]
    for _ in range(12):
        reply = post(player, form(player), label="none")
        assert reply.headers["location"] == f"/s/{player.token}"
    assert Fields(plain.get(f"/s/{player.token}").text).action == f"/s/{player.token}/label"


@pytest.fixture
def plain(tmp_path: Path, pack: Pack, databases: Databases) -> Iterator[TestClient]:
    """The app with the test pack and the study of all tests."""
    own = installation(tmp_path, pack, databases.new(tmp_path))
    prepare(own)
    with TestClient(create_app(own)) as client:
        yield client
