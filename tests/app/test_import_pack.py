"""Importing packs: all or nothing, again changes nothing, and what is served is what was checked."""

import hashlib
import json
import shutil
import signal
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Select, event, func, select
from sqlalchemy.exc import OperationalError

from app.db import Database
from app.main import create_app
from app.models import CleanImage, Image, Pack, Stimulus, Study, StudyPack
from app.packs import Imported, import_pack
from app.serving import prepare
from app.settings import Settings
from ml import pack as pack_format
from ml.pack import PackError
from tests.app import forked
from tests.app.conftest import STUDY, environment
from tests.app.small import db, prepared, settings, small, study
from tests.app.test_cli import app, assert_one_line
from tests.packs import make_pack

__all__ = ["db", "prepared", "settings", "small", "study"]  # fixtures

pytestmark = pytest.mark.usefixtures("prepared")  # the small pack and its study are there

TABLES = (Pack, Image, Stimulus, CleanImage, Study, StudyPack)
LATER = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> pack_format.Pack:
    """A pack that is not imported."""
    return make_pack(tmp_path_factory.mktemp("other") / "other", "other", labels="012", targets=2, seed=5)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> pack_format.Pack:
    """Another content under the name of the pack that is there."""
    folder = tmp_path_factory.mktemp("changed") / "test-pack"
    return make_pack(folder, labels="0123", targets=2, seed=5)


@pytest.fixture
def copy(other: pack_format.Pack, tmp_path: Path) -> Path:
    """A folder with the pack `other`, to damage."""
    shutil.copytree(other.directory, tmp_path / "copy")
    return tmp_path / "copy"


def content(db: Database) -> list[list[tuple[Any, ...]]]:
    """Every row of every table that an import may touch."""
    with db.read() as session:
        return [
            sorted(tuple(map(repr, row)) for row in session.execute(select(table.__table__)))
            for table in TABLES
        ]


def imported(db: Database, pack: pack_format.Pack, now: datetime = LATER) -> Imported:
    with db.preparing() as session:
        _, done = import_pack(session, pack, now)
        session.commit()
    return done


def assert_whole(db: Database, pack: pack_format.Pack) -> None:
    """The pack is there with all that it has, byte for byte."""

    def of(table: type[Stimulus] | type[CleanImage]) -> Select[Any]:
        return select(func.count()).select_from(table).join(Pack).where(Pack.sha256 == pack.pack_sha256)

    with db.read() as session:
        row = session.scalars(select(Pack).where(Pack.sha256 == pack.pack_sha256)).one()
        assert row.manifest == pack.manifest
        assert session.scalar(of(Stimulus)) == len(pack.stimuli)
        assert session.scalar(of(CleanImage)) == len(pack.unmodified)
        for path in (pack.directory / "images").iterdir():
            assert session.get_one(Image, path.stem).png == path.read_bytes()


# All or nothing


class Fault(Exception):
    pass


