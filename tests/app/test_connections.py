"""Slow, broken and too many connections, at real servers whose deadlines are short and whose files are few."""

import asyncio
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from app.security import HEADERS
from ml.pack import Pack
from tests.app.conftest import Player, begin, installation
from tests.app.faults import KillableServer, killable

PATIENCE_S = 60.0  # a busy machine is no defect
SERVE = "import sys, app.connections; {change}; from app.cli import main; sys.exit(main())"
IMPATIENT = "app.connections.Connection.request_within_s = app.connections.Connection.take_within_s = 1.0"
FORM = b"POST /withdraw HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
FEW_FILES = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (350, 350)); app.connections.BACKLOG = 100"


@contextmanager
def changed(folder: Path, pack: Pack, change: str) -> Iterator[KillableServer]:
    """On SQLite alone: none of this gets as far as the database."""
    program = ("-c", SERVE.format(change=change))
    settings = installation(folder, pack, f"sqlite:///{folder / 'study.db'}")
    with killable(settings, folder / "server.log", program) as server:
        yield server


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, pack: Pack) -> Iterator[KillableServer]:
    """A server that gives a request, and the reader of a reply, one second."""
    with changed(tmp_path_factory.mktemp("impatient"), pack, IMPATIENT) as server:
        yield server


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory, pack: Pack) -> Iterator[KillableServer]:
    """A server that may have 350 files open, so that it takes 50 connections; patient as it always is."""
    with changed(tmp_path_factory.mktemp("poor"), pack, FEW_FILES) as server:
        yield server


def connect(server: KillableServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)


def rest(connection: socket.socket) -> bytes:
    """What the server still says until it closes the connection."""
    said = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            said += piece
    return said


def dripped(connection: socket.socket, start: bytes, drop: bytes) -> bytes:
    """Send a request that never ends, a drop now and then; what the server says to it."""
    connection.sendall(start)
    until = time.monotonic() + PATIENCE_S
    connection.settimeout(0.1)
    with suppress(BrokenPipeError, ConnectionResetError):
        while time.monotonic() < until:
            connection.sendall(drop)
            with suppress(TimeoutError):
                first = connection.recv(65536)
                connection.settimeout(PATIENCE_S)
                return first + rest(connection)
    raise AssertionError("the server took it for ever")


def assert_refused(said: bytes, status: int) -> None:
    """One reply, complete with the headers of every other one, and the end of the connection."""
    head, _, body = said.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0].startswith(f"HTTP/1.1 {status} "), said[:200]
    headers = dict(line.split(": ", 1) for line in lines[1:])
    for name, value in HEADERS.items():
        assert headers[name.lower()] == value
    assert headers["connection"] == "close"
    assert headers["cache-control"] == "no-store"
    assert len(body) == int(headers["content-length"]) > 0


def sockets(server: KillableServer) -> int:
    folder = Path(f"/proc/{server.process.pid}/fd")
    found = 0
    for file in folder.iterdir():
        with suppress(OSError):
            found += str(file.readlink()).startswith("socket:")
    return found


def wait_until(true: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until, what
        time.sleep(0.05)


# Slow


def all_dripped(server: KillableServer, requests: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """What the server says to each, on connections that are open at the same time."""

    def one(request: tuple[bytes, bytes]) -> bytes:
        with connect(server) as connection:
            return dripped(connection, *request)

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, requests))


DRIPPING = {
    "a byte": (b"G", b""),
    "a header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"x"),
    "headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X-Slow: x\r\n"),
    "a body": (FORM + b"Content-Length: 9999\r\n\r\n", b"x"),
    "chunks": (FORM + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "a body that nobody reads": (
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\nConnection: close\r\n",
        b"x",
    ),
}


def test_a_request_that_drips_in_is_ended(impatient: KillableServer) -> None:
    said = all_dripped(impatient, list(DRIPPING.values()))
    for what, reply in zip(DRIPPING, said, strict=True):
        print(what)
        assert_refused(reply, 408)


def test_a_second_request_that_drips_in_is_ended(impatient: KillableServer) -> None:
    """Behind a whole one, in one piece with it, with and without more."""
    first = b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    seconds = [
        (first + b"GET /", b""),
        (first + b"GET /", b"x"),
        (first + b"POST /withdraw HTTP/1.1\r\nHost: x\r\nCon", b"x"),
    ]
    for (_, drop), said in zip(seconds, all_dripped(impatient, seconds), strict=True):
        assert said.startswith(b"HTTP/1.1 200 "), "the first is answered"
        second = said.partition(b"\r\n\r\n")[2]
        if second or drop:
            assert_refused(second, 408)


