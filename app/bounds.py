"""What a request may be: for this server, and no larger than any page needs; else the app does not run for it."""

import ipaddress
import logging
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.i18n import N_
from app.participation import Refusal

MOST_BYTES = 256 * 1024  # of a body: the longest comment, percent-encoded, and room
# Of what else goes to /api/: an answer has some 300 bytes, and 4 KiB of `display` at the most.
MOST_ANSWER_BYTES = 32 * 1024
MOST_HEADERS = 100
MOST_HEADER_BYTES = 16 * 1024
MOST_URL_BYTES = 8 * 1024  # path and query; a recruiter's link is some 300
MOST_FIELDS = 50  # of a form; ours have a dozen
MOST_FILES = 0  # a part with a file name is refused before anything is made of it
UNREADABLE = N_("The request could not be read.")
TOO_LARGE = N_("That is more than this server takes at once.")

# Programs ask for these by names of their own, such as web:8000 among containers. The first two tell nothing; who
# reads the third has a token, or comes by one of our names after all (app/metrics.py).
FOR_ANY_HOST = frozenset({"/healthz", "/readyz", "/metrics"})


class Bounds:
    """ASGI middleware that refuses requests for other hosts, and those with too much of anything.

    A name that is not ours in `Host` is another website's attempt to read a server on 127.0.0.1 through its
    visitor's browser (DNS rebinding), or a proxy that was set up wrongly. `refuse` makes the reply.
    """

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str] | None, refuse: Callable[[Request, Exception], Response]
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._refuse = refuse
        self._said = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            response = self._refuse(Request(scope), refusal)
            response.headers["Connection"] = "close"  # what may still be under way is not read
            await response(scope, receive, send)
            return
        arrived, most = 0, _most_bytes(scope["path"])

        async def counted() -> Message:
            """A body that is sent in chunks says its length nowhere."""
            nonlocal arrived
            message = await receive()
            if message["type"] == "http.request":
                arrived += len(message.get("body", b""))
                if arrived > most:
                    raise HTTPException(413, TOO_LARGE, {"Connection": "close"})
            return message

        await self._app(scope, counted, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        size, host, length, chunked = 0, b"", None, False
        for name, value in headers:
            size += len(name) + len(value)
            if name == b"host":
                host = value
            elif name == b"content-length":
                length = value
            elif name == b"transfer-encoding":
                chunked = True
        if "\x00" in scope["path"]:  # in no address of ours, and PostgreSQL does not take it as text
            return Refusal(404, N_("There is nothing at this address."))
        if chunked and length is not None:
            # Where the request ends: a proxy may believe the one, this server the other, and what lies between them
            # would be somebody else's request.
            return Refusal(400, UNREADABLE)
        if len(headers) > MOST_HEADERS or size > MOST_HEADER_BYTES:
            message = N_(
                "The browser sent too much besides the address; deleting this site’s cookies may help."
            )
            return Refusal(431, message)
        if len(scope["path"]) + len(scope["query_string"]) > MOST_URL_BYTES:
            return Refusal(414, N_("This address is too long; please use the link you were given."))
        most = _most_bytes(scope["path"])
        if length is not None and (len(length) > 10 or not length.isdigit() or int(length) > most):
            return Refusal(413, TOO_LARGE)
        if scope["path"] not in FOR_ANY_HOST and not is_ours(host, self._hosts):
            self._tell_the_operator(host)
            return Refusal(
                400, N_("This server is not reached under that name; please use the link you were given.")
            )
        return None

    def _tell_the_operator(self, host: bytes) -> None:
        """Once: whoever set a name or a proxy up wrongly looks here, and a flood must not fill the log."""
        if not self._said:
            self._said = True
            logging.getLogger("uvicorn.error").warning(
                "refused a request for the host %r: PUBLIC_URL must say under which name this server is reached",
                host[:100].decode("latin-1"),
            )


def _most_bytes(path: str) -> int:
    """Of a request's body at this address."""
    return MOST_ANSWER_BYTES if path.startswith("/api/") and not path.endswith("/comments") else MOST_BYTES


def is_ours(host: bytes, names: frozenset[str] | None) -> bool:
    """Whether a Host header, with or without a port, is one of the names or an IP address; None names any.

    Addresses are always ours: a website that borrows its visitor's browser comes under its own name.
    """
    if names is None:
        return True
    text = host.decode("latin-1").lower()
    name, separator, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not separator:
        name = text
    elif not (port.isascii() and port.isdigit() and len(port) <= 5):
        return False
    name = name.removesuffix(".")
    if name in names:
        return True
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
        return ":" in name and _is_address(name)
    return ":" not in name and _is_address(name)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text
