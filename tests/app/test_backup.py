"""A backup holds everything, whatever happens meanwhile; restored, on either database, it is what it was."""

import gzip
import hashlib
import json
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from app import auth, backup, restore, schema
from app.backup import BackupError
from app.cli import main
from app.db import Database
from app.main import create_app
from app.settings import Settings
from ml.pack import Pack
from tests.app import databases as kinds
from tests.app.conftest import SECRET, Player, begin, installation
from tests.app.databases import Databases, connected
from tests.app.faults import count, crowd, killable
from tests.app.small import db, prepared, settings, small, study

Capture = pytest.CaptureFixture[str]

__all__ = ["db", "prepared", "settings", "small", "study"]  # fixtures

REMARK = "“Ünlesbar” \\n 数字\n'quoted'; --"


@pytest.fixture
def empties(postgres_server: kinds.Server, tmp_path: Path) -> Iterator[dict[kinds.Kind, Database]]:
    """New databases to restore into, one of each kind."""
    (tmp_path / "elsewhere").mkdir()
    sources = [Databases(kind, postgres_server) for kind in kinds.KINDS]
    urls = [source.new(tmp_path / "elsewhere") for source in sources]
    found = {source.kind: Database(url) for source, url in zip(sources, urls, strict=True)}
    yield found
    for source, url in zip(sources, urls, strict=True):
        found[source.kind].close()
        source.discard(url)


@pytest.fixture(params=kinds.KINDS)
def empty(request: pytest.FixtureRequest, empties: dict[kinds.Kind, Database]) -> Database:
    kind: kinds.Kind = request.param
    return empties[kind]


@pytest.fixture(scope="module")
def played(
    prepared: str,
    databases: Databases,
    small: Pack,
    study: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Player]:
    """One who finished, one who left, one who withdrew, one pretended; and the one returned, in the middle.

    Tests that ask for it have a copy of this database.
    """
    folder = tmp_path_factory.mktemp("played")
    url = databases.copy(prepared, folder)
    with TestClient(create_app(installation(folder, small, url, study))) as client:
        begin(client, PROLIFIC_PID="Zoë", STUDY_ID="s").answer(
            lambda trial: (
                {"runner_up": None, "label": "none"}
                if trial["state"] == "labelling" and trial["position"] == 3
                else {"display": {"dpr": 1.1}}
            )
        )
        begin(client, PROLIFIC_PID="aaron").answer(until="judging")
        begin(client, simulated="yes").answer()
        gone = begin(client, PROLIFIC_PID="gone")
        gone.answer(most=5)
        assert client.post(f"{gone.base}/withdraw").status_code == 200
        unfinished = begin(client, PROLIFIC_PID="middle")
        unfinished.answer(until="commenting")
        assert client.post(f"{unfinished.base}/comments", json={"text": REMARK}).status_code == 200
        begin(client, PROLIFIC_PID="half").answer(most=4)
    return url, unfinished


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path, databases: Databases) -> Iterator[str]:
    if "played" in request.fixturenames:
        url = databases.copy(request.getfixturevalue("played")[0], tmp_path)
    elif "prepared" in request.fixturenames:
        url = databases.copy(request.getfixturevalue("prepared"), tmp_path)
    else:
        url = databases.new(tmp_path)
    yield url
    databases.discard(url)


def results_of(url: str, settings: Settings) -> list[dict[str, Any]]:
    """What the dashboard says of real and of pretended participants."""
    with TestClient(create_app(Settings(url, SECRET, settings.studies, settings.stimuli))) as client:
        client.get(f"/signin?key={auth.sign_in_key(SECRET)}")
        shown = [client.get("/results/test.json", params={"data": d}).json() for d in ("real", "simulated")]
        return [{key: value for key, value in found.items() if key != "computed_at"} for found in shown]


def rows_of(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, read without the app's code; each value as text that is the same on both."""

    def portable(value: Any, column: sa.Column[Any]) -> str | None:
        if isinstance(value, memoryview | bytes):
            return hashlib.sha256(value).hexdigest()
        if value is not None and isinstance(column.type, sa.DateTime):
            return str(value.replace(tzinfo=None))
        if isinstance(column.type, sa.Boolean):
            return str(bool(value))
        if isinstance(value, dict | list):
            return json.dumps(value)
        return str(value).replace("-", "")

    tables = sa.MetaData()
    with connected(url) as connection:
        tables.reflect(connection)
        return {
            table.name: sorted(
                tuple(str(portable(v, c)) for v, c in zip(row, table.columns, strict=True))
                for row in connection.execute(sa.select(table))
            )
            for table in tables.sorted_tables
            if table.name not in ("alembic_version", "researcher_sessions", "signin_links")
        }


def url_of(database: Database) -> str:
    url = database.engine.url
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=False)


