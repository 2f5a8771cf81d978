"""The ASGI application: routes, error pages, static files."""

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from json import JSONDecodeError
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from jinja2 import StrictUndefined
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from app import (
    audit_page,
    dashboard,
    entrance,
    export,
    gallery,
    i18n,
    logs,
    metrics,
    models_page,
    openapi,
    pages,
    power_page,
    ready,
    report,
    signin,
    study,
    web,
)
from app.batches import Batches, PlainAnswers
from app.bounds import MOST_FIELDS, MOST_FILES, TOO_LARGE, UNREADABLE, Bounds
from app.db import Database
from app.enrollment import Remembered
from app.i18n import LANGUAGES, N_, SOURCE, translate
from app.metrics import Metrics
from app.observations import Memory
from app.participation import Refusal
from app.password import Tries
from app.probe import Probe
from app.security import GUESSES, AddressLimit, Guard, client_address
from app.settings import ROOT, Settings, load
from app.telemetry import Telemetry

RETRY_S = 2  # what a client is told to wait while nothing can be stored


def create_app(settings: Settings | None = None) -> FastAPI:
    """The app on the database of `settings` (default: the environment's); the schema must be there already."""
    settings = settings or load()
    database = Database(settings.database_url)
    batches = Batches(PlainAnswers(database).store)
    readiness = Probe(settings.database_url, ready.check)
    study_counts = Probe(settings.database_url, metrics.study_counts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        batches.close()
        readiness.close()
        study_counts.close()
        database.close()

    # No /docs and /redoc: their scripts come from another host. /openapi.json says the same.
    app = _App(
        title="Reasonable Mistakes",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # Nobody collects it, and asking for each request whether somebody does took a tenth of an answer's time.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        form_limits={"max_fields": MOST_FIELDS, "max_files": MOST_FILES},
    )
    app.state.settings = settings
    app.state.database = database
    app.state.batches = batches
    app.state.readiness = readiness
    app.state.study_counts = study_counts
    app.state.metrics = Metrics()
    app.state.stopping = lambda: False  # the server says when
    app.state.memory = Memory()
    app.state.remembered = Remembered()
    app.state.creation_limit = AddressLimit()
    app.state.guess_limit = AddressLimit(*GUESSES)
    app.state.link_limit = AddressLimit()
    app.state.tries = Tries(settings.workers)
    app.state.templates = _templates()
    # The first to be tried are those of the answers, of which there are a hundred to any other request.
    app.include_router(study.router)
    app.include_router(ready.router)
    app.include_router(metrics.router)
    app.include_router(entrance.router, include_in_schema=False)
    app.include_router(pages.router, include_in_schema=False)
    app.include_router(dashboard.router)
    app.include_router(export.router)
    app.include_router(gallery.router)
    app.include_router(models_page.router)
    app.include_router(report.router)
    app.include_router(power_page.router)
    app.include_router(signin.router)
    app.include_router(audit_page.router)
    app.mount("/static", _Static(directory=ROOT / "static"), name="static")
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    # What a database says that is busy, full or away. PostgreSQL says InternalError where a transaction was ended
    # for doing nothing, InterfaceError on a lost connection; the pool says TimeoutError where all are in use.
    for error in (OperationalError, InternalError, InterfaceError, TimeoutError):
        app.add_exception_handler(error, _busy)
    app.add_exception_handler(Exception, _failed)
    return app


@cache
def _templates() -> Jinja2Templates:
    """Of all apps of a process, as it takes a while to read them."""
    templates = Jinja2Templates(ROOT / "templates")
    templates.env.undefined = StrictUndefined  # a misspelled name fails a test instead of showing nothing
    i18n.install(templates.env)
    return templates


class _App(FastAPI):
    """FastAPI with telemetry, guard and bounds around everything, the handler of unexpected errors included."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = openapi.described(super().openapi())
        return self.openapi_schema

    def build_middleware_stack(self) -> ASGIApp:
        hosts = self.state.settings.allowed_hosts
        guarded = Guard(Bounds(super().build_middleware_stack(), hosts, _refused))
        return Telemetry(guarded, self.state.metrics)


class _Static(StaticFiles):
    """Scripts and styles, asked for anew each time: an old script must not meet a new server."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _busy(request: Request, error: Exception) -> Response:
    """The database is locked for longer than a request waits, full, or away: nothing was stored; again helps."""
    request.app.state.metrics.database_errors.inc()
    logging.getLogger("app").error("the database is busy, full or away: %s", logs.reason(error))
    return _refused(
        request,
        Refusal(
            503, N_("Nothing could be stored just now; please try again in a moment."), retry_after=RETRY_S
        ),
    )


def _failed(request: Request, error: Exception) -> Response:
    """A fault of ours: logged by the server, and said without its insides."""
    return _refused(request, Refusal(500, N_("Something went wrong on the server; please try again.")))


def _invalid(request: Request, error: Exception) -> Response:
    """The first thing wrong with a request, in one sentence."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    _let_go(error)
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    if not web.for_programs(request.url.path):  # Pydantic's sentences are English, and of no help to a person
        message = N_(
            "The form did not arrive as this page sends it (%(where)s); please go back and try again."
        )
        return _refused(request, Refusal(422, message, {"where": where}))
    if first["type"] == "json_invalid":
        return _refused(request, Refusal(422, "The body is not valid JSON."))
    message = str(first["msg"]).removeprefix("Value error, ")
    return _refused(request, Refusal(422, f"{where or 'body'}: {message[:1].lower()}{message[1:]}."))


def _let_go(error: BaseException | None) -> None:
    """Cut what was sent loose from an error: they hang in a circle that only the garbage collector would open.

    By then a hundred clients who send what is not JSON had filled gigabytes.
    """
    while error is not None:
        error.__traceback__ = None
        if isinstance(error, RequestValidationError):
            error.body = None
        elif isinstance(error, JSONDecodeError):
            error.doc = ""
        error = error.__context__


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    _let_go(error)
    messages = {
        400: UNREADABLE,
        404: N_("There is nothing at this address."),
        405: N_("This address does not take that method."),
        413: TOO_LARGE,
    }
    refusal = Refusal(error.status_code, messages.get(error.status_code, str(error.detail)))
    response = _refused(request, refusal)
    response.headers.update(error.headers or {})
    return response


def _refused(request: Request, error: Exception) -> Response:
    """JSON for programs, a page in the visitor's language for people."""
    assert isinstance(error, Refusal)
    if error.status == 404 and request.url.path.startswith(("/s/", "/api/sessions/")):
        wait = request.app.state.link_limit.take(client_address(request))
        # Asked only now, so that nobody's flood keeps others of the same network from their sessions.
        if wait:
            error = Refusal(
                429,
                N_(
                    "Too many wrong links were opened from your network just now; please try again in a minute."
                ),
                retry_after=math.ceil(wait),
            )
    number = logs.request_id.get() if error.status >= 500 else None  # to be told to whoever runs the server
    if web.for_programs(request.url.path):
        more = error.more | ({"request_id": number} if number else {})
        response: Response = JSONResponse({"detail": error.detail, **more}, status_code=error.status)
    elif error.status == 401:
        response = signin.page(request, 401, error.detail)
    else:
        researchers = request.url.path.startswith(("/results", "/signin", "/signout", "/audit"))
        language = SOURCE if researchers else web.language_of(request, list(LANGUAGES))
        detail = translate(language, error.message, **error.values)
        context = {"status_code": error.status, "detail": detail, "request_id": number}
        response = web.render(request, "error.html", error.status, language, **context)
    if (wait := error.more.get("retry_after")) is not None:
        response.headers["Retry-After"] = str(math.ceil(wait))
    return response
