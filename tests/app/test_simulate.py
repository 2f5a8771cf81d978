"""`python -m app simulate` against a real server: known rates come back, a seed repeats, bad input is one line.

And its parts: what the bot answers to which page, and how the outbox sends again.
"""

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from statistics import mean, median, stdev
from threading import Thread
from typing import Any

import httpx2
import numpy as np
import pytest
from scipy.stats import binomtest, kstest
from sqlalchemy import select

from app import definition as definitions
from app import simulate
from app.bot import (
    ATTENTIVE,
    BAD,
    PAPER_FOOLED,
    PAPER_REASONABLE,
    Crowd,
    Habits,
    Labels,
    Page,
    Rates,
    Remark,
    Verdict,
    bot,
)
from app.db import Database
from app.models import Comment, Judgment, Participant, Response, Study, Trial
from app.population import NO_SPREAD, Floats, Spread
from app.progress import monitor
from app.settings import Settings
from app.simulate import Outbox, SimulationError
from app.simulate_command import rates_of
from ml.pack import Pack, Stimulus
from tests.app.conftest import STUDY, Server, free_port, installation, serving
from tests.app.databases import Databases
from tests.app.test_cli import app, assert_one_line
from tests.packs import make_pack

STUDIES = {  # of one server; each test has participants of its own
    "test": STUDY,
    "one": STUDY,
    "twin": STUDY,
    "other": STUDY,
    "refused": STUDY,
    # With control images, and with all rules for exclusion.
    "strict": re.sub(
        r"(?<=\[exclusions\]\n).*\n.*",
        "min_median_label_rt_ms = 400\nmax_same_label_share = 0.8\nmin_controls_right = 2",
        STUDY.replace("practice = 2", "practice = 2\ncontrols = 2"),
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, pack: Pack, databases: Databases) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("simulate")
    settings = installation(folder, pack, databases.new(folder))
    for name, study in STUDIES.items():
        (settings.studies / f"{name}.toml").write_text(study)
    with serving(settings) as server:
        yield server


def play(server: Server, pack: Pack, participants: int, seed: int, *options: str, study: str = "test") -> str:
    """What the command prints."""
    done = app(
        server.settings,
        *("simulate", "--url", server.url, "--study", study, "--pack", str(pack.directory)),
        *("--participants", str(participants), "--seed", str(seed), *options),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def everybody(participants: int, study: str = "test") -> str:
    return f"{participants} simulated participants finished {study}\n"


def results(server: Server, data: str = "simulated") -> dict[str, Any]:
    with httpx2.Client(follow_redirects=True, timeout=60) as researcher:
        assert researcher.get(server.dashboard).status_code == 200
        body: dict[str, Any] = researcher.get(f"{server.url}/results/test.json?data={data}").json()
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
    said = play(
        server,
        pack,
        5,
        3,
        *("--fooled", *(f"{model}={rate}" for model, rate in fooled.items())),
        *("--reasonable", *(f"{model}={rate}" for model, rate in reasonable.items())),
    )
    assert said == everybody(5)
    found = results(server)
    counts = found["participants"]
    assert (counts["started"], counts["finished"], counts["withdrawn"]) == (5, 5, 0)
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
            assert rate["n"] == 50
            inside = binomtest(rate["count"], rate["n"]).proportion_ci(0.9999, method="exact")
            assert inside.low <= asked <= inside.high, (model, outcome, rate)
            if asked in (0, 1):
                assert rate["rate"] == asked, "certainty comes back exactly"
    real = results(server, "real")
    assert real["participants"]["started"] == real["responses"] == 0, "never mixed with real ones"


@pytest.mark.only("sqlite")
def test_a_seed_repeats_its_answers(server: Server, pack: Pack) -> None:
    differ = ("--sd-participant", "1", "--sd-image", "1", "--sd-pair-model", "1", "--rt-median-ms", "1500")
    play(server, pack, 2, 5, *differ, study="one")
    play(server, pack, 2, 5, *differ, study="twin")
    first = answers(server.settings, "one")
    assert len(first) == 2 * 32
    assert len({row[3] for row in first}) > 5, "all kinds of labels"
    assert answers(server.settings, "twin") == first
    play(server, pack, 1, 5, *differ, study="one")
    both = answers(server.settings, "one")
    assert both[: len(first)] == first, "a second run with the same seed adds, it changes nothing"
    assert len(both) == 3 * 32
    play(server, pack, 1, 6, *differ, study="other")
    assert answers(server.settings, "other") != first[:32]


RULES = {
    "too fast": "median response time",
    "one key": "one label in more than",
    "random keys": "control images",
}


def test_dropouts_stay_unfinished_and_the_rules_catch_the_bad(server: Server, pack: Pack) -> None:
    people, seed = 14, 4
    said = play(server, pack, people, seed, "--dropout", "0.3", "--bad", "0.5", study="strict")
    crowd = Crowd(dropout=0.3, bad=0.5)
    habits = [crowd.draw(random.Random(f"{seed}/{i}/habits")) for i in range(people)]
    kinds = Counter(h.kind for h in habits)
    left = [h.leaves_at is not None for h in habits]
    assert {*BAD, "attentive"} == {h.kind for h, gone in zip(habits, left, strict=True) if not gone}, (
        "all here"
    )
    assert 2 <= sum(left) < people / 2
    assert said == (
        f"{people - sum(left)} simulated participants finished strict, {sum(left)} dropped out\n"
        f"Not in earnest: {kinds['one key']} one key, {kinds['random keys']} random keys, "
        f"{kinds['too fast']} too fast\n"
    )
    database = Database(server.settings.database_url)
    with database.read() as session:
        study = definitions.active(session, "strict")
        assert study is not None
        rows = monitor(session, study, definitions.of(study), "simulated").rows
        said_at_the_end = select(Comment.text).join(Participant, Participant.id == Comment.participant_id)
        remarks = [c for c in session.scalars(said_at_the_end.where(Participant.study_id == study.id)) if c]
    database.close()
    assert len(rows) == people
    for row, habit, gone in zip(rows, habits, left, strict=True):
        assert (row.state == "finished") == (row.finished_at is not None) == (not gone)
        if gone:
            assert row.answered < row.total or row.state == "commenting"
            assert row.excluded is None
        elif habit.kind == "attentive":
            assert row.excluded is None
        else:
            assert row.excluded is not None, habit
            assert RULES[habit.kind] in row.excluded
    assert len({row.answered for row, gone in zip(rows, left, strict=True) if gone}) > 1, "anywhere"
    assert all(text.startswith("Simulated: ") for text in remarks)
    assert len(set(remarks)) > len(remarks) / 2


def test_a_study_of_two_packs(settings: Settings, pack: Pack, tmp_path: Path) -> None:
    stimuli = tmp_path / "both"
    other = make_pack(stimuli / "other-pack", name="other-pack", seed=1)
    shutil.copytree(pack.directory, stimuli / "test-pack")
    study = STUDY.replace('packs = ["test-pack"]', 'packs = ["test-pack", "other-pack"]')
    (settings.studies / "test.toml").write_text(study)
    with serving(replace(settings, stimuli=stimuli)) as server:
        assert play(server, pack, 2, 1, "--pack", str(other.directory)) == everybody(2)
        command = ("simulate", "--url", server.url, "--study", "test", "--participants", "2")
        one = app(settings, *command, "--pack", str(other.directory))
        assert (one.returncode, one.stderr.count("\n")) == (2, 1)
        assert "shows images that are not in other-pack" in one.stderr
        assert "needs a --pack for each" in one.stderr
        assert results(server)["participants"]["started"] == 2, "nobody came before that was said"
        both = app(server.settings, *command)  # as the study's file names them
        assert (both.returncode, both.stdout, both.stderr) == (0, everybody(2), "")
        elsewhere = app(settings, *command)
        assert (elsewhere.returncode, elsewhere.stdout) == (2, "")
        assert "there is no pack 'other-pack' in" in elsewhere.stderr
        assert results(server)["participants"]["started"] == 4
        models = [found["models"] for found in results(server)["packs"].values()]
    shown = [sum(model["human_fooled"]["n"] for model in found.values()) for found in models]
    assert sum(shown) == 120
    assert all(shown)


def test_each_pack_has_the_published_rates_of_its_data_and_attack(pack: Pack, tmp_path: Path) -> None:
    def made(name: str, data: str, attack: str) -> Pack:
        manifest = pack.manifest | {"name": name, "dataset": {"name": data}, "attack": {"name": attack}}
        return replace(pack, name=name, manifest=manifest)

    packs = [made("drawn", "mnist", "jsma"), made("photos", "svhn", "tgsm"), made("own", "photos", "tgsm")]
    fooled = rates_of(packs, "fooled", PAPER_FOOLED, {"distilled": 0.2})
    reasonable = rates_of(packs, "reasonable", PAPER_REASONABLE, {"distilled": 0.9})
    model = "gradient_regularized"
    assert [fooled[f"{p.name}/{model}"] for p in packs] == [9 / 55, 25 / 54, PAPER_FOOLED[model]]
    assert [reasonable[f"{p.name}/{model}"] for p in packs] == [23 / 55, 44 / 54, PAPER_REASONABLE[model]]
    assert [fooled[f"{p.name}/distilled"] for p in packs] == [0.2] * 3
    rates = Rates(fooled | {model: 0.0}, reasonable | {model: 1.0})
    stimulus = next(s for s in pack.stimuli if s.model == model)
    for name, chances in (("photos", (25 / 54, 44 / 54)), ("unknown", (0.0, 1.0))):
        assert rates.chances(1, name, stimulus) == pytest.approx(chances)


@pytest.mark.only("sqlite")
def test_bad_input_is_one_line(server: Server, pack: Pack, tmp_path: Path) -> None:
    other = make_pack(tmp_path / "elsewhere" / "test-pack", seed=1)
    here = ["--url", server.url, "--study", "refused", "--participants", "2"]
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
        done = app(server.settings, "simulate", *here, *packs, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: ")
        assert complaint in done.stderr
    done = app(server.settings, "simulate", "--url", server.url, "--study", "nothing")
    assert_one_line(done, "nothing.toml: cannot be read")
    database = Database(server.settings.database_url)
    with database.read() as session:
        begun = (
            select(Participant).join(Study, Study.id == Participant.study_id).where(Study.slug == "refused")
        )
        assert session.scalars(begun).all() == [], "it is said before a session begins"
    database.close()


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


def label_all(
    stimuli: list[Stimulus], pack: Pack, rates: Rates, rng: random.Random, habits: Habits = ATTENTIVE
) -> tuple[list[Labels], list[Verdict]]:
    """What a bot answers to these stimuli, shown and then judged in this order."""
    pages = [
        Page(state, pack.labels, ASKED, position, stimulus.sha256)
        for state in ("labelling", "judging")
        for position, stimulus in enumerate(stimuli, start=1)
    ]
    playing = bot(pages[0], pack, rates, rng, habits=habits)
    found = [next(playing), *(playing.send(page) for page in pages[1:])]
    return [a for a in found if isinstance(a, Labels)], [a for a in found if isinstance(a, Verdict)]


def outcomes(stimuli: list[Stimulus], found: list[Labels]) -> tuple[list[bool], list[bool]]:
    """Fooled, and reasonable, per answer."""
    pairs = list(zip(stimuli, found, strict=True))
    fooled = [a.label == s.target_label for s, a in pairs]
    return fooled, [s.target_label in (a.label, a.runner_up) or a.label == "none" for s, a in pairs]


EVERY_SPREAD = Spread(0.8, 0.5, 0.6, 0.4, 0.8, 0.5)


def test_the_rates_are_the_averages_of_a_spread_population(pack: Pack) -> None:
    """Over new participants and new images: each study draws its own, so studies are what varies independently."""
    stimuli = [s for s in pack.stimuli if s.model == "undefended"]
    means: list[tuple[float, float]] = []
    for study in range(80):
        rates = Rates({"undefended": 0.1}, {"undefended": 0.3}, EVERY_SPREAD, study)
        both: list[tuple[list[bool], list[bool]]] = []
        for person in range(9):
            shown = stimuli[person::9]
            labels, _ = label_all(shown, pack, rates, random.Random(f"{study}/{person}"))
            both.append(outcomes(shown, labels))
        means.append((mean(x for f, _ in both for x in f), mean(x for _, r in both for x in r)))
    for asked, found in zip((0.1, 0.3), zip(*means, strict=True), strict=True):
        error = stdev(found) / 80**0.5
        assert error < 0.02
        assert abs(mean(found) - asked) < 4 * error


def test_whoever_is_fooled_more_easily_finds_more_reasonable(pack: Pack) -> None:
    rates = Rates(PAPER_FOOLED, PAPER_REASONABLE, EVERY_SPREAD, 1)
    for person in range(5):
        for stimulus in pack.stimuli:
            fooled, reasonable = rates.chances(person, pack.name, stimulus)
            assert 0 <= fooled <= reasonable <= 1
            if PAPER_FOOLED[stimulus.model] == 0:
                assert fooled == 0
    plain = Rates(PAPER_FOOLED, PAPER_REASONABLE).chances(1, pack.name, pack.stimuli[0])
    model = pack.stimuli[0].model
    assert plain == pytest.approx((PAPER_FOOLED[model], PAPER_REASONABLE[model]), abs=1e-12)


def test_participants_differ_as_much_as_is_asked(pack: Pack) -> None:
    stimuli = [s for s in pack.stimuli if s.model == "undefended"]
    people = 100
    for sd, low, high in ((0.0, 0.6, 1.5), (1.5, 8, 60)):
        rates = Rates({}, {"undefended": 0.4}, replace(NO_SPREAD, participant=sd))
        counts = [
            sum(outcomes(stimuli, label_all(stimuli, pack, rates, random.Random(f"a/{i}"))[0])[1])
            for i in range(people)
        ]
        assert low < stdev(counts) ** 2 / (len(stimuli) * 0.4 * 0.6) < high, "of the binomial variance"


def test_images_are_as_hard_for_everybody(pack: Pack) -> None:
    """Their effects are the seed's: what one crowd finds easy to mistake, another does; with another seed not."""
    stimuli = [s for s in pack.stimuli if s.model == "undefended"]

    def per_image(crowd: str, seed: int, spread: Spread) -> Floats:
        rates = Rates({}, {"undefended": 0.4}, spread, seed)
        played = [label_all(stimuli, pack, rates, random.Random(f"{crowd}/{i}"))[0] for i in range(60)]
        return np.asarray(np.mean([outcomes(stimuli, found)[1] for found in played], axis=0), float)

    spread = replace(NO_SPREAD, pair=2.0)
    once = per_image("a", 1, spread)
    assert np.corrcoef(once, per_image("b", 1, spread))[0, 1] > 0.9
    assert abs(np.corrcoef(once, per_image("b", 2, spread))[0, 1]) < 0.35
    by_source = per_image("a", 1, replace(NO_SPREAD, image=2.0)).reshape(
        -1, 3
    )  # three targets of each source
    assert by_source.mean(axis=1).std() > 3 * by_source.std(axis=1).mean(), "shared by an image's targets"


def test_answers_take_their_time(pack: Pack) -> None:
    stimuli = [s for s in pack.stimuli if s.model == "undefended"][:30]
    crowd = Crowd(rt_median_ms=3000)
    labelling, judging = [], []
    for i in range(200):
        habits = crowd.draw(random.Random(f"habits/{i}"))
        first, second = label_all(stimuli, pack, Rates({}, {}), random.Random(i), habits)
        labelling.append([a.rt_ms for a in first])
        judging.append([a.rt_ms for a in second])
    times, verdicts = np.array(labelling), np.array(judging)
    own = np.median(times, axis=1)
    assert np.median(own) == pytest.approx(3000, rel=0.08)
    assert np.log(own).std() == pytest.approx(0.3, abs=0.06), "people differ"
    assert np.median(times[:, :5]) > 1.2 * np.median(times[:, -5:]), "and become faster"
    assert np.median(verdicts) == pytest.approx(0.6 * np.median(times), rel=0.08)
    fast, _ = label_all(stimuli, pack, Rates({}, {}), random.Random(0), Habits("too fast"))
    assert median(a.rt_ms for a in fast) < 400


def test_bad_participants_look_at_nothing(pack: Pack) -> None:
    stimuli = [s for s in pack.stimuli if s.model == "undefended"]
    labels, verdicts = label_all(stimuli, pack, ALL, random.Random(1), Habits("one key"))
    assert len({(a.label, a.runner_up) for a in labels}) == len({v.plausible for v in verdicts}) == 1
    assert labels[0].label != labels[0].runner_up
    for kind in ("random keys", "too fast"):
        labels, verdicts = label_all(stimuli, pack, ALL, random.Random(1), Habits(kind))
        used = Counter(a.label for a in labels)
        assert set(used) == {*pack.labels, "none"}
        assert max(used.values()) < len(stimuli) / 3
        assert len({v.plausible for v in verdicts}) == 2
        assert all((a.runner_up == "none") if a.label == "none" else a.runner_up != a.label for a in labels)


def test_a_share_of_the_crowd_leaves_the_others_as_they_were() -> None:
    def draw(crowd: Crowd) -> list[Habits]:
        return [crowd.draw(random.Random(f"0/{i}/habits")) for i in range(2000)]

    plain, some = draw(Crowd()), draw(Crowd(dropout=0.2, bad=0.3))
    assert {h.kind for h in plain} == {"attentive"}
    assert {h.leaves_at for h in plain} == {None}
    assert [h.rt_median_ms for h in plain] == [h.rt_median_ms for h in some]
    kinds = Counter(h.kind for h in some)
    for kind in BAD:
        assert binomtest(kinds[kind], 2000, 0.1).pvalue > 1e-3
    leaving = [h.leaves_at for h in some if h.leaves_at is not None]
    assert binomtest(len(leaving), 2000, 0.2).pvalue > 1e-3
    assert kstest(leaving, "uniform").pvalue > 1e-3, "at any point"


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
