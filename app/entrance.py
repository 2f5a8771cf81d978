"""The pages before a session: studies, information and consent, coming back, withdrawal by the private code."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode
from uuid import uuid4

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import definition as definitions
from app import enrollment, withdrawal
from app.csrf import ELSEWHERE, form_of, from_elsewhere
from app.definition import Definition
from app.enrollment import Beginning
from app.i18n import LANGUAGES, N_, translate
from app.models import Participant, Study
from app.participation import Refusal
from app.recruiters import LONGEST, RECRUITER_KEYS, UNFILLED
from app.security import client_address
from app.web import SESSION_COOKIE, Db, began_here, enroll, language_of, over_https, parsed_uuid, render

router = APIRouter(default_response_class=HTMLResponse)

COOKIE_FOR_S = 90 * 24 * 3600


@dataclass(frozen=True)
class StudyCard:
    slug: str
    definition: Definition


@router.get("/")
def studies(request: Request, db: Db) -> Response:
    language = language_of(request, list(LANGUAGES))
    with db.read() as session:
        slugs = session.scalars(select(Study.slug).group_by(Study.slug).order_by(func.min(Study.id))).all()
        active = [definitions.active(session, slug) for slug in slugs]
        cards = [
            StudyCard(study.slug, definitions.of(study).translated(language))
            for study in active
            if study and study.open
        ]
    return render(
        request, "studies.html", language=language, studies=cards, switch=_switch(request, LANGUAGES)
    )


@router.get("/study/{slug}")
def information(request: Request, slug: str, db: Db) -> Response:
    """Information and consent; for one who comes back, the way to their session. Begins nothing."""
    kept = _recruiter_ids(dict(request.query_params))
    another = request.query_params.get("another") == "yes"
    with db.read() as session:
        known = _known(session, request, Beginning(slug, kept), another)
        if known is not None:
            beginning = Beginning(slug, kept)
            refused = enrollment.refused(session, known, beginning, began_here(request, known))
            return _welcome_back(request, known, beginning, refused)
    return _information(request, slug, db, kept, another)


@router.post("/study/{slug}")
def consent(
    request: Request, slug: str, db: Db, form: Annotated[dict[str, str], Depends(form_of)]
) -> Response:
    kept = _recruiter_ids(dict(request.query_params) | form)
    another = form.get("another") == "yes"
    if from_elsewhere(request):  # another site's page would enroll its visitor
        return _information(request, slug, db, kept, another, error=ELSEWHERE)
    if form.get("consent") != "yes":
        message = N_("Please tick the box if you agree to take part; without it the study cannot begin.")
        return _information(request, slug, db, kept, another, error=message)
    beginning = Beginning(
        slug,
        kept,
        parsed_uuid(form.get("request_id", "")),
        form.get("language"),
        form.get("version"),
    )
    with db.read() as session:
        known = _known(session, request, beginning, another)
        if known is not None and enrollment.returning(session, beginning) is None:
            return _to_session(request, slug, known)
    try:
        return _to_session(request, slug, enroll(request, beginning))
    except Refusal as refusal:
        if not refusal.more.get("changed"):
            raise
        return _information(request, slug, db, kept, another, error=refusal.message)


def _to_session(request: Request, slug: str, participant: Participant) -> Response:
    """To where the participant is; the browser remembers whose session it began, from consent on."""
    response = RedirectResponse(f"/s/{participant.token}", status_code=303)
    response.set_cookie(
        SESSION_COOKIE,
        participant.token,
        max_age=COOKIE_FOR_S,
        path=f"/study/{slug}",
        httponly=True,
        samesite="lax",
        secure=over_https(request),
    )
    return response


def _known(session: Session, request: Request, beginning: Beginning, another: bool) -> Participant | None:
    """Who is coming back: the recruiter's id decides; without one, the session that this browser began."""
    if (found := enrollment.returning(session, beginning)) is not None:
        return found
    token = request.cookies.get(SESSION_COOKIE, "")
    # A cookie can hold a NUL, quoted, which PostgreSQL does not take as text.
    if beginning.person is not None or another or "\x00" in token:
        return None
    return session.scalar(
        select(Participant)
        .join(Study)
        .where(
            Participant.token == token,
            Participant.withdrawn_at.is_(None),
            Study.slug == beginning.slug,
        )
    )


