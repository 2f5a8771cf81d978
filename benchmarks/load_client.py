"""The load generator of `benchmarks.load`, in a process of its own: participants without think time.

Connections that stay, requests put together by hand, replies read by their Content-Length: a fraction of what a
server needs for them, so that it is the server that is measured. What it costs is reported all the same.

Reads a plan from stdin as JSON (see `Plan`) and writes what it found to stdout as JSON. The ids of the acknowledged
answers go into the file `acknowledged`, one a line.
"""

import asyncio
import json
import random
import re
import resource
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlencode, urlsplit

FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Plan:
    kind: str  # of PLAYERS
    ports: list[int]  # of 127.0.0.1; participants take them in turn
    participants: int  # at once
    seconds: float  # after which nobody answers any more
    begin: int  # sessions begun before the clock starts; 0: each begins within it
    acknowledged: str  # the file for the ids of acknowledged answers
    whole: bool = False  # whoever has begun goes on to the end, whatever the time
    links: list[str] = field(default_factory=list)  # where sessions begin, if others have made them


@dataclass
class Reply:
    status: int
    headers: bytes
    body: bytes

    @property
    def location(self) -> str:
        found = re.search(rb"\r\nlocation: ([^\r]+)", self.headers, re.I)
        if found is None:
            return ""
        parts = urlsplit(found[1].decode())
        return parts.path + (f"?{parts.query}" if parts.query else "")


class Connection(asyncio.Protocol):
    """One participant's connection: one request at a time."""

    def __init__(self, address: str) -> None:
        self._address = (
            address  # the server counts sessions by address: each participant has one of their own
        )
        self._received = b""
        self._reply: asyncio.Future[Reply] | None = None

    @classmethod
    async def open(cls, port: int, address: str) -> "Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(address), "127.0.0.1", port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def request(
        self, method: str, path: str, body: bytes = b"", content: str = "application/json"
    ) -> Reply:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: {self._address}\r\n"
            f"Content-Type: {content}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(head.encode() + body)
        return await self._reply

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        headers = self._received[:end]
        length = re.search(rb"\r\ncontent-length: (\d+)", headers, re.I)
        if length is None:
            if b"chunked" in headers.lower() and not self._received.endswith(b"0\r\n\r\n"):
                return
            whole = len(self._received)
        else:
            whole = end + 4 + int(length[1])
        if len(self._received) < whole:
            return
        reply = Reply(int(headers[9:12]), headers, self._received[end + 4 : whole])
        self._received = self._received[whole:]
        assert self._reply is not None
        self._reply.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionError("the server closed the connection"))

    def close(self) -> None:
        self._transport.close()


@dataclass
class Measure:
    """What one run found; answers count until the first participant finds no session left."""

    started: float = 0.0
    ended: float | None = None
    latencies: list[float] = field(default_factory=list)  # s, of answers that were acknowledged in time
    acknowledged: list[str] = field(default_factory=list)
    sessions: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    async def answer(self, sending: Coroutine[Any, Any, Reply], answer_id: str, expected: int = 200) -> Reply:
        """Send an answer and take its time. Raises ValueError where it is not acknowledged."""
        sent = perf_counter()
        reply = await sending
        now = perf_counter()
        if reply.status != expected:
            raise ValueError(f"{reply.status}: {reply.body[:200].decode(errors='replace')}")
        self.acknowledged.append(answer_id)
        if self.ended is None:
            self.latencies.append(now - sent)
        return reply


Step = AsyncIterator[None]


def body(**content: object) -> bytes:
    return json.dumps(content).encode()


async def begin_session(connection: Connection) -> str:
    reply = await connection.request("POST", "/api/sessions", body(study="mnist", consent=True))
    if reply.status != 201:
        raise ValueError(f"{reply.status}: {reply.body[:200].decode(errors='replace')}")
    token: str = json.loads(reply.body)["token"]
    return token


async def play_floor(connection: Connection, token: str, measure: Measure) -> Step:
    for position in range(1, 63):
        answer_id = str(uuid.uuid4())
        answer = body(answer_id=answer_id, label="3", runner_up="5", rt_ms=1234.5, display={"width": 140})
        await measure.answer(connection.request("PUT", f"/answers/{token}/{position}", answer), answer_id)
        yield