def test_an_error_at_any_statement_leaves_nothing(db: Database, other: pack_format.Pack) -> None:
    before, count, at = content(db), 0, -1

    @event.listens_for(db.engine, "before_cursor_execute")
    def execute(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal count
        if statement.startswith("INSERT"):
            count += 1
            if count == at:
                raise OperationalError(statement, None, Fault("the disk is full"))

    with db.preparing() as session:
        import_pack(session, other, LATER)  # and no commit
    inserts = count
    assert inserts >= 4, "the pack, its images, its stimuli, its unmodified images"
    assert content(db) == before
    for number in range(1, inserts + 1):
        at, count = number, 0
        with pytest.raises(OperationalError, match="the disk is full"):
            imported(db, other)
        assert content(db) == before
    at = -1
    assert imported(db, other) is Imported.NEW
    assert_whole(db, other)


KILLED = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine

@event.listens_for(Engine, "after_cursor_execute")
def executed(connection, cursor, statement, *rest):
    if statement.startswith("INSERT INTO " + sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

from app.cli import main
main(["import-pack", sys.argv[2]])
"""


@pytest.mark.parametrize("table", ["images", "clean_images"])
def test_a_process_that_is_killed_leaves_nothing(
    db: Database,
    settings: Settings,
    other: pack_format.Pack,
    table: str,
) -> None:
    before = content(db)
    command = [sys.executable, "-c", KILLED, table, str(other.directory)]
    done = forked.run(command, environment(settings))
    assert done.returncode == -signal.SIGKILL
    assert content(db) == before
    assert imported(db, other) is Imported.NEW
    assert_whole(db, other)


FULL = """
import resource, sys
from app.cli import main
from app.db import Database
from app import settings
Database(settings.load().database_url).close()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(["import-pack", sys.argv[2]]))
"""


@pytest.mark.only("sqlite")
def test_a_disk_that_is_full_leaves_nothing(
    db: Database,
    settings: Settings,
    other: pack_format.Pack,
) -> None:
    before = content(db)
    command = [sys.executable, "-c", FULL, str(40_000), str(other.directory)]
    done = forked.run(command, environment(settings))
    assert_one_line(done, "the database cannot be used")
    assert content(db) == before
    assert imported(db, other) is Imported.NEW


def test_an_image_that_changes_between_check_and_import_leaves_nothing(
    db: Database,
    copy: Path,
) -> None:
    before, read = content(db), pack_format.read_untrusted(copy)
    victim, another = sorted((copy / "images").iterdir())[-2:]
    victim.write_bytes(another.read_bytes())
    with pytest.raises(PackError, match=f"{victim.name}: the content does not have the sha256 in its name"):
        imported(db, read)
    assert content(db) == before


# Again, and at once


def test_again_changes_no_row(db: Database, small: pack_format.Pack, other: pack_format.Pack) -> None:
    assert imported(db, other) is Imported.NEW
    before = content(db)
    for pack in (small, other):
        assert imported(db, pack, LATER + timedelta(days=1)) is Imported.KNOWN
    assert content(db) == before


def test_two_at_once_are_one(db: Database, settings: Settings, other: pack_format.Pack) -> None:
    """The second begins while the first has stored everything and not yet committed."""
    begun = threading.Event()

    def second() -> Imported:
        own = Database(settings.database_url)
        begun.set()
        done = imported(own, other)
        own.close()
        return done

    with ThreadPoolExecutor(1) as pool, db.preparing() as session:
        _, done = import_pack(session, other, LATER)
        waiting = pool.submit(second)
        begun.wait(60)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        session.commit()
        session.close()
        assert (done, waiting.result(timeout=60)) == (Imported.NEW, Imported.KNOWN)
    assert_whole(db, other)


def test_packs_that_share_images_may_come_at_once(
    db: Database,
    settings: Settings,
    other: pack_format.Pack,
    tmp_path: Path,
) -> None:
    pngs = [path.read_bytes() for path in (other.directory / "images").iterdir()]
    packs = [
        pack_format.write(tmp_path / name, other.manifest | {"name": name}, pngs) for name in ("a", "b", "c")
    ]

    def one(pack: pack_format.Pack) -> Imported:
        own = Database(settings.database_url)
        done = imported(own, pack)
        own.close()
        return done

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(one, packs)) == {Imported.NEW}
    for pack in packs:
        assert_whole(db, pack)


def test_another_content_of_a_name_is_another_row_and_a_running_study_keeps_its_own(
    db: Database,
    small: pack_format.Pack,
    changed: pack_format.Pack,
) -> None:
    before = content(db)
    # The clock was set back meanwhile; the pack that came last is in use all the same.
    assert imported(db, changed, datetime(1999, 1, 1, tzinfo=UTC)) is Imported.NEW
    assert imported(db, changed, datetime(1999, 1, 1, tzinfo=UTC)) is Imported.KNOWN
    between = content(db)
    for table, (old, new) in enumerate(zip(before, between, strict=True)):
        assert set(old) <= set(new), TABLES[table]
    assert between[4:] == before[4:], "the study and its packs"
    assert imported(db, small, datetime(1999, 1, 1, tzinfo=UTC)) is Imported.BACK
    assert imported(db, small, datetime(1999, 1, 1, tzinfo=UTC)) is Imported.KNOWN
    assert content(db)[1:] == between[1:], "nothing but which pack came last"
    assert_whole(db, small)
    assert_whole(db, changed)


def test_what_is_done_is_said(settings: Settings, small: pack_format.Pack, changed: pack_format.Pack) -> None:
    for pack, said in (
        (small, "already here, nothing changed"),
        (changed, "imported"),
        (small, "already here, and from now on again the pack of its name"),
        (small, "already here, nothing changed"),
    ):
        done = app(settings, "import-pack", str(pack.directory))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"test-pack: {len(small.stimuli)} stimuli, {said}\n"


# What is refused


def rewritten(folder: Path, **changes: Any) -> Path:
    """The pack with other things in its manifest, and its hash right again."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    manifest["pack_sha256"] = pack_format.pack_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_what_is_refused_is_one_line_and_nothing_is_stored(
    db: Database,
    settings: Settings,
    copy: Path,
    tmp_path: Path,
) -> None:
    before = content(db)
    manifest = json.loads((copy / "manifest.json").read_text())

    def refused(place: Path, *complaints: str) -> None:
        assert_one_line(app(settings, "import-pack", str(place)), str(place), *complaints)
        assert content(db) == before

    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        archive.write(copy / "manifest.json", "manifest.json")
    refused(tmp_path / "nowhere", "there is no such folder")
    refused(tmp_path / "pack.zip", "a ZIP archive; unpack it")
    refused(tmp_path, "manifest.json: cannot be read")
    refused(rewritten(copy, format="stimulus-pack/2"), "expected 'stimulus-pack/1'")
    refused(rewritten(copy, format="stimulus-pack/1", name="x" * 101), "the name 'xxx")
    lie = dict(manifest["stimuli"][0], l2=0.01)
    refused(rewritten(copy, name="other", stimuli=[lie, *manifest["stimuli"][1:]]), "l2 0.01, measured")
    refused(rewritten(copy, stimuli=manifest["stimuli"][1:]), "there is no stimulus")
    refused(rewritten(copy, stimuli=manifest["stimuli"], versions={"torch": "\0"}), "U+0000")
    rewritten(copy, versions={})
    victim = min((copy / "images").iterdir())
    victim.write_bytes(victim.read_bytes()[:-1])
    refused(copy, victim.name, "does not have the sha256 in its name")


