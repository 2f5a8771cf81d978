"""Answers that come in while a commit is under way, stored together by the next one.

A commit that is on the disk before anybody is told costs as much for a hundred answers as for one, and so do the
statements around it (`python -m benchmarks.load`).

What is stored here is the plain case: the next answer of somebody who is in the midst of a session. Whatever else
it may be (a repetition, another answer, out of order, withdrawn, no such image, an id used before) is left to
`answers`, in a transaction of its own, which knows what to say to all of that.
"""

import asyncio
import logging
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from time import monotonic
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as TookTooLong
from sqlalchemy.orm import Session

from app import participation, web
from app.answers import valid_runner_up
from app.db import BUSY_TIMEOUT_S, Database
from app.models import Judgment, Participant, Response, Trial
from app.participation import Refusal, State

MOST = 200  # answers in one transaction, so that other writers come to their turn
MOST_COURSES = 4000  # of those who are in the midst, some 2 KB each; who is not among them costs a statement


Part = Literal["labelling", "judging"]


@dataclass(frozen=True)
class Answer:
    """What a client sent about one image; its shape is checked, its meaning is not."""

    token: str
    position: int
    part: Part
    answer_id: uuid.UUID
    content: dict[str, Any]  # label and runner_up, or plausible
    rt_ms: float | None
    display: dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """Where the participant is once an answer is stored."""

    state: State
    next_position: int | None  # in the part that was answered; None: it is over


Place = tuple[Part, int]  # a part, and the id of a trial that is answered in it


@dataclass(frozen=True, slots=True)
class Course:
    """What one participant is asked, in order: it never changes, except that a withdrawal deletes it."""

    trials: tuple[int, ...]  # ids, by position from 1
    judging: tuple[int, ...]  # positions, in the order of judging

    def order(self, part: Part) -> Sequence[int]:
        """The positions of a part as they come."""
        return range(1, len(self.trials) + 1) if part == "labelling" else self.judging

    def before(self, answer: Answer) -> Place | None:
        """What must be answered before; all that comes before that is answered then, as it was held to the same."""
        order = self.order(answer.part)
        place = order.index(answer.position)
        if place:
            return answer.part, self.trials[order[place - 1] - 1]
        return ("labelling", self.trials[-1]) if answer.part == "judging" else None

    def after(self, answer: Answer) -> Stored:
        order = self.order(answer.part)
        following = order.index(answer.position) + 1
        if following < len(order):
            return Stored(answer.part, order[following])
        return Stored("judging" if answer.part == "labelling" and self.judging else "commenting", None)


Person = Row[int, str, int]  # id, token and study_id
_PEOPLE = (
    select(Participant.id, Participant.token, Participant.study_id)
    .where(Participant.token.in_(bindparam("tokens", expanding=True)), Participant.withdrawn_at.is_(None))
    .order_by(Participant.id)
    # Whoever is locked by another transaction is not waited for, as this one holds many; `answers` waits.
    .with_for_update(skip_locked=True)
)
_COURSES = (
    select(Trial.participant_id, Trial.id, Trial.position, Trial.judging_order)
    .where(Trial.participant_id.in_(bindparam("people", expanding=True)))
    .order_by(Trial.participant_id, Trial.position)
)
_ANSWERED: dict[Part, Select[int]] = {
    "labelling": select(Response.trial_id).where(Response.trial_id.in_(bindparam("trials", expanding=True))),
    "judging": select(Judgment.trial_id).where(Judgment.trial_id.in_(bindparam("trials", expanding=True))),
}
_SEEN = (
    update(Participant)
    .where(Participant.id.in_(bindparam("people", expanding=True)))
    .values(last_seen_at=bindparam("now"))
)


