"""A played installation with studies of every kind, exported once for all tests here."""

import io
import random
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from app import codebook, serving
from app.db import Database
from app.main import create_app
from app.models import Participant, RecruiterId
from app.settings import Settings
from ml.pack import Pack
from tests.app.conftest import SECRET, STUDY, begin, sign_in
from tests.app.databases import Databases
from tests.app.oracle import at_random, play, read_csv
from tests.app.test_languages import CHINESE
from tests.packs import make_pack

TEXTS = STUDY[STUDY.index("[texts]") :]
STUDIES = {
    # Everything that a study file can ask for.
    "full-study": """packs = ["three", "three-b"]
trials = 9
practice = 1
controls = 2
rotate_questions = true
target_participants = 8
[primary]
pack = "three-b"
a = "gradient_regularized"
b = "undefended"
[looks]
at = [7]
[exclusions]
min_median_label_rt_ms = 100
max_same_label_share = 0.8
min_controls_right = 1
""",
    "labels": """packs = ["three"]
trials = 9
target_participants = 3
questions = ["label"]
[primary]
pack = "three"
""",
    "once": """packs = ["three"]
trials = 9
target_participants = 2
questions = ["label", "plausibility"]
[primary]
pack = "three"
outcome = "mistake_reasonable_direct"
""",
    "one": 'packs = ["three"]\ntrials = 9\ntarget_participants = 5\n[primary]\npack = "three"\n',
    "masked": 'packs = ["three"]\ntrials = 9\ntarget_participants = 5\n[primary]\npack = "three"\n',
    "left": 'packs = ["three"]\ntrials = 9\ntarget_participants = 2\n[primary]\npack = "three"\n',
    "spoken": 'packs = ["three"]\ntrials = 9\ntarget_participants = 5\n[primary]\npack = "three"\n',
}
PLAYED = [
    ("full-study", "real"),
    ("full-study", "simulated"),
    ("labels", "real"),
    ("once", "real"),
    ("one", "real"),  # one participant, unmasked
    ("one", "simulated"),  # nobody, unmasked
    ("masked", "real"),
    ("masked", "simulated"),  # nobody
    ("left", "real"),  # somebody withdrew after the comparisons had been seen
]
NASTY = (
    "=1+1 by J. Doe",
    "'quoted'",
    "+49 30",
    "-",
    '@home, "here"\nand there',
    "\tindented",
    "＝1",
    "Nice.",
)
SHOWN = {
    "css_width": 280,
    "css_height": 280.5,
    "device_pixel_ratio": 1.25,
    "interpolation": "pixelated",
    "zoom": 1,
    "viewport_width": 1280,
    "viewport_height": 720,
    "input": "mouse",
    "hidden_times": 1,
    "hidden_ms": 250,
    "held_keys": 0,
    "too_early": 2,
    "image_retries": 0,
    "waited_ms": 35,
}
# What no page sends, and somebody may.
ODD = {
    "input": "=HYPERLINK(1)",
    "interpolation": 3,
    "hidden_times": 0.5,
    "held_keys": True,
    "too_early": "7",
    "image_retries": -2,
    "agent": "J. Doe's browser",
    "zoom": None,
}
# Keys that look like one that is counted: within an object, after a quotation mark, in other letters.
ALIKE: tuple[dict[str, Any], ...] = (
    {"a": {"too_early": 0}, "too_early": 3},
    {'x"too_early': 0, "too-early": 0, "TOO_EARLY": 0, "too_early": 3},
)


@dataclass
class World:
    client: TestClient
    settings: Settings
    packs: list[Pack]
    secrets: list[str]  # of all participants: tokens, withdrawal and completion codes, recruiters' ids
    folder: Path

    def archive(self, study: str, data: str = "real", query: str = "") -> zipfile.ZipFile:
        reply = self.client.get(f"/results/{study}/export.zip?data={data}{query}")
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"] == "application/zip"
        assert int(reply.headers["content-length"]) == len(reply.content)
        return zipfile.ZipFile(io.BytesIO(reply.content))

    def export(self, study: str, data: str = "real") -> Path:
        """An export, unpacked; the same each time it is asked for."""
        folder = self.folder / f"{study}-{data}"
        if not folder.exists():
            self.archive(study, data).extractall(folder)
        return folder

    def table(self, study: str, name: str, data: str = "real") -> Any:
        """A data file of an export as a table of text."""
        return read_csv((self.export(study, data) / codebook.file_name(study, name)).read_text("utf-8"))