def test_a_refused_pack_keeps_no_other_from_being_served(
    settings: Settings,
    small: pack_format.Pack,
    other: pack_format.Pack,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stimuli = tmp_path / "stimuli"
    for name, pack in (("a-lie", other), ("b-broken", other), ("c-good", small), ("d-other", other)):
        shutil.copytree(pack.directory, stimuli / name)
    rewritten(
        stimuli / "a-lie", stimuli=json.loads((other.directory / "manifest.json").read_text())["stimuli"][1:]
    )
    (stimuli / "b-broken" / "manifest.json").write_text("{")
    rewritten(shutil.copytree(small.directory, stimuli / "e-twice"), seed=9)
    own = Settings(settings.database_url, settings.secret, settings.studies, stimuli, settings.results)
    later = (settings.studies / "test.toml").read_text().replace('"test-pack"', '"later-pack"')
    (settings.studies / "later.toml").write_text(later)
    assert prepare(own) == ["test"]
    a, b, e, study_line = capsys.readouterr().err.splitlines()
    assert a.startswith(f"not imported: {stimuli / 'a-lie' / 'manifest.json'}: ")
    assert "there is no stimulus" in a
    assert b.startswith(f"not imported: {stimuli / 'b-broken' / 'manifest.json'}: not valid JSON")
    assert f"the pack in {stimuli / 'c-good'} has the name 'test-pack' too; remove or rename" in e
    assert study_line.startswith(f"not served: {settings.studies / 'later.toml'}: pack 'later-pack'")
    with TestClient(create_app(own)) as client:
        assert client.get("/study/test").status_code == 200
        image = other.stimuli[0].sha256
        assert client.get(f"/stimuli/{image}.png").content == other.image(image)


# What is stored and shown


def test_what_is_served_is_byte_for_byte_what_was_checked(
    db: Database,
    settings: Settings,
    other: pack_format.Pack,
) -> None:
    imported(db, other)
    hashes = [
        *(s.sha256 for s in other.stimuli),
        *(o.sha256 for o in other.unmodified),
        *other.grids.values(),
    ]
    with TestClient(create_app(settings)) as client:
        for sha256 in hashes:
            reply = client.get(f"/stimuli/{sha256}.png")
            assert reply.status_code == 200
            assert hashlib.sha256(reply.content).hexdigest() == sha256
            assert reply.headers["content-type"] == "image/png"
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in reply.headers["content-security-policy"]
        for sha256 in ("0" * 64, "..%2f..%2fetc%2fpasswd", hashes[0].upper(), "%00"):
            assert client.get(f"/stimuli/{sha256}.png").status_code == 404


def test_odd_things_that_a_manifest_may_say_are_kept_as_they_are(
    db: Database,
    copy: Path,
) -> None:
    odd = {
        "text": "\\u0000 \"'%s:x \U0001f600 \u200f\t\n",
        "most": 2**64 - 1,
        "float": 1e308,
        "small": 5e-324,
    }
    pack = pack_format.read_untrusted(rewritten(copy, versions=odd, **{"%(x)s; --": [[]]}))
    assert imported(db, pack) is Imported.NEW
    assert_whole(db, pack)
    with db.read() as session:
        manifest = session.scalars(select(Pack.manifest).where(Pack.name == "other")).one()
    assert pack_format.pack_sha256(manifest) == pack.pack_sha256 == manifest["pack_sha256"]


def test_labels_are_shown_as_text(tmp_path: Path, db: Database, settings: Settings) -> None:
    labels = ["<img src=x onerror=alert(1)>", "</script><b>", "' onclick='x", "{{ 7 * 7 }}"]
    made = make_pack(tmp_path / "stimuli" / "markup", "markup", labels=labels, targets=2)
    (settings.studies / "markup.toml").write_text(
        STUDY.replace("seed = 7", "seed = 7\ntrials = 12").replace("test-pack", "markup")
    )
    own = Settings(settings.database_url, settings.secret, settings.studies, made.directory.parent, tmp_path)
    assert "markup" in prepare(own)
    with TestClient(create_app(own)) as client:
        body = {"study": "markup", "consent": True, "external": {}}
        session = client.post("/api/sessions", json=body).json()
        page = client.get(session["url"]).text
    for label in labels[:3]:
        assert label not in page
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "{{ 7 * 7 }}" in page
