"""What the handlers share: the database, the clock, whose language, pages, and the one way in."""

import math
import uuid
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request
from fastapi.responses import Response
from sqlalchemy.exc import IntegrityError

from app import enrollment, i18n
from app.db import Database
from app.enrollment import Beginning
from app.i18n import N_
from app.models import Participant
from app.participation import Refusal
from app.security import client_address

SESSION_COOKIE = "session"  # the session begun in this browser; only the study's own address is sent it


def now() -> datetime:
    return datetime.now(UTC)


async def database(request: Request) -> Database:  # asynchronous: FastAPI calls a plain one in a thread
    found: Database = request.app.state.database
    return found


Db = Annotated[Database, Depends(database)]


def language_of(request: Request, offered: list[str]) -> str:
    """What the visitor chose by ?lang=, else what the browser asks for, of the languages that there are."""
    chosen = request.query_params.get("lang", "")
    return (
        chosen if chosen in offered else i18n.preferred(request.headers.get("accept-language", ""), offered)
    )


def over_https(request: Request) -> bool:
    """Whether the browser speaks https, if only to a proxy: cookies then go over https alone."""
    return request.app.state.settings.https or request.url.scheme == "https"


def for_programs(path: str) -> bool:
    """Whether programs ask for this address: they are refused in JSON, people on a page."""
    return path.startswith(("/api/", "/stimuli/")) or path.endswith((".json", ".csv", ".zip"))


def render(
    request: Request, template: str, status: int = 200, language: str = i18n.SOURCE, **context: object
) -> Response:
    """A page; pages about one person are never kept by caches."""
    shared = {"language": language, "researcher": getattr(request.state, "researcher", None)}
    response: Response = request.app.state.templates.TemplateResponse(
        request, template, context | shared, status_code=status
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def began_here(request: Request, participant: Participant) -> bool:
    """Whether this browser began the participant's session, by the cookie that it got then."""
    return request.cookies.get(SESSION_COOKIE) == participant.token


def enroll(request: Request, beginning: Beginning) -> Participant:
    """A new participant, or the one who is returning; committed. Raises Refusal 404, 409, 429."""
    try:
        return _enroll(request, beginning)
    except IntegrityError:
        # Its request_id has just begun a session of another study, whose queue is another: now that one is there.
        return _enroll(request, beginning)


def _enroll(request: Request, beginning: Beginning) -> Participant:
    db: Database = request.app.state.database
    with db.write() as session:
        enrollment.queue(session, beginning.slug)
        known = enrollment.returning(session, beginning)
        if known is not None:
            if enrollment.refused(session, known, beginning, began_here(request, known)):
                raise Refusal(409, N_("This link has been used already; a second session is not possible."))
            return known
        enrollment.open_study(session, beginning.slug)  # who cannot begin takes nothing from the limit
        wait = request.app.state.creation_limit.take(client_address(request))
        if wait:
            raise Refusal(
                429,
                N_("Too many sessions were begun from your network just now; please try again in a minute."),
                retry_after=math.ceil(wait),
            )
        return enrollment.start(session, beginning, now(), request.app.state.remembered)


def parsed_uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
