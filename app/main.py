"""The ASGI application: routes, error pages, static files."""

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from jinja2 import StrictUndefined
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from app import dashboard, pages, study
from app.db import Database
from app.participation import Refusal
from app.security import CreationLimit, Guard
from app.settings import ROOT, Settings, load


def create_app(settings: Settings | None = None) -> FastAPI:
    """The app on the database of `settings` (default: the environment's); the schema must be there already."""
    settings = settings or load()
    database = Database(settings.database_url)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        database.close()

    # No /docs and /redoc: their scripts come from another host. /openapi.json says the same.
    app = _App(title="Reasonable Mistakes", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings = settings
    app.state.database = database
    app.state.creation_limit = CreationLimit()
    app.state.templates = Jinja2Templates(ROOT / "templates")
    app.state.templates.env.undefined = (
        StrictUndefined  # a misspelled name fails a test instead of showing nothing
    )
    app.include_router(study.router)
    app.include_router(pages.router, include_in_schema=False)
    app.include_router(dashboard.router)
    app.mount("/static", _Static(directory=ROOT / "static"), name="static")
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _busy)
    app.add_exception_handler(Exception, _failed)
    return app


class _App(FastAPI):
    """FastAPI with the guard around everything, the handler of unexpected errors included."""

    def build_middleware_stack(self) -> ASGIApp:
        return Guard(super().build_middleware_stack())


class _Static(StaticFiles):
    """Scripts and styles, asked for anew each time: an old script must not meet a new server."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _busy(request: Request, error: Exception) -> Response:
    """The database is locked for longer than a request waits, or away: nothing was stored, trying again helps."""
    logging.getLogger("uvicorn.error").error("the database is busy or away: %s", error)
    detail = "The database is busy; nothing was stored. Please try again in a moment."
    return _error(request, 503, detail, {}, {"Retry-After": "2"})


def _failed(request: Request, error: Exception) -> Response:
    """A fault of ours: logged by the server, and said without its insides."""
    return _error(request, 500, "Something went wrong on the server; please try again.", {})


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    wait = error.more.get("retry_after")  # seconds
    headers = None if wait is None else {"Retry-After": str(math.ceil(wait))}
    return _error(request, error.status, error.detail, error.more, headers)


def _invalid(request: Request, error: Exception) -> Response:
    """The first thing wrong with a request, in one sentence."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    if first["type"] == "json_invalid":
        return _error(request, 422, "The body is not valid JSON.", {})
    message = str(first["msg"]).removeprefix("Value error, ")
    return _error(request, 422, f"{where or 'body'}: {message[:1].lower()}{message[1:]}.", {})


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {
        400: "The request could not be read.",
        404: "There is nothing at this address.",
        405: "This address does not take that method.",
    }
    return _error(
        request, error.status_code, details.get(error.status_code, str(error.detail)), {}, error.headers
    )


def _error(
    request: Request, status: int, detail: str, more: dict[str, object], headers: object = None
) -> Response:
    """JSON for programs, a page for people."""
    path = request.url.path
    kept = {str(k): str(v) for k, v in headers.items()} if isinstance(headers, dict) else {}
    if path.startswith(("/api/", "/stimuli/")) or path.endswith((".json", ".csv", ".zip")):
        return JSONResponse({"detail": detail, **more}, status_code=status, headers=kept)
    response = pages.render(request, "error.html", status=status, status_code=status, detail=detail)
    response.headers.update(kept)
    return response
