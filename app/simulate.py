"""Pretended participants over HTTP: plays the bot at the API, and sends again as a browser's outbox would."""

import math
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2
from tqdm import tqdm

from app.bot import ATTENTIVE, Answer, Crowd, Habits, Kind, Labels, Page, Rates, Remark, bot, draw_remark
from app.enrollment import SIMULATED
from ml.pack import Pack

PATIENCE_S = 60.0
BACKOFF_S = (0.1, 2.0)  # the longest wait before the first repetition, and before any


class SimulationError(RuntimeError):
    """The server does not take the participants; the message is one line."""


@dataclass(frozen=True)
class Answered:
    """One answer as it was sent: `phase` is labelling or judging, `content` the request's body without its id."""

    token: str
    position: int
    phase: str
    answer_id: str
    content: dict[str, Any]


@dataclass
class Ledger:
    """What participants sent and what the server acknowledged; kept outside the server, to hold it against."""

    sent: list[Answered] = field(default_factory=list)
    acknowledged: list[Answered] = field(default_factory=list)
    remarks: dict[str, str] = field(default_factory=dict)  # by token, acknowledged
    codes: dict[str, str] = field(default_factory=dict)  # completion codes by token
    failures: list[str] = field(
        default_factory=list
    )  # why a request was made again: a status or an exception


