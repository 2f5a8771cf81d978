"""The documentation is built without a dead link, and its commands do what it says."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

from tests.commands import ROOT, Installation, blocks, installation
from tests.packs import make_pack

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "results").glob("*.md"), *ROOT.glob("*.md")])
INSTALLING = ("deploy", "first-study")  # who reads another page has done what the latter says
WITH_COMMANDS = sorted(
    (page for page in PAGES if any(not block.not_run for block in blocks(page))),
    key=lambda page: page.stem not in INSTALLING,
)


def test_the_site_is_built_and_no_link_leads_nowhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()


def test_a_dead_link_fails_the_build(tmp_path: Path) -> None:
    for file in ("conf.py",):
        (tmp_path / file).write_bytes((ROOT / "docs" / file).read_bytes())
    (tmp_path / "index.md").write_text("# A page\n\n[nowhere](nowhere.md) and [no heading](index.md#none)\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-b",
            "html",
            tmp_path,
            tmp_path / "site",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
    assert "none" in done.stderr


@pytest.mark.parametrize("page", list(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_of_the_repositorys_own_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_stand_in_blocks_that_are_run(page: Path) -> None:
    """An indented command, or one in a block of another language, would escape."""
    text = re.sub(r"^```sh\n.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert not re.findall(r"^(?: {4}|)\$? ?(?:\.venv/bin/)?(?:python3? -m|make |docker ).*", text, re.M)


@pytest.fixture(scope="module")
def machine(postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    url = make_url(postgresql)
    variables = {"PGHOST": str(url.query["host"]), "PGUSER": str(url.username)}
    with installation(tmp_path_factory.mktemp("machine"), variables) as there:
        yield there


@pytest.fixture
def empty_database(postgresql: str) -> Iterator[None]:
    """`postgresql:///study`, as on a machine set up by the page."""
    url = make_url(postgresql).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE study")
        yield
        connection.exec_driver_sql("DROP DATABASE study WITH (FORCE)")
    engine.dispose()


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_the_commands_of(page: Path, machine: Installation, empty_database: None) -> None:
    machine.renew(installed=page.stem not in INSTALLING)
    if page.stem == "paper":  # in place of what its author trains
        make_pack(machine.folder / "stimuli" / "digits-jsma", name="digits-jsma")
    try:
        for block in blocks(page):
            if not block.not_run:
                machine.run(block)
    finally:
        machine.stop()
