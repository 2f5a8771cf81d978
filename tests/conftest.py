"""What holds for all tests: nothing is timed, the cores are shared fairly, and no test waits for a disk."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings
from sqlalchemy import create_engine, make_url

from tests import postgres

# A busy machine is no defect.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Each of pytest-xdist's workers computes on its own share of the cores; set before torch is imported.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

# The app has every answer on the disk before it says so; what tests store need not survive a power cut, only the
# processes that they kill. They need some hundred MiB.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**31:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none is left for one worker at the end.

    Those that compute (tests/ml) alternate with those that mostly wait (a browser, a server that starts again).
    """
    here = Path(__file__).parent
    files = dict.fromkeys(item.path for item in items)
    computing = [file for file in files if file.is_relative_to(here / "ml")]
    computing.sort(key=lambda file: file.stem not in ("test_generate", "test_train"))
    served = [file for file in files if file.stem in ("test_documentation", "test_faults", "test_processes")]
    waiting = served + [file for file in files if file.is_relative_to(here / "app" / "chromium")]
    place = {file: 2 * i for i, file in enumerate(computing)}
    place |= {file: 2 * i + 1 for i, file in enumerate(waiting)}
    items.sort(key=lambda item: place.get(item.path, 2 * len(files)))  # stable: the others keep their order


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a server's own database, for tests that are not about the app alone."""
    with postgres.running() as url:
        yield url


@pytest.fixture
def empty_postgresql(postgresql: str) -> Iterator[str]:
    """The URL of a new database without tables."""
    server, name = create_engine(make_url(postgresql).set(drivername="postgresql+psycopg")), f"e{uuid4().hex}"
    with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        yield make_url(postgresql).set(database=name).render_as_string(hide_password=False)
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()
