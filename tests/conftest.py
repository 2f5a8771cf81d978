"""What holds for all tests: nothing is timed, and the cores are shared fairly."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no defect.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Each of pytest-xdist's workers computes on its own share of the cores; set before torch is imported.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none is left for one worker at the end.

    Those that compute (tests/ml) alternate with those that mostly wait (a browser).
    """
    here = Path(__file__).parent
    files = dict.fromkeys(item.path for item in items)
    computing = [file for file in files if file.is_relative_to(here / "ml")]
    computing.sort(key=lambda file: file.stem not in ("test_generate", "test_train"))
    waiting = [file for file in files if file.is_relative_to(here / "app" / "chromium")]
    place = {file: 2 * i for i, file in enumerate(computing)}
    place |= {file: 2 * i + 1 for i, file in enumerate(waiting)}
    items.sort(key=lambda item: place.get(item.path, 2 * len(files)))  # stable: the others keep their order
