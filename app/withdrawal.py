"""A participant takes everything back: by their link or by their private code, and with proof."""

import unicodedata
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.orm import Session

from app import audit
from app.models import Comment, Judgment, Participant, RecruiterId, Response, Trial
from app.participation import view

# Every table whose rows are about one participant, in the order in which they can be deleted.
PERSONAL = (Response, Judgment, Trial, Comment, RecruiterId)


def about(table: type[Any], people: Select[int]) -> ColumnElement[bool]:
    """Which rows of one of PERSONAL are about these participants (a query of their ids)."""
    if hasattr(table, "participant_id"):
        of_people: ColumnElement[bool] = table.participant_id.in_(people)
        return of_people
    of_trials: ColumnElement[bool] = table.trial_id.in_(
        select(Trial.id).where(Trial.participant_id.in_(people))
    )
    return of_trials


def withdraw(session: Session, token: str, now: datetime) -> bool:
    """Delete this participant's answers, comment and recruiter ids; that there was a session stays.

    False: that was done before. The caller commits, and has the database scrubbed after it.
    """
    here = view(session, token, lock=True)
    if here.state == "withdrawn":
        return False
    deleted = stored_about(session, here.participant)
    own = select(Participant.id).where(Participant.id == here.participant.id)
    for table in PERSONAL:
        session.execute(delete(table).where(about(table, own)).execution_options(synchronize_session=False))
    here.participant.deleted = deleted
    here.participant.withdrawn_at = now
    here.participant.finished_at = None
    here.participant.completion_code = None
    audit.record(session, audit.Event.WITHDRAWN, study=here.study.slug, now=now)
    return True


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
    """The session that a private withdrawal code belongs to; typed in any case, width and with any separators."""
    typed = unicodedata.normalize("NFKC", code).upper()
    letters = "".join(letter for letter in typed if letter.isalnum())
    hyphenated = "-".join(letters[i : i + 4] for i in range(0, len(letters), 4))
    return session.scalar(select(Participant.token).where(Participant.withdrawal_code == hyphenated))
