"""A small installation of a test module's own: four labels, so that a participant is played in a moment.

A module imports the fixtures and says with `study` what its study file is.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db import Database
from app.serving import prepare
from app.settings import Settings
from ml.pack import Pack
from tests.app.conftest import STUDY, installation
from tests.app.databases import Databases
from tests.packs import make_pack

SMALL_STUDY = STUDY.replace("seed = 7", "seed = 7\ntrials = 12")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return make_pack(tmp_path_factory.mktemp("packs") / "test-pack", labels=tuple("0123"), targets=2)


@pytest.fixture(scope="module")
def study() -> str:
    return SMALL_STUDY


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, small: Pack, study: str, databases: Databases) -> str:
    folder = tmp_path_factory.mktemp("prepared")
    settings = installation(folder, small, databases.new(folder), study)
    prepare(settings)
    return settings.database_url


@pytest.fixture
def settings(tmp_path: Path, small: Pack, study: str, database_url: str) -> Settings:
    return installation(tmp_path, small, database_url, study)


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()