class PlainAnswers:
    """Stores batches of answers in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # By token, the last one used last. SQLite gives the ids of deleted trials to others', but a token stays one
        # participant's, and is not found among _PEOPLE once its trials are deleted.
        self._courses: OrderedDict[str, Course] = OrderedDict()
        self._studies: dict[int, tuple[list[str], list[str]]] = {}  # version's id -> labels and questions
        insert = sqlite.insert if database.engine.dialect.name == "sqlite" else postgresql.insert
        self._inserts: dict[Part, Any] = {
            "labelling": insert(Response).on_conflict_do_nothing().returning(Response.trial_id),
            "judging": insert(Judgment).on_conflict_do_nothing().returning(Judgment.trial_id),
        }

    def store(self, batch: Sequence[Answer]) -> list[Stored | None]:
        """Store those of the answers that are plain; committed. None: nothing is stored, `answers` may say why.

        Raises what SQLAlchemy says of a database that is locked, full or away; nothing is stored then.
        """
        try:
            with self._database.write() as session:
                stored = self._store(session, batch)
                session.commit()
                return stored
        except (OperationalError, InternalError, InterfaceError, TookTooLong):
            raise
        # What is wrong with one must not be the others' fault: each is tried alone.
        except Exception as error:
            kind = type(error).__name__
            logging.getLogger("uvicorn.error").warning(
                "%d answers are stored one by one: %s", len(batch), kind
            )
            return [None] * len(batch)

    def _store(self, session: Session, batch: Sequence[Answer]) -> list[Stored | None]:
        connection = session.connection()
        likely = self._likely(session, batch)
        answered = _answered(connection, likely)
        plain = [one for one in likely if one.comes_next(answered)]
        stored = self._insert(connection, plain)
        after = {one.index: one.course.after(one.answer) for one in plain if one.trial in stored}
        for one in plain:
            if one.index in after and after[one.index].state == "commenting":
                self._courses.pop(one.answer.token, None)  # nothing else is asked of them
        return [after.get(i) for i in range(len(batch))]

    def _likely(self, session: Session, batch: Sequence[Answer]) -> list["_Likely"]:
        """Those that name an image of a participant who is locked now, and make sense."""
        tokens = [answer.token for answer in batch]
        people = session.connection().execute(_PEOPLE, {"tokens": tokens}).all()
        courses = self._courses_of(session.connection(), people)
        ids = {person.token: person.id for person in people}
        studies = {person.token: self._study(session, person) for person in people}
        found = []
        for i, answer in enumerate(batch):
            course = courses.pop(answer.token, None)  # of several answers by one participant the first
            if course is None or answer.position not in course.order(answer.part):
                continue
            content = _content(answer, *studies[answer.token])
            if content is not None:
                found.append(_Likely(i, answer, course, ids[answer.token], content))
        return found

    def _insert(self, connection: Connection, plain: Sequence["_Likely"]) -> set[int]:
        """Insert them; returns the trials of those that were: of none that is answered, or whose id was used."""
        now = web.now()
        stored: dict[int, int] = {}  # trial -> participant
        for part, insertion in self._inserts.items():
            # In one order everywhere: two processes that are sent the same ids must not wait for each other.
            of_part = sorted(
                (one for one in plain if one.answer.part == part), key=lambda one: one.answer.answer_id.bytes
            )
            if of_part:
                rows = [one.row | {"answered_at": now} for one in of_part]
                inserted = set(connection.execute(insertion, rows).scalars())
                stored |= {one.trial: one.participant for one in of_part if one.trial in inserted}
        if stored:
            connection.execute(_SEEN, {"people": list(stored.values()), "now": now})
        return set(stored)

    def _courses_of(self, connection: Connection, people: Sequence[Person]) -> dict[str, Course]:
        """Token -> course; what is not remembered is read."""
        unknown = {person.id: person.token for person in people if person.token not in self._courses}
        if unknown:
            rows = connection.execute(_COURSES, {"people": list(unknown)})
            for participant, trials in groupby(rows, key=attrgetter("participant_id")):
                own = list(trials)
                judged = sorted((t.judging_order, t.position) for t in own if t.judging_order is not None)
                self._courses[unknown[participant]] = Course(
                    tuple(t.id for t in own), tuple(position for _, position in judged)
                )
        found = {}
        for person in people:
            if person.token in self._courses:
                self._courses.move_to_end(person.token)
                found[person.token] = self._courses[person.token]
        while len(self._courses) > MOST_COURSES:
            self._courses.popitem(last=False)
        return found

    def _study(self, session: Session, person: Person) -> tuple[list[str], list[str]]:
        if person.study_id not in self._studies:
            here = participation.view(session, person.token)
            self._studies[person.study_id] = here.labels, list(here.definition.questions)
        return self._studies[person.study_id]


@dataclass(frozen=True, slots=True)
class _Likely:
    """An answer that may be plain."""

    index: int  # in the batch
    answer: Answer
    course: Course
    participant: int
    content: dict[str, Any]

    @property
    def trial(self) -> int:
        return self.course.trials[self.answer.position - 1]

    @property
    def row(self) -> dict[str, Any]:
        sent = self.answer
        of_all = {"answer_id": sent.answer_id, "rt_ms": sent.rt_ms, "display": sent.display}
        return {"trial_id": self.trial} | of_all | self.content

    def comes_next(self, answered: Set[Place]) -> bool:
        """Whether all before it is answered; where it is itself, inserting it does nothing."""
        before = self.course.before(self.answer)
        return before is None or before in answered


def _answered(connection: Connection, likely: Sequence[_Likely]) -> set[Place]:
    """Of the places that come before these answers, those that are answered."""
    places = {before for one in likely if (before := one.course.before(one.answer)) is not None}
    found: set[Place] = set()
    for part, query in _ANSWERED.items():
        if trials := [trial for in_part, trial in places if in_part == part]:
            found |= {(part, trial) for trial in connection.execute(query, {"trials": trials}).scalars()}
    return found


def _content(answer: Answer, labels: list[str], questions: list[str]) -> dict[str, Any] | None:
    """What is stored of it beside what all answers have; None where it makes no sense."""
    if answer.part == "judging":
        return answer.content
    label, runner_up = answer.content["label"], answer.content["runner_up"]
    try:
        return answer.content | {"runner_up": valid_runner_up(labels, questions, label, runner_up)}
    except Refusal:
        return None


class Batches:
    """Collects the answers of one event loop and has each batch stored, one after the other, in a thread."""

    def __init__(self, store: Callable[[Sequence[Answer]], list[Stored | None]]) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "answers")
        self._waiting: deque[tuple[Answer, float, asyncio.Future[Stored | None]]] = deque()
        self._storing: asyncio.Task[None] | None = None

    async def put(self, answer: Answer) -> Stored | None:
        """Store an answer if it is plain; returns once it is committed. None: nothing is stored.

        Raises as `PlainAnswers.store`, and TookTooLong where others' answers were in the way for too long.
        """
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Stored | None] = loop.create_future()
        self._waiting.append((answer, monotonic(), reply))
        if self._storing is None or self._storing.done():
            self._storing = loop.create_task(self._store_all())
        return await reply

    async def _store_all(self) -> None:
        """Returns once nobody waits any more."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            late = monotonic() - BUSY_TIMEOUT_S
            in_time = [(answer, reply) for answer, since, reply in batch if since >= late]
            for _, since, reply in batch:
                if since < late:
                    _tell(reply, TookTooLong("other answers were stored for so long"))
            if not in_time:
                continue
            try:
                answers = [answer for answer, _ in in_time]
                loop = asyncio.get_running_loop()
                stored = await loop.run_in_executor(self._thread, self._store, answers)
            except Exception as error:
                for _, reply in in_time:
                    _tell(reply, error)
            else:
                for (_, reply), after in zip(in_time, stored, strict=True):
                    _tell(reply, after)

    def close(self) -> None:
        """Waits for the batch that is being stored."""
        self._thread.shutdown()


def _tell(reply: asyncio.Future[Stored | None], said: Stored | Exception | None) -> None:
    if reply.done():  # its request was given up
        return
    if isinstance(said, Exception):
        reply.set_exception(said)
    else:
        reply.set_result(said)
