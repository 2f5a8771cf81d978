"""The audit log: what is in it, what is not, and that it is one with what it records."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from app import audit, password
from app.audit import Event
from app.db import Database
from app.models import AuditEntry, Comment, Participant, RecruiterId, Unmasking
from app.settings import ROOT, Settings
from tests.app.conftest import Player, sign_in
from tests.app.test_cli import app, assert_one_line

Start = Callable[..., Player]
Line = tuple[str, str | None, dict[str, Any]]

WORDS = "correct horse battery"


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


def lines(db: Database) -> list[Line]:
    with db.read() as session:
        found = session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    for entry in found:
        assert abs(entry.at - datetime.now(UTC)) < timedelta(minutes=10)
        entry.detail.pop("version", None)
    return [(entry.event, entry.study, entry.detail) for entry in found]


def of(db: Database, event: Event) -> list[Line]:
    return [line for line in lines(db) if line[0] == event]


def test_signing_in_and_out_is_on_record(client: TestClient, db: Database, settings: Settings) -> None:
    client.post("/signin", data={"password": WORDS})
    with db.write() as session:
        password.change(session, WORDS, datetime.now(UTC))
        session.commit()
    client.get("/signin?key=wrong")
    sign_in(client)
    client.post("/signout")
    client.post("/signin", data={"password": WORDS})
    client.post("/signout")
    client.post("/signout")  # nobody is signed in any more
    link = app(settings, "signin-link").stdout.split("?link=")[1].strip()
    client.get(f"/signin?link={link}")
    client.post("/signin/link")
    assert lines(db) == [
        ("password refused", None, {}),
        ("password set", None, {}),
        ("sign-in link refused", None, {}),
        ("signed in", None, {"by": "printed link"}),
        ("signed out", None, {}),
        ("signed in", None, {"by": "password"}),
        ("signed out", None, {}),
        ("sign-in link made", None, {}),
        ("signed in", None, {"by": "link"}),
    ]


def test_downloads_are_on_record_and_reading_is_not(
    researcher: TestClient, db: Database, start: Start
) -> None:
    start().answer(most=3)
    before = lines(db)
    for path in ("", "/test", "/test.json", "/test/images", "/test/models", "/test/power"):
        assert researcher.get(f"/results{path}").status_code == 200
    assert researcher.get("/audit").status_code == 200
    assert lines(db) == before
    for path in (
        "responses.csv",
        "export.zip",
        "export.zip?comments=1&recruiter_ids=1",
        "report.html?comments=1",
    ):
        assert researcher.get(f"/results/test/{path}").status_code == 200
    assert researcher.get("/results/nothing/responses.csv").status_code == 404
    plain = {"file": "export.zip", "data": "real", "comments": False, "recruiter_ids": False}
    assert lines(db)[len(before) :] == [
        ("exported", "test", {"file": "responses.csv", "data": "real"}),
        ("exported", "test", plain),
        ("exported", "test", plain | {"comments": True, "recruiter_ids": True}),
        ("report written", "test", {"file": "report.html", "data": "real", "comments": True}),
    ]


def test_commands_that_write_files_are_on_record(
    client: TestClient, settings: Settings, db: Database, start: Start, tmp_path: Path
) -> None:
    start().answer(most=3)
    out = str(tmp_path / "out")
    for arguments in (
        ("export", "--out", out),
        ("export", "--out", out, "--zip", "--recruiter-ids"),
        ("report", "--out", f"{out}/report.html"),
    ):
        assert app(settings, *arguments, "--study", "test").returncode == 0
    command = {"data": "real", "comments": False, "by": "command"}
    assert lines(db) == [
        ("exported", "test", command | {"file": "folder", "recruiter_ids": False}),
        ("exported", "test", command | {"file": "export.zip", "recruiter_ids": True}),
        ("report written", "test", command | {"file": "report.html"}),
    ]


def test_nothing_is_handed_out_that_cannot_be_put_on_record(
    researcher: TestClient, start: Start, monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path
) -> None:
    start().answer(most=3)

    def broken(*_: object, **__: object) -> None:
        raise ValueError("the log is broken")

    monkeypatch.setattr(audit, "record", broken)
    for path in ("responses.csv", "export.zip", "report.html"):
        with pytest.raises(ValueError, match="the log is broken"):
            researcher.get(f"/results/test/{path}")
    assert_one_line(
        app(settings, "export", "--study", "test", "--out", str(tmp_path / "out")), "the log is broken"
    )
    assert not (tmp_path / "out").exists()


def test_unmasking_is_on_record_once(researcher: TestClient, db: Database, start: Start) -> None:
    start().answer()
    for _ in range(2):
        researcher.post("/results/test/unmask?data=real")
    researcher.get("/results/test")
    assert of(db, Event.UNMASKED) == [
        ("comparisons unmasked", "test", {"data": "real", "n": 1, "early": True}),
    ]


def test_comparisons_first_seen_at_the_target_are_not_early(
    researcher: TestClient, db: Database, start: Start
) -> None:
    for _ in range(3):
        start().answer()
    for path in ("", ".json"):
        researcher.get(f"/results/test{path}")
    researcher.post("/results/test/unmask")
    assert of(db, Event.UNMASKED) == [
        ("comparisons unmasked", "test", {"data": "real", "n": 3, "early": False}),
    ]


def test_unmasking_and_its_entry_are_one_transaction(
    researcher: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "record", raising)
    with pytest.raises(ValueError, match="the log is broken"):
        researcher.post("/results/test/unmask")
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(Unmasking)) == 0


def raising(*_: object, **__: object) -> None:
    raise ValueError("the log is broken")


def test_a_withdrawal_and_its_entry_are_one_transaction(
    client: TestClient, db: Database, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    player, other = start(), start()
    player.answer(most=4)
    with monkeypatch.context() as patch:
        patch.setattr(audit, "record", raising)
        with pytest.raises(ValueError, match="the log is broken"):
            client.post(f"{player.base}/withdraw")
    assert player.session()["next_position"] == 5, "nothing was deleted"
    for _ in range(2):
        assert client.post(f"{player.base}/withdraw").status_code == 200
    client.post(f"/s/{other.token}/withdraw")
    assert lines(db) == [("participant withdrew", "test", {})] * 2


def test_nobody_is_named_in_the_log(
    researcher: TestClient, db: Database, settings: Settings, start: Start, tmp_path: Path
) -> None:
    player = start(PROLIFIC_PID="5f3c0000000000000000aaaa")
    player.answer()
    researcher.get("/signin?link=somebodys-token")
    researcher.get("/results/test/export.zip?comments=1&recruiter_ids=1")
    researcher.post(f"{player.base}/withdraw")
    with db.read() as session:
        person = session.scalars(select(Participant)).one()
        assert session.scalar(select(func.count()).select_from(RecruiterId)) == 0
        assert session.scalar(select(func.count()).select_from(Comment)) == 0
    told = app(settings, "audit").stdout
    page = researcher.get("/audit").text
    assert told.count("participant withdrew") == page.count("participant withdrew") == 1
    for text in (told, page.split("<main", 1)[1]):
        for secret in (
            *(player.token, person.pseudonym, person.withdrawal_code, "5f3c0000", "somebodys-token"),
            *("testclient", "127.0.0.1", *researcher.cookies.values()),
        ):
            assert secret not in text


def fill(db: Database, count: int, start: datetime) -> None:
    with db.write() as session:
        for i in range(count):
            audit.record(
                session,
                Event.ERASED,
                study="<b>test</b>",
                detail={"participants": i, "why": "<script>"},
                now=start + timedelta(hours=i),
            )
        session.commit()


def test_the_command_prints_all_or_since_a_time_in_utc(
    client: TestClient, db: Database, settings: Settings
) -> None:
    fill(db, 30, datetime(2026, 1, 1, 20, 30, tzinfo=UTC))
    printed = app(settings, "audit").stdout.splitlines()
    assert printed[0] == "2026-01-01T20:30:00Z\terased\t<b>test</b>\tparticipants: 0, why: <script>"
    assert [int(re.findall(r"participants: (\d+)", line)[0]) for line in printed] == list(range(30))
    for since, first in (
        ("2026-01-02", 4),
        ("2026-01-01T22:30", 2),
        ("2026-01-01T22:30:01", 3),
        ("2026-01-01T22:30+02:00", 0),
        ("2026-01-01T23:30+01:00", 2),
    ):
        assert app(settings, "audit", "--since", since).stdout.splitlines() == printed[first:], since
    assert app(settings, "audit", "--since", "2027-01-01").stdout == ""
    assert_one_line(app(settings, "audit", "--since", "yesterday"), "'yesterday'", "2026-01-31")


def test_the_page_shows_everything_a_hundred_at_a_time(researcher: TestClient, db: Database) -> None:
    fill(db, 230, datetime(2026, 1, 1, tzinfo=UTC))
    seen: list[int] = []
    address: str | None = "/audit"
    pages = 0
    while address:
        text = researcher.get(address).text
        assert "<b>test" not in text
        assert "<script>" not in text.split("<main", 1)[1]
        seen += map(int, re.findall(r"participants: (\d+)", text))
        following = re.search(r'href="(/audit\?before=\d+)"', text)
        address, pages = following[1] if following else None, pages + 1
    assert seen == list(reversed(range(230)))
    assert pages == 3
    assert "Nothing has been recorded" in researcher.get("/audit?before=1").text
    for wrong in ("0", "x", "99999999999999999999"):
        assert researcher.get(f"/audit?before={wrong}").status_code == 422
    researcher.cookies.clear()
    assert researcher.get("/audit").status_code == 401


def test_nothing_in_the_program_changes_or_removes_an_entry() -> None:
    """Only the models, the log itself and the throttle, which counts, know the table."""
    knowing = {
        path.name
        for path in (ROOT / "app").glob("*.py")
        if re.search(r"\bAuditEntry\b|audit_log", path.read_text())
    }
    assert knowing == {"models.py", "audit.py", "password.py"}
    for name in ("audit.py", "password.py"):
        assert not re.search(r"\b(delete|update|merge)\(\s*AuditEntry", (ROOT / "app" / name).read_text())