def test_a_connection_without_a_request_is_closed(impatient: KillableServer) -> None:
    with connect(impatient) as connection:
        assert connection.recv(1) == b""


def test_a_body_that_is_not_read_does_not_hold_the_connection(impatient: KillableServer) -> None:
    """The reply is there before the body is, which then goes on and on."""
    with connect(impatient) as connection:
        start = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n"
        said = dripped(connection, start, b"x" * 10)
        until = time.monotonic() + PATIENCE_S
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() < until:
                connection.sendall(b"x")
                time.sleep(0.05)
            raise AssertionError("the server took it for ever")
        assert said.startswith(b"HTTP/1.1 200 ")


def test_a_slow_answer_is_not_stored_and_can_be_sent_again(impatient: KillableServer) -> None:
    with httpx2.Client(base_url=impatient.url, timeout=PATIENCE_S) as client:
        player = begin(client)
        head = f"PUT {player.base}/trials/1/label HTTP/1.1\r\nHost: localhost\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 150\r\n\r\n"
        with connect(impatient) as connection:
            body = b'{"answer_id": "6a3b7b5e-5b0f-4d8c-8a45-1f8f6b3f7f01", "label": "3", "runner_up": "none"'
            assert_refused(dripped(connection, head.encode() + body, b" "), 408)
        assert player.session()["next_position"] == 1
        player.answer(most=3)
        assert player.session()["next_position"] == 4


def test_a_reply_that_nobody_takes_is_dropped(impatient: KillableServer) -> None:
    before = sockets(impatient)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE_S)
        connection.connect(("127.0.0.1", impatient.port))
        asked = 2000  # some 40 MB, more than the system keeps for a reader
        asking = b"GET /static/style.css HTTP/1.1\r\nHost: localhost\r\n\r\n" * asked
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(asking)
        wait_until(lambda: sockets(impatient) <= before, "the connection is still open")
        assert rest(connection).count(b"HTTP/1.1 200") < asked


# Too many


