"""Answers stored many at a time: each is told what some order, one after the other, would have told it."""

import random
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response as Reply
from sqlalchemy import select, text, update

from app import batches as batching
from app import db as databases_module
from app.cli import main
from app.db import Database
from app.main import create_app
from app.models import Judgment, Participant, Response, Study, Trial
from app.settings import Settings
from tests.app.conftest import SECRET, Player, begin
from tests.app.databases import KINDS, Databases, path
from tests.app.small import prepared, settings, small, study  # noqa: F401 (fixtures)

LABELS, JUDGMENTS = 14, 12  # 2 practice images, 12 that are judged too


@pytest.fixture
def db(client: TestClient) -> Database:
    found: Database = client.app.state.database  # type: ignore[attr-defined]
    return found


def stored(db: Database) -> Counter[tuple[str, str, int, str, str]]:
    """Every answer in the database: token, question, position, answer_id, content."""
    with db.read() as session:
        rows = session.execute(
            select(Participant.token, Trial.position, Response, Judgment)
            .join(Trial, Trial.participant_id == Participant.id)
            .outerjoin(Response, Response.trial_id == Trial.id)
            .outerjoin(Judgment, Judgment.trial_id == Trial.id)
        ).all()
    found = Counter[tuple[str, str, int, str, str]]()
    for token, position, response, judgment in rows:
        if response is not None:
            said = f"{response.label}/{response.runner_up}"
            found[token, "label", position, str(response.answer_id), said] += 1
        if judgment is not None:
            found[token, "plausibility", position, str(judgment.answer_id), str(judgment.plausible)] += 1
    return found


@contextmanager
def held(client: TestClient) -> Iterator[None]:
    """Nothing is stored until the block ends: what comes in is one batch then."""
    busy, gate = threading.Event(), threading.Event()

    def wait() -> bool:
        busy.set()
        return gate.wait(60)

    blocked = client.app.state.batches._thread.submit(wait)  # type: ignore[attr-defined]
    assert busy.wait(60)  # until then the thread's queue holds this, not what is sent
    try:
        yield
    finally:
        gate.set()
        assert blocked.result()


def at_once(client: TestClient, sends: Sequence[Callable[[], Reply]]) -> list[Reply]:
    """Send all of these so that they are stored in this order, all but the first in one batch."""
    batches = client.app.state.batches  # type: ignore[attr-defined]
    with ThreadPoolExecutor(len(sends)) as pool:
        with held(client):
            replies = []
            # The first one is a batch of its own, which waits for the thread; the others are the batch after it.
            for i, send in enumerate(sends):
                replies.append(pool.submit(send))
                while len(batches._waiting) < i or not batches._thread._work_queue.qsize():
                    assert not replies[i].done(), replies[i].result()
                    threading.Event().wait(0.001)
        return [reply.result() for reply in replies]


# Any answers, from any number of people, in any order


@dataclass
class Model:
    """One participant, as DESIGN.md has it: what is stored, and what a request gets."""

    judging: list[int]  # positions in their order
    labels: dict[int, tuple[str, str]] = field(default_factory=dict)  # position -> (id, content)
    verdicts: dict[int, tuple[str, str]] = field(default_factory=dict)
    withdrawn: bool = False

    def copy(self) -> "Model":
        return Model(self.judging, dict(self.labels), dict(self.verdicts), self.withdrawn)

    @property
    def state(self) -> str:
        if self.withdrawn:
            return "withdrawn"
        if len(self.labels) < LABELS:
            return "labelling"
        return "judging" if len(self.verdicts) < JUDGMENTS else "commenting"

    @property
    def next_position(self) -> int | None:
        if self.state == "labelling":
            return len(self.labels) + 1
        return self.judging[len(self.verdicts)] if self.state == "judging" else None

    def take(self, sent: "Sent", used: set[str]) -> tuple[int, str | None, int | None]:
        """Carry it out: (status, state, next position); those only of what is told with 200."""
        if sent.question == "withdraw":
            self.withdrawn = True
            self.labels.clear()
            self.verdicts.clear()
            return 200, None, None
        if self.withdrawn:
            return 409, None, None
        if not 1 <= sent.position <= LABELS:
            return 404, None, None
        if sent.content == "x/none":
            return 422, None, None
        part = "labelling" if sent.question == "label" else "judging"
        answers = self.labels if part == "labelling" else self.verdicts
        if sent.position in answers:
            if answers[sent.position] != (sent.answer_id, sent.content):
                return 409, None, None
        elif self.state != part or self.next_position != sent.position or sent.answer_id in used:
            return 409, None, None
        else:
            answers[sent.position] = sent.answer_id, sent.content
        return 200, self.state, self.next_position if self.state == part else None


