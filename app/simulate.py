"""Pretended participants: a bot that is a generator of requests, and a driver that plays it over HTTP."""

import random
import uuid
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from tqdm import tqdm

from app.enrollment import SIMULATED
from app.models import NONE_PLAUSIBLE
from ml.pack import Pack

# The paper's table for MNIST (REFERENCE.md): human fooled, mistake reasonable.
PAPER_FOOLED = {"undefended": 0.02, "distilled": 0.0, "gradient_regularized": 0.164}
PAPER_REASONABLE = {"undefended": 0.26, "distilled": 0.235, "gradient_regularized": 0.418}
NONE_SHARE = 0.15  # of the reasonable answers that name another label first: how many say "none is plausible"


class SimulationError(RuntimeError):
    """The server does not take the participants; the message is one line."""


@dataclass(frozen=True)
class Rates:
    """For each model the probability that a participant is fooled, and that the mistake is reasonable."""

    fooled: Mapping[str, float]
    reasonable: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, rates in (("fooled", self.fooled), ("reasonable", self.reasonable)):
            for model, rate in rates.items():
                if not 0 <= rate <= 1:
                    raise ValueError(f"--{name} {model}={rate}: a rate lies between 0 and 1")
        for model, fooled in self.fooled.items():
            if fooled > self.reasonable.get(model, 0):
                raise ValueError(
                    f"{model}: fooled {fooled} is more than reasonable {self.reasonable.get(model, 0)}, "
                    "but every fooled answer is a reasonable one"
                )


@dataclass(frozen=True)
class Sent:
    """A request that the bot wants made."""

    method: str
    path: str
    body: dict[str, Any] | None = None


Bot = Generator[Sent, dict[str, Any], str]


def bot(study: str, pack: Pack, rates: Rates, rng: random.Random) -> Bot:
    """One participant, from consent to completion code: yields requests, is sent the JSON answers.

    Returns the completion code. The hidden target of an image is looked up in the pack by the image's hash.
    """
    hidden = {s.sha256: s for s in pack.stimuli}
    created = yield Sent(
        "POST", "/api/sessions", {"study": study, "consent": True, "external": {SIMULATED: "yes"}}
    )
    base = f"/api/sessions/{created['token']}"
    reasonable: dict[int, bool] = {}
    here = yield Sent("GET", base)
    for trial in here["trials"]:
        if not trial["practice"] and _sha256(trial["image"]) not in hidden:
            raise SimulationError(
                f"image {trial['position']} is not in {pack.name}: is --pack the served pack?"
            )
    while here["state"] in ("labelling", "judging"):
        position = here["next_position"]
        trial = next(t for t in here["trials"] if t["position"] == position)
        stimulus = hidden.get(_sha256(trial["image"]))
        if here["state"] == "judging":
            answer: dict[str, Any] = {"plausible": reasonable.get(position, False)}
            path = f"{base}/trials/{position}/plausibility"
        else:
            source = stimulus.source_label if stimulus else rng.choice(here["labels"])
            target = stimulus.target_label if stimulus else None
            model = stimulus.model if stimulus else ""
            asked = "runner_up" in here["questions"]
            label, runner_up = _labels(source, target, here["labels"], model, rates, asked, rng)
            reasonable[position] = target in (label, runner_up) or label == NONE_PLAUSIBLE
            answer = {"label": label}
            if "runner_up" in here["questions"]:
                answer["runner_up"] = runner_up
            path = f"{base}/trials/{position}/label"
        answer |= {"answer_id": str(uuid.uuid4())}  # not of the seed: a second run sends other answers
        answer |= {"rt_ms": round(rng.lognormvariate(7.6, 0.4), 1), "display": {"simulated": True}}
        stored = yield Sent("PUT", path, answer)
        if stored["next_position"] is None:
            here = yield Sent("GET", base)
        else:
            here["next_position"] = stored["next_position"]
    yield Sent("POST", f"{base}/comments", {"text": ""})
    finished = yield Sent("POST", f"{base}/finish")
    return str(finished["completion_code"])


def _sha256(image: str) -> str:
    return Path(image).stem


def _labels(
    source: str,
    target: str | None,
    labels: list[str],
    model: str,
    rates: Rates,
    asks_runner_up: bool,
    rng: random.Random,
) -> tuple[str, str]:
    """(label, runner_up) such that the model's two rates come out in expectation."""
    fooled, reasonable = rates.fooled.get(model, 0.0), rates.reasonable.get(model, 0.0)
    other = rng.choice([label for label in labels if label not in (source, target)])
    draw = rng.random()
    if target is None or draw >= reasonable:
        return source, other
    if draw < fooled:
        return target, source
    if rng.random() < NONE_SHARE or not asks_runner_up:  # without a second label only "none" is left
        return NONE_PLAUSIBLE, NONE_PLAUSIBLE
    return source, target


def arrive(client: httpx2.Client, participant: Bot) -> Sent:
    """Create the bot's session and read it; returns the request that comes next. Raises SimulationError."""
    created = _reply(client, next(participant))
    return participant.send(_reply(client, participant.send(created)))


def play(client: httpx2.Client, participant: Bot, wanted: Sent) -> str:
    """Make the bot's requests, from `wanted` on, until it has its completion code. Raises SimulationError."""
    try:
        while True:
            wanted = participant.send(_reply(client, wanted))
    except StopIteration as end:
        return str(end.value)


def _reply(client: httpx2.Client, sent: Sent) -> dict[str, Any]:
    try:
        reply = client.request(sent.method, sent.path, json=sent.body)
        body = reply.json()
    except httpx2.HTTPError as error:
        reason = f"{type(error).__name__}; is it running?"
        raise SimulationError(f"no answer from {client.base_url}: {reason}") from None
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise SimulationError(f"{client.base_url} does not answer as this app does; is --url right?")
    if reply.is_error:
        raise SimulationError(f"{sent.method} {sent.path}: {reply.status_code} {body.get('detail', '')}")
    return body


def simulate(
    url: str, study: str, pack: Pack, participants: int, seed: int, rates: Rates, workers: int = 8
) -> None:
    """Play that many participants, a few at a time, with a progress bar."""
    try:
        client = httpx2.Client(base_url=url, timeout=60)
    except httpx2.InvalidURL as error:
        raise SimulationError(f"--url {url}: {error}") from None
    with client, ThreadPoolExecutor(workers) as pool:
        bots = [bot(study, pack, rates, random.Random(f"{seed}/{i}")) for i in range(participants)]
        # One after the other through the door: who gets which number, and so which images, is then the seed's.
        arrived = [(participant, arrive(client, participant)) for participant in bots]
        running = [pool.submit(play, client, participant, wanted) for participant, wanted in arrived]
        try:
            for done in tqdm(as_completed(running), total=participants, unit="participant", disable=None):
                done.result()
        except BaseException:
            for future in running:
                future.cancel()
            raise