def test_what_is_restored_is_what_was_backed_up_and_goes_on(
    db: Database,
    settings: Settings,
    played: tuple[str, Player],
    empty: Database,
    tmp_path: Path,
) -> None:
    before = rows_of(settings.database_url)
    assert len(before["responses"]) > 40
    assert any(REMARK.replace("-", "") in row for row in before["comments"])
    backup.write(db, tmp_path / "a.zip")
    restore.restore(empty, tmp_path / "a.zip")
    after = rows_of(url_of(empty))
    (restored,) = set(after.pop("audit_log")) - set(before.pop("audit_log"))
    assert "restored" in restored
    assert after == before
    assert results_of(url_of(empty), settings) == results_of(settings.database_url, settings)
    # Back again: the same lines, whichever database they come from.
    backup.write(empty, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as a, zipfile.ZipFile(tmp_path / "b.zip") as b:
        for name in set(a.namelist()) - {backup.MANIFEST, "tables/audit_log.jsonl"}:
            assert a.read(name) == b.read(name), name
    # Who was in the middle goes on, who returns is recognized, and whoever is new gets a number of their own.
    with TestClient(
        create_app(Settings(url_of(empty), SECRET, settings.studies, settings.stimuli))
    ) as client:
        unfinished = played[1].token
        here = Player(client, unfinished)
        assert here.session()["state"] == "commenting"
        assert client.post(f"{here.base}/finish").json()["completion_code"]
        assert begin(client, PROLIFIC_PID="middle").token == unfinished
        begin(client, PROLIFIC_PID="new").answer()
    after = rows_of(url_of(empty))
    assert len(after["participants"]) == len(before["participants"]) + 1
    assert len(after["trials"]) > len(before["trials"])


def test_a_backup_amid_answers_holds_every_answer_acknowledged_before(
    settings: Settings,
    db: Database,
    small: Pack,
    prepared: str,
    empties: dict[kinds.Kind, Database],
    tmp_path: Path,
) -> None:
    file = tmp_path / "amid.zip"
    with (
        killable(settings, tmp_path / "server.log") as server,
        crowd(server.url, "test", small, 8, seed=5) as bots,
    ):
        bots.wait_for_answers(60)
        before = list(bots.ledger.acknowledged)
        backup.write(db, file)  # in another process than the server's
        during = len(bots.ledger.acknowledged) - len(before)
        bots.finish()
        assert bots.ledger.failures == [], "nobody noticed"
    end = rows_of(settings.database_url)
    ledger, answers = bots.ledger, len(bots.ledger.acknowledged)
    ledger.acknowledged[:] = before
    ledger.remarks.clear()
    for kind, restored in empties.items():
        url = url_of(restored)
        restore.restore(restored, file)
        counts = count(url, ledger)
        print(kind, during, counts)
        assert (counts.lost, counts.doubled, counts.unknown) == (0, 0, 0)
        assert len(before) <= counts.stored < answers, "amid answers, not after them"
        # Answers never change: those of the backup are among those at the end, as they are there.
        rows = rows_of(url)
        for table in ("responses", "judgments", "trials", "stimuli", "images"):
            assert set(rows[table]) <= set(end[table]), (kind, table)
        # Who was in the middle goes on.
        with TestClient(create_app(Settings(url, SECRET, settings.studies, settings.stimuli))) as client:
            tokens = {answer.token for answer in ledger.sent}
            found = [t for t in sorted(tokens) if client.get(f"/api/sessions/{t}").status_code == 200]
            assert len(found) == counts.sessions > 0
            for token in found:
                Player(client, token).answer()
        with connected(url) as connection:
            finished = connection.scalar(
                sa.text("SELECT count(*) FROM participants WHERE finished_at IS NOT NULL")
            )
        assert finished == counts.sessions
        assert count(url, ledger).unanswered == 0


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """A backup with other content: what only its checksums can tell, as the ZIP itself is sound."""
    with zipfile.ZipFile(source) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def described(files: dict[str, bytes], change: Callable[[dict[str, Any]], object]) -> object:
    """Change the manifest."""
    manifest = json.loads(files["manifest.json"])
    change(manifest)
    files["manifest.json"] = json.dumps(manifest).encode()
    return manifest


def forged(files: dict[str, bytes], table: str, change: Callable[[bytes], bytes]) -> None:
    """Change rows, and the manifest with them."""
    rows = change(files[f"tables/{table}.jsonl"])
    files[f"tables/{table}.jsonl"] = rows
    said = {"sha256": hashlib.sha256(rows).hexdigest(), "rows": rows.count(b"\n")}
    described(files, lambda manifest: manifest["tables"][table].update(said))


def replaced(files: dict[str, bytes], name: str, old: bytes, new: bytes) -> None:
    assert old in files[name]
    files[name] = files[name].replace(old, new, 1)


def without_last(rows: bytes) -> bytes:
    return b"".join(rows.splitlines(keepends=True)[:-1])


RESPONSES = "tables/responses.jsonl"
CHANGES: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "an answer changed": (lambda f: replaced(f, RESPONSES, b"1000.0", b"1001.0"), "responses .* damaged"),
    "an answer left out": (lambda f: f.update({RESPONSES: without_last(f[RESPONSES])}), "does not hold"),
    "an answer added": (lambda f: f.update({RESPONSES: f[RESPONSES] * 2}), "does not hold"),
    "half a line": (lambda f: f.update({RESPONSES: f[RESPONSES][:-5]}), "does not hold"),
    "a table left out": (lambda f: f.pop(RESPONSES), "files that its manifest names"),
    "a table not described": (lambda f: described(f, lambda m: m["tables"].pop("responses")), "files that"),
    "a table too many": (lambda f: f.update({"../../etc/passwd": b"x"}), "files that its manifest names"),
    "another table": (
        lambda f: (
            f.update({"tables/x.jsonl": f.pop(RESPONSES)}),
            described(f, lambda m: m["tables"].update(x=m["tables"].pop("responses"))),
        ),
        "not those of its schema",
    ),
    "no manifest": (lambda f: f.pop("manifest.json"), "no manifest"),
    "a manifest of text": (lambda f: f.update({"manifest.json": b"[" * 100_000}), "cannot be read"),
    "a manifest without counts": (
        lambda f: described(f, lambda m: m["tables"]["responses"].pop("rows")),
        "cannot be read",
    ),
    "a manifest without its time": (lambda f: described(f, lambda m: m.pop("taken_at")), "cannot be read"),
    "a schema that is a list": (lambda f: described(f, lambda m: m.update(schema=[1])), "cannot be read"),
    "another format": (lambda f: described(f, lambda m: m.update(format="study-backup/2")), "study-backup/1"),
    "a newer schema": (lambda f: described(f, lambda m: m.update(schema="9999")), "does not know"),
    "rows of another shape": (
        lambda f: forged(f, "responses", lambda rows: b"[1]\n" + rows),
        "a row of responses",
    ),
    "rows that are no rows": (lambda f: forged(f, "responses", lambda rows: b"7\n"), "a row of responses"),
    "an answer to nothing": (
        lambda f: forged(f, "trials", lambda rows: rows.partition(b"\n")[2]),
        "nothing|a row of responses",
    ),
    "a number too large": (
        lambda f: forged(f, "recruiter_ids", lambda rows: b"[" + b"9" * 40 + rows[2:]),
        "a row of recruiter_ids",
    ),
    "a time that is none": (
        lambda f: forged(f, "studies", lambda rows: rows.replace(b"+00:00", b"+0?:00")),
        "a row of",
    ),
    "what breaks a rule": (
        lambda f: forged(f, "stimuli", lambda rows: rows.replace(b'"1"', b'"2"')),
        "a row of stimuli",
    ),
}


