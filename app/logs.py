"""What the server writes to stderr, as text or a JSON object a line (LOG_FORMAT); nothing of a person is in it.

No token, address, query, comment or id gets here: requests appear as the route that they matched, and errors as
their type and where they arose. Their messages are left out, as those can quote what somebody sent (a KeyError).
"""

import json
import logging
import logging.config
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy.exc import DBAPIError

from app.settings import ROOT

# Of the request that is being answered, in its thread and those that it starts; None between requests.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

requests = logging.getLogger("app.requests")  # a line a request, at level INFO

SELDOM_S = 60.0

# These only ever speak of names in the program.
_HARMLESS = ("AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "UndefinedError")


def configure(format: str) -> dict[str, Any]:
    """Log in that format, "text" or "json", from now on; the same for uvicorn's `log_config`.

    Text is quiet: warnings and errors. JSON has a line for each request besides.
    """
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"one": {"()": Json if format == "json" else Text}},
        "filters": {"seldom": {"()": Seldom}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "one"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "app": {"level": "INFO" if format == "json" else "WARNING"},
            # Started and stopped, in JSON; uvicorn's own log of requests names their addresses.
            "uvicorn": {"level": "INFO" if format == "json" else "WARNING"},
            "uvicorn.access": {"level": "CRITICAL"},
            "uvicorn.error": {"level": "INFO" if format == "json" else "WARNING", "filters": ["seldom"]},
        },
    }
    logging.config.dictConfig(config)
    threading.excepthook = _thread_failed
    return config


class Seldom(logging.Filter):
    """Lets a warning that is always the same through once a minute: who sends no HTTP must not fill the log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[object, float] = {}  # by text: as many as the program has

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING or record.args:  # with values it may be about something else
            return True
        now = self._clock()
        if now - self._said.get(record.msg, -SELDOM_S) < SELDOM_S:
            return False
        self._said[record.msg] = now
        return True


class Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "pid": record.process,
            "request_id": request_id.get(),
            "message": message_of(record),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = list(without_values(record.exc_info[1]))
        return json.dumps(line)


class Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        here = request_id.get()
        line = f"{record.levelname}: {message_of(record)}" + (f" (request {here})" if here else "")
        if record.exc_info and record.exc_info[1] is not None:
            line = "\n".join([line, *(f"  {part}" for part in without_values(record.exc_info[1]))])
        return line


def message_of(record: logging.LogRecord) -> str:
    """In one line. What asyncio says of a task quotes its error from the second line on."""
    lines = record.getMessage().splitlines() or [""]
    return lines[0] if record.name == "asyncio" else " ".join(lines)


def without_values(error: BaseException | None) -> Iterator[str]:
    """An error and what led to it, the first cause first: types, files and lines."""
    if error is None:
        return
    yield from without_values(error.__cause__ or (None if error.__suppress_context__ else error.__context__))
    yield reason(error)
    yield from _frames(error.__traceback__)
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from without_values(part)


def reason(error: BaseException) -> str:
    """What went wrong, in one line without what anybody sent."""
    kind = type(error).__name__
    if isinstance(error, DBAPIError):
        return f"{kind}: {_of_driver(error.orig)}"
    if kind in _HARMLESS:
        return " ".join(f"{kind}: {error}".split())
    if isinstance(error, OSError) and error.strerror:
        return f"{kind}: {error.strerror}"
    return kind


def _of_driver(error: BaseException | None) -> str:
    """SQLite's errors name tables and columns; PostgreSQL's can quote a row, but those about its own state."""
    module, name = type(error).__module__, type(error).__name__
    if error is None:
        return "unknown"
    about_itself = any(base.__name__ == "OperationalError" for base in type(error).__mro__)
    if module == "sqlite3" or about_itself:
        return (str(error).splitlines() or [name])[0]
    constraint = getattr(getattr(error, "diag", None), "constraint_name", None)
    return f"{name} {getattr(error, 'sqlstate', None) or ''} {constraint or ''}".strip()


def _frames(traceback: TracebackType | None) -> Iterator[str]:
    while traceback is not None:
        code = traceback.tb_frame.f_code
        file = Path(code.co_filename)
        shown = file.relative_to(ROOT) if file.is_relative_to(ROOT) else Path(*file.parts[-3:])
        yield f"at {shown}:{traceback.tb_lineno} in {code.co_name}"
        traceback = traceback.tb_next


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        logging.getLogger("app").error("a background thread failed", exc_info=args.exc_value)
