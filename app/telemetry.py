"""ASGI middleware around everything: each request has an id, is logged and is counted, by its route and status."""

import re
import secrets
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.metrics import Metrics

UNMATCHED = (
    "unmatched"  # every address that is none of ours: the routes that are counted are those of the program
)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_GIVEN = re.compile(rb"[A-Za-z0-9._-]{8,64}")


class Telemetry:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        number = _given_by_proxy(scope) or secrets.token_hex(8)
        # Left as it is afterwards: a request is a task of its own, and the server may log its failure after this.
        logs.request_id.set(number)
        status: int | None = None

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number.encode())]
            await send(message)

        try:
            await self._app(scope, receive, numbered)
        finally:
            seconds = perf_counter() - began
            route = route_of(scope)
            method = scope["method"] if scope["method"] in METHODS else "OTHER"
            self._metrics.count(method, route, status, seconds)
            fields = {
                "method": method,
                "route": route,
                "status": status,  # null: whoever asked had gone
                "duration_ms": round(1000 * seconds, 2),
            }
            logs.requests.info("request", extra={"fields": fields})


def route_of(scope: Scope) -> str:
    """The template of the route that answered, such as /s/{token}: an address itself can be somebody's secret."""
    path: str | None = getattr(scope.get("route"), "path", None)
    if path is None and scope["path"].startswith("/static/"):
        return "/static"
    return path or UNMATCHED


def _given_by_proxy(scope: Scope) -> str | None:
    """The X-Request-ID of a proxy that the server believes (FORWARDED_ALLOW_IPS), so that both logs agree.

    Uvicorn has put the participant's address, without a port, in the place of such a proxy's.
    """
    if scope.get("client") and scope["client"][1] != 0:
        return None
    names = [name for name, _ in scope["headers"]]
    if b"x-forwarded-for" not in names:
        return None
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    return given[0].decode() if len(given) == 1 and _GIVEN.fullmatch(given[0]) else None
