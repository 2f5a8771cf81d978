"""One participant's way through a study: where they are, and what may be stored next.

Every function that stores takes a writing session and commits; a Refusal stores nothing.
"""

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row, Select, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import definition as definitions
from app.definition import Definition
from app.i18n import N_, SOURCE, translate
from app.models import (
    NONE_PLAUSIBLE,
    Comment,
    Judgment,
    Pack,
    Participant,
    RecruiterId,
    Response,
    Stimulus,
    Study,
    StudyPack,
    Trial,
)

State = Literal["labelling", "judging", "commenting", "finished", "withdrawn"]

ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # no 0/O, 1/I: pseudonyms and codes get read aloud


class Refusal(Exception):
    """A request that must not be carried out: HTTP status, one sentence, and what else the client should know.

    The sentence is a text of the catalogs; `values` fill its %(names)s.
    """

    def __init__(
        self, status: int, message: str, values: Mapping[str, object] | None = None, **more: Any
    ) -> None:
        self.status = status
        self.message = message
        self.values = values or {}
        self.more = more
        super().__init__(self.detail)

    @property
    def detail(self) -> str:
        """The sentence in English, for programs."""
        return translate(SOURCE, self.message, **self.values)


@dataclass(frozen=True)
class TrialView:
    position: int
    kind: str
    sha256: str
    labelled: bool
    judged: bool
    judging_order: int | None
    prediction: str | None


@dataclass(frozen=True)
class SessionView:
    """All that the participant's pages and API are made from."""

    participant: Participant
    study: Study
    definition: Definition
    labels: list[str]
    trials: list[TrialView] = field(repr=False)
    state: State

    @property
    def questions(self) -> list[str]:
        """The questions in the order in which this participant is asked."""
        asked: list[str] = list(self.definition.questions)
        if self.participant.runner_up_first:
            first, second = asked.index("label"), asked.index("runner_up")
            asked[min(first, second)], asked[max(first, second)] = "runner_up", "label"
        return asked

    @property
    def next_position(self) -> int | None:
        if self.state == "labelling":
            return next(t.position for t in self.trials if not t.labelled)
        if self.state == "judging":
            return min(self._unjudged(), key=lambda t: t.judging_order or 0).position
        return None

    @property
    def order(self) -> list[int]:
        """The positions of the present part as they come; none outside of labelling and judging."""
        if self.state == "labelling":
            return [t.position for t in self.trials]
        if self.state == "judging":
            judged = [(t.judging_order, t.position) for t in self.trials if t.judging_order is not None]
            return [position for _, position in sorted(judged)]
        return []

    def trial(self, position: int) -> TrialView:
        for trial in self.trials:
            if trial.position == position:
                return trial
        raise Refusal(
            404,
            N_("This session has no image %(position)s; it has images 1 to %(last)s."),
            {"position": position, "last": len(self.trials)},
        )

    def progress(self) -> tuple[int, int]:
        """(which image of this phase comes now, of how many); practice counts apart."""
        if self.state == "judging":
            judged = [t for t in self.trials if t.judging_order is not None]
            return sum(t.judged for t in judged) + 1, len(judged)
        practicing = any(t.kind == "practice" and not t.labelled for t in self.trials)
        counted = [t for t in self.trials if (t.kind == "practice") == practicing]
        return sum(t.labelled for t in counted) + 1, len(counted)

    @property
    def pause_is_due(self) -> bool:
        """Whether a block of the study's `pause_after` images has just ended and more are to come."""
        number, total = self.progress()
        every = self.definition.pause_after
        in_part = self.state == "judging" or self.trial(self.next_position or 1).kind != "practice"
        return bool(every and in_part and 1 < number <= total and (number - 1) % every == 0)

    def _unjudged(self) -> list[TrialView]:
        return [t for t in self.trials if t.judging_order is not None and not t.judged]


# Looking


