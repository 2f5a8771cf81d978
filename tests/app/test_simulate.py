"""`python -m app simulate` against a real server: known rates come back, a seed repeats, bad input is one line.

And its parts: what the bot answers to which page, and how the outbox sends again.
"""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest
from scipy.stats import binomtest
from sqlalchemy import select

from app import simulate
from app.bot import Labels, Page, Rates, Remark, Verdict, bot
from app.db import Database
from app.models import Judgment, Participant, Response, Study, Trial
from app.settings import Settings
from app.simulate import Outbox, SimulationError
from ml.pack import Pack
from tests.app.conftest import STUDY, Server, free_port
from tests.app.test_cli import app
from tests.packs import make_pack


def play(server: Server, pack: Pack, participants: int, seed: int, *rates: str, study: str = "test") -> None:
    done = app(
        server.settings,
        *("simulate", "--url", server.url, "--study", study, "--pack", str(pack.directory)),
        *("--participants", str(participants), "--seed", str(seed), *rates),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{participants} simulated participants finished {study}\n"


def results(server: Server) -> dict[str, Any]:
    with httpx2.Client(follow_redirects=True) as researcher:
        assert researcher.get(server.dashboard).status_code == 200
        body: dict[str, Any] = researcher.get(f"{server.url}/results/test.json?data=simulated").json()
    return body


def answers(settings: Settings, study: str) -> list[tuple[object, ...]]:
    """All that the participants answered, in the order of their numbers; what chance or the clock drew left out."""
    database = Database(settings.database_url)
    with database.read() as session:
        rows = session.execute(
            select(
                Participant.number,
                Trial.position,
                Trial.sha256,
                Response.label,
                Response.runner_up,
                Judgment.plausible,
                Response.rt_ms,
                Judgment.rt_ms,
            )
            .join(Study, Study.id == Participant.study_id)
            .join(Trial, Trial.participant_id == Participant.id)
            .join(Response, Response.trial_id == Trial.id)
            .outerjoin(Judgment, Judgment.trial_id == Trial.id)
            .where(Study.slug == study)
            .order_by(Participant.number, Trial.position)
        ).all()
    database.close()
    return [tuple(row) for row in rows]


def test_the_rates_asked_for_come_back(server: Server, pack: Pack) -> None:
    fooled = {"undefended": 0.1, "distilled": 0.0, "gradient_regularized": 0.5}
    reasonable = {"undefended": 0.4, "distilled": 0.0, "gradient_regularized": 1.0}
    play(
        server,
        pack,
        8,
        3,
        *("--fooled", *(f"{model}={rate}" for model, rate in fooled.items())),
        *("--reasonable", *(f"{model}={rate}" for model, rate in reasonable.items())),
    )
    found = results(server)
    counts = found["participants"]
    assert (counts["started"], counts["finished"], counts["withdrawn"]) == (8, 8, 0)
    assert found["data"] == "simulated"
    models = found["packs"]["test-pack"]["models"]
    assert set(models) == set(fooled)
    for model, rates in models.items():
        for outcome, asked in (
            ("human_fooled", fooled[model]),
            ("mistake_reasonable", reasonable[model]),
            ("mistake_reasonable_direct", reasonable[model]),
        ):
            rate = rates[outcome]
            assert rate["n"] == 80
            inside = binomtest(rate["count"], rate["n"]).proportion_ci(0.9999, method="exact")
            assert inside.low <= asked <= inside.high, (model, outcome, rate)
            if asked in (0, 1):
                assert rate["rate"] == asked, "certainty comes back exactly"


@pytest.fixture
def twins(settings: Settings) -> None:
    """Two more studies of the same content, each with participants of its own."""
    for name in ("twin", "other"):
        (settings.studies / f"{name}.toml").write_text(STUDY)


@pytest.mark.usefixtures("twins")
def test_a_seed_repeats_its_answers(settings: Settings, request: pytest.FixtureRequest, pack: Pack) -> None:
    server: Server = request.getfixturevalue("server")  # started once the studies are there
    play(server, pack, 2, 5)
    play(server, pack, 2, 5, study="twin")
    first = answers(settings, "test")
    assert len(first) == 2 * 32
    assert len({row[3] for row in first}) > 5, "all kinds of labels"
    assert answers(settings, "twin") == first
    play(server, pack, 1, 5)
    both = answers(settings, "test")
    assert both[: len(first)] == first, "a second run with the same seed adds, it changes nothing"
    assert len(both) == 3 * 32
    play(server, pack, 1, 6, study="other")
    assert answers(settings, "other") != first[:32]


def test_bad_input_is_one_line(server: Server, pack: Pack, settings: Settings, tmp_path: Path) -> None:
    other = make_pack(tmp_path / "elsewhere" / "test-pack", seed=1)
    here = ["--url", server.url, "--study", "test", "--participants", "2"]
    for arguments, complaint in (
        (["--fooled", "undefended=1.5"], "'undefended=1.5' is not MODEL=RATE with a rate from 0 to 1"),
        (["--reasonable", "undefended=x"], "is not MODEL=RATE"),
        (["--fooled", "undefended=nan"], "is not MODEL=RATE"),
        (["--fooled", "undefended=0.5", "--reasonable", "undefended=0.4"], "fooled 0.5 is more than"),
        (["--fooled", "resnet=0.0"], "the pack test-pack has no model 'resnet'"),
        (["--participants", "0"], "--participants must be at least 1"),
        (["--participants", "many"], "--participants"),
        (["--dropout", "1.2"], "--dropout 1.2: a share lies between 0 and 1"),
        (["--bad", "-0.1"], "--bad -0.1: a share lies between 0 and 1"),
        (["--bad", "nan"], "--bad nan: a share"),
        (["--rt-median-ms", "0"], "--rt-median-ms 0: it lies between 100 and 60000"),
        (["--sd-pair", "-1"], "the spread of pair is -1.0; it lies between 0 and 10"),
        (["--sd-participant", "much"], "--sd-participant"),
        (["--pack", str(pack.directory), "--pack", str(other.directory)], "two packs named test-pack"),
        (["--pack", str(other.directory)], "is --pack the served pack?"),
        (["--pack", str(tmp_path / "nothing")], "nothing"),
        (["--study", "nothing"], "404 There is no study"),
        (["--url", f"http://127.0.0.1:{free_port()}"], "is it running?"),
        (["--url", "http://a:b"], "--url http://a:b"),
        (["--url", "http://[nonsense"], "is it running?"),
        (["--url", "nonsense"], "is it running?"),
    ):
        packs = () if "--pack" in arguments else ("--pack", str(pack.directory))
        done = app(settings, "simulate", *here, *packs, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: ")
        assert complaint in done.stderr


class _Stranger(BaseHTTPRequestHandler):
    """Another program's server."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<h1>Hello</h1>")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_another_program_at_that_address_is_one_line(pack: Pack, settings: Settings) -> None:
    with HTTPServer(("127.0.0.1", 0), _Stranger) as stranger:
        thread = Thread(target=stranger.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{stranger.server_port}"
        done = app(settings, "simulate", "--url", url, "--pack", str(pack.directory))
        stranger.shutdown()
        thread.join()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{url} does not answer as this app does" in done.stderr


ALL = Rates({"undefended": 1.0}, {"undefended": 1.0})
ASKED = ("label", "runner_up", "plausibility")


def test_the_bot_answers_pages(pack: Pack) -> None:
    stimulus = next(s for s in pack.stimuli if s.model == "undefended")
    shown = Page("labelling", pack.labels, ASKED, position=1, image=stimulus.sha256)
    clean = replace(shown, position=2, image=pack.clean[3].sha256)  # a control image: not said to be practice
    stranger = replace(shown, position=3, image="0" * 64, practice=True)
    playing = bot(shown, pack, ALL, random.Random(0), "Nothing.")
    answer = next(playing)
    assert isinstance(answer, Labels)
    assert (answer.label, answer.runner_up) == (stimulus.target_label, stimulus.source_label)
    own = playing.send(clean)
    assert isinstance(own, Labels)
    assert own.label == pack.clean[3].source_label
    any_of_them = playing.send(stranger)
    assert isinstance(any_of_them, Labels)
    assert any_of_them.label in pack.labels
    assert any_of_them.runner_up in set(pack.labels) - {any_of_them.label}
    judged = replace(shown, state="judging", prediction=stimulus.prediction)
    verdict = playing.send(judged)
    assert isinstance(verdict, Verdict)
    assert verdict.plausible is True
    assert playing.send(replace(shown, state="commenting", position=0, image="")) == Remark("Nothing.")
    with pytest.raises(StopIteration):
        next(playing)


def test_the_bot_gives_no_second_label_where_none_is_asked(pack: Pack) -> None:
    stimulus = next(s for s in pack.stimuli if s.model == "undefended")
    page = Page("labelling", pack.labels, ("label",), position=1, image=stimulus.sha256)
    answer = next(bot(page, pack, ALL, random.Random(0)))
    assert isinstance(answer, Labels)
    assert (answer.label, answer.runner_up) == (stimulus.target_label, None)


Handler = Callable[[httpx2.Request], httpx2.Response]


def outbox(handler: Handler, patience_s: float = 60) -> Outbox:
    client = httpx2.Client(base_url="http://server", transport=httpx2.MockTransport(handler))
    return Outbox(client, patience_s)


def test_the_outbox_sends_the_same_again_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "BACKOFF_S", (0.0, 0.0))
    bodies: list[object] = []
    waits: list[float] = []

    def faulty(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        match len(bodies):
            case 1:
                raise httpx2.ConnectError("refused", request=request)
            case 2:
                raise httpx2.ReadError("cut", request=request)
            case 3:
                return httpx2.Response(500, json={"detail": "a fault"})
            case 4:
                return httpx2.Response(503, json={"detail": "busy"}, headers={"Retry-After": "2"})
            case 5:
                return httpx2.Response(502, text="<h1>Bad gateway</h1>")
            case 6:
                return httpx2.Response(429, json={"detail": "slowly"}, headers={"Retry-After": "7"})
        return httpx2.Response(200, json={"stored": True})

    sending = outbox(faulty)
    monkeypatch.setattr(sending.stop, "wait", waits.append)
    assert sending.send("PUT", "/x", {"answer_id": "a"}) == {"stored": True}
    assert bodies == [{"answer_id": "a"}] * 7
    assert sending.ledger.failures == ["ConnectError", "ReadError", "500", "503", "502", "429"]
    assert waits == [0, 0, 0, 2, 0, 7], "as long as the server says"


def test_the_outbox_gives_up_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "BACKOFF_S", (0.0, 0.0))

    def away(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    with pytest.raises(
        SimulationError, match=r"no answer from http://server/? for 0 s: ConnectError"
    ) as error:
        outbox(away, patience_s=0).send("GET", "/x")
    assert "\n" not in str(error.value)
    with pytest.raises(SimulationError, match="is it running"):
        outbox(away).greet()
    limited = iter([429] * 50 + [200])

    def busy(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(next(limited), json={})

    assert outbox(busy, patience_s=0).send("POST", "/x") == {}, "429 is waited out for however long"
    with pytest.raises(SimulationError, match=r"PUT /x: 409 Another answer\."):
        outbox(lambda request: httpx2.Response(409, json={"detail": "Another answer."})).send("PUT", "/x")


def test_a_conflict_with_our_own_answer_is_no_error(pack: Pack) -> None:
    here = {
        "state": "labelling",
        "labels": list(pack.labels),
        "questions": ["label"],
        "next_position": 1,
        "trials": [
            {"position": 1, "image": "/stimuli/0.png", "prediction": None, "practice": True},
        ],
    }

    def server(request: httpx2.Request) -> httpx2.Response:
        if request.method == "PUT":
            stored = {"answer_id": json.loads(request.content)["answer_id"]}
            return httpx2.Response(409, json={"detail": "Stored.", "stored": stored, "next_position": None})
        if request.method == "GET":
            return httpx2.Response(200, json=here | {"state": "commenting", "next_position": None})
        return httpx2.Response(200, json={"completion_code": "CODE"})

    sending = outbox(server)
    assert simulate.play(sending, "token", here, pack, ALL, random.Random(0)) == "CODE"
    assert sending.ledger.acknowledged == sending.ledger.sent
    assert len(sending.ledger.sent) == 1
