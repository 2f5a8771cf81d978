"""The researcher's pages of signing in and out."""

import math
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from app import auth, password
from app.audit import Event, record
from app.auth import COOKIE, LINK_COOKIE, SignedIn
from app.csrf import from_elsewhere
from app.password import Tries
from app.security import client_address
from app.settings import Settings
from app.web import Db, now, render

router = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)

LATER = "Too many sign-ins were tried; please try again in {} seconds."


@router.get("/signin")
def sign_in(
    request: Request,
    db: Db,
    key: Annotated[str | None, Query(max_length=200)] = None,
    link: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """The form; with `key`, the printed link of loopback, which signs in; with `link`, one that does so once.

    A link that works once is only opened here, whoever opens it: programs that show previews of messages do so too.
    Both lead on to an address without the secret, which no history keeps.
    """
    settings: Settings = request.app.state.settings
    if key is not None:
        if auth.is_sign_in_key(settings, key):
            return _let_in(request, db, "printed link")
        return _refused_link(
            request,
            db,
            "This sign-in link is not valid here; open the Dashboard link that the server printed.",
        )
    if link is not None:
        with db.read() as session:
            good = auth.is_link(session, settings.secret, link, now())
        if not good:
            return _refused_link(request, db, "This sign-in link has been used already, or is too old.")
        response = RedirectResponse("/signin/link", status_code=303)
        auth.set_cookie(request, response, LINK_COOKIE, link, auth.LINK_FOR)
        return response
    if auth.signed_in(request):
        return RedirectResponse("/results", status_code=303)
    return page(request)


@router.post("/signin")
def sign_in_by_password(
    request: Request, db: Db, typed: Annotated[str, Form(alias="password", max_length=5000)] = ""
) -> Response:
    if from_elsewhere(request):
        return page(request, 403, "This was not sent from this page; please sign in here.")
    tries: Tries = request.app.state.tries
    if seconds := tries.passwords.take(client_address(request)):
        return _later(request, seconds)
    with tries.turn() as my_turn:
        if not my_turn:
            return _later(request, 2)
        with db.read() as session:
            seconds = password.wait(session, Event.PASSWORD_REFUSED, now())
            hashed = password.stored(session)
        if seconds:
            return _later(request, seconds)
        if password.is_right(hashed, typed):
            return _let_in(request, db, "password", hashed=hashed)
        with db.write() as session:
            record(session, Event.PASSWORD_REFUSED, now=now())
            session.commit()
    return page(request, 401, "That is not the password.")


@router.get("/signin/link")
def confirm_link(request: Request, db: Db) -> Response:
    link = request.cookies.get(auth.cookie_name(request, LINK_COOKIE), "")
    with db.read() as session:
        good = auth.is_link(session, request.app.state.settings.secret, link, now())
    if not good:
        return page(request, 401, "Please open the sign-in link again, or a new one if it has been used.")
    return render(request, "signin_link.html")


@router.post("/signin/link")
def sign_in_by_link(request: Request, db: Db) -> Response:
    if from_elsewhere(request):
        return page(request, 403, "This was not sent from this page; please open the sign-in link again.")
    link = request.cookies.get(auth.cookie_name(request, LINK_COOKIE), "")
    return _let_in(request, db, "link", link=link)


@router.post("/signout")
def sign_out(
    request: Request, db: Db, researcher: Annotated[SignedIn, Depends(auth.require_researcher)]
) -> Response:
    with db.write() as session:
        if auth.end_session(session, researcher.token_hash):
            record(session, Event.SIGNED_OUT, now=now())
            session.commit()
    response = RedirectResponse("/signin", status_code=303)
    auth.forget_cookie(request, response, COOKIE)
    return response


def page(request: Request, status: int = 200, error: str | None = None) -> Response:
    """The form, or how to get in without a password."""
    with request.app.state.database.read() as session:
        has_password = password.is_set(session)
    printed = not request.app.state.settings.exposed
    return render(request, "signin.html", status, has_password=has_password, printed=printed, error=error)


def _let_in(
    request: Request, db: Db, by: str, link: str | None = None, hashed: str | None = None
) -> Response:
    """A new session in this browser: with `link`, if it can still be used; with `hashed`, what a password was
    compared with, if that is still the researcher's."""
    at = now()
    secret = request.app.state.settings.secret
    had = request.cookies.get(auth.cookie_name(request, COOKIE), "")
    with db.write() as session:
        gone = link is not None and not auth.use_link(session, secret, link, at)
        if not gone and (hashed is None or password.stored(session, hold=True) == hashed):
            token = auth.new_session(session, secret, at, replaced=had)
            record(session, Event.SIGNED_IN, detail={"by": by}, now=at)
            session.commit()
        else:
            token = None
    if token is None and link is None:
        return page(request, 401, "The password was changed just now.")
    if token is None:
        return _refused_link(request, db, "This sign-in link has been used already, or is too old.")
    response = RedirectResponse("/results", status_code=303)
    auth.set_cookie(request, response, COOKIE, token, auth.LONGEST)
    if link is not None:
        auth.forget_cookie(request, response, LINK_COOKIE)
    return response


def _refused_link(request: Request, db: Db, why: str) -> Response:
    """On record, but not without bound: who tries on and on is only told to wait."""
    tries: Tries = request.app.state.tries
    if seconds := tries.links.take(client_address(request)):
        return _later(request, seconds)
    with db.write() as session:
        seconds = password.wait(session, Event.LINK_REFUSED, now())
        if not seconds:
            record(session, Event.LINK_REFUSED, now=now())
            session.commit()
    return _later(request, seconds) if seconds else page(request, 401, why)


def _later(request: Request, seconds: float) -> Response:
    wait = math.ceil(seconds)
    response = page(request, 429, LATER.format(wait))
    response.headers["Retry-After"] = str(wait)
    return response