def view(session: Session, token: str, lock: bool = False) -> SessionView:
    """Where the participant with this token is. `lock` holds the row until the transaction ends."""
    query = select(Participant).where(Participant.token == token)
    participant = session.scalar(query.with_for_update() if lock else query)
    if participant is None:
        raise Refusal(404, N_("This link belongs to no session; please use the link you were given, whole."))
    study = participant.study
    definition = definitions.of(study)
    rows = session.execute(
        select(
            Trial.position,
            Trial.kind,
            Trial.sha256,
            Response.trial_id,
            Judgment.trial_id,
            Trial.judging_order,
            Stimulus.prediction,
        )
        .outerjoin(Response, Response.trial_id == Trial.id)
        .outerjoin(Judgment, Judgment.trial_id == Trial.id)
        .outerjoin(Stimulus, Stimulus.id == Trial.stimulus_id)
        .where(Trial.participant_id == participant.id)
        .order_by(Trial.position)
    ).all()
    labelling_over = all(row[3] is not None for row in rows)
    trials = [_trial_view(row, labelling_over) for row in rows]
    labels = session.scalar(
        select(Pack.labels)
        .join(StudyPack, StudyPack.pack_id == Pack.id)
        .where(StudyPack.study_id == study.id)
    )
    state = state_of(
        participant,
        to_label=len(trials),
        labelled=sum(t.labelled for t in trials),
        to_judge=sum(t.judging_order is not None for t in trials),
        judged=sum(t.judged for t in trials),
    )
    return SessionView(participant, study, definition, labels or [], trials, state)


def _trial_view(row: Row[*tuple[Any, ...]], labelling_over: bool) -> TrialView:
    position, kind, sha256, response, judgment, judging_order, prediction = row
    return TrialView(
        position=position,
        kind=kind,
        sha256=sha256,
        labelled=response is not None,
        judged=judgment is not None,
        judging_order=judging_order,
        # No answer of the network's may teach before the last image is labelled.
        prediction=prediction if labelling_over and judging_order is not None else None,
    )


def state_of(participant: Participant, to_label: int, labelled: int, to_judge: int, judged: int) -> State:
    """Where a participant is, from the counts of their trials; for their own pages and the researcher's monitor."""
    if participant.withdrawn_at:
        return "withdrawn"
    if participant.finished_at:
        return "finished"
    if labelled < to_label:
        return "labelling"
    return "judging" if judged < to_judge else "commenting"


# Storing


def record_label(
    session: Session,
    token: str,
    position: int,
    answer_id: uuid.UUID,
    label: str,
    runner_up: str | None,
    rt_ms: float | None,
    display: dict[str, Any],
    now: datetime,
) -> SessionView:
    """Store the labels for one image, once; committed. Returns where the participant is then."""
    here = _open_session(session, token)
    trial = here.trial(position)
    runner_up = _valid_labels(here, label, runner_up)
    stored = session.scalar(_response_of(here, position))
    if stored is not None:
        truth = {"label": stored.label, "runner_up": stored.runner_up}
        _same_or_refuse(stored.answer_id, answer_id, truth, {"label": label, "runner_up": runner_up}, here)
        return here
    if here.state != "labelling" or position != here.next_position:
        raise _out_of_order(here)
    session.add(
        Response(
            trial_id=_trial_id(session, here, trial),
            answer_id=answer_id,
            label=label,
            runner_up=runner_up,
            rt_ms=rt_ms,
            display=display,
            answered_at=now,
        )
    )
    return _commit_answer(session, here, now)


def record_plausibility(
    session: Session,
    token: str,
    position: int,
    answer_id: uuid.UUID,
    plausible: bool,
    rt_ms: float | None,
    display: dict[str, Any],
    now: datetime,
) -> SessionView:
    """Store whether one answer of the network is a reasonable mistake, once; committed."""
    here = _open_session(session, token)
    trial = here.trial(position)
    stored = session.scalar(
        select(Judgment)
        .join(Trial, Trial.id == Judgment.trial_id)
        .where(Trial.participant_id == here.participant.id, Trial.position == position)
    )
    if stored is not None:
        _same_or_refuse(
            stored.answer_id, answer_id, {"plausible": stored.plausible}, {"plausible": plausible}, here
        )
        return here
    if here.state != "judging" or position != here.next_position:
        raise _out_of_order(here)
    session.add(
        Judgment(
            trial_id=_trial_id(session, here, trial),
            answer_id=answer_id,
            plausible=plausible,
            rt_ms=rt_ms,
            display=display,
            answered_at=now,
        )
    )
    return _commit_answer(session, here, now)


