"""Chromium, one real server for all of these tests, and what each test fails on besides its own asserts."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

from app.db import Database
from app.serving import prepare
from app.settings import Settings
from ml.pack import Pack
from tests import browser as chromium
from tests.app.chromium.visitor import Visit, Visitor
from tests.app.conftest import STUDY, Server, installation, serving
from tests.app.databases import Databases
from tests.packs import make_pack

FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium's sandbox refuses to work for root
]


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory, pack: Pack, databases: Databases) -> Settings:
    folder = tmp_path_factory.mktemp("browser")
    settings = installation(folder, pack, databases.new(folder))
    for name in ("watched", "looked-at", "results"):
        (settings.studies / f"{name}.toml").write_text(STUDY)
    careful = STUDY.replace("A study for tests", "With the default time").replace("min_answer_ms = 0\n", "")
    (settings.studies / "careful.toml").write_text(careful)
    blocks = STUDY.replace("A study for tests", "With pauses")
    blocks = blocks.replace("[primary]", "pause_after = 5\nrotate_questions = true\n\n[primary]", 1)
    (settings.studies / "blocks.toml").write_text(blocks)
    # Packs that no other test shares: they go into the database alone.
    stimuli = tmp_path_factory.mktemp("larger")
    make_pack(stimuli / "larger-pack", "larger-pack", size=32)
    kinds = STUDY.replace("A study for tests", "With images of two sizes")
    kinds = kinds.replace('packs = ["test-pack"]', 'packs = ["test-pack", "larger-pack"]')
    kinds = kinds.replace("seed = 7", 'seed = 7\nquestions = ["label", "runner_up"]')
    make_pack(stimuli / "words-pack", "words-pack", labels=("box", "horizontal", "vertical"), targets=2)
    words = STUDY.replace("test-pack", "words-pack").replace("seed = 7", "seed = 7\ntrials = 9")
    (settings.studies / "words.toml").write_text(words)
    prepare(replace(settings, stimuli=stimuli, studies=stimuli))
    (settings.studies / "kinds.toml").write_text(kinds)
    return settings


@pytest.fixture(scope="session")
def server(settings: Settings) -> Iterator[Server]:
    """One server for all: each test has participants of its own, those that count them a study of their own."""
    with serving(settings) as server:
        yield server


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    """Stopped before tests elsewhere begin: its event loop counts as running in this thread as long as it lives."""
    if chromium.find() is None:
        pytest.fail(chromium.ADVICE, pytrace=False)
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="package")
def browser(playwright: Playwright) -> Iterator[Browser]:
    browser = playwright.chromium.launch(executable_path=chromium.find(), args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    """A new person's browser, `at` a server, with the context options of Playwright."""
    visitors: list[Visitor] = []

    def new(at: str = server.url, **options: Any) -> Visitor:
        visitors.append(Visitor(browser.new_context(base_url=at, **options), at))
        return visitors[-1]

    yield new
    for visitor in visitors:
        visitor.context.close()
    assert [fault for visitor in visitors for fault in visitor.faults] == []


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


@pytest.fixture
def api(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url) as client:
        yield client