async def play_api(connection: Connection, token: str, measure: Measure) -> Step:
    """As the page's script does it: what is to come is read once for each part."""
    for question in ("label", "plausibility"):
        here = json.loads((await connection.request("GET", f"/api/sessions/{token}")).body)
        for position in here["order"]:
            answer_id = str(uuid.uuid4())
            said: dict[str, object] = {"plausible": True}
            if question == "label":
                said = {"label": here["labels"][position % 10], "runner_up": "none"}
            answer = body(answer_id=answer_id, rt_ms=1234.5, display={"width": 140}, **said)
            path = f"/api/sessions/{token}/trials/{position}/{question}"
            await measure.answer(connection.request("PUT", path, answer), answer_id)
            yield
    await connection.request("POST", f"/api/sessions/{token}/comments", body(text="All alike."))
    reply = await connection.request("POST", f"/api/sessions/{token}/finish")
    if reply.status != 200:
        raise ValueError(f"{reply.status} at the end")


async def play_forms(connection: Connection, token: str, measure: Measure) -> Step:
    """As a browser without JavaScript does it: the reply to an answer leads to the page of the next image."""
    page = await connection.request("GET", f"/s/{token}")
    while (question := re.search(rb'action="/s/[^"]+/(label|plausibility)"', page.body)) is not None:
        hidden = dict(re.findall(r'name="(position|answer_id)" value="([^"]+)"', page.body.decode()))
        said = {"plausible": "yes"} if question[1] == b"plausibility" else {"label": "3", "runner_up": "5"}
        form = urlencode(hidden | said).encode()

        path = f"/s/{token}/{question[1].decode()}"
        reply = await measure.answer(connection.request("POST", path, form, FORM), hidden["answer_id"], 303)
        page = await connection.request("GET", reply.location)
        yield


async def play_otree(connection: Connection, link: str, measure: Measure) -> Step:
    """oTree's forms: the reply to an answer leads to the next page."""
    reply = await connection.request("GET", link)
    while reply.status in (302, 303, 307):
        link = reply.location
        reply = await connection.request("GET", link)
    form = urlencode({"label": "3", "runner_up": "5"}).encode()
    for page in range(1, 31):
        answer = connection.request("POST", link, form, FORM)
        link = (await measure.answer(answer, f"{link.split('/')[2]}/{page}", 302)).location
        await connection.request("GET", link)
        yield


Player = Callable[[Connection, str, Measure], Step]
PLAYERS: dict[str, Player] = {
    "floor": play_floor,
    "api": play_api,
    "forms": play_forms,
    "otree": play_otree,
}


async def participate(plan: Plan, number: int, links: list[str], measure: Measure) -> None:
    """One participant after the other on one connection, until the time is up or nobody is left."""
    play = PLAYERS[plan.kind]
    connection = await Connection.open(plan.ports[number % len(plan.ports)], address(number))
    turn = 0
    while perf_counter() < measure.started + plan.seconds and measure.ended is None:
        try:
            if plan.begin or plan.links or plan.kind == "floor":
                if not links:
                    break
                link = links.pop()
            else:
                turn += 1
                connection._address = address(number + 1000 * turn)
                link = await begin_session(connection)
            async for _ in play(connection, link, measure):
                if perf_counter() > measure.started + plan.seconds and not plan.whole:
                    break
            else:
                measure.sessions += 1
        except (ValueError, OSError) as error:
            name = str(error)[:60]  # without the request's id
            measure.errors[name] = measure.errors.get(name, 0) + 1
            connection.close()
            connection = await Connection.open(plan.ports[number % len(plan.ports)], address(number))
    measure.ended = measure.ended or perf_counter()
    connection.close()


def address(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


async def begun(plan: Plan) -> list[str]:
    """The sessions that are begun before the clock starts, four at a time."""
    tokens: list[str] = []
    numbers = iter(range(plan.begin))

    async def begin_some(port: int) -> None:
        connection = await Connection.open(port, "")
        for number in numbers:
            connection._address = address(number)
            tokens.append(await begin_session(connection))
        connection.close()

    await asyncio.gather(*(begin_some(plan.ports[i % len(plan.ports)]) for i in range(4)))
    return tokens


async def run(plan: Plan) -> dict[str, object]:
    links = list(plan.links)
    if plan.kind == "floor":
        links = [f"{random.getrandbits(48):012x}" for _ in range(plan.begin)]
    elif plan.begin:
        links = await begun(plan)
    measure = Measure()
    print("ready", flush=True)
    sys.stdin.readline()
    before = resource.getrusage(resource.RUSAGE_SELF)
    measure.started = perf_counter()
    await asyncio.gather(*(participate(plan, i, links, measure) for i in range(plan.participants)))
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert measure.ended is not None
    Path(plan.acknowledged).write_text("".join(f"{a}\n" for a in measure.acknowledged))
    return {
        "seconds": measure.ended - measure.started,
        "latencies": measure.latencies,
        "acknowledged": len(measure.acknowledged),
        "sessions": measure.sessions,
        "errors": measure.errors,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Plan(**json.loads(sys.stdin.readline()))))))
