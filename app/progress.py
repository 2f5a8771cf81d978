"""Who is where in a study, and whom its rules exclude: what the results and the researcher's monitor stand on."""

from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Literal

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from app.definition import Definition
from app.models import CleanImage, Judgment, Participant, Response, Study, Trial
from app.participation import State, state_of

Data = Literal["real", "simulated"]


@dataclass(frozen=True)
class Progress:
    """One participant, as the monitor shows them."""

    pseudonym: str
    state: State
    answered: int  # labels and judgments, practice too
    total: int
    started_at: datetime
    last_seen_at: datetime
    minutes: float  # from consent until last seen
    excluded: str | None  # the rule that excludes them, in words


@dataclass(frozen=True)
class Monitor:
    """Every participant of one study version, and the ids that the results need."""

    rows: list[Progress]
    excluded: frozenset[int]
    complete: frozenset[int]  # finished and not excluded

    def count(self, state: str) -> int:
        return sum(row.state == state for row in self.rows)

    @property
    def excluded_pseudonyms(self) -> frozenset[str]:
        return frozenset(row.pseudonym for row in self.rows if row.excluded)


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
    return (
        Participant.study_id == study.id,
        Participant.simulated == (data == "simulated"),
        Participant.withdrawn_at.is_(None),
    )


def monitor(session: Session, study: Study, definition: Definition, data: Data) -> Monitor:
    """Where everybody is, in the order of arrival; the rules are applied once a session is finished."""
    answers: dict[int, list[tuple[str, float | None]]] = {}
    for participant, label, rt in session.execute(
        select(Trial.participant_id, Response.label, Response.rt_ms)
        .join(Response, Response.trial_id == Trial.id)
        .join(Participant, Participant.id == Trial.participant_id)
        .where(*taking_part(study, data), Trial.kind == "main")
    ):
        answers.setdefault(participant, []).append((label, rt))
    controls_right = dict(
        session.execute(
            select(Trial.participant_id, func.count())
            .join(Response, Response.trial_id == Trial.id)
            .join(CleanImage, CleanImage.id == Trial.clean_image_id)
            .join(Participant, Participant.id == Trial.participant_id)
            .where(
                *taking_part(study, data), Trial.kind == "control", Response.label == CleanImage.source_label
            )
            .group_by(Trial.participant_id)
        ).all()
    )
    counts = {
        participant: (total, labelled, to_judge, judged)
        for participant, total, labelled, to_judge, judged in session.execute(
            select(
                Trial.participant_id,
                func.count(),
                func.count(Response.trial_id),
                func.count(Trial.judging_order),
                func.count(Judgment.trial_id),
            )
            .outerjoin(Response, Response.trial_id == Trial.id)
            .outerjoin(Judgment, Judgment.trial_id == Trial.id)
            .join(Participant, Participant.id == Trial.participant_id)
            .where(*taking_part(study, data))
            .group_by(Trial.participant_id)
        )
    }
    people = session.scalars(
        select(Participant)
        .where(Participant.study_id == study.id, Participant.simulated == (data == "simulated"))
        .order_by(Participant.number)
    )
    rows: list[Progress] = []
    excluded_ids: set[int] = set()
    complete_ids: set[int] = set()
    for person in people:
        total, labelled, to_judge, judged = counts.get(person.id, (0, 0, 0, 0))
        excluded = None
        state = state_of(person, total, labelled, to_judge, judged)
        if state == "finished":
            excluded = excluded_because(
                definition, answers.get(person.id, []), controls_right.get(person.id, 0)
            )
            (complete_ids if excluded is None else excluded_ids).add(person.id)
        rows.append(
            Progress(
                pseudonym=person.pseudonym,
                state=state,
                answered=labelled + judged,
                total=total + to_judge,
                started_at=person.consented_at,
                last_seen_at=person.last_seen_at,
                minutes=(person.last_seen_at - person.consented_at).total_seconds() / 60,
                excluded=excluded,
            )
        )
    return Monitor(rows, frozenset(excluded_ids), frozenset(complete_ids))


def excluded_because(
    definition: Definition, answers: list[tuple[str, float | None]], controls_right: int
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
        labels = [label for label, _ in answers]
        share = max(labels.count(label) for label in set(labels)) / len(labels)
        if share > rules.max_same_label_share:
            # :g, as a share of 0.925 must not read 92 %.
            return f"one label in more than {100 * rules.max_same_label_share:g} % of answers"
    if rules.min_controls_right is not None and controls_right < rules.min_controls_right:
        return f"fewer than {rules.min_controls_right} of {definition.controls} control images read right"
    return None
