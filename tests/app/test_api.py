"""The JSON API of DESIGN: what is stored, what is refused, what a participant must not be told."""

import json
import math
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, event, func, select
from sqlalchemy.orm import Session

from app.db import Database
from app.main import create_app
from app.models import Comment, Judgment, Participant, RecruiterId, Response, Trial
from app.settings import Settings
from ml.pack import Pack
from tests.app.conftest import SECRET, STUDY, Player
from tests.app.small import db, prepared, settings
from tests.packs import make_pack

__all__ = ["db", "prepared", "settings"]  # fixtures

Start = Callable[..., Player]

# What is only told, or refused before a database is asked, is tested on SQLite alone.


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Five labels, so that a whole session has 17 images to read and 15 to judge."""
    return make_pack(tmp_path_factory.mktemp("packs") / "test-pack", labels=tuple("12345"), targets=2)


@pytest.fixture(scope="module")
def study() -> str:
    return STUDY.replace("seed = 7", "seed = 7\ntrials = 15")


def count(db: Database, table: Any) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_a_session_from_consent_to_code(start: Start, db: Database) -> None:
    player = start(PROLIFIC_PID="abc")
    here = player.session()
    assert (here["state"], here["next_position"], here["trials_total"]) == ("labelling", 1, 17)
    assert [t["practice"] for t in here["trials"]] == [True] * 2 + [False] * 15
    assert here["labels"] == list("12345")
    assert here["questions"] == ["label", "runner_up", "plausibility"]

    for position in range(1, 18):
        reply = player.put(position, label="1", runner_up="2")
        expected = {"stored": True, "state": "labelling" if position < 17 else "judging"}
        assert reply.json() == expected | {"next_position": position + 1 if position < 17 else None}
    here = player.session()
    assert here["state"] == "judging"
    order = []
    while (here := player.session())["state"] == "judging":
        order.append(here["next_position"])
        assert player.put(here["next_position"], "plausibility", plausible=True).status_code == 200
    assert sorted(order) == list(range(3, 18)), "each main image is judged once, practice never"
    assert order != sorted(order), "in a new order"

    assert here["state"] == "commenting"
    assert here["next_position"] is None
    assert player.client.post(f"{player.base}/comments", json={"text": "B looks human."}).status_code == 200
    finished = player.client.post(f"{player.base}/finish").json()
    assert finished["state"] == "finished"
    assert len(finished["completion_code"]) == 9
    again = player.client.post(f"{player.base}/finish").json()
    assert again == finished, "finishing twice gives the same code"
    assert (count(db, Response), count(db, Judgment), count(db, Comment)) == (17, 15, 1)
    with db.read() as session:
        assert session.scalars(select(RecruiterId.value)).all() == ["abc"]


def test_each_cell_is_shown_exactly_once_and_no_source_twice(start: Start, small: Pack) -> None:
    hidden = {s.sha256: s for s in small.stimuli}
    for _ in range(5):
        shown = [hidden[t["image"][9:73]] for t in start().session()["trials"] if not t["practice"]]
        assert Counter((s.source_label, s.model) for s in shown) == Counter(
            {(label, model): 1 for label in small.labels for model in small.models}
        )
        assert len({s.source_index for s in shown}) == 15


@pytest.mark.only("sqlite")
def test_practice_shows_clean_images_and_does_not_count(start: Start, small: Pack) -> None:
    clean = {c.sha256 for c in small.clean}
    practice = [t["image"][9:73] for t in start().session()["trials"] if t["practice"]]
    assert len(set(practice)) == 2
    assert set(practice) <= clean


@pytest.mark.only("sqlite")
def test_nothing_tells_model_source_or_target_before_labelling_is_over(start: Start, small: Pack) -> None:
    player = start()
    while (here := player.session())["state"] == "labelling":
        assert all(t["prediction"] is None for t in here["trials"])
        text = json.dumps(here)
        for secret in (*small.models, "source", "target", "control"):
            assert secret not in text
        assert set(here["trials"][0]) == {"position", "image", "answered", "prediction", "practice"}
        assert player.put(here["next_position"], label="none", runner_up="none").status_code == 200
    hidden = {s.sha256: s for s in small.stimuli}
    for trial in player.session()["trials"]:
        expected = None if trial["practice"] else hidden[trial["image"][9:73]].prediction
        assert trial["prediction"] == expected


def test_the_same_answer_again_changes_nothing(start: Start, db: Database) -> None:
    player = start()
    body: dict[str, Any] = {"answer_id": str(uuid.uuid4()), "label": "3", "runner_up": "5"}
    first = player.put(1, **body)
    again = player.put(1, **body | {"rt_ms": 5.0, "display": {"late": True}})
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json()
    assert count(db, Response) == 1
    with db.read() as session:
        assert session.scalars(select(Response.rt_ms)).one() == 1000.0


def test_another_answer_to_the_same_image_is_refused_with_the_stored_one(start: Start, db: Database) -> None:
    player = start()
    answer_id = str(uuid.uuid4())
    player.put(1, answer_id=answer_id, label="3", runner_up="none")
    other_id = player.put(1, label="3", runner_up="none")
    other_label = player.put(1, answer_id=answer_id, label="4", runner_up="none")
    for reply in (other_id, other_label):
        assert reply.status_code == 409
        assert reply.json()["stored"] == {"label": "3", "runner_up": "none", "answer_id": answer_id}
        assert reply.json()["next_position"] == 2
    assert count(db, Response) == 1


def test_an_answer_id_counts_once_only(start: Start, db: Database) -> None:
    player = start()
    answer_id = str(uuid.uuid4())
    assert player.put(1, answer_id=answer_id, label="3", runner_up="none").status_code == 200
    reply = player.put(2, answer_id=answer_id, label="3", runner_up="none")
    assert reply.status_code == 409
    assert "answer_id" in reply.json()["detail"]
    assert count(db, Response) == 1
    assert player.session()["next_position"] == 2


@pytest.mark.only("sqlite")
def test_out_of_order_names_the_right_position(start: Start) -> None:
    player = start()
    reply = player.put(5, label="3", runner_up="none")
    assert (reply.status_code, reply.json()["next_position"]) == (409, 1)
    assert "image 1" in reply.json()["detail"]
    early = player.put(3, "plausibility", plausible=True)
    assert (early.status_code, early.json()["state"]) == (409, "labelling")
    player.answer(until="judging")
    here = player.session()
    wrong = next(t["position"] for t in here["trials"][2:] if t["position"] != here["next_position"])
    reply = player.put(wrong, "plausibility", plausible=True)
    assert (reply.status_code, reply.json()["next_position"]) == (409, here["next_position"])
    practice = player.put(1, "plausibility", plausible=True)
    assert practice.status_code == 409, "practice is never judged"


@pytest.mark.only("sqlite")
def test_unknown_token_position_study_image(start: Start, client: TestClient) -> None:
    player = start()
    for reply in (
        client.get("/api/sessions/nobody"),
        Player(client, "nobody").put(1, label="3", runner_up="none"),
        player.put(0, label="3", runner_up="none"),
        player.put(18, label="3", runner_up="none"),
        player.put(18, "plausibility", plausible=True),
        client.post("/api/sessions", json={"study": "nothing", "consent": True, "external": {}}),
        client.get(f"/stimuli/{'0' * 64}.png"),
        client.get("/api/nothing"),
    ):
        assert reply.status_code == 404, reply.url
        assert reply.json()["detail"].endswith("."), reply.text


@pytest.mark.only("sqlite")
def test_an_answer_that_makes_no_sense_is_refused_in_a_sentence(start: Start, db: Database) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"label": "10"}, "“10” is not one of the labels"),
        ({"label": "undefended"}, "not one of the labels"),
        ({"label": "3", "runner_up": "3"}, "must differ"),
        ({"label": "none", "runner_up": "3"}, "no runner_up"),
        ({"label": 3}, "label"),
        ({"label": ""}, "“” is not one of the labels"),
        ({"label": "3", "runner_up": "x"}, "“x” is not one of the labels"),
        ({"rt_ms": -1}, "rt_ms"),
        ({"rt_ms": 1e12}, "rt_ms"),
        ({"rt_ms": "fast"}, "rt_ms"),
        ({"answer_id": "7"}, "answer_id"),
        ({"display": {"x": "y" * 5000}}, "display"),
        ({"display": [1]}, "display"),
        ({"extra": 1}, "extra"),
    ]
    player = start()
    for change, complaint in cases:
        reply = player.put(1, **{"label": "3", "runner_up": "none"} | change)
        assert reply.status_code == 422, change
        assert complaint in reply.json()["detail"]
        assert "\n" not in reply.json()["detail"]
    assert count(db, Response) == 0
    assert player.session()["next_position"] == 1


@pytest.mark.only("sqlite")
def test_broken_bodies_are_refused(start: Start, db: Database) -> None:
    player = start()
    url = f"{player.base}/trials/1/label"
    missing = {"answer_id": str(uuid.uuid4())}
    nan = json.dumps(missing | {"label": "3", "runner_up": "4", "rt_ms": math.nan})
    for body in ("{", "[]", "null", json.dumps(missing), nan):
        reply = player.client.put(url, content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 422, body
        assert isinstance(reply.json()["detail"], str)
    assert player.put(1, "plausibility", plausible="yes").status_code == 422
    assert count(db, Response) == 0


@pytest.mark.only("sqlite")
def test_a_missing_runner_up_is_no_answer(start: Start, db: Database) -> None:
    player = start()
    reply = player.put(1, label="4")
    assert (reply.status_code, "runner_up is missing" in reply.json()["detail"]) == (422, True)
    assert count(db, Response) == 0
    assert player.put(1, label="none").status_code == 200, "where nothing is plausible there is no second"


def test_text_that_no_database_keeps_is_refused(client: TestClient, db: Database) -> None:
    for text in ("\\ud800", "a\\u0000b"):
        for external in (f'{{"id": "{text}"}}', f'{{"{text}": "x"}}'):
            reply = client.post(
                "/api/sessions",
                content=f'{{"study": "test", "consent": true, "external": {external}}}',
                headers={"Content-Type": "application/json"},
            )
            assert reply.status_code == 422, external
    assert count(db, Participant) == 0


def test_a_comment_is_not_lost_to_an_empty_box(start: Start, db: Database) -> None:
    """Stored by one tab, it stands in the box of the next; after an empty finish it can still be given, once."""
    player, late = start(), start()
    player.answer(until="commenting")
    player.client.post(f"{player.base}/comments", json={"text": "B is clearer."})
    assert ">B is clearer.</textarea>" in player.client.get(f"/s/{player.token}").text
    late.answer(until="commenting")
    late.client.post(f"/s/{late.token}/comments", data={"text": ""})
    late.client.post(f"/s/{late.token}/comments", data={"text": "From the second tab."})
    refused = late.client.post(f"/s/{late.token}/comments", data={"text": "Once more."})
    assert refused.status_code == 409
    assert "can no longer be changed" in refused.text
    with db.read() as session:
        assert session.scalars(select(Comment.text).order_by(Comment.participant_id)).all() == [
            "B is clearer.",
            "From the second tab.",
        ]


@pytest.mark.only("sqlite")
def test_a_locked_database_is_said_and_loses_nothing(
    start: Start, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = start()
    path = str(db.engine.url.database)
    monkeypatch.setattr("app.db.BUSY_TIMEOUT_S", 0.1)
    impatient = TestClient(create_app(Settings(f"sqlite:///{path}", SECRET)))
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        reply = Player(impatient, player.token).put(1, label="3", runner_up="4")
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
        assert player.token not in reply.text
    assert Player(impatient, player.token).put(1, label="3", runner_up="4").status_code == 200
    impatient.app.state.database.close()  # type: ignore[attr-defined]
    assert count(db, Response) == 1


def test_text_that_no_database_can_look_for_is_nothing_that_is_here(
    client: TestClient, researcher: TestClient
) -> None:
    """PostgreSQL refuses NUL in any text."""
    paths = ("s/%00", "study/%00", "stimuli/%00.png", "api/sessions/%00", "results/%00", "results/%00.json")
    assert {path: client.get(f"/{path}").status_code for path in paths} == dict.fromkeys(paths, 404)
    answer = {"answer_id": str(uuid.uuid4()), "label": "3", "runner_up": "4"}
    assert client.put("/api/sessions/%00/trials/1/label", json=answer).status_code == 404
    assert client.post("/api/sessions", json={"study": "a\0", "consent": True}).status_code == 422


@pytest.mark.only("sqlite")
def test_consent_is_needed(client: TestClient, db: Database) -> None:
    for body in ({"study": "test"}, {"study": "test", "consent": False, "external": {}}):
        reply = client.post("/api/sessions", json=body)
        assert reply.status_code == 422
        assert "consent" in reply.json()["detail"]
    assert count(db, Participant) == 0


def test_null_means_none(start: Start, db: Database) -> None:
    player = start()
    assert player.put(1, label=None, runner_up=None, rt_ms=None).status_code == 200
    assert player.put(2, label="4", runner_up=None).status_code == 200
    with db.read() as session:
        rows = session.execute(select(Response.label, Response.runner_up).order_by(Response.trial_id)).all()
    assert rows == [("none", "none"), ("4", "none")]


@pytest.mark.only("sqlite")
def test_no_code_before_every_answer_is_stored(start: Start) -> None:
    player = start()
    for most in (0, 5, 12, 14):
        player.answer(most=most, until="commenting")
        reply = player.client.post(f"{player.base}/finish")
        assert reply.status_code == 409
        assert "completion_code" not in reply.json()
    assert "1 answers are still missing" in reply.json()["detail"]
    assert player.client.post(f"{player.base}/comments", json={"text": "early"}).status_code == 409


def test_withdrawal_deletes_everything(start: Start, db: Database) -> None:
    stays, leaves = start(), start(PROLIFIC_PID="abc")
    stays.answer()
    leaves.answer()
    reply = leaves.client.post(f"{leaves.base}/withdraw")
    rows = {"labels": 17, "judgments": 15, "images": 17, "comments": 1, "recruiter_ids": 1}
    assert reply.json() == {"state": "withdrawn", "deleted": True, "rows_deleted": rows, "rows_left": 0}
    assert leaves.client.post(f"{leaves.base}/withdraw").status_code == 200
    assert leaves.session()["state"] == "withdrawn"
    assert leaves.session()["trials"] == []
    assert count(db, Response) == 17
    assert count(db, Judgment) == 15
    assert count(db, Trial) == 17
    assert count(db, Comment) == 1
    assert count(db, RecruiterId) == 0
    for refused in (
        leaves.put(1, label="3", runner_up="none"),
        leaves.client.post(f"{leaves.base}/finish"),
        leaves.client.post(f"{leaves.base}/comments", json={"text": "x"}),
    ):
        assert refused.status_code == 409
        assert "withdrawn" in refused.json()["detail"]


def test_the_comment_may_be_corrected_until_the_end(start: Start, db: Database) -> None:
    player = start()
    player.answer(until="commenting")
    for text in ("first", "second"):
        assert player.client.post(f"{player.base}/comments", json={"text": text}).status_code == 200
    player.client.post(f"{player.base}/finish")
    assert player.client.post(f"{player.base}/comments", json={"text": "second"}).status_code == 200
    assert player.client.post(f"{player.base}/comments", json={"text": "third"}).status_code == 409
    with db.read() as session:
        assert session.scalars(select(Comment.text)).all() == ["second"]


@pytest.mark.only("sqlite")
def test_a_number_that_json_does_not_know_is_no_display(start: Start, db: Database) -> None:
    player = start()
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = f'{{"answer_id": "{uuid.uuid4()}", "label": "3", "runner_up": "none", "display": {{"x": {number}}}}}'
        headers = {"Content-Type": "application/json"}
        reply = player.client.put(f"{player.base}/trials/1/label", content=body, headers=headers)
        assert reply.status_code == 422
        assert "display" in reply.json()["detail"]
    assert count(db, Response) == 0


def test_an_empty_box_takes_no_comment_back(start: Start, db: Database) -> None:
    player = start()
    player.answer(until="commenting")
    assert player.client.post(f"{player.base}/comments", json={"text": "written"}).status_code == 200
    assert player.client.post(f"/s/{player.token}/comments", data={"text": ""}).status_code == 200
    assert player.session()["state"] == "finished"
    with db.read() as session:
        assert session.scalars(select(Comment.text)).all() == ["written"]


def test_nothing_fails_after_a_commit(start: Start, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told that nothing was stored must be told the truth: the commit is the last thing that can fail."""
    committed = False

    def commit(session: Session) -> None:
        nonlocal committed
        real(session)
        committed = True

    real = Session.commit
    monkeypatch.setattr(Session, "commit", commit)

    @event.listens_for(Session, "after_begin")
    def refuse(session: Session, transaction: object, connection: Connection) -> None:
        assert not (committed and connection.get_execution_options().get("begin")), "the lock is taken again"

    try:
        player = start()
        committed = False
        for step in range(2 + 15 + 15):
            player.answer(most=1, until="commenting")
            assert committed, step
            committed = False
        for path, body in (("comments", {"text": "x"}), ("finish", {}), ("withdraw", {})):
            assert player.client.post(f"{player.base}/{path}", json=body).status_code == 200
            assert committed, path
            committed = False
    finally:
        event.remove(Session, "after_begin", refuse)


