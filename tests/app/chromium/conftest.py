"""Chromium, one real server for all of these tests, and what each test fails on besides its own asserts."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

from app.db import Database
from app.serving import prepare
from app.settings import Settings
from ml.pack import Pack
from tests import browser as chromium
from tests.app import databases as kinds
from tests.app.chromium.visitor import SHORT, Visit, Visitor
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
def short(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Of few labels, and so of a study of few trials."""
    folder = tmp_path_factory.mktemp("short")
    return make_pack(folder / "short-pack", "short-pack", labels=tuple("0123"), targets=2)


class Servers:
    """One real server on each kind of database: tests on the one come between tests on the other."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory, pack: Pack, short: Pack) -> None:
        self._folders = tmp_path_factory
        self._packs = pack, short
        self._running: dict[str, Server] = {}
        self._stack = ExitStack()

    def on(self, databases: Databases) -> Server:
        kind = databases.kind
        if kind not in self._running:
            settings = prepared_for_all(self._folders, *self._packs, databases)
            self._running[kind] = self._stack.enter_context(serving(settings))
        return self._running[kind]

    def stop(self) -> None:
        self._stack.close()


def prepared_for_all(
    tmp_path_factory: pytest.TempPathFactory, pack: Pack, short: Pack, databases: Databases
) -> Settings:
    folder = tmp_path_factory.mktemp("browser")
    settings = installation(folder, pack, databases.new(folder))
    for name in ("watched", "looked-at", "results"):
        (settings.studies / f"{name}.toml").write_text(STUDY)
    careful = STUDY.replace("A study for tests", "With the default time").replace("min_answer_ms = 0\n", "")
    (settings.studies / "careful.toml").write_text(careful)
    blocks = STUDY.replace("A study for tests", "With pauses")
    blocks = blocks.replace("[primary]", "pause_after = 3\nrotate_questions = true\n\n[primary]", 1)
    (settings.studies / "blocks.toml").write_text(blocks)
    # Packs that no test elsewhere shares: they go into the database alone.
    stimuli = short.directory.parent
    if not (stimuli / "larger-pack").exists():
        make_pack(stimuli / "larger-pack", "larger-pack", size=32)
        make_pack(stimuli / "words-pack", "words-pack", labels=("box", "horizontal", "vertical"), targets=2)
    kinds = STUDY.replace("A study for tests", "With images of two sizes")
    kinds = kinds.replace('packs = ["test-pack"]', 'packs = ["test-pack", "larger-pack"]')
    kinds = kinds.replace("seed = 7", 'seed = 7\nquestions = ["label", "runner_up"]')
    words = STUDY.replace("test-pack", "words-pack").replace("seed = 7", "seed = 7\ntrials = 9")
    (settings.studies / "words.toml").write_text(words)
    few = STUDY.replace("A study for tests", "A short study").replace("test-pack", "short-pack")
    (settings.studies / "short.toml").write_text(few.replace("seed = 7", f"seed = 7\ntrials = {SHORT}"))
    prepare(replace(settings, stimuli=stimuli, studies=stimuli))
    (settings.studies / "kinds.toml").write_text(kinds)
    return settings


@pytest.fixture(scope="session")
def servers(
    tmp_path_factory: pytest.TempPathFactory,
    pack: Pack,
    short: Pack,
    postgres_server: kinds.Server,  # ends after the servers on it
) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory, pack, short)
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def server(servers: Servers, databases: Databases) -> Server:
    """One server for all: each test has participants of its own, those that count them a study of their own."""
    return servers.on(databases)


@pytest.fixture(scope="session")
def settings(server: Server) -> Settings:
    return server.settings


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


class Browsers:
    """Browser contexts for one person after the other.

    A new one is a new process, which takes longer than what many a test does in it. So one that a test has left is
    emptied and given to the next test with the same options. An empty page keeps its process alive.
    """

    IDLE = 4

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._empty: dict[BrowserContext, Page] = {}
        self._idle: dict[BrowserContext, str] = {}  # its options; the first was left first

    def new(self, options: dict[str, Any]) -> BrowserContext:
        return self._browser.new_context(**options)

    def take(self, options: dict[str, Any]) -> BrowserContext:
        context = next((left for left, own in self._idle.items() if own == str(options)), None)
        if context is None:
            context = self.new(options)
            self._empty[context] = context.new_page()
            return context
        del self._idle[context]
        context.clear_cookies()
        tools = context.new_cdp_session(self._empty[context])
        tools.send("Network.clearBrowserCache")
        tools.send("Storage.clearDataForOrigin", {"origin": options["base_url"], "storageTypes": "all"})
        tools.detach()
        return context

    def give_back(self, context: BrowserContext, options: dict[str, Any]) -> None:
        context.unroute_all(behavior="ignoreErrors")
        context.set_offline(False)
        for page in context.pages:
            if page is not self._empty[context]:
                page.close()
        self._idle[context] = str(options)
        if len(self._idle) > self.IDLE:
            oldest = next(iter(self._idle))
            del self._idle[oldest], self._empty[oldest]
            oldest.close()


@pytest.fixture(scope="package")
def browsers(browser: Browser) -> Browsers:
    return Browsers(browser)


MEDIA = ("color_scheme", "reduced_motion", "forced_colors", "contrast")


@pytest.fixture
def visit(browsers: Browsers, databases: Databases, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A new person's browser, `at` a server, with the context options of Playwright.

    What a test adds to its context for good (a script, a clock) needs an `own` one.
    """
    visitors: list[tuple[Visitor, dict[str, Any] | None]] = []  # with the options, if others use it after

    def new(at: str | None = None, own: bool = False, **options: Any) -> Visitor:
        # A test with a server of its own needs no other one.
        home = at or request.getfixturevalue("server").url
        options["base_url"] = home
        media = {name: options.pop(name) for name in MEDIA if name in options}
        viewport = None if options.get("is_mobile") else options.pop("viewport", None)
        alone = own or at is not None
        context = browsers.new(options) if alone else browsers.take(options)
        visitors.append((Visitor(context, home, viewport=viewport, media=media), None if alone else options))
        return visitors[-1][0]

    yield new
    for visitor, options in visitors:
        visitor.leave()
        if options is None:
            visitor.context.close()
        else:
            browsers.give_back(visitor.context, options)
    assert [fault for visitor, _ in visitors for fault in visitor.faults] == []


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


@pytest.fixture
def api(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url) as client:
        yield client