@dataclass(frozen=True)
class Sent:
    question: str  # label, plausibility, withdraw
    position: int = 0
    answer_id: str = ""
    content: str = ""

    def send(self, player: Player) -> Reply:
        if self.question == "withdraw":
            return player.client.post(f"{player.base}/withdraw")
        if self.question == "label":
            label, runner_up = self.content.split("/")
            said: dict[str, Any] = {"label": label, "runner_up": runner_up}
        else:
            said = {"plausible": self.content == "True"}
        return player.put(self.position, self.question, answer_id=self.answer_id, **said)


def anything(model: Model, others: list[str], rng: random.Random) -> Sent:
    """Mostly the next answer; else what a double click, a second tab, a bug or a bad person sends."""
    question = "label" if model.state == "labelling" or rng.random() < 0.05 else "plausibility"
    content = (
        rng.choice(("0/1", "2/none", "none/none")) if question == "label" else rng.choice(("True", "False"))
    )
    fresh = str(uuid.UUID(int=rng.getrandbits(128)))
    position = model.next_position or rng.randint(1, LABELS)
    answers = model.labels if question == "label" else model.verdicts
    known = rng.choice(sorted(answers)) if answers else None
    kind = rng.choices(
        ("next", "again", "other", "changed", "elsewhere", "nowhere", "senseless", "used", "withdraw"),
        (60, 12, 6, 6, 6, 2, 3, 4, 0.5),
    )[0]
    if kind == "withdraw":
        return Sent("withdraw")
    if kind == "again" and known is not None:
        return Sent(question, known, *answers[known])
    if kind == "other" and known is not None:
        return Sent(question, known, fresh, content)
    if kind == "changed" and known is not None:
        return Sent(question, known, answers[known][0], content)
    if kind == "elsewhere":
        return Sent(question, rng.randint(1, LABELS), fresh, content)
    if kind == "nowhere":
        return Sent(question, rng.choice((0, LABELS + 1, 10**30)), fresh, content)
    if kind == "senseless" and question == "label":
        return Sent(question, position, fresh, "x/none")
    if kind == "used" and others:
        return Sent(question, position, rng.choice(others), content)
    return Sent(question, position, fresh, content)


def test_every_reply_is_what_some_order_gives(client: TestClient, db: Database, databases: Databases) -> None:
    rng = random.Random(KINDS.index(databases.kind))  # other answers on each
    players = [begin(client) for _ in range(6)]
    with db.read() as session:
        judging: dict[str, list[int]] = {player.token: [] for player in players}
        rows = session.execute(
            select(Participant.token, Trial.position)
            .join(Trial)
            .where(Trial.judging_order.is_not(None))
            .order_by(Trial.judging_order)
        )
        for token, position in rows:
            judging[token].append(position)
    models = [Model(judging[player.token]) for player in players]
    seen, parts = Counter[int](), set[str]()
    with ThreadPoolExecutor(12) as pool:
        for _ in range(60):
            if all(model.state in ("commenting", "withdrawn") for model in models):
                break
            ids = {
                "label": {id for model in models for id, _ in model.labels.values()},
                "plausibility": {id for model in models for id, _ in model.verdicts.values()},
            }
            requests: list[tuple[int, Sent]] = []
            for i, model in enumerate(models):
                parts.add(model.state)
                for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
                    requests.append((i, anything(model, sorted(ids["label"] | ids["plausibility"]), rng)))
            rng.shuffle(requests)
            replies = list(pool.map(lambda request: request[1].send(players[request[0]]), requests))
            now = stored(db)
            for i, model in enumerate(models):
                own = [(sent, reply) for (j, sent), reply in zip(requests, replies, strict=True) if j == i]
                told = [
                    (
                        reply.status_code,
                        *(
                            (reply.json()["state"], reply.json()["next_position"])
                            if reply.status_code == 200 and sent.question != "withdraw"
                            else (None, None)
                        ),
                    )
                    for sent, reply in own
                ]
                seen.update(status for status, *_ in told)
                kept = {entry[1:] for entry in now if entry[0] == players[i].token}
                models[i] = _explained(model, [sent for sent, _ in own], told, ids, kept)
    assert {"labelling", "judging", "commenting"} <= parts
    assert {200, 404, 409, 422} <= set(seen)


