"""How the results page grows with the study: `python -m benchmarks.dashboard [--participants 100 1000 10000]`.

Each study is filled directly (30 labels and 30 judgments a participant, all finished), then asked for its page as
a researcher's browser does: the first time of a server process, again with nothing changed, and after one more
answer. The floor is SQLite itself: counting the study's answers in one statement.
"""

import argparse
import random
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session
from tqdm import tqdm

from app import auth
from app import definition as definitions
from app.assignment import placebo_label
from app.db import Database
from app.main import create_app
from app.models import Comment, Judgment, Participant, Response, Stimulus, Study, Trial
from app.serving import prepare
from app.settings import ROOT, Settings

START = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "a secret for the benchmark"


def main() -> None:
    """Print one line a size: seconds, and how much each is of the smallest."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard")
    parser.add_argument("--participants", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("answers    floor  first  unchanged  after one answer  JSON unchanged")
    for participants in args.participants:
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(f"sqlite:///{folder}/study.db", SECRET, ROOT / "studies", ROOT / "stimuli")
            prepare(settings, START)
            fill(settings, participants, random.Random(args.seed))
            row = measure(settings)
            print(f"{30 * participants:7} " + " ".join(f"{seconds:8.3f}" for seconds in row), flush=True)


def measure(settings: Settings) -> list[float]:
    """Seconds: floor, first page, the same again, the page after one more answer, the JSON."""
    db = Database(settings.database_url)
    with db.read() as session:
        floor = timed(lambda: session.scalar(select(func.count()).select_from(Response).join(Trial)))
    with TestClient(create_app(settings)) as client:
        client.get(f"/signin?key={auth.sign_in_key(SECRET)}").raise_for_status()

        def page() -> None:
            reply = client.get("/results/mnist?data=real")
            assert reply.status_code == 200
            assert "Comparisons" in reply.text

        first = timed(page)
        again = min(timed(page) for _ in range(5))
        one_more = []
        for i in range(3):
            answer(db, i)
            one_more.append(timed(page))
        client.get("/results/mnist.json?data=real")
        as_json = min(timed(lambda: client.get("/results/mnist.json?data=real")) for _ in range(3))
    db.close()
    return [floor, first, again, min(one_more), as_json]


def timed(action: Callable[[], object]) -> float:
    before = time.perf_counter()
    action()
    return time.perf_counter() - before


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


def answer(db: Database, i: int) -> None:
    """One more answer, as far as the results can tell: a participant's row and a judgment change."""
    with db.write() as session:
        person = session.scalars(select(Participant).order_by(Participant.id).offset(i).limit(1)).one()
        person.last_seen_at += timedelta(seconds=1)
        judgment = session.scalars(
            select(Judgment)
            .join(Trial, Trial.id == Judgment.trial_id)
            .where(Trial.participant_id == person.id)
        ).first()
        assert judgment is not None
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
