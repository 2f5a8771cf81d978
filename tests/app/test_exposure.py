"""What is safe on one's own machine and nowhere else: refused at start-up, in one line that says why; and what the
server writes, which holds no secret."""

import json
import os
import re
import signal
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import select

from app import auth, password
from app import settings as settings_module
from app.db import Database
from app.models import Base
from app.serving import prepare
from app.settings import Settings, SettingsError, refuse_unsafe
from tests.app import forked
from tests.app.conftest import SECRET, environment, free_port
from tests.app.test_cli import app, assert_one_line

WORDS = "correct horse battery"
HTTPS = "https://study.example.org"


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    prepare(settings)
    database = Database(settings.database_url)
    yield database
    database.close()


def set_password(db: Database) -> None:
    with db.write() as session:
        password.change(session, WORDS, datetime.now(UTC))
        session.commit()


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"HOST": "0.0.0.0"}, ("HOST 0.0.0.0", "without https", "PUBLIC_URL", "ALLOW_HTTP=yes")),
        ({"HOST": "::"}, ("HOST ::", "without https")),
        ({"HOST": "0.0.0.0", "PUBLIC_URL": "http://study.example.org"}, ("without https", "ALLOW_HTTP=yes")),
        (
            {"PUBLIC_URL": "http://study.example.org"},
            ("PUBLIC_URL http://study.example.org", "without https"),
        ),
        ({"HOST": "0.0.0.0", "PUBLIC_URL": HTTPS}, ("no password", "python -m app password")),
        ({"PUBLIC_URL": HTTPS}, (f"PUBLIC_URL {HTTPS}", "no password")),
        ({"HOST": "0.0.0.0", "ALLOW_HTTP": "yes"}, ("no password", "python -m app password")),
        ({"ALLOW_HTTP": "maybe"}, ("ALLOW_HTTP must be yes or no",)),
        ({"PUBLIC_URL": "study.example.org"}, ("PUBLIC_URL must be the server's address",)),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_what_is_unsafe_outside_this_machine_stops_the_start(
    settings: Settings, environment: dict[str, str], why: tuple[str, ...]
) -> None:
    assert_one_line(app(settings, "serve", "--port", "0", **environment), *why)


def test_the_option_counts_as_the_variable_does(settings: Settings) -> None:
    done = app(settings, "serve", "--port", "0", "--host", "0.0.0.0")
    assert_one_line(done, "HOST 0.0.0.0", "without https")


def test_several_machines_need_one_secret(settings: Settings) -> None:
    shared = replace(
        settings, database_url="postgresql://x/y", public_url=HTTPS, host="0.0.0.0", secret_given=False
    )
    with pytest.raises(SettingsError, match="SECRET_KEY is not set"):
        refuse_unsafe(shared, password_set=True)
    refuse_unsafe(replace(shared, secret_given=True), password_set=True)
    refuse_unsafe(replace(shared, database_url="sqlite:///x.db"), password_set=True)
    refuse_unsafe(replace(shared, public_url=None, host="127.0.0.1"), password_set=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_this_machine_alone_needs_nothing(settings: Settings, host: str) -> None:
    config = replace(settings, host=host, secret_given=False)
    assert not config.exposed
    refuse_unsafe(config, password_set=False)
    assert config.allowed_hosts is not None
    assert {"localhost", "127.0.0.1", "::1", host.lower()} <= config.allowed_hosts


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "study.example.org", ""])
def test_every_other_address_is_exposed(settings: Settings, host: str) -> None:
    assert replace(settings, host=host).exposed


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (HTTPS, HTTPS),
        (" https://Study.Example.org/ ", HTTPS),
        ("https://study.example.org:8443", "https://study.example.org:8443"),
        ("http://[2001:db8::1]:8000", "http://[2001:db8::1]:8000"),
        ("", None),
        ("study.example.org", "no"),
        ("ftp://study.example.org", "no"),
        ("https://", "no"),
        ("https://study.example.org/a", "no"),
        ("https://study.example.org?a=b", "no"),
        ("https://study.example.org#a", "no"),
        ("https://me:word@study.example.org", "no"),
        ("https://study.example.org:port", "no"),
        ("https://study.example.org:99999", "no"),
        ("https://study example.org", "no"),
        ("https://[::1", "no"),
        ("https://study.example.org\nSet-Cookie: a=b", "no"),
    ],
)
def test_the_public_address_is_an_address(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, given: str, kept: str | None
) -> None:
    for name, value in (environment(settings) | {"PUBLIC_URL": given}).items():
        monkeypatch.setenv(name, value)
    if kept != "no":
        assert settings_module.load().public_url == kept
        return
    with pytest.raises(SettingsError, match="PUBLIC_URL must be") as refused:
        settings_module.load()
    assert "word" not in str(refused.value), "what is written into it by mistake is not said aloud"


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("x" * 15, "at least 16 characters"),
        ("x" * 64, "repeats itself"),
        ("0123456789" * 4, "repeats itself"),
        ("aabbccddaabbccddeeaabb"[:20], "repeats itself"),
        ("changeme-changeme!-please", "placeholder"),
        ("Replace_Me_with_something", "placeholder"),
        ("your-secret-key-goes-here", "placeholder"),
    ],
)
def test_a_secret_that_could_be_guessed_is_refused(settings: Settings, secret: str, why: str) -> None:
    done = app(settings, "serve", "--port", "0", SECRET_KEY=secret)
    assert_one_line(done, "SECRET_KEY", why)
    assert secret not in done.stderr