def _explained(
    model: Model,
    sent: list[Sent],
    told: list[tuple[int, str | None, int | None]],
    ids: dict[str, set[str]],
    now: set[tuple[str, int, str, str]],
) -> Model:
    """The participant after these, in an order that explains every reply and what is stored; there must be one."""
    for order in permutations(range(len(sent))):
        after = model.copy()
        used = {question: set(of) for question, of in ids.items()} | {"withdraw": set()}
        right = True
        for i in order:
            right = right and after.take(sent[i], used[sent[i].question]) == told[i]
        kept = {("label", position, *answer) for position, answer in after.labels.items()}
        kept |= {("plausibility", position, *answer) for position, answer in after.verdicts.items()}
        if right and kept == now:
            return after
    raise AssertionError(f"no order of {sent} explains {told} and {sorted(now)} from {model}")


def test_no_verdict_before_the_last_label(client: TestClient, db: Database) -> None:
    player = begin(client)
    with db.read() as session:
        first = session.scalar(select(Trial.position).where(Trial.judging_order == 1))
    assert first is not None
    for position in range(1, LABELS + 1):
        reply = player.put(first, "plausibility", plausible=True)
        assert (reply.status_code, reply.json()["next_position"]) == (409, position)
        assert player.put(position, label="0", runner_up="1").status_code == 200
    assert player.put(first, "plausibility", plausible=True).status_code == 200


# One batch


def test_a_batch_is_one_transaction(client: TestClient, db: Database) -> None:
    players = [begin(client) for _ in range(8)]
    replies = at_once(client, [partial(p.put, 1, label="0", runner_up="1") for p in players])
    assert [reply.json() for reply in replies] == [
        {"stored": True, "state": "labelling", "next_position": 2}
    ] * 8
    with db.read() as session:
        times = Counter(session.scalars(select(Response.answered_at)))
        seen = Counter(session.scalars(select(Participant.last_seen_at)))
    assert sorted(times.values()) == [1, 7], "the first alone, then all that had come by then"
    assert times == seen


def test_one_id_from_two_people_in_one_batch_is_the_answer_of_one(client: TestClient, db: Database) -> None:
    first, *players = [begin(client) for _ in range(5)]
    same = str(uuid.uuid4())
    sends = [partial(first.put, 1, label="0", runner_up="1")]
    sends += [partial(p.put, 1, answer_id=same, label="0", runner_up="1") for p in players]
    statuses = [reply.status_code for reply in at_once(client, sends)]
    assert Counter(statuses[1:]) == {200: 1, 409: 3}
    assert sum(entry[3] == same for entry in stored(db)) == 1


def test_what_fails_in_a_batch_fails_alone(client: TestClient, db: Database) -> None:
    players = [begin(client) for _ in range(6)]
    with db.write() as session:
        if db.engine.dialect.name == "sqlite":
            session.execute(
                text(
                    "CREATE TRIGGER refusing BEFORE INSERT ON responses WHEN NEW.label = '3'"
                    " BEGIN SELECT RAISE(ABORT, 'not this one'); END"
                )
            )
        else:
            session.execute(text("ALTER TABLE responses ADD CONSTRAINT refusing CHECK (label <> '3')"))
        session.commit()
    labels = ["0", "1", "3", "2", "0", "none"]
    sends = [
        partial(p.put, 1, label=label, runner_up="none") for p, label in zip(players, labels, strict=True)
    ]
    assert [reply.status_code for reply in at_once(client, sends)] == [200, 200, 409, 200, 200, 200]
    kept = {entry[0] for entry in stored(db)}
    assert kept == {player.token for player in players} - {players[2].token}


