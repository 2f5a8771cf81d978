"""Who is where in a study, and whom its rules exclude: what the results and the researcher's monitor stand on."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from statistics import median
from typing import Any

from sqlalchemy import ColumnElement, Row, Text, cast, select
from sqlalchemy.orm import Session

from app import observations
from app.definition import Definition
from app.exposures import ABANDONED_AFTER
from app.models import Participant, Study
from app.observations import DISTURBANCES, UNDISTURBED, Data, Memory, Seen, Stimuli
from app.participation import State, state_of

CHUNK = 500  # participants read by one statement


@dataclass(frozen=True)
class Progress:
    """One participant, as the monitor shows them."""

    number: int
    pseudonym: str
    state: State
    answered: int  # labels and judgments, practice too
    total: int
    started_at: datetime
    last_seen_at: datetime
    finished_at: datetime | None
    excluded: str | None  # the rule, once the session is finished
    label_ms: float | None  # median time to label a main image
    unmeasured: int  # main labels without a time
    controls_right: int  # control images read as what they are
    disturbances: Mapping[str, int]  # how many answers had each of DISTURBANCES

    @property
    def minutes(self) -> float:
        """From consent until the end, or until last seen."""
        return ((self.finished_at or self.last_seen_at) - self.started_at).total_seconds() / 60

    def gone(self, now: datetime) -> bool:
        """Whether they left before the end, for all that can be known: nothing came for ABANDONED_AFTER."""
        return self.state not in ("finished", "withdrawn") and now - self.last_seen_at > ABANDONED_AFTER


Mark = tuple[int, int, str, str, str | None, str | None]
"""A participant's id, number and name, and when they were last seen, finished and withdrew, as stored."""


@dataclass(frozen=True)
class Person:
    """One participant as read when their row had this mark; `seen` is None once they have withdrawn."""

    mark: Mark
    row: Progress
    seen: Seen | None


@dataclass(frozen=True, eq=False)
class Monitor:
    """Every participant of one study version, in the order of arrival. A change makes another one."""

    marks: list[Mark]
    people: dict[int, Person]  # by Participant.id

    @cached_property
    def rows(self) -> list[Progress]:
        return [person.row for person in self.people.values()]

    @cached_property
    def seen(self) -> dict[int, Seen]:
        """What was read of those who have not withdrawn, by number."""
        return {person.row.number: person.seen for person in self.people.values() if person.seen}

    @cached_property
    def included(self) -> dict[int, Seen]:
        """Of those, whom no rule excludes: whose answers count."""
        return {number: own for number, own in self.seen.items() if number not in self.excluded}

    @cached_property
    def responses(self) -> int:
        """Answered main trials."""
        return sum(len(own.ints) for own in self.seen.values())

    @cached_property
    def states(self) -> Counter[State]:
        return Counter(row.state for row in self.rows)

    @cached_property
    def excluded(self) -> frozenset[int]:
        """Numbers of those whom a rule excludes."""
        return frozenset(row.number for row in self.rows if row.excluded)

    @cached_property
    def complete(self) -> dict[int, Seen]:
        """Those who finished and are not excluded, by number, in the order in which they finished."""
        ends = [
            (row.finished_at, row.number)
            for row in self.rows
            if row.finished_at and row.state == "finished" and not row.excluded
        ]
        return {number: self.seen[number] for _, number in sorted(ends)}

    @cached_property
    def unfinished(self) -> list[Progress]:
        return [row for row in self.rows if row.state not in ("finished", "withdrawn")]

    @cached_property
    def still(self) -> dict[str, Any]:
        """What of the summary does not change with time alone."""
        minutes = [row.minutes for row in self.rows if row.state == "finished"]
        disturbed = Counter[str]()
        for row in self.rows:
            if row.disturbances is not UNDISTURBED:
                disturbed.update(row.disturbances)
        return {
            "median_minutes": median(minutes) if minutes else None,
            "longest_minutes": max(minutes, default=None),
            "excluded": dict(sorted(Counter(row.excluded for row in self.rows if row.excluded).items())),
            "disturbed": {name: disturbed[name] for name in DISTURBANCES},
            "unmeasured": sum(row.unmeasured for row in self.rows),
        }


@dataclass(frozen=True)
class Summary:
    """The monitor in numbers, at one instant; `dropouts` counts those who left, by where they were."""

    at: datetime
    active: int  # seen within ABANDONED_AFTER and not at the end
    dropouts: dict[str, int]
    median_minutes: float | None  # of the finished
    longest_minutes: float | None
    excluded: dict[str, int]  # rule -> participants
    disturbed: dict[str, int]  # answers, over all participants
    unmeasured: int


def summary(people: Monitor, now: datetime) -> Summary:
    """What the monitor says in numbers at the instant `now`."""
    gone = Counter(row.state for row in people.unfinished if row.gone(now))
    return Summary(
        at=now,
        active=len(people.unfinished) - gone.total(),
        dropouts={state: gone[state] for state in ("labelling", "judging", "commenting")},
        **people.still,
    )


def excluded_pseudonyms(rows: Iterable[Progress]) -> frozenset[str]:
    """Of those whose answers the study file's rules leave out."""
    return frozenset(row.pseudonym for row in rows if row.excluded)


def default_data(session: Session, study: Study) -> Data:
    """Real participants as soon as there are any; the two kinds are never mixed.

    Anybody may play simulated ones: they must not take the place of the real ones' numbers.
    """
    return "simulated" if kinds(session, study) == {"simulated"} else "real"


