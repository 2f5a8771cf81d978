"""How the results page grows with the study: `python -m benchmarks.dashboard [--participants 100 1000 10000]`.

Each study is filled directly (30 labels and 30 judgments a participant, all finished), on SQLite and on a
PostgreSQL server of its own, then asked for its page and its JSON as a researcher's browser does: the first time of
a process that has just imported the app, the first time of one that has loaded it beforehand (`app.warming`), again
with nothing changed, after one more answer, and after 1,000 answers of 100 participants. The floor is the database
itself: counting the study's answers in one statement.
"""

import argparse
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session
from tqdm import tqdm

from app import auth, warming
from app import definition as definitions
from app.assignment import placebo_label
from app.db import Database
from app.main import create_app
from app.models import Comment, Judgment, Participant, Response, Stimulus, Study, Trial
from app.serving import prepare
from app.settings import ROOT, Settings
from tests import postgres

START = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "a secret for the benchmark"
COLUMNS = (
    "floor",
    "new process",
    "loaded",
    "unchanged",
    "one answer",
    "1000 answers",
    "JSON same",
    "JSON one",
)


def main() -> None:
    """Print one line a size and database: medians of seconds, and the memory of the process at its largest."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard")
    parser.add_argument("--participants", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument(
        "--databases", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"]
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--measure", metavar="URL", help=argparse.SUPPRESS
    )  # one study, in a process of its own
    args = parser.parse_args()
    if args.measure:
        row = measure(settings(args.measure), args.repetitions, random.Random(args.seed))
        print(" ".join(f"{seconds:12.3f}" for seconds in row), f"{_largest_mib():8.0f}")
        return
    print("database    answers " + " ".join(f"{name:>12}" for name in COLUMNS) + "      MiB")
    for participants in args.participants:
        for database in args.databases:
            with ExitStack() as stack:
                if database == "sqlite":
                    folder = stack.enter_context(tempfile.TemporaryDirectory())
                    url = f"sqlite:///{folder}/study.db"
                else:
                    url = stack.enter_context(postgres.running())
                prepare(settings(url), START)
                fill(settings(url), participants, random.Random(args.seed))
                command = [sys.executable, "-m", "benchmarks.dashboard", "--measure", url]
                command += ["--repetitions", str(args.repetitions), "--seed", str(args.seed)]
                measured = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                print(f"{database:10} {30 * participants:8} {measured.rstrip()}", flush=True)


def settings(url: str) -> Settings:
    return Settings(url, SECRET, ROOT / "studies", ROOT / "stimuli")


def measure(config: Settings, repetitions: int, rng: random.Random) -> list[float]:
    """Seconds, as in COLUMNS; but for the page of a new process, which is one, medians."""
    db = Database(config.database_url)
    found: dict[str, list[float]] = {name: [] for name in COLUMNS}

    def page(client: TestClient, path: str = "/results/mnist", says: str = "Comparisons") -> None:
        reply = client.get(f"{path}?data=real")
        assert reply.status_code == 200
        assert says in reply.text

    def as_json(client: TestClient) -> None:
        page(client, "/results/mnist.json", '"comparisons"')

    with browser(config) as client:
        found["new process"].append(timed(lambda: page(client)))
    for _ in range(repetitions):
        with browser(config) as client:
            warming.warm(client.app.state.database, client.app.state.memory)  # type: ignore[attr-defined]
            found["loaded"].append(timed(partial(page, client)))
    with browser(config) as client:
        page(client)
        for _ in range(repetitions):
            with db.read() as session:
                count = select(func.count()).select_from(Response).join(Trial)
                found["floor"].append(timed(partial(session.scalar, count)))
            found["unchanged"].append(timed(lambda: page(client)))
            found["JSON same"].append(timed(lambda: as_json(client)))
            answer(db, rng, 1, 1)
            found["one answer"].append(timed(lambda: page(client)))
            answer(db, rng, 1, 1)
            found["JSON one"].append(timed(lambda: as_json(client)))
            answer(db, rng, 100, 10)
            found["1000 answers"].append(timed(lambda: page(client)))
    db.close()
    return [statistics.median(found[name]) for name in COLUMNS]


def browser(config: Settings) -> TestClient:
    """A researcher's, at a process that knows nothing yet."""
    client = TestClient(create_app(config), base_url="http://127.0.0.1")
    reply = client.get(f"/signin?key={auth.sign_in_key(SECRET)}", follow_redirects=False)
    assert reply.status_code == 303, reply.text
    return client


def timed(action: Callable[[], object]) -> float:
    before = time.perf_counter()
    action()
    return time.perf_counter() - before