@pytest.mark.only("sqlite")
def test_a_backup_that_is_not_as_it_was_restores_nothing(
    db: Database, played: tuple[str, Player], empty: Database, tmp_path: Path
) -> None:
    good = tmp_path / "good.zip"
    backup.write(db, good)
    for name, (alter, reason) in CHANGES.items():
        bad = rewritten(good, tmp_path / "bad.zip", alter)
        try:
            restore.restore(empty, bad)
        except BackupError as error:
            refused = str(error)
        else:
            pytest.fail(f"{name}: restored")
        assert re.search(reason, refused), name
        assert "\n" not in refused, name
        with connected(url_of(empty)) as connection:
            assert sa.inspect(connection).get_table_names() == [], f"{name}: as empty as it was"
    restore.restore(empty, good)


def test_a_restore_waits_for_a_server_that_starts(
    db: Database, played: tuple[str, Player], empties: dict[kinds.Kind, Database], tmp_path: Path
) -> None:
    """Else each would take the database for empty, and one would undo what the other has put there."""
    new, file = empties["postgresql"], tmp_path / "backup.zip"
    backup.write(db, file)
    with ThreadPoolExecutor(1) as pool:
        with new.engine.begin() as starting:
            schema.alone(starting)
            restoring = pool.submit(restore.restore, new, file)
            with pytest.raises(TimeoutError):
                restoring.result(timeout=1)
            schema.upgrade(starting)
        with pytest.raises(BackupError, match="not empty"):
            restoring.result()


