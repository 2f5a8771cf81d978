"""What a participant says, stored: labels, judgments, the comment, the end.

Every function takes a writing session, locks the participant's row and commits, last of all: after the commit
nothing may fail, or a stored answer would be reported as lost. A Refusal stores nothing.
"""

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.i18n import N_
from app.models import NONE_PLAUSIBLE, Comment, Judgment, Response
from app.participation import ALPHABET, Refusal, SessionView, State, TrialView, view


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
    content = {
        "label": label,
        "runner_up": valid_runner_up(here.labels, here.definition.questions, label, runner_up),
    }
    return _record(session, here, trial, Response, "labelling", answer_id, content, rt_ms, display, now)


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
    content = {"plausible": plausible}
    return _record(session, here, trial, Judgment, "judging", answer_id, content, rt_ms, display, now)


def _record(
    session: Session,
    here: SessionView,
    trial: TrialView,
    table: type[Response] | type[Judgment],
    part: State,
    answer_id: uuid.UUID,
    content: dict[str, Any],
    rt_ms: float | None,
    display: dict[str, Any],
    now: datetime,
) -> SessionView:
    """The first answer to a trial is stored; the same one again changes nothing; another one is refused."""
    stored = cast("Response | Judgment | None", session.get(table, trial.id))
    if stored is not None:
        truth = {name: getattr(stored, name) for name in content}
        if stored.answer_id == answer_id and truth == content:
            return here
        raise Refusal(
            409,
            N_("This image has another answer already; the first one counts."),
            stored=truth | {"answer_id": str(stored.answer_id)},
            next_position=here.next_position,
            state=here.state,
        )
    if here.state != part or trial.position != here.next_position:
        raise _out_of_order(here)
    session.add(
        table(
            trial_id=trial.id,
            answer_id=answer_id,
            rt_ms=rt_ms,
            display=display,
            answered_at=now,
            **content,
        )
    )
    here.participant.last_seen_at = now
    try:
        session.flush()
        after = here.with_answer(trial)
        if after.state != here.state:
            after = view(session, here.participant.token)
        session.commit()
    except IntegrityError as error:
        # The constraints are the last guard: this trial is answered, or the answer_id was used for another one.
        session.rollback()
        raise Refusal(
            409,
            N_("This answer_id belongs to another answer; nothing was stored."),
            next_position=here.next_position,
            state=here.state,
        ) from error
    return after


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
    elif text or not finish_too:  # an empty box that another tab finishes with takes nothing back
        stored.text = text
        stored.written_at = now
    here.participant.last_seen_at = now
    if finish_too:
        return _finish(session, here, now)
    session.commit()
    return here


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
    return _finish(session, here, now)


def speak(session: Session, token: str, language: str) -> None:
    """Show this participant's pages in another of the study's languages; committed."""
    here = view(session, token, lock=True)
    if language not in here.definition.languages:
        raise Refusal(422, N_("This study does not come in that language."))
    here.participant.language = language
    session.commit()


def _finish(session: Session, here: SessionView, now: datetime) -> SessionView:
    """End the session; committed."""
    here.participant.finished_at = now
    here.participant.last_seen_at = now
    here.participant.completion_code = here.definition.completion.code or "-".join(
        "".join(secrets.choice(ALPHABET) for _ in range(4)) for _ in range(2)
    )
    session.commit()
    return replace(here, state="finished")


def _open_session(session: Session, token: str) -> SessionView:
    here = view(session, token, lock=True)
    if here.state == "withdrawn":
        raise Refusal(409, N_("This session was withdrawn; its answers are deleted and no more are stored."))
    return here


def valid_runner_up(
    labels: Sequence[str], questions: Sequence[str], label: str, runner_up: str | None
) -> str | None:
    """The runner-up as it is stored; None says that none was sent. Raises Refusal 422 for what makes no sense."""
    choices = [*labels, NONE_PLAUSIBLE]

    def refuse(message: str, **values: object) -> Refusal:
        return Refusal(422, message, {"choices": ", ".join(choices)} | values)

    if label not in choices:
        raise refuse(N_("“%(label)s” is not one of the labels %(choices)s."), label=label)
    if "runner_up" not in questions:
        if runner_up not in (None, NONE_PLAUSIBLE):
            raise refuse(N_("This study does not ask for a runner_up."))
        return None
    if runner_up is None and label != NONE_PLAUSIBLE:
        raise refuse(N_("runner_up is missing; send “none” where no other label is plausible."))
    if runner_up is None:
        return NONE_PLAUSIBLE
    if runner_up not in choices:
        raise refuse(N_("“%(label)s” is not one of the labels %(choices)s."), label=runner_up)
    if runner_up == label and label != NONE_PLAUSIBLE:
        raise refuse(N_("The runner_up must differ from the label; both are “%(label)s”."), label=label)
    if label == NONE_PLAUSIBLE and runner_up != NONE_PLAUSIBLE:
        raise refuse(N_("Where no label is plausible there is no runner_up; send “none” for both."))
    return runner_up


def _out_of_order(here: SessionView) -> Refusal:
    more = {"next_position": here.next_position, "state": here.state}
    if here.next_position is None:
        message = N_("This session is at %(state)s; there is no such question to answer.")
    else:
        message = N_("This session is at %(state)s, image %(next_position)s.")
    return Refusal(409, message, more, **more)