def _largest_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fill(settings: Settings, participants: int, rng: random.Random) -> None:
    """Participants who finished, each with every (digit, model) cell once; answers at rates like the paper's."""
    db = Database(settings.database_url)
    with db.write() as session:
        study = session.scalars(select(Study).where(Study.slug == "mnist")).one()
        for batch in tqdm(list(_batches(session, study, participants, rng)), disable=None):
            for table, rows in batch.items():
                session.execute(insert(table), rows)
        session.commit()
    db.close()


def answer(db: Database, rng: random.Random, participants: int, each: int) -> None:
    """So many answers of so many people, as far as results can tell: labels, judgments and people's rows change."""
    with db.write() as session:
        ids = session.scalars(select(Participant.id)).all()
        for id_ in rng.sample(ids, min(participants, len(ids))):
            session.get_one(Participant, id_).last_seen_at += timedelta(seconds=1)
            given = session.execute(
                select(Trial, Response, Judgment)
                .join(Response, Response.trial_id == Trial.id)
                .join(Judgment, Judgment.trial_id == Trial.id)
                .where(Trial.participant_id == id_)
            ).all()
            for _trial, response, judgment in rng.sample(given, each):
                response.label, response.runner_up = rng.choice([("0", "1"), ("7", "none"), ("none", "none")])
                response.rt_ms = 500 + 3000 * rng.random()
                judgment.plausible = not judgment.plausible
        session.commit()


def _batches(
    session: Session, study: Study, participants: int, rng: random.Random
) -> Iterator[dict[Any, list[dict[str, Any]]]]:
    cells: dict[tuple[str, str], list[Stimulus]] = {}
    packs = [link.pack_id for link in study.packs]
    for stimulus in session.scalars(
        select(Stimulus).where(Stimulus.pack_id.in_(packs)).order_by(Stimulus.id)
    ):
        cells.setdefault((stimulus.source_label, stimulus.model), []).append(stimulus)
    reasonable = {"undefended": 0.26, "distilled": 0.235, "gradient_regularized": 0.418}
    definition = definitions.of(study)
    trial_id = 0
    for start in range(0, participants, 500):
        batch: dict[Any, list[dict[str, Any]]] = {
            t: [] for t in (Participant, Trial, Response, Judgment, Comment)
        }
        for number in range(start + 1, min(start + 500, participants) + 1):
            begun = START + timedelta(minutes=number)
            batch[Participant].append(_person(study, number, begun))
            batch[Comment].append({"participant_id": number, "text": "B looks odd.", "written_at": begun})
            lean = rng.gauss(0, 0.1)
            for position, cell in enumerate(rng.sample(sorted(cells), len(cells)), start=1):
                stimulus = rng.choice(cells[cell])
                trial_id += 1
                yes = rng.random() < reasonable[stimulus.model] + lean
                batch[Trial].append(
                    {
                        "id": trial_id,
                        "participant_id": number,
                        "position": position,
                        "judging_order": position,
                        "kind": "main",
                        "stimulus_id": stimulus.id,
                        "clean_image_id": None,
                        "sha256": stimulus.sha256,
                        "placebo_label": placebo_label(
                            definition.seed,
                            stimulus.sha256,
                            stimulus.source_label,
                            stimulus.target_label,
                            "0123456789",
                        ),
                    }
                )
                given = {"answered_at": begun, "display": {"css_width": 392, "image_retries": 0}}
                other = stimulus.target_label if yes else "none"
                batch[Response].append(
                    {
                        "trial_id": trial_id,
                        "answer_id": uuid.UUID(int=2 * trial_id),
                        "label": stimulus.source_label,
                        "runner_up": other,
                        "rt_ms": rng.lognormvariate(7.6, 0.4),
                        **given,
                    }
                )
                batch[Judgment].append(
                    {
                        "trial_id": trial_id,
                        "answer_id": uuid.UUID(int=2 * trial_id + 1),
                        "plausible": yes,
                        "rt_ms": rng.lognormvariate(7.2, 0.4),
                        **given,
                    }
                )
        yield batch


def _person(study: Study, number: int, begun: datetime) -> dict[str, Any]:
    return {
        "id": number,
        "study_id": study.id,
        "number": number,
        "token": f"token-{number}",
        "pseudonym": f"P{number}",
        "withdrawal_code": f"code-{number}",
        "request_id": None,
        "language": "en",
        "consent_language": "en",
        "runner_up_first": False,
        "simulated": False,
        "grid_order": [f"mnist-jsma/{m}" for m in ("undefended", "distilled", "gradient_regularized")],
        "consented_at": begun,
        "last_seen_at": begun + timedelta(minutes=10),
        "finished_at": begun + timedelta(minutes=10),
        "completion_code": "C",
        "withdrawn_at": None,
        "deleted": None,
    }


if __name__ == "__main__":
    main()
