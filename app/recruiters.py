"""What recruiting services put into their links, and the way back to them."""

import re
from collections.abc import Mapping
from urllib.parse import quote

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Participant, RecruiterId

# The names in a recruiter's link that stand for one person: Prolific, MTurk, SONA, plain links.
PERSONAL = ("PROLIFIC_PID", "workerId", "survey_code", "id")
# All names that are kept from such a link.
RECRUITER_KEYS = (*PERSONAL, "STUDY_ID", "SESSION_ID", "assignmentId", "hitId")

LONGEST = 200  # characters of an id; a longer one is refused, as a part of it could be somebody else's
UNFILLED = re.compile(r"\{\{.*\}\}|%\w+%|\$\{.*\}|\[.*\]|<.*>")  # what a recruiter should have put an id for

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
FILLERS = (*RECRUITER_KEYS, "code")
"""What a study's redirect_url may name in braces: what came with the link, and the completion code."""


def person(external: Mapping[str, str]) -> tuple[str, str] | None:
    """(name, value) of the id that stands for one person, if there is one; an unfilled placeholder is nobody."""
    for name in PERSONAL:
        if name in external and not UNFILLED.fullmatch(external[name]):
            return name, external[name]
    return None


def way_back(session: Session, participant: Participant, redirect_url: str | None) -> str | None:
    """The address that takes a finished participant back to the recruiter, its {names} filled in.

    SONA grants credit by the survey_code that it sent along, for example. A name that did not come is left empty.
    """
    if redirect_url is None or participant.finished_at is None:
        return None
    rows = session.scalars(select(RecruiterId).where(RecruiterId.participant_id == participant.id))
    values = {row.name: row.value for row in rows} | {"code": participant.completion_code or ""}
    return PLACEHOLDER.sub(lambda found: quote(values.get(found[1], ""), safe=""), redirect_url)