@pytest.mark.only("sqlite")
def test_a_file_that_is_damaged_or_no_backup_or_a_bomb(
    db: Database,
    settings: Settings,
    played: tuple[str, Player],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, bad = tmp_path / "good.zip", tmp_path / "bad.zip"
    backup.write(db, good)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'new.db'}")
    monkeypatch.setenv("SECRET_KEY", SECRET)
    content = good.read_bytes()
    with zipfile.ZipFile(good) as archive:
        offset = archive.getinfo(RESPONSES).header_offset + 200
    cases = {
        "cut off": content[: len(content) // 2],
        "a bit flipped": content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :],
        "empty": b"",
        "text": b"no archive",
    }
    for name, bytes_ in cases.items():
        bad.write_bytes(bytes_)
        assert main(["restore", str(bad)]) == 2, name
        said = capsys.readouterr().err
        assert re.fullmatch("error: .*damaged.*\n", said), (name, said)
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(bad, "w", zipfile.ZIP_LZMA) as other:
        for info in archive.infolist():
            other.writestr(info.filename, archive.read(info))
    assert main(["restore", str(bad)]) == 2
    assert "is compressed in a way that no backup is" in capsys.readouterr().err
    monkeypatch.setattr(restore, "ALWAYS_TAKEN_BYTES", 2**20)
    rewritten(good, bad, lambda files: files.update({RESPONSES: b"0" * 2**23}))
    assert main(["restore", str(bad)]) == 2
    assert "suspiciously large" in capsys.readouterr().err
    assert main(["restore", str(tmp_path / "none.zip")]) == 2
    assert "none.zip: No such file" in capsys.readouterr().err
    assert main(["restore", str(good)]) == 0, "what was refused left nothing behind"
    assert "and read them back" in capsys.readouterr().out
    assert main(["restore", str(good)]) == 2, "not into a database that holds something"
    assert "not empty" in capsys.readouterr().err