def kinds(session: Session, study: Study) -> set[Data]:
    """Which kinds of participants have begun."""
    found = session.scalars(select(Participant.simulated).where(Participant.study_id == study.id).distinct())
    return {"simulated" if simulated else "real" for simulated in found}


def taking_part(study: Study, data: Data) -> tuple[ColumnElement[bool], ...]:
    """The conditions on Participant of all who count: of this version and kind, and not withdrawn."""
    return (*observations.belonging(study, data), Participant.withdrawn_at.is_(None))


def monitor(
    session: Session, study: Study, definition: Definition, data: Data, memory: Memory | None = None
) -> Monitor:
    """Where everybody is; the rules are applied once a session is finished. Call it holding `memory.lock`.

    Whose row has another mark than before is read again, and nobody else.
    """
    memory = memory or Memory()
    kept = memory.about(study, data)
    marks = _marks(session, study, data)
    before: Monitor | None = kept.get("monitor")
    if before and before.marks == marks:
        return before
    known = before.people if before else {}
    changed = [mark[0] for mark in marks if mark[0] not in known or known[mark[0]].mark != mark]
    stimuli = observations.stimuli_of(session, study, memory)
    now = {person.mark[0]: person for person in _read(session, definition, changed, marks, stimuli)}
    found = Monitor(marks, {mark[0]: now.get(mark[0]) or known[mark[0]] for mark in marks})
    kept["monitor"] = found
    return found


def _marks(session: Session, study: Study, data: Data) -> list[Mark]:
    """Everybody's mark, in the order of arrival; instants stay text, as making times of thousands takes long."""
    rows = session.execute(
        select(
            Participant.id,
            Participant.number,
            Participant.pseudonym,
            cast(Participant.last_seen_at, Text),
            cast(Participant.finished_at, Text),
            cast(Participant.withdrawn_at, Text),
        )
        .where(*observations.belonging(study, data))
        .order_by(Participant.number)
    )
    return [(i, number, name, seen, end, out) for i, number, name, seen, end, out in rows]


def _read(
    session: Session, definition: Definition, changed: Sequence[int], marks: Sequence[Mark], stimuli: Stimuli
) -> Iterator[Person]:
    mark_of = {mark[0]: mark for mark in marks}
    seen = dict(observations.read(session, [i for i in changed if mark_of[i][-1] is None], stimuli))
    for start in range(0, len(changed), CHUNK):
        for person in session.execute(
            select(
                Participant.id,
                Participant.number,
                Participant.pseudonym,
                Participant.consented_at,
                Participant.last_seen_at,
                Participant.finished_at,
            ).where(Participant.id.in_(changed[start : start + CHUNK]))
        ):
            own = seen.get(person.id)
            yield Person(mark_of[person.id], _progress(definition, person, own), own)


def _progress(definition: Definition, person: Row[*tuple[Any, ...]], own: Seen | None) -> Progress:
    counts = (own.to_label, own.labelled, own.to_judge, own.judged) if own else (0, 0, 0, 0)
    state = state_of(own is None, bool(person.finished_at), *counts)
    excluded, label_ms, unmeasured = _assess(definition, own) if own else (None, None, 0)
    return Progress(
        number=person.number,
        pseudonym=person.pseudonym,
        state=state,
        answered=counts[1] + counts[3],
        total=counts[0] + counts[2],
        started_at=person.consented_at,
        last_seen_at=person.last_seen_at,
        finished_at=person.finished_at,
        excluded=excluded if state == "finished" else None,
        label_ms=label_ms,
        unmeasured=unmeasured,
        controls_right=own.controls_right if own else 0,
        disturbances=own.disturbances if own else UNDISTURBED,
    )


def _assess(definition: Definition, own: Seen) -> tuple[str | None, float | None, int]:
    """What of the monitor hangs on the answers alone: exclusion, median time, labels without a time."""
    labels = own.ints[:, 2].tolist()
    times = [None if ms != ms else ms for ms in own.floats[:, 0].tolist()]
    measured = [ms for ms in times if ms is not None]
    return (
        excluded_because(definition, list(zip(labels, times, strict=True)), own.controls_right),
        median(measured) if measured else None,
        len(times) - len(measured),
    )


def excluded_because(
    definition: Definition, answers: Sequence[tuple[object, float | None]], controls_right: int
) -> str | None:
    """The exclusion rule of the study file that a finished participant's (label, rt_ms) answers meet, or None.

    `answers` are those to main trials; `controls_right` counts the control images read as what they
    are. Where no time could be measured (a browser without JavaScript) the rule about times says nothing.
    """
    rules = definition.exclusions
    times = [rt for _, rt in answers if rt is not None]
    if rules.min_median_label_rt_ms is not None and times and median(times) < rules.min_median_label_rt_ms:
        return f"median response time under {rules.min_median_label_rt_ms:g} ms"
    if rules.max_same_label_share is not None and answers:
        share = max(Counter(label for label, _ in answers).values()) / len(answers)
        if share > rules.max_same_label_share:
            # :g, as a share of 0.925 must not read 92 %.
            return f"one label in more than {100 * rules.max_same_label_share:g} % of answers"
    if rules.min_controls_right is not None and controls_right < rules.min_controls_right:
        return f"fewer than {rules.min_controls_right} of {definition.controls} control images read right"
    return None