def record_comment(
    session: Session, token: str, text: str, now: datetime, finish_too: bool = False
) -> SessionView:
    """Store, or correct until the session is finished, the comment; committed."""
    here = _open_session(session, token)
    stored = session.get(Comment, here.participant.id)
    if here.state == "finished":
        if stored is not None and stored.text == text:
            return here
        if stored is None or not stored.text:  # a second tab finished with an empty box: nothing is replaced
            session.merge(Comment(participant_id=here.participant.id, text=text, written_at=now))
            session.commit()
            return here
        raise Refusal(
            409, N_("The session is finished; its comment can no longer be changed."), state="finished"
        )
    if here.state != "commenting":
        raise _out_of_order(here)
    if stored is None:
        session.add(Comment(participant_id=here.participant.id, text=text, written_at=now))
    else:
        stored.text = text
        stored.written_at = now
    if finish_too:
        _finish(here.participant, here.definition, now)
    here.participant.last_seen_at = now
    session.commit()
    return view(session, token)


def finish(session: Session, token: str, now: datetime) -> SessionView:
    """End the session and give its completion code, once every trial is stored; committed."""
    here = _open_session(session, token)
    if here.state == "finished":
        return here
    if here.state != "commenting":
        missing = sum(not t.labelled for t in here.trials)
        missing += sum(not t.judged for t in here.trials if t.judging_order is not None)
        raise Refusal(
            409,
            N_("%(missing)s answers are still missing; the next one is image %(next)s."),
            {"missing": missing, "next": here.next_position},
            next_position=here.next_position,
            state=here.state,
        )
    _finish(here.participant, here.definition, now)
    session.commit()
    return view(session, token)


def withdraw(session: Session, token: str, now: datetime) -> SessionView:
    """Delete this participant's answers, comment and recruiter ids; that there was a session stays. Committed."""
    here = view(session, token, lock=True)
    if here.state == "withdrawn":
        return here
    deleted = stored_about(session, here.participant)
    trials = select(Trial.id).where(Trial.participant_id == here.participant.id)
    session.execute(delete(Response).where(Response.trial_id.in_(trials)))
    session.execute(delete(Judgment).where(Judgment.trial_id.in_(trials)))
    for table in (Trial, Comment, RecruiterId):
        session.execute(delete(table).where(table.participant_id == here.participant.id))
    here.participant.deleted = deleted
    here.participant.withdrawn_at = now
    here.participant.finished_at = None
    here.participant.completion_code = None
    session.commit()
    session.expire_all()
    return view(session, token)


def stored_about(session: Session, participant: Participant) -> dict[str, int]:
    """How many rows a withdrawal has to delete, counted in the database: what it says before, and proves after."""
    own = Trial.participant_id == participant.id
    counts = {
        "labels": select(func.count()).select_from(Response).join(Trial).where(own),
        "judgments": select(func.count()).select_from(Judgment).join(Trial).where(own),
        "images": select(func.count()).select_from(Trial).where(own),
        "comments": select(func.count())
        .select_from(Comment)
        .where(Comment.participant_id == participant.id, Comment.text != ""),
        "recruiter_ids": select(func.count())
        .select_from(RecruiterId)
        .where(RecruiterId.participant_id == participant.id),
    }
    return {name: session.scalar(query) or 0 for name, query in counts.items()}


