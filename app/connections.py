"""Connections that are slow, broken or too many: none holds the server up for longer than a moment.

uvicorn bounds neither the time that a request takes to arrive nor that in which its reply is taken, and counts idle
connections against its limit; a proxy in front of the server does all that, but there need not be one.
"""

import asyncio
import sys
from collections import OrderedDict
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from app.security import HEADERS

FAIR_MOST = 1000  # connections; each of 200 browsers opens six, of which it needs two
BACKLOG = (
    500  # connections that the system keeps for the server, which may take so many at once, beyond the most
)
FILES_BESIDES = 200  # that the process may need open: the database's, static ones


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 with deadlines, a bound on connections, and our headers on its own errors."""

    # From the first byte of a request, or the beginning of the connection, to the last byte of its body.
    request_within_s = 30.0
    # In which a reader makes room in a full buffer, some 50 KiB: a few seconds on a line of 100 kbit/s.
    take_within_s = 120.0
    most = FAIR_MOST

    # Those of this process whose request has not arrived yet, idle ones too; who has waited longest is the first.
    _waiting: ClassVar["OrderedDict[Connection, None]"] = OrderedDict()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()
        self._waiting[self] = None
        if len(self.connections) > self.most:
            # The oldest of those who wait makes room: those who send something at once are served, however many
            # others do not. Where all are being served, that is the newest itself.
            oldest, _ = self._waiting.popitem(last=False)
            self.connections.discard(oldest)
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.pop(self, None)
        self._request_is_here()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    # Requests that arrive slowly

    def handle_events(self) -> None:
        super().handle_events()
        theirs = self.conn.their_state
        if theirs is h11.SEND_BODY or (theirs is h11.IDLE and self.conn.trailing_data[0]):
            self._await_request()
        elif theirs is not h11.IDLE:
            self._request_is_here()
            self._waiting.pop(self, None)

    def _await_request(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.request_within_s, self._too_slow)

    def _request_is_here(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self.transport.close()  # opened by a browser just in case, and not used
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever waits for the rest of the body is told so
            self.cycle.message_event.set()
        self._refuse(408, "The request did not arrive in time.")

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse(self, status: int, text: str) -> None:
        """A reply without the app: nothing is known of the request, or only a part of it."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(text)).encode()),
                (b"connection", b"close"),
                (b"cache-control", b"no-store"),
                *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
            ]
            response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (response, h11.Data(data=text.encode()), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._abort_later()

    # Replies that are taken slowly

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.take_within_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def on_response_complete(self) -> None:
        self._waiting[self] = None
        super().on_response_complete()
        self._abort_later()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def _abort_later(self) -> None:
        """A closed connection is only gone when its last bytes are taken, which may be never."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self.loop.call_later(self.take_within_s, self.transport.abort)


def bound_by_files() -> None:
    """As many connections as are fair, or as this process may have files open; called once, before it serves."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    besides = BACKLOG + FILES_BESIDES
    wanted = FAIR_MOST + besides
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        Connection.most = max(10, min(FAIR_MOST, soft - besides))
