"""Who is where in a study, and whom its rules exclude: what the results and the researcher's monitor stand on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from statistics import median
from typing import Any

from sqlalchemy import ColumnElement, Row, select
from sqlalchemy.orm import Session

from app import observations
from app.definition import Definition
from app.enrollment import ABANDONED_AFTER
from app.models import Participant, Study
from app.observations import DISTURBANCES, Answers, Data, Memory
from app.participation import State, state_of


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
    disturbances: dict[str, int]  # how many answers had each of DISTURBANCES

    @property
    def minutes(self) -> float:
        """From consent until the end, or until last seen."""
        return ((self.finished_at or self.last_seen_at) - self.started_at).total_seconds() / 60

    def gone(self, now: datetime) -> bool:
        """Whether they left before the end, for all that can be known: nothing came for ABANDONED_AFTER."""
        return self.state not in ("finished", "withdrawn") and now - self.last_seen_at > ABANDONED_AFTER


@dataclass(frozen=True)
class Monitor:
    """Every participant of one study version, in the order of arrival, and the answers of those still in it."""

    rows: list[Progress]
    answers: Answers
    version: tuple[object, ...]  # changes whenever anything that a participant did does

    def count(self, state: str) -> int:
        return sum(row.state == state for row in self.rows)

    @property
    def excluded(self) -> frozenset[int]:
        """Numbers of those whom a rule excludes."""
        return frozenset(row.number for row in self.rows if row.excluded)

    @property
    def complete(self) -> list[int]:
        """Numbers of those who finished and are not excluded, in the order in which they finished."""
        ends = [
            (row.finished_at, row.number)
            for row in self.rows
            if row.finished_at and row.state == "finished" and not row.excluded
        ]
        return [number for _, number in sorted(ends)]

    @property
    def excluded_pseudonyms(self) -> frozenset[str]:
        return frozenset(row.pseudonym for row in self.rows if row.excluded)


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
    minutes = [row.minutes for row in people.rows if row.state == "finished"]
    gone = Counter(row.state for row in people.rows if row.gone(now))
    return Summary(
        at=now,
        active=sum(row.state not in ("finished", "withdrawn") and not row.gone(now) for row in people.rows),
        dropouts={state: gone[state] for state in ("labelling", "judging", "commenting")},
        median_minutes=median(minutes) if minutes else None,
        longest_minutes=max(minutes, default=None),
        excluded=dict(sorted(Counter(row.excluded for row in people.rows if row.excluded).items())),
        disturbed={name: sum(row.disturbances[name] for row in people.rows) for name in DISTURBANCES},
        unmeasured=sum(row.unmeasured for row in people.rows),
    )


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
    """Where everybody is; the rules are applied once a session is finished. Call it holding `memory.lock`."""
    memory = memory or Memory()
    people = session.execute(
        select(
            Participant.id,
            Participant.number,
            Participant.pseudonym,
            Participant.consented_at,
            Participant.last_seen_at,
            Participant.finished_at,
            Participant.withdrawn_at,
        )
        .where(*observations.belonging(study, data))
        .order_by(Participant.number)
    ).all()
    version = tuple((p.id, p.last_seen_at, p.finished_at, p.withdrawn_at) for p in people)
    found: Monitor = memory.get(
        ("monitor", study.id, data),
        version,
        lambda: _monitor(session, study, definition, data, memory, people, version),
    )
    return found


def _monitor(
    session: Session,
    study: Study,
    definition: Definition,
    data: Data,
    memory: Memory,
    people: Sequence[Row[*tuple[Any, ...]]],
    version: tuple[object, ...],
) -> Monitor:
    keys = {p.id: (p.last_seen_at, p.finished_at) for p in people if not p.withdrawn_at}
    seen = observations.seen(session, study, data, keys, memory)
    rows: list[Progress] = []
    for person in people:
        own = seen.get(person.id)
        counts = (own.to_label, own.labelled, own.to_judge, own.judged) if own else (0, 0, 0, 0)
        state = state_of(bool(person.withdrawn_at), bool(person.finished_at), *counts)
        excluded, label_ms, unmeasured = None, None, 0
        if own:
            excluded, label_ms, unmeasured = memory.get(
                ("person", person.id), own.key, partial(_assess, definition, own)
            )
        rows.append(
            Progress(
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
                disturbances=own.disturbances if own else dict.fromkeys(DISTURBANCES, 0),
            )
        )
    answers = observations.columns([(p.number, seen[p.id]) for p in people if p.id in seen])
    return Monitor(rows, answers, version)


def _assess(definition: Definition, own: observations.Seen) -> tuple[str | None, float | None, int]:
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
