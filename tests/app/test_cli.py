"""The commands as they are typed: what they print, how they end, and one clear line where they cannot go on."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import httpx2
import pytest
import uvicorn
from fastapi.testclient import TestClient

from app import settings as settings_module
from app.cli import main
from app.main import create_app
from app.serving import prepare
from app.settings import ROOT, Settings
from ml.pack import Pack
from tests.app import forked
from tests.app.conftest import STUDY, Player, Server, environment


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def app(settings: Settings, *arguments: str, **changes: str) -> Done:
    """`python -m app` with these arguments, in this process; a server that would start is a failure."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, environment(settings) | changes),
        patch.object(uvicorn.Server, "run", side_effect=AssertionError("the server started")),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
    return Done(status, stdout.getvalue(), stderr.getvalue())


def assert_one_line(done: Done | subprocess.CompletedProcess[str], *complaints: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for complaint in complaints:
        assert complaint in done.stderr


@pytest.fixture
def again(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """A second start on the same database, at a port of the system's choice."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"],
        cwd=ROOT,
        env=environment(settings) | {"PORT": "0", "HOST": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in a shell's background inherits "ignore" for Control-C; a person's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        yield process
        process.terminate()


def test_a_restart_keeps_the_sessions(server: Server, request: pytest.FixtureRequest) -> None:
    with httpx2.Client(base_url=server.url) as client:
        begun = client.post("/api/sessions", json={"study": "test", "consent": True, "external": {}})
        player = Player(client, begun.json()["token"])
        player.answer(most=5)
        before = player.session()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=10) in (0, -signal.SIGTERM)
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.url}/healthz")

    again: subprocess.Popen[str] = request.getfixturevalue("again")
    assert again.stdout is not None
    assert again.stderr is not None
    study, dashboard = again.stdout.readline(), again.stdout.readline()
    found = re.fullmatch(r"Study: (http://127\.0\.0\.1:\d+)/study/test\n", study)
    assert found is not None, study
    assert found[1] != server.url
    assert dashboard.startswith(f"Dashboard: {found[1]}/signin?key=")
    with httpx2.Client(base_url=found[1]) as client:
        back = Player(client, player.token)
        assert back.session() == before
        back.answer()
        assert back.session()["state"] == "finished"
        signed_in = client.get(dashboard.removeprefix("Dashboard: ").strip(), follow_redirects=True)
        assert (signed_in.status_code, signed_in.url.path) == (200, "/results")
        again.send_signal(signal.SIGTERM)  # while a connection is still open
        assert again.wait(timeout=10) in (0, -signal.SIGTERM)
    assert (again.stdout.read(), again.stderr.read()) == ("", "")


@pytest.mark.only("sqlite")
def test_control_c_stops_the_server_without_a_word(again: subprocess.Popen[str]) -> None:
    assert again.stdout is not None
    assert again.stderr is not None
    assert again.stdout.readline().startswith("Study: ")
    again.send_signal(signal.SIGINT)
    assert again.wait(timeout=10) == 130
    assert again.stderr.read() == ""


@pytest.mark.only("sqlite")
def test_a_busy_port_is_one_line(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        typed = forked.run([sys.executable, "-m", "app", "serve", "--port", str(port)], environment(settings))
        assert_one_line(typed, str(port), "in use", "--port")
        assert_one_line(app(settings, "serve", PORT=str(port)), str(port), "in use")
    assert_one_line(app(settings, "serve", "--port", "99999"), "99999")
    assert_one_line(app(settings, "serve", "--host", "256.0.0.1"), "256.0.0.1")
    assert_one_line(app(settings, "serve", PORT="eighty"), "eighty")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://localhost/study", "DATABASE_URL must start with sqlite:/// or postgresql://"),
        ("sqlite:///:memory:", "DATABASE_URL must name a file"),
        ("sqlite://", "DATABASE_URL must name a file"),
        ("sqlite:///file::memory:?uri=true", "DATABASE_URL must name a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "DATABASE_URL must name a file"),
        ("sqlite:///file:/x?vfs=memdb&uri=true", "DATABASE_URL must name a file"),
        ("sqlite+pysqlite:///x.db", "DATABASE_URL must start with sqlite:/// or postgresql://"),
        (
            "postgresql://u:w@rd@localhost/db",
            "DATABASE_URL: an @ in the user's name or password is written %40",
        ),
        ("postgresql://u:w@localhost:port/db", "DATABASE_URL must start with sqlite:/// or postgresql://"),
        ("sqlite:///", "DATABASE_URL must name a SQLite file"),
        ("sqlite:////proc/study.db", "unable to open database file"),
        ("sqlite:////dev/null/study.db", "/dev/null"),
        ("postgresql://[", "DATABASE_URL"),
    ],
)
def test_a_bad_database_is_one_line(settings: Settings, url: str, complaint: str) -> None:
    assert_one_line(app(settings, "serve", "--port", "0", DATABASE_URL=url), complaint)


def test_a_file_that_is_no_database_is_one_line_and_stays_as_it_is(
    settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "letter.db"
    path.write_text("Dear Sir or Madam, " * 100)
    done = app(settings, "serve", "--port", "0", DATABASE_URL=f"sqlite:///{path}")
    assert_one_line(done, "file is not a database")
    assert path.read_text() == "Dear Sir or Madam, " * 100


def test_a_short_secret_is_one_line(settings: Settings) -> None:
    done = app(settings, "serve", "--port", "0", SECRET_KEY="short")
    assert_one_line(done, "SECRET_KEY must have at least 16 characters")


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (STUDY + "[", "not a TOML file"),
        (STUDY.replace("seed = 7", "seed = -7"), "seed"),
        (STUDY.replace("seed = 7", "seed = 7\ncolour = 1"), "colour"),
        (
            STUDY.replace('["test-pack"]', '["other-pack"]').replace('"test-pack"', '"other-pack"'),
            "other-pack",
        ),
        (STUDY.replace("practice = 2", "practice = 2\ntrials = 29"), "trials must be 30"),
    ],
)
def test_a_broken_study_is_one_line(settings: Settings, broken: str, complaint: str) -> None:
    (settings.studies / "test.toml").write_text(broken)
    assert_one_line(app(settings, "serve", "--port", "0"), "test.toml", complaint)


def test_a_study_whose_pack_is_missing_does_not_keep_the_others_from_being_served(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(settings) == ["test"]
    later = STUDY.replace('["test-pack"]', '["test-pack", "later-pack"]')
    (settings.studies / "later.toml").write_text(later)
    (settings.studies / "test.toml").write_text(STUDY + "# the same")
    assert prepare(settings) == ["test"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"not served: {settings.studies / 'later.toml'}: pack 'later-pack' is not imported"
    )
    with TestClient(create_app(settings)) as client:
        assert client.get("/study/test").status_code == 200
        assert client.get("/study/later").status_code == 404
        (settings.studies / "test.toml").write_text(STUDY)
        (settings.studies / "later.toml").rename(settings.studies / "test.toml")
        (settings.studies / "other.toml").write_text(STUDY)
        assert prepare(settings) == ["other"]
        assert client.get("/study/test").status_code == 404, "not the version that its file no longer is"
        assert "test.toml" in capsys.readouterr().err


def test_no_study_at_all_is_one_line(settings: Settings, tmp_path: Path) -> None:
    (settings.studies / "test.toml").unlink()
    assert_one_line(app(settings, "serve", "--port", "0"), f"there is no study in {settings.studies}")
    nowhere = str(tmp_path / "nowhere")
    assert_one_line(app(settings, "serve", "--port", "0", STUDIES_DIR=nowhere), nowhere)
    assert_one_line(app(settings, "serve", "--port", "0", STIMULI_DIR=nowhere, STUDIES_DIR=nowhere), nowhere)


def test_a_broken_pack_is_one_line(settings: Settings, pack: Pack, tmp_path: Path) -> None:
    bad = tmp_path / "stimuli" / "bad"
    bad.mkdir(parents=True)
    (bad / "manifest.json").write_text("{")
    changes = {"STIMULI_DIR": str(bad.parent)}
    assert_one_line(app(settings, "serve", "--port", "0", **changes), "manifest.json")
    assert_one_line(app(settings, "import-pack", str(bad)), "manifest.json")
    assert_one_line(app(settings, "import-pack", str(tmp_path / "nowhere")), "nowhere")
    manifest = json.loads((pack.directory / "manifest.json").read_text())
    manifest["stimuli"][0]["target_label"] = "none"
    (bad / "manifest.json").write_text(json.dumps(manifest))
    (bad / "images").symlink_to(pack.directory / "images")
    assert_one_line(app(settings, "import-pack", str(bad)), "manifest.json")


def test_importing_a_pack_twice_changes_nothing(settings: Settings, pack: Pack) -> None:
    first = app(settings, "import-pack", str(pack.directory))
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == f"test-pack: {len(pack.stimuli)} stimuli, imported\n"
    second = app(settings, "import-pack", str(pack.directory))
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout == f"test-pack: {len(pack.stimuli)} stimuli, already here, nothing changed\n"


def test_the_export_is_what_the_dashboard_serves(
    researcher: TestClient, start: Callable[..., Player], settings: Settings, tmp_path: Path
) -> None:
    start().answer(
        lambda trial: {"runner_up": "none"} if trial["state"] == "labelling" else {"plausible": False}
    )
    start().answer(most=7)
    shown = researcher.get("/results/test.json").json()
    table = researcher.get("/results/test/responses.csv").content
    out = tmp_path / "made" / "here"
    done = app(settings, "export", "--study", "test", "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads((out / "results.json").read_text())
    assert written.pop("computed_at") >= shown.pop("computed_at")
    assert written == shown
    assert (out / "responses.csv").read_bytes() == table
    assert table.count(b"\n") == 1 + 32 + 7
    assert str(shown["responses"]) in done.stdout


def test_an_export_that_cannot_be_made_is_one_line(settings: Settings, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert_one_line(app(settings, "export", "--study", "test", "--out", out), "there is no study 'test'")
    assert_one_line(app(settings, "export", "--study", "test"), "--out")
    assert not Path(out).exists()
    assert app(settings, "import-pack", str(settings.stimuli / "test-pack")).returncode == 0


def test_every_command_explains_itself(settings: Settings) -> None:
    shown = app(settings, "--help")
    assert shown.returncode == 0
    for command in ("serve", "import-pack", "simulate", "export"):
        assert command in shown.stdout
        detail = app(settings, command, "--help")
        assert (detail.returncode, detail.stderr) == (0, "")
        assert f"python -m app {command}" in detail.stdout
    assert_one_line(app(settings), "COMMAND")
    assert_one_line(app(settings, "dance"), "dance")


def test_the_first_start_makes_its_secret_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECRET_KEY", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr(settings_module, "DEFAULT_DATA", tmp_path / "data")
    first = settings_module.load()
    assert settings_module.load().secret == first.secret
    assert len(first.secret) >= 32
    assert first.database_url == f"sqlite:///{tmp_path / 'data' / 'study.db'}"
    assert (tmp_path / "data" / "secret.key").stat().st_mode & 0o777 == 0o600
