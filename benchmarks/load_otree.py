"""oTree's production server with the task of `benchmarks.load`: 30 pages of two questions, in a place of its own.

oTree pins old versions of what this project uses, so that it gets a virtual environment of its own under the
system's folder for temporary files, made at the first run and used again.
"""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import httpx2

VERSION = "6.0.15"
PAGES = 30
VENV = Path(tempfile.gettempdir()) / f"benchmarks-otree-{VERSION}"

SETTINGS = """
SESSION_CONFIGS = [dict(name="task", app_sequence=["task"], num_demo_participants=3)]
SESSION_CONFIG_DEFAULTS = dict(real_world_currency_per_point=1, participation_fee=0, doc="")
PARTICIPANT_FIELDS = []
SESSION_FIELDS = []
LANGUAGE_CODE = "en"
REAL_WORLD_CURRENCY_CODE = "USD"
USE_POINTS = True
ADMIN_USERNAME = "admin"
ADMIN_PASSWORD = "the benchmark's"
DEMO_PAGE_INTRO_HTML = ""
SECRET_KEY = "the benchmark's"
"""
TASK = f"""
from otree.api import *

LABELS = [*"0123456789", "none"]


class C(BaseConstants):
    NAME_IN_URL = "task"
    PLAYERS_PER_GROUP = None
    NUM_ROUNDS = {PAGES}


class Subsession(BaseSubsession):
    pass


class Group(BaseGroup):
    pass


class Player(BasePlayer):
    label = models.StringField(choices=LABELS)
    runner_up = models.StringField(choices=LABELS)


class Trial(Page):
    form_model = "player"
    form_fields = ["label", "runner_up"]


page_sequence = [Trial]
"""
PAGE = """
{{ block title }}What do you read here?{{ endblock }}
{{ block content }}
<img src="/static/image.png" width="140" height="140" alt="">
{{ formfields }}
{{ next_button }}
{{ endblock }}
"""


def install() -> Path:
    """oTree's command, installed if it is not there yet."""
    command = VENV / "bin" / "otree"
    if not command.exists():
        print(f"installing oTree {VERSION} into {VENV} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        pip = [str(VENV / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, f"otree=={VERSION}"], check=True)
    return command


@contextmanager
def otree(folder: Path, participants: int, target: Any) -> Iterator[Any]:
    """The production server as `otree prodserver` runs it, with a session of so many participants; a `target`."""
    command = install()
    project = folder / "project"
    (project / "task").mkdir(parents=True)
    (project / "_static").mkdir()
    (project / "settings.py").write_text(SETTINGS)
    (project / "task" / "__init__.py").write_text(TASK)
    (project / "task" / "Trial.html").write_text(PAGE)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    environment |= {
        "OTREE_PRODUCTION": "1",
        "OTREE_REST_KEY": "key",
        "PATH": f"{command.parent}:{os.environ['PATH']}",  # it starts itself a second time, for timeouts
    }
    with (folder / "otree.log").open("w") as log:
        process = subprocess.Popen(
            [str(command), "prodserver", f"127.0.0.1:{port}"],
            cwd=project,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        with httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"otree-rest-key": "key"}, timeout=600
        ) as client:
            for _ in range(600):
                try:
                    client.get("/api/otree_version")
                    break
                except httpx2.TransportError:
                    sleep(0.1)
            made = client.post(
                "/api/sessions", json={"session_config_name": "task", "num_participants": participants}
            ).json()
            people = client.post(f"/api/get_session/{made['code']}", json={}).json()["participants"]
        links = [f"/InitializeParticipant/{person['code']}" for person in people]
        stored = partial(_stored, project / "db.sqlite3")
        yield target("otree", [port], [process.pid], stored, links, 0)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def _stored(database: Path) -> list[str]:
    """Participant and page of each answer."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT p.code, t.round_number FROM task_player t JOIN otree_participant p ON p.id = t.participant_id"
            " WHERE t.label = '3' AND t.runner_up = '5'"
        )
        return [f"{code}/{page}" for code, page in rows]
