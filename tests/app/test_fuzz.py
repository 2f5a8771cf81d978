"""Hostile bodies: each is refused with its status or stored as it says, and the session goes on to its end.

The corpus is in `fuzz/`: one body a line, a letter a byte ([text, n] stands for n times the text), `$ID` for a new
answer_id, with the status it must get and, where it is accepted, what must then be in the database. Others are made
from a good answer by putting anything into it.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response as Reply
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from app.db import Database
from app.models import Comment, Judgment, Participant, RecruiterId, Response, Trial
from app.settings import Settings
from tests.app.conftest import Player

Start = Callable[..., Player]
CORPUS = Path(__file__).parent / "fuzz"


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


def corpus(file: str) -> list[dict[str, Any]]:
    lines = (CORPUS / f"{file}.jsonl").read_text(encoding="ascii").splitlines()
    cases: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert len({case["name"] for case in cases}) == len(cases)
    return cases


def joined(pieces: str | list[Any]) -> str:
    if isinstance(pieces, str):
        return pieces
    return "".join(piece if isinstance(piece, str) else piece[0] * piece[1] for piece in pieces)


def send(player: Player, method: str, path: str, case: dict[str, Any]) -> Reply:
    body = joined(case["body"]).encode("latin-1").replace(b"$ID", str(uuid.uuid4()).encode())
    headers = {b"Content-Type": case["type"].encode("latin-1")} if case["type"] else {}
    reply = player.client.request(method, path, content=body, headers=headers)
    assert reply.status_code == case["status"], (case["name"], reply.status_code, reply.text)
    if reply.status_code >= 400:
        detail = reply.json()["detail"]
        assert isinstance(detail, str), case["name"]
        assert len(detail) < 1000, case["name"]
        assert "\n" not in detail, case["name"]
    return reply


def answer_at(
    db: Database, table: type[Response] | type[Judgment], token: str, position: int
) -> dict[str, Any] | None:
    with db.read() as session:
        stored = session.scalars(
            select(table)
            .join(Trial)
            .join(Participant)
            .where(Participant.token == token, Trial.position == position)
        ).one_or_none()
    return (
        None if stored is None else {name: getattr(stored, name) for name in FIELDS if hasattr(stored, name)}
    )


def count(db: Database, table: Any) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_answers(start: Start, db: Database) -> None:
    player = start()
    for question, table, state in (("label", Response, "labelling"), ("plausibility", Judgment, "judging")):
        player.answer(until=state)
        here = player.session()
        stored = 0
        for case in corpus(question):
            position = here["next_position"]
            send(player, "PUT", f"{player.base}/trials/{position}/{question}", case)
            found = answer_at(db, table, player.token, position)
            now = player.session()
            if "stores" in case:
                assert found is not None, case["name"]
                assert {name: found[name] for name in case["stores"]} == case["stores"], case["name"]
                stored += 1
            else:
                assert found is None, case["name"]
                assert now == here, case["name"]
            assert count(db, table) == stored, case["name"]
            here = now
    player.answer()
    assert player.session()["state"] == "finished"
    assert (count(db, Response), count(db, Judgment)) == (32, 30)


def test_comments(start: Start, db: Database) -> None:
    player = start()
    player.answer(until="commenting")
    text = None
    for case in corpus("comments"):
        send(player, "POST", f"{player.base}/comments", case)
        text = joined(case["stores"]) if "stores" in case else text
        with db.read() as session:
            assert session.scalars(select(Comment.text)).one_or_none() == text, case["name"]
        page = player.client.get(f"/s/{player.token}")
        assert page.status_code == 200, case["name"]
        assert "<script>alert" not in page.text
    assert player.client.post(f"{player.base}/finish").status_code == 200


def test_sessions(start: Start, client: TestClient, db: Database) -> None:
    nobody = Player(client, "")
    begun = 0
    for case in corpus("sessions"):
        reply = send(nobody, "POST", "/api/sessions", case)
        if "stores" in case:
            begun += 1
            token = reply.json()["token"]
            with db.read() as session:
                rows = session.scalars(
                    select(RecruiterId).join(Participant).where(Participant.token == token)
                )
                assert {row.name: row.value for row in rows} == case["stores"], case["name"]
            page = client.get(f"/s/{token}")
            assert page.status_code == 200, case["name"]
            assert "set-cookie" not in page.headers
        assert count(db, Participant) == begun, case["name"]
    player = start()
    player.answer()
    assert player.session()["state"] == "finished"


NAMES = (
    "%00",
    "a%00b",
    "%ff",
    "%ed%a0%80",
    "%f0%9f%98%80",
    "%2e%2e%2fetc",
    "'",
    "%25s",
    "%7b%7d",
    "x" * 3000,
    "%0d%0aX:y",
)


@pytest.mark.only("postgresql")  # which refuses all texts that SQLite does, and NUL
def test_addresses(client: TestClient, researcher: TestClient) -> None:
    """What stands for a link, a study, an image or a place may be anything."""
    ends = ("", "/label", "/comments", "/withdraw", "/pause")
    form = {"position": "1", "answer_id": str(uuid.uuid4()), "consent": "yes"}
    for name in NAMES:
        for path in (
            "/s/{}",
            "/api/sessions/{}",
            "/study/{}",
            "/results/{}",
            "/stimuli/{}.png",
            "/static/{}",
        ):
            # Only sessions have more below them.
            for end in ends if path in ("/s/{}", "/api/sessions/{}") else ends[:2]:
                url = path.format(name) + end
                for method in ("GET", "POST"):
                    reply = researcher.request(method, url, data=form if method == "POST" else None)
                    assert reply.status_code in (400, 403, 404, 405, 422), (method, url, reply.status_code)
        for url in (
            f"/results/test?version={name}",
            f"/results/test?data={name}",
            f"/results/test/images/{name}",
            f"/results/test/models/{name}/report.html",
            f"/study/test?id={name}",
            f"/study/test?lang={name}&STUDY_ID={name}",
        ):
            assert researcher.get(url).status_code in (200, 400, 404, 422), url
        for fields in ({"position": name}, {"label": name}, {"answer_id": name}, {"consent": name}):
            sent = "&".join(f"{key}={value}" for key, value in (form | fields).items())
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            for url in ("/s/x/label", "/study/none", "/s/x/plausibility", "/signin"):
                assert client.post(url, content=sent, headers=headers).status_code < 500, (url, fields)
            code = client.post("/withdraw", content=f"code={name[:90]}", headers=headers)
            assert code.status_code == 422


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["3", "5", "none", "", "\x00", "\ud800", "0" * 60, 1e300, 2**70, -0.0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("answer_id", "label", "runner_up", "rt_ms", "display", "extra", "plausible")


def test_anything_in_an_answer(start: Start, db: Database) -> None:
    """What is accepted is stored as another reading of the same bytes has it; the rest changes nothing."""
    players = [start()]
    here = players[0].session()

    @settings(
        max_examples=150,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        changes=st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=3),
        left_out=st.sets(st.sampled_from(FIELDS), max_size=1),
        flipped=st.none() | st.tuples(st.integers(0, 200), st.integers(0, 255)),
    )
    def send(changes: dict[str, Any], left_out: set[str], flipped: tuple[int, int] | None) -> None:
        nonlocal here
        player, position = players[-1], here["next_position"]
        good = {"answer_id": str(uuid.uuid4()), "label": "3", "runner_up": "5", "rt_ms": 5.5}
        body = {name: value for name, value in (good | changes).items() if name not in left_out}
        sent = bytearray(json.dumps(body).encode())
        if flipped is not None:
            sent[flipped[0] % len(sent)] = flipped[1]
        url = f"{player.base}/trials/{position}/label"
        reply = player.client.put(url, content=bytes(sent), headers={"Content-Type": "application/json"})
        found = answer_at(db, Response, player.token, position)
        if reply.status_code != 200:
            assert reply.status_code in (400, 409, 422), (bytes(sent), reply.text)
            assert found is None
            return
        read = json.loads(bytes(sent))
        assert found is not None
        assert found["answer_id"] == uuid.UUID(read["answer_id"])
        assert found["label"] == ("none" if read["label"] is None else read["label"])
        assert found["runner_up"] == (read.get("runner_up") or "none")
        assert found["rt_ms"] == read.get("rt_ms")
        assert found["display"] == read.get("display", {})
        if reply.json()["state"] != "labelling":
            players.append(start())
        here = players[-1].session()

    send()
    players[-1].answer()
    assert players[-1].session()["state"] == "finished"