@pytest.mark.only("sqlite")
def test_a_body_beyond_all_need_is_refused(start: Start, db: Database) -> None:
    player = start()
    reply = player.client.post(f"{player.base}/comments", content=b'{"text": "' + b"x" * 300_000 + b'"}')
    assert reply.status_code == 413
    page = player.client.post(f"/s/{player.token}/comments", data={"text": "x" * 300_000})
    assert page.status_code == 413


def test_the_same_answer_from_many_threads_is_stored_once(start: Start, db: Database) -> None:
    player = start()
    body = {"answer_id": str(uuid.uuid4()), "label": "3", "runner_up": "5"}
    others = [{"answer_id": str(uuid.uuid4()), "label": "4", "runner_up": "5"} for _ in range(4)]
    statuses: list[tuple[str, int]] = []

    def send(what: str, answer: dict[str, str]) -> None:
        statuses.append((what, player.put(1, **answer).status_code))

    threads = [threading.Thread(target=send, args=("same", body)) for _ in range(8)]
    threads += [threading.Thread(target=send, args=(str(i), other)) for i, other in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(db, Response) == 1
    winners = {what for what, status in statuses if status == 200}
    assert len(winners) == 1, "one answer was acknowledged, however often it was sent"
    assert {status for what, status in statuses if what not in winners} == {409}


def test_those_who_arrive_together_get_different_numbers(client: TestClient, db: Database) -> None:
    def arrive() -> None:
        client.post("/api/sessions", json={"study": "test", "consent": True, "external": {}})

    threads = [threading.Thread(target=arrive) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as session:
        assert sorted(session.scalars(select(Participant.number))) == list(range(1, 13))
        assert len(set(session.scalars(select(Participant.token)))) == 12


def test_images_are_cached_for_ever(start: Start, small: Pack) -> None:
    player = start()
    url = player.session()["trials"][5]["image"]
    reply = player.client.get(url)
    assert reply.content == small.image(url[9:73])
    assert "immutable" in reply.headers["cache-control"]
    assert reply.headers["content-type"] == "image/png"


@pytest.mark.only("sqlite")
def test_a_nested_display_is_stored_or_refused(start: Start) -> None:
    player = start()
    next_position = 1
    for depth in (2, 49, 50, 900, 945, 960, 1500):
        display = '{"odd": ' + "[" * depth + "]" * depth + "}"
        body = f'{{"answer_id": "{uuid.uuid4()}", "label": "1", "runner_up": "none", "display": {display}}}'
        headers = {"Content-Type": "application/json"}
        url = f"{player.base}/trials/{next_position}/label"
        reply = player.client.put(url, content=body, headers=headers)
        assert reply.status_code in ((200,) if depth < 50 else (400, 422)), depth
        next_position += depth < 50
        assert player.session()["next_position"] == next_position, depth