@pytest.mark.only("sqlite")
def test_a_database_that_changes_what_it_stores_is_noticed(
    db: Database,
    played: tuple[str, Player],
    empty: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Read back, not believed: here something drops the milliseconds of times."""
    backup.write(db, tmp_path / "a.zip")
    honest = backup.decoder

    def careless(column: sa.Column[Any], dialect: str) -> Any:
        decode = honest(column, dialect)
        if isinstance(column.type, sa.DateTime) and decode is not None:
            return lambda value: decode(value).replace(microsecond=0)
        return decode

    monkeypatch.setattr(restore, "decoder", careless)
    with pytest.raises(BackupError, match="is not the same in this database"):
        restore.restore(empty, tmp_path / "a.zip")
    assert rows_of(url_of(empty)) == {}


@pytest.mark.only("sqlite")
def test_the_file_is_its_owners_alone_and_replaces_none_unasked(
    db: Database,
    settings: Settings,
    played: tuple[str, Player],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET_KEY", SECRET)
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    folder = tmp_path / "kept"
    folder.mkdir()
    file = folder / "b.zip"
    assert main(["backup", str(file)]) == 0
    assert "personal data" in capsys.readouterr().out
    assert any("backed up" in row for row in rows_of(settings.database_url)["audit_log"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = file.read_bytes()
    assert main(["backup", str(file)]) == 2
    assert "--force" in capsys.readouterr().err
    assert file.read_bytes() == first
    assert main(["backup", str(file), "--force"]) == 0
    monkeypatch.setattr(backup, "lines", lambda *_: iter([1 / 0]))
    with pytest.raises(ZeroDivisionError):
        backup.write(db, file, replace=True)
    assert [path.name for path in folder.iterdir()] == ["b.zip"], "nothing half-written is left"
    assert main(["backup", str(tmp_path / "nowhere" / "b.zip")]) == 2
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'none.db'}")
    assert main(["backup", str(folder / "c.zip")]) == 2
    assert "no database" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()


def test_an_empty_database_has_nothing_to_back_up(empty: Database, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="no study"):
        backup.write(empty, tmp_path / "a.zip")
    assert not list(tmp_path.glob("*.zip"))


def test_the_backup_of_an_earlier_version_is_brought_up_to_this_one(empty: Database, tmp_path: Path) -> None:
    release = Path(__file__).parent / "releases" / "0.1.0"
    (tmp_path / "old.db").write_bytes(gzip.decompress((release / "sqlite.db.gz").read_bytes()))
    old = Database(f"sqlite:///{tmp_path / 'old.db'}")
    manifest = backup.write(old, tmp_path / "old.zip")  # taken before it is upgraded
    old.close()
    assert manifest["schema"] == "0003"
    restore.restore(empty, tmp_path / "old.zip")
    # As the file itself is after its upgrade.
    upgraded = Database(f"sqlite:///{tmp_path / 'old.db'}")
    upgraded.migrate()
    upgraded.close()
    expected, restored = rows_of(f"sqlite:///{tmp_path / 'old.db'}"), rows_of(url_of(empty))
    assert len(expected["responses"]) > 100
    assert "restored" in restored.pop("audit_log")[0]
    del expected["audit_log"]
    assert restored == expected


def test_a_backup_that_cannot_be_written_is_not_on_record(
    settings: Settings, prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def recorded() -> Any:
        with connected(settings.database_url) as connection:
            return connection.scalar(sa.text("SELECT count(*) FROM audit_log WHERE event = 'backed up'"))

    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    there, nowhere = tmp_path / "there.zip", tmp_path / "none" / "a.zip"
    there.write_text("something else")
    assert main(["backup", str(there)]) == main(["backup", str(nowhere)]) == 2
    assert f"{nowhere} cannot be written" in capsys.readouterr().err
    assert recorded() == 0
    assert main(["backup", str(tmp_path / "a.zip")]) == 0
    assert recorded() == 1


@pytest.mark.parametrize("target", kinds.KINDS)
def test_tables_of_others_are_left_out_and_said(
    db: Database,
    settings: Settings,
    played: Player,
    empties: dict[kinds.Kind, Database],
    target: kinds.Kind,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    before = rows_of(settings.database_url)
    with connected(settings.database_url) as connection:
        for table in ("notes", "lookalike"):
            connection.execute(sa.text(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, participant INTEGER)"))
        connection.commit()
    backup.write(db, tmp_path / "a.zip")
    assert capsys.readouterr().err == "left out, as this program did not make them: lookalike, notes\n"
    restore.restore(empties[target], tmp_path / "a.zip")
    after = rows_of(url_of(empties[target]))
    assert after["responses"] == before["responses"]
    assert "notes" not in after


@pytest.mark.only("sqlite")
def test_a_database_of_a_later_version_is_left_to_that(db: Database, prepared: str, tmp_path: Path) -> None:
    with db.write() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        session.commit()
    with pytest.raises(BackupError, match="9999, which this version of the program does not know"):
        backup.write(db, tmp_path / "a.zip")
    assert not list(tmp_path.glob("*a.zip"))


@pytest.mark.only("sqlite")
def test_what_a_kill_leaves_of_a_backup_is_deleted_with_old_backups(
    db: Database, played: Player, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "backups", []
    folder.mkdir()
    honest = backup.lines

    def looked(*given: Any) -> Iterator[bytes]:
        seen.append([path.name for path in folder.iterdir()])
        return honest(*given)

    monkeypatch.setattr(backup, "lines", looked)
    backup.write(db, folder / "a.zip")
    assert all(fnmatch(name, "*.zip") and name != "a.zip" for names in seen for name in names)
    assert len(seen[0]) == 1