def _welcome_back(request: Request, known: Participant, beginning: Beginning, refused: bool) -> Response:
    definition = definitions.of(known.study)
    return render(
        request,
        "returning.html",
        language=known.language,
        definition=definition.translated(known.language),
        finished=known.finished_at is not None,
        address=None if refused else f"/s/{known.token}",
        another=None if beginning.person is not None else f"/study/{beginning.slug}?another=yes",
    )


def _information(
    request: Request, slug: str, db: Db, kept: dict[str, str], another: bool, error: str | None = None
) -> Response:
    with db.read() as session:
        study = enrollment.open_study(session, slug)
        definition = definitions.of(study)
    language = language_of(request, definition.languages)
    return render(
        request,
        "information.html",
        status=422 if error else 200,
        language=language,
        slug=slug,
        version=study.version,
        definition=definition.translated(language),
        request_id=str(uuid4()),
        kept=kept,
        action=f"/study/{slug}?{urlencode(kept | {'lang': language})}",
        another=another,
        error=translate(language, error) if error else None,
        switch=_switch(request, definition.languages),
    )


def _switch(request: Request, offered: Iterable[str]) -> dict[str, str]:
    """Language -> this page in it, recruiter's ids and all."""
    return {
        language: f"?{urlencode(dict(request.query_params) | {'lang': language})}" for language in offered
    }


def _recruiter_ids(query: dict[str, str]) -> dict[str, str]:
    """What the recruiter's link carries. Raises Refusal 422 for an id that cannot be kept exactly as it is."""
    kept: dict[str, str] = {}
    for key in RECRUITER_KEYS:
        value = query.get(key, "").strip()
        if not value or UNFILLED.fullmatch(value):
            continue
        # U+FFFD stands for bytes that were no UTF-8: of two people it could make one.
        if len(value) > LONGEST or plain(value) != value or "\ufffd" in value:
            raise Refusal(
                422,
                N_("The %(name)s in this link cannot be read; please open it again as you were given it."),
                {"name": key},
            )
        kept[key] = value
    return kept


def plain(text: str) -> str:
    """Text as it is stored: lines end in \\n, whatever the browser sent, and no NUL, which PostgreSQL refuses."""
    text = text.encode("utf-8", "ignore").decode()  # a form's charset may smuggle in halves of characters
    return text.replace("\r\n", "\n").replace("\x00", "").strip()


@router.get("/withdraw")
def withdraw(request: Request) -> Response:
    language = language_of(request, list(LANGUAGES))
    return render(
        request,
        "withdraw_code.html",
        language=language,
        error=None,
        code="",
        switch=_switch(request, LANGUAGES),
    )


@router.post("/withdraw")
def withdraw_by_code(request: Request, db: Db, code: Annotated[str, Form(max_length=100)] = "") -> Response:
    wait = request.app.state.guess_limit.take(client_address(request))
    if wait:
        raise Refusal(
            429,
            N_("Too many codes were tried from your network just now; please try again in a minute."),
            retry_after=math.ceil(wait),
        )
    with db.read() as session:
        token = withdrawal.token_of_code(session, plain(code))
    if token is not None:
        return RedirectResponse(f"/s/{token}/withdraw", status_code=303)
    language = language_of(request, list(LANGUAGES))
    error = translate(language, N_("No session has this code; please check it letter by letter."))
    switch = _switch(request, LANGUAGES)
    context = {"error": error, "code": code, "switch": switch}
    return render(request, "withdraw_code.html", 422, language, **context)