def test_more_people_than_are_remembered(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MOST_COURSES", 2)
    players = [begin(client) for _ in range(5)]
    for position in range(1, 5):
        for player in players:
            assert player.put(position, label="0", runner_up="1").json()["next_position"] == position + 1
    store = client.app.state.batches._store.__self__  # type: ignore[attr-defined]
    assert len(store._courses) == 2


def test_only_those_in_the_midst_of_a_session_are_remembered(client: TestClient) -> None:
    store = client.app.state.batches._store.__self__  # type: ignore[attr-defined]
    one, other = begin(client), begin(client)
    one.answer(until="judging")
    other.answer(most=1)
    assert store._courses.keys() == {one.token, other.token}
    last = {"answer_id": str(uuid.uuid4()), "plausible": True}
    end = one.session()["order"][-1]
    one.answer(lambda trial: last if trial["position"] == end else {}, until="commenting")
    assert store._courses.keys() == {other.token}
    again = one.put(end, "plausibility", **last)
    assert (again.status_code, again.json()["state"]) == (200, "commenting")


@pytest.mark.parametrize("erased", [False, True])
def test_a_course_whose_ids_are_another_persons_now_stores_nothing(
    client: TestClient,
    database_url: str,
    db: Database,
    erased: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ids_of(player: Player) -> set[int]:
        with db.read() as session:
            own = select(Trial.id).join(Participant).where(Participant.token == player.token)
            return set(session.scalars(own))

    def open_study(yes: bool) -> None:
        with db.write() as session:
            session.execute(update(Study).values(open=yes))
            session.commit()

    gone = begin(client)
    assert gone.put(1, label="0", runner_up="1").status_code == 200
    ids = ids_of(gone)
    if erased:  # by another process
        monkeypatch.setenv("DATABASE_URL", database_url)
        monkeypatch.setenv("SECRET_KEY", SECRET)
        open_study(False)
        assert main(["erase", "--all", "--study", "test", "--yes"]) == 0
        open_study(True)
    else:
        assert client.post(f"{gone.base}/withdraw").status_code == 200
    after = begin(client)
    assert db.engine.dialect.name != "sqlite" or ids_of(after) == ids, "the ids are given again"
    assert gone.put(1, label="0", runner_up="1").status_code == (404 if erased else 409)
    assert stored(db) == Counter()
    assert after.put(1, label="0", runner_up="1").status_code == 200


# Databases that cannot store


@pytest.mark.only("sqlite")
def test_a_locked_database_stores_nothing_and_says_so_to_all(
    settings: Settings,  # noqa: F811
    prepared: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(databases_module, "BUSY_TIMEOUT_S", 0.2)
    with TestClient(create_app(settings)) as client:
        players = [begin(client) for _ in range(5)]
        bodies = [{"answer_id": str(uuid.uuid4()), "label": "0", "runner_up": "1"} for _ in players]
        sends = [partial(p.put, 1, **b) for p, b in zip(players, bodies, strict=True)]
        with closing(sqlite3.connect(path(settings.database_url), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            replies = at_once(client, sends)
            assert [reply.status_code for reply in replies] == [503] * 5
            assert all(reply.headers["retry-after"] == "2" for reply in replies)
            other.execute("ROLLBACK")
        assert stored(client.app.state.database) == Counter()  # type: ignore[attr-defined]
        assert [reply.status_code for reply in at_once(client, sends)] == [200] * 5
        assert [reply.status_code for reply in at_once(client, sends)] == [200] * 5, (
            "again, and nothing changes"
        )


def test_whoever_waited_too_long_is_told_so(
    client: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, late = begin(client), begin(client)
    sizes: list[int] = []
    batches = client.app.state.batches  # type: ignore[attr-defined]
    store = batches._store

    def counted(batch: Sequence[Any]) -> Any:
        sizes.append(len(batch))
        return store(batch)

    monkeypatch.setattr(batches, "_store", counted)
    monkeypatch.setattr(batching, "BUSY_TIMEOUT_S", 0.0)
    statuses = [player.put(1, label="0", runner_up="1").status_code for player in (first, late)]
    assert statuses == [503, 503]
    assert sizes == [], "nor is a transaction begun for nothing"
    assert stored(db) == Counter()
    monkeypatch.undo()
    assert late.put(1, label="0", runner_up="1").status_code == 200


@pytest.mark.only("postgresql")
def test_a_locked_participant_holds_nobody_else_up(client: TestClient, db: Database) -> None:
    locked, *others = [begin(client) for _ in range(4)]
    with ThreadPoolExecutor(1) as pool:
        with db.write() as session:
            now = select(Participant).where(Participant.token == locked.token)
            session.scalars(now.with_for_update()).one()
            waiting = pool.submit(locked.put, 1, label="0", runner_up="1")
            for player in others:
                assert player.put(1, label="0", runner_up="1").status_code == 200
            assert not waiting.done()
            session.execute(
                update(Participant).where(Participant.token == locked.token).values(language="en")
            )
            session.commit()
        assert waiting.result().status_code == 200
    assert len(stored(db)) == 4