def slow_ones(server: KillableServer, many: int, stack: ExitStack) -> None:
    starts = (
        b"",
        b"G",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: x",
        FORM + b"Content-Length: 9999\r\n\r\nx",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    for i in range(many):
        connection = stack.enter_context(connect(server))
        with suppress(ConnectionResetError, BrokenPipeError):  # it had to make room already
            connection.sendall(starts[i % len(starts)])


def test_a_participant_answers_among_many_who_are_slow(poor: KillableServer) -> None:
    """400 connections that say little or nothing, at a server that takes 50; more come all the while."""
    each_anew = httpx2.Limits(max_keepalive_connections=0)
    with (
        ExitStack() as stack,
        httpx2.Client(base_url=poor.url, timeout=PATIENCE_S) as client,
        httpx2.Client(base_url=poor.url, timeout=PATIENCE_S, limits=each_anew) as browser,
    ):
        slow_ones(poor, 400, stack)
        player = begin(client)
        for _ in range(12):
            slow_ones(poor, 10, stack)
            player.answer(most=6)
            # A page, its style and its script, each on a connection of its own.
            for path in (f"/s/{player.token}", "/static/style.css", "/static/session.js"):
                assert browser.get(path).status_code == 200
        player.answer()
        assert player.session()["state"] == "finished"
        assert sockets(poor) <= 120  # those just taken, and the system's own
    log = (poor.settings.studies.parent / "server.log").read_text()
    assert "Traceback" not in log
    assert "out of system resource" not in log


def test_whoever_is_being_served_makes_no_room(poor: KillableServer) -> None:
    """The page is under way, or its connection idle for a moment, while others crowd in."""
    with ExitStack() as stack, httpx2.Client(base_url=poor.url, timeout=PATIENCE_S) as client:
        token = begin(client).token
        asking = [stack.enter_context(connect(poor)) for _ in range(5)]
        for connection in asking:
            request = f"GET /s/{token} HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20
            connection.sendall(request.encode())
        slow_ones(poor, 45, stack)
        for connection in asking:
            said = b""
            while said.count(b"HTTP/1.1 200") < 20:
                piece = connection.recv(65536)
                assert piece, "it was thrown out"
                said += piece


# Broken

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /withdraw HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SECOND = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
EMPTY = b"\r\n0\r\n\r\n" + SECOND  # no chunk, then what a proxy may have taken for the body
BROKEN = {
    "both lengths": POST + b"Content-Length: 4\r\n" + CHUNKED + EMPTY,
    "both lengths, chunked first": POST + CHUNKED + b"Content-Length: 0\r\n" + EMPTY,
    "both lengths, one folded": POST + b"Content-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n" + EMPTY,
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + SECOND,
    "a list of lengths": POST + b"Content-Length: 0, 44\r\n\r\n" + SECOND,
    "a signed length": POST + b"Content-Length: +0\r\n\r\n" + SECOND,
    "a hexadecimal length": POST + b"Content-Length: 0x0\r\n\r\n" + SECOND,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + SECOND,
    "a space behind Content-Length": POST + b"Content-Length : 0\r\n\r\n" + SECOND,
    "a space behind Transfer-Encoding": POST + b"Transfer-Encoding : chunked\r\n" + EMPTY,
    "an encoding that nobody knows": POST + b"Transfer-Encoding: xchunked\r\n" + EMPTY,
    "chunked is not the last": POST + b"Transfer-Encoding: chunked, identity\r\n" + EMPTY,
    "chunked twice": POST + CHUNKED + CHUNKED + EMPTY,
    "a negative chunk": POST + CHUNKED + b"\r\n-1\r\n\r\n" + SECOND,
    "a chunk with 0x": POST + CHUNKED + b"\r\n0x1\r\nx\r\n0\r\n\r\n" + SECOND,
    "a huge chunk": POST + CHUNKED + b"\r\n" + b"f" * 21 + b"\r\nx" + SECOND,
    "two hosts": GET + b"Host: evil.example\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "another host": b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n" + SECOND,
    "a fold at first": b"GET / HTTP/1.1\r\n X: folded before any\r\nHost: localhost\r\n\r\n",
    "NUL": GET + b"X: nul\x00\r\n\r\n",
    "a carriage return": GET + b"X: carriage\rreturn\r\n\r\n",
    "no name": GET + b": no name\r\n\r\n",
    "no colon": GET + b"no colon\r\n\r\n",
    "NUL in the path": b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a space in the path": b"GET / a HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "zeros": b"\x00" * 50 + b"\r\n\r\n",
    "an address without an end": b"GET /" + b"x" * 70_000,
    "a header without an end": GET + b"X: " + b"x" * 70_000,
}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_request_is_refused_and_nothing_behind_it_is_read(
    impatient: KillableServer, sent: bytes
) -> None:
    with connect(impatient) as connection:
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(sent)
        said = rest(connection)
    assert len(re.findall(rb"HTTP/1\.1 \d", said)) == 1, said
    assert said.startswith(b"HTTP/1.1 400 "), said[:300]
    head = said.partition(b"\r\n\r\n")[0].lower()
    for name, value in HEADERS.items():
        assert f"\r\n{name}: {value}".lower().encode() in head, name
    assert b"\r\nconnection: close" in head
    assert b"server:" not in head


def test_many_whole_requests_on_one_connection_are_answered_in_order(impatient: KillableServer) -> None:
    paths = [f"/nothing-{i}" if i % 2 else "/healthz" for i in range(40)]
    with connect(impatient) as connection:
        connection.sendall("".join(f"HEAD {p} HTTP/1.1\r\nHost: localhost\r\n\r\n" for p in paths).encode())
        said = b""
        while said.count(b"\r\n\r\n") < len(paths):
            piece = connection.recv(65536)
            assert piece
            said += piece
    assert re.findall(rb"HTTP/1\.1 (\d+)", said) == [b"404" if "nothing" in p else b"200" for p in paths]


def test_the_log_of_all_this_holds_no_fault(impatient: KillableServer) -> None:
    """Runs last in this file: none of the above was an error of the server's."""
    log = (impatient.settings.studies.parent / "server.log").read_text()
    assert "Traceback" not in log
    assert "Exception" not in log
    with httpx2.Client(base_url=impatient.url, timeout=PATIENCE_S) as client:
        player: Player = begin(client)
        player.answer()
        assert player.session()["state"] == "finished"


@pytest.mark.parametrize("file", ["responses.csv", "export.zip"])
def test_whoever_takes_a_download_slowly_holds_no_session_of_the_database(
    researcher: TestClient, start: Callable[..., Player], file: str
) -> None:
    """When the first bytes go out, everything has been read: the rest may take as long as it takes."""
    start().answer(most=5)
    app: Any = researcher.app
    in_use: list[int] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0 if not in_use else 3600)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        in_use.append(app.state.database.engine.pool.checkedout())

    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in researcher.cookies.jar)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": f"/results/test/{file}",
        "query_string": b"",
        "headers": [(b"host", b"testserver"), (b"cookie", cookies.encode())],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }
    asyncio.run(app(scope, receive, send))
    assert len(in_use) >= 3, "a head and several pieces"
    assert set(in_use) == {0}