class Outbox:
    """Makes requests and makes them again, the same ones, until they are answered.

    No connection and 5xx are waited out for `patience_s` seconds a request, 429 for as long as the server says.
    """

    def __init__(
        self, client: httpx2.Client, patience_s: float = PATIENCE_S, ledger: Ledger | None = None
    ) -> None:
        self.client = client
        self.patience_s = patience_s
        self.ledger = ledger or Ledger()
        self.stop = threading.Event()  # set: whoever waits gives up

    def greet(self) -> None:
        """Raises SimulationError at once if this app does not answer at the client's address."""
        self._body(*self._once("GET", "/healthz", None))

    def send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        accept: Callable[[int, dict[str, Any]], bool] = lambda status, reply: status < 400,
    ) -> dict[str, Any]:
        """The reply's JSON object, once one comes that `accept(status, reply)` holds for.

        Raises SimulationError for another reply of the server's, and when patience has run out.
        """
        quiet_since, tries = monotonic(), 0
        while True:
            if self.stop.is_set():
                raise SimulationError("stopped")
            reply, reason = self._once(method, path, body)
            if reply is not None and reply.status_code != 429 and reply.status_code < 500:
                found = self._body(reply, reason)
                if accept(reply.status_code, found):
                    return found
                raise SimulationError(f"{method} {path}: {reply.status_code} {found.get('detail', '')}")
            self.ledger.failures.append(reason)
            if reply is not None and reply.status_code == 429:
                quiet_since = monotonic()  # it is there, and says when to come back
            elif monotonic() - quiet_since > self.patience_s:
                raise SimulationError(
                    f"no answer from {self.client.base_url} for {self.patience_s:.0f} s: {reason}"
                )
            longest = min(BACKOFF_S[1], BACKOFF_S[0] * 2 ** min(tries, 10))
            tries += 1
            # Jitter, so that those who were refused together do not come back together.
            self.stop.wait(_retry_after_s(reply) + random.uniform(0, longest))

    def _once(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> tuple[httpx2.Response | None, str]:
        """The reply, or None and why there is none."""
        try:
            reply = self.client.request(method, path, json=body)
        except httpx2.HTTPError as error:
            return None, type(error).__name__
        return reply, str(reply.status_code)

    def _body(self, reply: httpx2.Response | None, reason: str) -> dict[str, Any]:
        if reply is None:
            raise SimulationError(f"no answer from {self.client.base_url}: {reason}; is it running?")
        try:
            body = reply.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise SimulationError(f"{self.client.base_url} does not answer as this app does; is --url right?")
        return body


def _retry_after_s(reply: httpx2.Response | None) -> float:
    said = reply.headers.get("retry-after", "") if reply is not None else ""
    return float(said) if said.isascii() and said.isdigit() else 0.0


def arrive(outbox: Outbox, study: str, packs: Pack | Sequence[Pack]) -> tuple[str, dict[str, Any]]:
    """Begin a session: its token, and the session as the API describes it.

    Raises SimulationError; where the study has images of other packs, before any session begins.
    """
    packs = [packs] if isinstance(packs, Pack) else packs
    created = outbox.send(
        "POST",
        "/api/sessions",
        {
            "study": study,
            "consent": True,
            "external": {SIMULATED: "yes"},
            "request_id": str(uuid.uuid4()),  # sent again, it finds the session that it created
            "packs": [pack.pack_sha256 for pack in packs],
        },
        lambda status, reply: status < 400 or (status == 409 and reply.get("other_packs") is True),
    )
    if "token" not in created:
        raise SimulationError(
            f"the study {study} shows images that are not in {' or '.join(pack.name for pack in packs)}: is --pack "
            "the served pack? A study with several packs needs a --pack for each"
        )
    token = str(created["token"])
    here = outbox.send("GET", f"/api/sessions/{token}")
    return token, here


def play(
    outbox: Outbox,
    token: str,
    here: dict[str, Any],
    packs: Pack | Sequence[Pack],
    rates: Rates,
    rng: random.Random,
    remark: str = "",
    habits: Habits = ATTENTIVE,
) -> str:
    """Answer until the session has its completion code, which is returned; "" for those who leave before.

    `here` is the session as the API describes it, at any point before its end. Raises SimulationError.
    """
    base = f"/api/sessions/{token}"
    position = here["next_position"]
    patience = _answers_before_leaving(here, packs, habits)
    participant = bot(_page(here, position), packs, rates, rng, remark, habits)
    answer = next(participant)
    while patience > 0 and not isinstance(answer, Remark):
        patience -= 1
        position = _answer(outbox, token, position, answer)
        if position is None:
            here = outbox.send("GET", base)
            position = here["next_position"]
        answer = participant.send(_page(here, position))
    if not isinstance(answer, Remark) or patience <= 0:
        return ""
    outbox.send("POST", f"{base}/comments", {"text": answer.text})
    outbox.ledger.remarks[token] = answer.text
    code = str(outbox.send("POST", f"{base}/finish")["completion_code"])
    outbox.ledger.codes[token] = code
    return code


def _answers_before_leaving(here: dict[str, Any], packs: Pack | Sequence[Pack], habits: Habits) -> float:
    """Every answer of the session is as likely to be the one that is never given, the remark included."""
    if habits.leaves_at is None:
        return math.inf
    stimuli = _stimuli([packs] if isinstance(packs, Pack) else packs)
    judged = sum(_sha256(trial) in stimuli for trial in here["trials"]) * (
        "plausibility" in here["questions"]
    )
    return int(habits.leaves_at * (len(here["trials"]) + judged + 1))


def _stimuli(packs: Sequence[Pack]) -> set[str]:
    return {stimulus.sha256 for pack in packs for stimulus in pack.stimuli}


def _answer(outbox: Outbox, token: str, position: int, answer: Answer) -> int | None:
    """Send one answer until it is stored; the position after it, None where the session must be read again."""
    content: dict[str, Any]
    if isinstance(answer, Labels):
        phase, question, content = "labelling", "label", {"label": answer.label}
        if answer.runner_up is not None:
            content["runner_up"] = answer.runner_up
    else:
        assert not isinstance(answer, Remark)
        phase, question, content = "judging", "plausibility", {"plausible": answer.plausible}
    content |= {"rt_ms": answer.rt_ms, "display": {"simulated": True}}
    answer_id = str(uuid.uuid4())  # not of the seed: a second run sends other answers
    entry = Answered(token, position, phase, answer_id, content)
    outbox.ledger.sent.append(entry)

    def ours(status: int, reply: dict[str, Any]) -> bool:
        return status < 400 or (status == 409 and reply.get("stored", {}).get("answer_id") == answer_id)

    path = f"/api/sessions/{token}/trials/{position}/{question}"
    reply = outbox.send("PUT", path, content | {"answer_id": answer_id}, ours)
    outbox.ledger.acknowledged.append(entry)
    following: int | None = reply["next_position"] if reply.get("stored") is True else None
    return following


def _page(here: dict[str, Any], position: int | None) -> Page:
    """What the session shows at that position; without one, the page of comments."""
    labels, questions = tuple(here["labels"]), tuple(here["questions"])
    if position is None:
        return Page("commenting", labels, questions)
    trial = next(t for t in here["trials"] if t["position"] == position)
    return Page(
        here["state"],
        labels,
        questions,
        position,
        _sha256(trial),
        trial["prediction"],
        trial["practice"],
    )


def _sha256(trial: dict[str, Any]) -> str:
    return Path(trial["image"]).stem


@dataclass(frozen=True)
class Played:
    """How the participants ended, and how many of each kind they were."""

    finished: int
    dropped_out: int
    kinds: Counter[Kind]


def simulate(
    url: str,
    study: str,
    packs: Sequence[Pack],
    participants: int,
    seed: int,
    rates: Rates,
    crowd: Crowd = Crowd(),
    workers: int = 8,
) -> Played:
    """Play that many participants, `workers` at a time, with a progress bar. Raises SimulationError."""
    try:
        client = httpx2.Client(base_url=url, timeout=60)
    except httpx2.InvalidURL as error:
        raise SimulationError(f"--url {url}: {error}") from None
    kinds: Counter[Kind] = Counter()
    codes: list[str] = []
    with client, ThreadPoolExecutor(workers) as pool:
        outbox = Outbox(client)
        outbox.greet()
        # One after the other through the door: who gets which number, and so which images, is then the seed's.
        arrived = [arrive(outbox, study, packs) for _ in range(participants)]
        running = []
        for i, (token, here) in enumerate(arrived):
            ways = random.Random(f"{seed}/{i}/habits")
            habits, remark = crowd.draw(ways), draw_remark(ways)
            kinds[habits.kind] += 1
            rng = random.Random(f"{seed}/{i}")
            running.append(pool.submit(play, outbox, token, here, packs, rates, rng, remark, habits))
        try:
            for done in tqdm(as_completed(running), total=participants, unit="participant", disable=None):
                codes.append(done.result())
        except BaseException:
            outbox.stop.set()
            for future in running:
                future.cancel()
            raise
    return Played(participants - codes.count(""), codes.count(""), kinds)
