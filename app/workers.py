"""Several server processes behind one listening socket: started together, anew where one dies, ended together."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from types import FrameType

from sqlalchemy.exc import SQLAlchemyError

from app import logs
from app.settings import SettingsError

# Before another process is started for one that ended before it served anybody, as that may go on for a while.
AGAIN_S = 1.0


def supervise(
    workers: int, serve: Callable[[Callable[[], None]], object], announce: Callable[[], None]
) -> int:
    """Run `serve` in that many processes until SIGTERM or SIGINT, which each of them gets too; the exit status.

    Raises SettingsError where a process cannot serve, as app.cli would say it.

    `serve` is given what it calls once it listens; when all do, `announce` is called, once. Whoever dies is
    replaced; but one that fails before all listen ends them all, as the next would fail the same way.

    The processes are forked, so that they share what is loaded and start at once: nothing here may have threads or
    open connections to a database.
    """
    context = multiprocessing.get_context("fork")
    said, say = context.Pipe(duplex=False)
    running: list[ForkProcess] = []
    listening: set[int] = set()
    faults: dict[int, str] = {}  # by process: why it cannot serve
    announced = stopping = False
    own = os.getpid()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if os.getpid() != own:
            os._exit(0)  # just forked, and not yet anybody
        stopping = True
        for process in running:
            process.terminate()

    def start() -> None:
        process = context.Process(target=_work, args=(serve, say))
        process.start()
        running.append(process)
        if stopping:
            process.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for _ in range(workers):
            start()
        while running:
            # Each process has an end here that becomes ready when it dies, by a signal to `stop` too.
            connection.wait([said, *(process.sentinel for process in running)])
            while said.poll():
                pid, fault = said.recv()
                if fault is None:
                    listening.add(pid)
                else:
                    faults[pid] = fault
            for process in [process for process in running if not process.is_alive()]:
                running.remove(process)
                if stopping:
                    continue
                served = process.pid in listening
                if not served and not announced and (process.exitcode or 0) > 0:
                    if process.pid in faults:
                        raise SettingsError(faults[process.pid])
                    return process.exitcode or 1
                _log(process, served, faults.get(process.pid or 0, ""))
                if not served:
                    time.sleep(AGAIN_S)
                start()
            if not announced and {process.pid for process in running} <= listening and not stopping:
                announced = True
                announce()
        return 0
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _log(process: ForkProcess, served: bool, fault: str) -> None:
    status = process.exitcode or 0
    how = f"signal {-status}" if status < 0 else f"status {status}"
    logging.getLogger("uvicorn.error").error(
        "server process %d ended by %s%s; another one is started",
        process.pid,
        how,
        "" if served else f" before it served anybody: {fault or 'no reason given'}",
    )


def _work(serve: Callable[[Callable[[], None]], object], say: connection.Connection) -> None:
    """The life of one server process."""
    # A group of its own: Ctrl-C is for the supervisor, which says SIGTERM; both would be a stop by force.
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_the_supervisor, daemon=True).start()
    try:
        serve(lambda: say.send((os.getpid(), None)))
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, SQLAlchemyError) as error:
        # A database's error quotes its statement. Short, so that it goes through the pipe at one go.
        fault = logs.reason(error) if isinstance(error, SQLAlchemyError) else str(error)
        say.send((os.getpid(), fault[:1000]))
        sys.exit(2)


def _end_with_the_supervisor() -> None:
    """Killed, it can tell nobody: without this its processes would hold the port for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
