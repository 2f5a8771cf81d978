"""What a process may find when it starts: a later program's database, something else's, others that start too."""

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from app import cli
from app.db import Database
from app.settings import ROOT, Settings
from tests.app import forked
from tests.app.conftest import environment
from tests.app.databases import Databases, connected, path
from tests.app.releases import RELEASES, carried
from tests.app.test_releases import columns, content

LATER = "update alembic_version set version_num = '9999'"


def execute(url: str, *statements: str) -> None:
    with connected(url) as connection:
        for statement in statements:
            connection.execute(text(statement))
        connection.commit()


def migrate(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.close()


def of_a_later_version(url: str) -> None:
    migrate(url)
    execute(url, LATER, "create table telepathy (id integer)")


def without_its_revision(url: str) -> None:
    migrate(url)
    execute(url, "drop table alembic_version")


def of_another_migrated_program(url: str) -> None:
    execute(
        url,
        "create table customers (id integer)",
        "create table alembic_version (version_num varchar(32))",
        "insert into alembic_version values ('0001')",
    )


UPGRADE = (
    "the database's schema is revision 9999, which this version of the program does not know (its latest is "
)
NO_REVISION = "it has the tables {} and no schema revision; nothing was changed: name another database"
STRANGERS: dict[str, tuple[Callable[[str], None], str]] = {
    "of a later version": (of_a_later_version, UPGRADE),
    "of something else": (
        lambda url: execute(url, "create table customers (id integer)", "insert into customers values (1)"),
        "the database belongs to something else: " + NO_REVISION.format("customers"),
    ),
    "of something that only looks elsewhere": (
        lambda url: execute(url, "create view customers as select 1 as id"),
        "the database belongs to something else: " + NO_REVISION.format("customers"),
    ),
    "of another migrated program": (
        of_another_migrated_program,
        "it has the tables customers and the schema ",
    ),
    "without its revision": (
        without_its_revision,
        NO_REVISION.format("audit_log, clean_images, comments, ..."),
    ),
    "of an unknown revision alone": (
        lambda url: execute(
            url,
            "create table alembic_version (version_num varchar(32))",
            "insert into alembic_version values ('abc')",
        ),
        "it has no tables and the schema revision abc",
    ),
}
COMMANDS = {
    "serve": ["serve", "--port", "0"],
    "import-pack": ["import-pack", "stimuli/mnist-jsma"],
    "export": ["export", "--study", "test", "--out", "no-such-folder/out"],
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_database_that_is_not_this_programs_is_refused_and_left_alone(
    settings: Settings,
    stranger: str,
    databases: Databases,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, said = STRANGERS[stranger]
    make(settings.database_url)
    if databases.kind == "sqlite":  # as other programs have it, without a log; nor is the log to appear
        with closing(sqlite3.connect(path(settings.database_url))) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
    before = untouched(settings.database_url, databases)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    for name, arguments in COMMANDS.items():
        assert cli.main(arguments) == 2, name
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        assert said in line
        assert untouched(settings.database_url, databases) == before, name


def untouched(url: str, databases: Databases) -> object:
    if databases.kind == "sqlite":
        return {file.name: file.read_bytes() for file in path(url).parent.glob(f"{path(url).name}*")}
    return columns(url), content(url)


@pytest.mark.only("sqlite")
def test_a_file_that_is_no_database_is_refused_and_left_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = path(settings.database_url)
    file.write_text("Dear diary, " * 100)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert cli.main(["serve", "--port", "0"]) == 2
    assert "file is not a database" in capsys.readouterr().err
    assert file.read_text() == "Dear diary, " * 100


def test_an_emptied_database_may_be_filled_again(settings: Settings) -> None:
    execute(settings.database_url, "create table alembic_version (version_num varchar(32))")
    migrate(settings.database_url)
    assert "participants" in columns(settings.database_url)


# Several that start at once

STARTING = """
import os, sys
from app import serving, settings, main
config = settings.load()
go, started = os.pipe()
children = []
for _ in range(int(sys.argv[1])):
    if child := os.fork():
        children.append(child)
        continue
    os.close(started)
    os.read(go, 1)  # returns when the parent has closed its end, for all at the same moment
    os._exit(0 if serving.prepare(config) == ["test"] else 1)
os.close(started)
sys.exit(any([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""


@pytest.mark.parametrize("before", ["nothing", RELEASES[-1]])
def test_servers_that_start_at_once_prepare_one_database(
    settings: Settings, databases: Databases, tmp_path: Path, before: str
) -> None:
    """One migrates and stores the packs, the others wait: without the lock they make the same tables twice."""
    url = settings.database_url
    if before != "nothing":
        (tmp_path / "old").mkdir()
        url = carried(before, databases, tmp_path / "old")
    starting = Settings(url, settings.secret, settings.studies, settings.stimuli)
    done = forked.run([sys.executable, "-c", STARTING, "4"], environment(starting))
    assert (done.returncode, done.stderr) == (0, "")
    stored = content(url, {"packs": ["sha256"], "studies": ["slug"], "alembic_version": ["version_num"]})
    assert sum(stored["packs"].values()) == len(stored["packs"]), "each pack once"
    new = 0 if before == "nothing" else 3
    assert sum(stored["studies"].values()) == new + 1
    assert stored["alembic_version"].total() == 1