def first_start(folder: Path) -> str:
    return settings_module._stored_secret(folder / "data" / "secret.key")


def test_a_stored_secret_that_others_can_read_becomes_private(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = first_start(tmp_path)
    file = tmp_path / "data" / "secret.key"
    for mode in (0o644, 0o640, 0o604, 0o666):
        file.chmod(mode)
        assert first_start(tmp_path) == secret
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        said = capsys.readouterr().err
        assert said.startswith(f"{file} could be read by others")
        assert said.count("\n") == 1
        assert secret not in said
    first_start(tmp_path)
    assert capsys.readouterr().err == ""
    assert [path.name for path in file.parent.iterdir()] == ["secret.key"], "nothing else is left behind"


def test_processes_that_start_at_once_share_one_secret(tmp_path: Path) -> None:
    for i in range(20):
        with ThreadPoolExecutor(4) as pool:
            found = {
                future.result() for future in [pool.submit(first_start, tmp_path / str(i)) for _ in "1234"]
            }
        assert len(found) == 1
        assert len(found.pop()) >= 32


def test_the_configuration_does_not_show_its_secrets() -> None:
    shown = repr(Settings("postgresql://me:word@host/study", SECRET))
    assert SECRET not in shown
    assert "word" not in shown


def test_no_secret_is_in_what_the_server_writes_nor_in_any_address(settings: Settings, db: Database) -> None:
    """A server as a lab runs it: exposed, behind a name; somebody signs in each way, and fails to."""
    set_password(db)
    port = free_port()
    process = forked.Popen(
        [sys.executable, "-m", "app", "serve", "--port", str(port)],
        env=environment(settings)
        | {"HOST": "0.0.0.0", "ALLOW_HTTP": "yes", "PUBLIC_URL": f"http://127.0.0.1:{port}"},
        stdout=forked.PIPE,
        stderr=forked.STDOUT,
    )
    assert process.stdout is not None
    said = process.stdout.readline() + process.stdout.readline()
    dashboard = re.search(r"^Dashboard: (.*)$", said, re.M)
    assert dashboard is not None, said
    assert dashboard[1] == f"http://127.0.0.1:{port}/signin"
    addresses: list[str] = []
    secrets = {SECRET, WORDS, auth.sign_in_key(SECRET)}
    link = app(settings, "signin-link", PUBLIC_URL=f"http://127.0.0.1:{port}").stdout.strip()
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", follow_redirects=True) as browser:

        def visit(method: str, url: str, status: int, **form: str) -> str:
            reply = browser.request(method, url, data=form or None)
            assert reply.status_code == status, (url, reply.status_code)
            shown = [*reply.history[1:], reply]  # the first is what was typed or clicked
            addresses.extend(str(step.url) for step in (shown if reply.history else []))
            addresses.extend(step.headers.get("location", "") for step in (*reply.history, reply))
            secrets.update(browser.cookies.values())
            return reply.text

        visit("GET", f"/signin?key={auth.sign_in_key(SECRET)}", 401)
        visit("POST", "/signin", 401, password="something else here")
        visit("GET", "/signin?link=nonsense", 401)
        visit("GET", link, 200)
        visit("POST", "/signin/link", 200)
        found = re.search(r'name="csrf" value="(\w+)"', visit("GET", "/results", 200))
        assert found is not None
        visit("POST", "/signout", 200, csrf=found[1])
        visit("POST", "/signin", 200, password=WORDS)
        begun = browser.post(
            "/api/sessions", json={"study": "test", "consent": True, "external": {"id": "P17"}}
        )
        token = json.loads(begun.text)["token"]
        visit("POST", "/results/test/unmask", 200)
        visit("GET", "/results/test/responses.csv", 200)
        visit("GET", f"/s/{token}/label?secret=P17", 200)
        visit("POST", f"/s/{token}/withdraw", 200)
    process.send_signal(signal.SIGTERM)
    said += process.communicate(timeout=60)[0]
    secrets |= {link.split("=")[1], found[1]} - {""}
    assert len(secrets) >= 7
    with db.read() as session:
        stored = str(
            [
                session.execute(select(table)).all()
                for table in Base.metadata.tables.values()
                if table.name not in ("images", "packs")
            ]
        )
    for place in (said, "\n".join(addresses), stored, app(settings, "audit").stdout):
        for secret in secrets:
            assert secret not in place
    for secret in (token, "P17"):
        assert secret not in said
    assert os.environ.get("SECRET_KEY") != SECRET