def token_of_code(session: Session, code: str) -> str | None:
    """The session that a private withdrawal code belongs to; typed with or without hyphens, in any case."""
    letters = "".join(code.upper().replace("-", " ").split())
    hyphenated = "-".join(letters[i : i + 4] for i in range(0, len(letters), 4))
    return session.scalar(select(Participant.token).where(Participant.withdrawal_code == hyphenated))


def speak(session: Session, token: str, language: str) -> None:
    """Show this participant's pages in another of the study's languages; committed."""
    here = view(session, token, lock=True)
    if language not in here.definition.languages:
        raise Refusal(422, N_("This study does not come in that language."))
    here.participant.language = language
    session.commit()


def _finish(participant: Participant, definition: Definition, now: datetime) -> None:
    participant.finished_at = now
    participant.last_seen_at = now
    participant.completion_code = definition.completion.code or "-".join(
        "".join(secrets.choice(ALPHABET) for _ in range(4)) for _ in range(2)
    )


def _open_session(session: Session, token: str) -> SessionView:
    here = view(session, token, lock=True)
    if here.state == "withdrawn":
        raise Refusal(409, N_("This session was withdrawn; its answers are deleted and no more are stored."))
    return here


def _valid_labels(here: SessionView, label: str, runner_up: str | None) -> str | None:
    """The runner-up as it is stored. Raises Refusal 422 for labels that make no sense."""
    choices = [*here.labels, NONE_PLAUSIBLE]

    def refuse(message: str, **values: object) -> Refusal:
        return Refusal(422, message, {"choices": ", ".join(choices)} | values)

    if label not in choices:
        raise refuse(N_("“%(label)s” is not one of the labels %(choices)s."), label=label)
    if "runner_up" not in here.definition.questions:
        if runner_up not in (None, NONE_PLAUSIBLE):
            raise refuse(N_("This study does not ask for a runner_up."))
        return None
    if runner_up is None:
        return NONE_PLAUSIBLE
    if runner_up not in choices:
        raise refuse(N_("“%(label)s” is not one of the labels %(choices)s."), label=runner_up)
    if runner_up == label and label != NONE_PLAUSIBLE:
        raise refuse(N_("The runner_up must differ from the label; both are “%(label)s”."), label=label)
    if label == NONE_PLAUSIBLE and runner_up != NONE_PLAUSIBLE:
        raise refuse(N_("Where no label is plausible there is no runner_up; send “none” for both."))
    return runner_up


def _same_or_refuse(
    stored_id: uuid.UUID, sent_id: uuid.UUID, truth: dict[str, Any], sent: dict[str, Any], here: SessionView
) -> None:
    if stored_id == sent_id and truth == sent:
        return
    raise Refusal(
        409,
        N_("This image has another answer already; the first one counts."),
        stored=truth | {"answer_id": str(stored_id)},
        next_position=here.next_position,
        state=here.state,
    )


def _out_of_order(here: SessionView) -> Refusal:
    more = {"next_position": here.next_position, "state": here.state}
    if here.next_position is None:
        message = N_("This session is at %(state)s; there is no such question to answer.")
    else:
        message = N_("This session is at %(state)s, image %(next_position)s.")
    return Refusal(409, message, more, **more)


def _response_of(here: SessionView, position: int) -> Select[Response]:
    return (
        select(Response)
        .join(Trial, Trial.id == Response.trial_id)
        .where(Trial.participant_id == here.participant.id, Trial.position == position)
    )


def _trial_id(session: Session, here: SessionView, trial: TrialView) -> int:
    return session.scalars(
        select(Trial.id).where(Trial.participant_id == here.participant.id, Trial.position == trial.position)
    ).one()


def _commit_answer(session: Session, here: SessionView, now: datetime) -> SessionView:
    here.participant.last_seen_at = now
    try:
        session.commit()
    except IntegrityError as error:
        # The constraints are the last guard: this trial is answered, or the answer_id was used for another one.
        session.rollback()
        raise Refusal(409, N_("This answer_id belongs to another answer; nothing was stored.")) from error
    return view(session, here.participant.token)