@dataclass
class Played:
    """What everybody did, on SQLite."""

    settings: Settings
    packs: list[Pack]
    secrets: list[str]


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    root = tmp_path_factory.mktemp("exports")
    packs = [
        make_pack(root / "packs" / name, name, tuple("012"), targets=2, seed=seed)
        for seed, name in enumerate(("three", "three-b"))
    ]
    (root / "studies").mkdir()
    for slug, text in STUDIES.items():
        head = f'title = "A study: {slug}"\nseed = 11\nmin_answer_ms = 0\n'
        (root / "studies" / f"{slug}.toml").write_text(
            head + text + TEXTS + (CHINESE if slug == "spoken" else ""), encoding="utf-8"
        )
    settings = Settings(f"sqlite:///{root / 'study.db'}", SECRET, root / "studies", root / "packs")
    serving.prepare(settings)
    with TestClient(create_app(settings)) as client:
        sign_in(client)
        leaves = _play_all(client, packs)
        for data in ("real", "simulated"):
            client.post(f"/results/one/unmask?data={data}")
        for study, data in PLAYED:  # what is seen first is put on record, and said to be from then on
            client.get(f"/results/{study}.json?data={data}")
        client.post(f"/api/sessions/{leaves}/withdraw").raise_for_status()
        db = Database(settings.database_url)
        with db.read() as session:
            secrets = [
                secret
                for person in session.scalars(select(Participant))
                for secret in (
                    person.token,
                    person.withdrawal_code,
                    person.completion_code,
                    str(person.request_id),
                )
                if secret
            ]
            secrets += session.scalars(select(RecruiterId.value).where(RecruiterId.name == "PROLIFIC_PID"))
        db.close()
        return Played(settings, packs, [s for s in secrets if s != "None"])


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, played: Played, databases: Databases) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    settings = replace(played.settings, database_url=databases.played(played.settings.database_url, folder))
    with TestClient(create_app(settings)) as client:
        yield World(sign_in(client), settings, played.packs, played.secrets, folder / "exports")


def _play_all(client: TestClient, packs: list[Pack]) -> str:
    """Plays everybody; returns the token of one who finished "left" first."""
    first, second = packs

    def go(study: str, role: object, runner_up: bool = True, **options: Any) -> str:
        shown = packs if study == "full-study" else [first]
        return play(client, study, shown, at_random(f"{study} {role}", "012", runner_up), **options)

    clean = {image.sha256: image.source_label for pack in (first, second) for image in pack.clean}

    def careful(seed: int) -> Any:
        rng = random.Random(seed)

        def choose(trial: dict[str, Any]) -> dict[str, Any]:
            if trial["state"] == "judging":
                return {
                    "plausible": rng.random() < 0.5,
                    "rt_ms": None if rng.random() < 0.1 else 800.5,
                    "display": SHOWN,
                }
            label = clean.get(trial["image"][9:73]) or rng.choice(("0", "1", "2", "none"))
            runner_up = (
                "none" if label == "none" else rng.choice([x for x in ("0", "1", "2", "none") if x != label])
            )
            rt_ms = None if rng.random() < 0.1 else rng.lognormvariate(7, 0.5)
            return {
                "label": label,
                "runner_up": runner_up,
                "rt_ms": rt_ms,
                "display": rng.choices((SHOWN, ODD, *ALIKE), (5, 3, 1, 1))[0],
            }

        return choose

    for number, comment in enumerate(NASTY):
        player = begin(client, "full-study", PROLIFIC_PID=f"=prolific{number:02}", STUDY_ID="s1")
        choose = careful(number)
        for question in ("label", "plausibility"):
            here = player.session()
            position = here["next_position"]
            while position is not None:
                answer = choose(here["trials"][position - 1] | {"state": here["state"]})
                position = player.put(position, question, **answer).raise_for_status().json()["next_position"]
        client.post(f"{player.base}/comments", json={"text": comment})
        client.post(f"{player.base}/finish")
    for number, labels in enumerate((0, 1, 7, 12)):
        go("full-study", f"midway {number}", labels=labels, judgments=4)
    for role, rt_ms in (("fast", 20.0), ("slow", 2000.0)):  # controls are read wrongly by chance
        for number in range(2):
            go("full-study", f"{role} {number}", rt_ms=rt_ms)
    gone = go("full-study", "withdrawn", labels=3)
    assert client.post(f"/api/sessions/{gone}/withdraw").status_code == 200
    go("full-study", "simulated", simulated="yes")
    for number in range(3):
        go("labels", number, runner_up=False)
    for number in range(3):
        go("once", number, runner_up=False)
    go("one", 0)
    go("masked", 0)
    go("masked", 1, labels=5)
    leaves, *_ = (go("left", number) for number in range(3))
    return leaves
