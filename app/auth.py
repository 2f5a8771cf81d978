"""Who may see results: the researcher, signed in by a password, by a link that works once, or on their own machine
by the link that the server printed.

The database knows who is signed in, so that signing out holds in every process.
"""

import hashlib
import hmac
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Depends, Request
from fastapi.responses import Response
from sqlalchemy import CursorResult, delete, or_, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.csrf import FIELD, SAFE, form_of, from_browser, from_elsewhere
from app.models import ResearcherSession, SigninLink
from app.participation import Refusal
from app.settings import Settings
from app.web import now, over_https

COOKIE = "researcher"
LINK_COOKIE = "signin-link"  # between opening a link and confirming it
IDLE = timedelta(hours=12)
LONGEST = timedelta(days=14)
LINK_FOR = timedelta(minutes=15)
REFRESH = "x-refresh"  # static/live.js sends it: a dashboard that refreshes itself is nobody's presence
SEEN_EVERY = timedelta(minutes=10)  # how often it is written down that somebody is still there


@dataclass(frozen=True)
class SignedIn:
    """Somebody who is signed in; `csrf` goes into each form of theirs."""

    token_hash: str
    csrf: str


def sign_in_key(secret: str) -> str:
    """What the printed link carries; it changes when the secret does."""
    return _keyed(secret, "sign-in")


def is_sign_in_key(settings: Settings, key: str) -> bool:
    """Whether the key is the printed link's; no such link is printed, or works, where others reach the server."""
    right = hmac.compare_digest(sign_in_key(settings.secret).encode(), key.encode())
    return right and not settings.exposed


def _keyed(secret: str, what: str) -> str:
    """A hash that nobody makes without the secret: a token is stored as one, so that a changed secret ends it."""
    return hmac.new(secret.encode(), what.encode(), hashlib.sha256).hexdigest()


def new_session(session: Session, secret: str, now: datetime, replaced: str = "") -> str:
    """Begin a session and return its token, a new one each time; it ends the one whose token the browser had. The
    caller commits."""
    session.execute(
        delete(ResearcherSession).where(
            or_(
                ResearcherSession.began_at <= now - LONGEST,
                ResearcherSession.last_seen_at <= now - IDLE,
                ResearcherSession.token_hash == _keyed(secret, f"session {replaced}"),
            )
        )
    )
    token = secrets.token_urlsafe(32)
    session.add(
        ResearcherSession(token_hash=_keyed(secret, f"session {token}"), began_at=now, last_seen_at=now)
    )
    return token


def end_session(session: Session, token_hash: str) -> bool:
    """Sign out; False if that was done before. The caller commits."""
    ended = session.execute(delete(ResearcherSession).where(ResearcherSession.token_hash == token_hash))
    assert isinstance(ended, CursorResult)
    return ended.rowcount == 1


def new_link(session: Session, secret: str, now: datetime) -> str:
    """The token of a new link that signs in once; the caller commits."""
    session.execute(delete(SigninLink).where(SigninLink.expires_at <= now))
    token = secrets.token_urlsafe(32)
    session.add(SigninLink(token_hash=_keyed(secret, f"link {token}"), expires_at=now + LINK_FOR))
    return token


def is_link(session: Session, secret: str, token: str, now: datetime) -> bool:
    """Whether the link would sign in now."""
    link = session.get(SigninLink, _keyed(secret, f"link {token}"))
    return link is not None and link.used_at is None and link.expires_at > now


def use_link(session: Session, secret: str, token: str, now: datetime) -> bool:
    """Use the link up; False if that was not possible (any more). The caller commits."""
    used = session.execute(
        update(SigninLink)
        .where(
            SigninLink.token_hash == _keyed(secret, f"link {token}"),
            SigninLink.used_at.is_(None),
            SigninLink.expires_at > now,
        )
        .values(used_at=now)
    )
    assert isinstance(used, CursorResult)
    return used.rowcount == 1


def end_everything(session: Session) -> None:
    """End all sessions and links; the caller commits. After a change of password."""
    # Links first: on PostgreSQL that waits for a sign-in by link that is under way, whose session the second
    # statement sees then; one that comes later waits for this transaction, and finds no link.
    session.execute(delete(SigninLink))
    session.execute(delete(ResearcherSession))


def signed_in(request: Request) -> SignedIn | None:
    """Who is signed in in this browser, if anybody is."""
    token = request.cookies.get(cookie_name(request, COOKIE), "")
    if not token:
        return None
    settings: Settings = request.app.state.settings
    token_hash = _keyed(settings.secret, f"session {token}")
    at = now()
    with request.app.state.database.read() as session:
        found = session.get(ResearcherSession, token_hash)
    if found is None or found.began_at <= at - LONGEST or found.last_seen_at <= at - IDLE:
        return None
    if REFRESH not in request.headers and found.last_seen_at <= at - SEEN_EVERY:
        with suppress(OperationalError), request.app.state.database.write() as session:  # again next time
            session.execute(
                update(ResearcherSession)
                .where(ResearcherSession.token_hash == token_hash)
                .values(last_seen_at=at)
            )
            session.commit()
    return SignedIn(token_hash, _keyed(settings.secret, f"form {token}"))


def require_researcher(request: Request, form: Annotated[dict[str, str], Depends(form_of)]) -> SignedIn:
    """A dependency: refuses whoever is not signed in, and what was not sent from one of the researcher's pages.

    A program, which sends what no browser leaves out, may change things by its cookie alone.
    """
    found = signed_in(request)
    if found is None:
        raise Refusal(401, "Results are for the researcher: please sign in.")
    if request.method not in SAFE:
        token = form.get(FIELD, "")
        wrong = not hmac.compare_digest(token.encode(), found.csrf.encode())
        if from_elsewhere(request) or (wrong and (token or from_browser(request))):
            raise Refusal(403, "This was not sent from a page of this server that is still signed in.")
    request.state.researcher = found
    return found


def cookie_name(request: Request, name: str) -> str:
    """The name under which a cookie goes; over https, one that no other site nor plain http can set."""
    return f"__Host-{name}" if over_https(request) else name


def set_cookie(request: Request, response: Response, name: str, value: str, lasts: timedelta) -> None:
    """Set a cookie that scripts cannot read and that other sites' requests, but for links, do not carry."""
    response.set_cookie(
        cookie_name(request, name),
        value,
        max_age=int(lasts.total_seconds()),
        httponly=True,
        samesite="lax",
        secure=over_https(request),
    )


def forget_cookie(request: Request, response: Response, name: str) -> None:
    response.delete_cookie(
        cookie_name(request, name), httponly=True, samesite="lax", secure=over_https(request)
    )
