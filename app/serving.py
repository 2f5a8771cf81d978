"""What `serve` does: the database brought up to date, then the server, then its addresses."""

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import FrameType

import uvicorn

from app import auth, connections, logs, password, settings, workers
from app import definition as definitions
from app.db import Database, migrated
from app.definition import MissingPackError
from app.packs import import_pack, read_folder
from app.settings import Settings, SettingsError

GRACE_S = 30  # for requests that have begun when the server is told to stop: slow clients, long downloads
FORCED_S = 3.0  # for the rest of the way out
COUNTS = "PROMETHEUS_MULTIPROC_DIR"


def prepare(config: Settings, now: datetime | None = None) -> list[str]:
    """Bring the database up to date: schema, every pack of stimuli/, every study of studies/. Returns the slugs.

    A pack that is refused, and a study whose pack is missing, is left out, with a line on stderr: it must not keep
    others from being served. Raises PackError or MissingPackError where there are no others.
    """
    now = now or datetime.now(UTC)
    slugs: list[str] = []
    missing: list[MissingPackError] = []
    packs, refused = read_folder(config.stimuli)  # before the database is locked, as it takes a while
    with migrated(config.database_url) as database, database.preparing() as session:
        for pack in packs:
            import_pack(session, pack, now)
        for path in sorted(config.studies.glob("*.toml")):
            try:
                slugs.append(definitions.freeze(session, path, now).slug)
            except MissingPackError as error:
                missing.append(error)
        if missing and not slugs:
            raise refused[0] if refused else missing[0]
        definitions.close_all_but(session, slugs)
        session.commit()
    for bad in refused:
        print(f"not imported: {bad}", file=sys.stderr)
    for left_out in missing:
        print(f"not served: {left_out}", file=sys.stderr)
    return slugs


class _Server(uvicorn.Server):
    """Says that it listens once it does, not before; and stops as a study needs it.

    SIGTERM: nothing new is accepted, what has begun is finished, and the exit status is 0. A second one, or
    GRACE_S, ends what is still going on. What was acknowledged is stored either way, as that comes first.
    """

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            _end_after(FORCED_S)
        self.should_exit = True
        if sig == signal.SIGINT:  # the shell that sent it is told; ending by SIGTERM is what is wanted
            self._captured_signals.append(sig)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _end_after(GRACE_S + FORCED_S)
        await super().shutdown(sockets)

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets=sockets)  # type: ignore[arg-type]
        if self.started:
            self._announce()


def _end_after(seconds: float) -> None:
    """A thread that waits for a database which never answers would keep the process for ever."""
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


@contextmanager
def _counting_together(workers: int) -> Iterator[None]:
    """Several processes count requests in files of one folder (app/metrics.py, imported after this)."""
    os.environ.pop(COUNTS, None)
    if workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="metrics-") as folder:
        os.environ[COUNTS] = folder
        yield


def serve(args: argparse.Namespace) -> int:
    config = replace(settings.load(), host=args.host, workers=args.workers)
    log_config = logs.configure(config.log_format)
    with _listen(args.host, args.port) as listener, _counting_together(args.workers):
        slugs = prepare(config)
        if not slugs:
            raise SettingsError(f"there is no study in {config.studies}: put a .toml file there")
        from app import warming
        from app.main import create_app

        settings.refuse_unsafe(config, _password_is_set(config))
        lines = _addresses(config, listener.getsockname()[1], slugs)

        def announce() -> None:
            print("\n".join(lines), flush=True)

        connections.bound_by_files()

        def run(listening: Callable[[], None]) -> bool:
            # The access log would write participants' links, which are their secrets, into files.
            app = create_app(config)
            options = uvicorn.Config(
                app,
                http=connections.Connection,
                ws="none",
                backlog=connections.BACKLOG,
                log_config=log_config,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )

            def begun() -> None:
                listening()
                warming.start(app.state.database, app.state.memory)

            server = _Server(options, begun)
            app.state.stopping = lambda: server.should_exit
            server.run(sockets=[listener])
            return server.started

        if args.workers > 1:
            return workers.supervise(args.workers, run, announce)
        return 0 if run(announce) else 1


def _password_is_set(config: Settings) -> bool:
    database = Database(config.database_url)
    try:
        with database.read() as session:
            return password.is_set(session)
    finally:
        database.close()


def _addresses(config: Settings, port: int, slugs: list[str]) -> list[str]:
    """What `serve` prints. The link to the dashboard signs in, but where others than this machine get in."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    base = config.public_url or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    key = "" if config.exposed else f"?key={auth.sign_in_key(config.secret)}"
    return [*(f"Study: {base}/study/{slug}" for slug in slugs), f"Dashboard: {base}/signin{key}"]


def _listen(host: str, port: int) -> socket.socket:
    """The address is taken before anything else is done, so that a busy port is one clear line."""
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host} port {port}: {error.strerror}; try --port or PORT"
        ) from None
    # Connections inherit it. Asyncio sets it only on sockets that name their protocol, which this one does not;
    # without it a reply's last part waits for the client's delayed acknowledgement, some 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
