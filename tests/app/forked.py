"""Processes that begin where importing the app has ended: forked from one that has done so, as it takes seconds.

They run what `python -m app` or `python -c PROGRAM` runs, as processes with an environment, files and a death of
their own. That the commands begin without this, too, is for test_cli.py, test_documentation.py, test_shipping.py.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import IO, Any

from app.settings import ROOT

# What a server imports, but for what decides by the environment at its import, as prometheus_client does.
LOADED = (
    "app.cli",
    "app.warming",
    "fastapi.staticfiles",
    "fastapi.templating",
    "matplotlib",
    "pydantic.v1",
    "scipy.stats",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
)
PIPE, STDOUT = subprocess.PIPE, subprocess.STDOUT


class Popen:
    """As `subprocess.Popen`, of this Python, with text, in the repository's folder."""

    def __init__(
        self,
        args: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
    ) -> None:
        assert args[0] == sys.executable
        assert args[1] in ("-m", "-c")
        self.returncode: int | None = None
        self.stdin = self.stdout = self.stderr = None
        ends: list[int] = []  # of pipes; closed here once the process has them
        if stdin == PIPE:
            end, ours = os.pipe()
            ends.append(end)
            self.stdin = open(ours, "w")  # noqa: PTH123, SIM115 (a descriptor, open for longer)

        def file(given: int | IO[str] | None, usual: int) -> tuple[int, IO[str] | None]:
            if given == PIPE:
                ours, end = os.pipe()
                ends.append(end)
                return end, open(ours)  # noqa: PTH123
            if given is None or isinstance(given, int):
                return usual, None
            return given.fileno(), None

        out, self.stdout = file(stdout, 1)
        error, self.stderr = file(stderr, out if stderr == STDOUT else 2)
        self._status, status = socket.socketpair()
        wanted = json.dumps({"args": args[1:], "env": dict(os.environ if env is None else env)}).encode()
        control = _forker()
        files = [ends[0] if stdin == PIPE else 0, out, error, status.fileno()]
        socket.send_fds(control, [len(wanted).to_bytes(8, "big")], files)
        control.sendall(wanted)
        status.close()
        for end in ends:
            os.close(end)
        self.pid = _number(self._status)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = _number(self._status)
            self._status.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            select.select([self._status], [], [], timeout)
        if self.poll() is None:
            raise TimeoutError(f"process {self.pid} runs still")
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it says until it ends."""
        if self.stdin is not None:
            self.stdin.close()
        with ThreadPoolExecutor(2) as pool:
            said = [pool.submit(file.read) if file else None for file in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
                found = [text.result(timeout) if text else "" for text in said]
            except BaseException:
                self.kill()  # so that the pipes are closed, and nobody reads for ever
                raise
        for file in (self.stdout, self.stderr):
            if file is not None:
                file.close()
        return found[0], found[1]


def run(
    args: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` of this Python, with all that it says."""
    process = Popen(args, env=env, stdout=PIPE, stderr=PIPE)
    said, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(args, process.wait(), said, errors)


@cache
def _forker() -> socket.socket:
    """The way to the process that forks; it ends, with all that it has forked, when this process does."""
    ours, theirs = socket.socketpair()
    with theirs:
        forker = subprocess.Popen(
            [sys.executable, "-m", "tests.app.forked"],
            cwd=ROOT,
            stdin=theirs.fileno(),
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # a fork takes no threads along
            start_new_session=True,  # Ctrl-C is for the tests
        )
    forker.returncode = 0  # nobody waits for it
    atexit.register(ours.close)
    return ours


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            raise EOFError("the process that forks is gone")
        found += piece
    return found


def _number(connection: socket.socket) -> int:
    return int.from_bytes(_exactly(connection, 8), "big", signed=True)


def _forked() -> dict[str, Any] | None:
    """Fork whenever asked to. In the new process: what it is to be. In this one None, at the end."""
    control = socket.socket(fileno=os.dup(0))
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            woken.recv(65536)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with running.pop(pid) as told:
                        _tell(told, os.waitstatus_to_exitcode(status))
        if control not in ready:
            continue
        size, files, _, _ = socket.recv_fds(control, 8, 4)
        if not size:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            return None
        wanted: dict[str, Any] = json.loads(_exactly(control, int.from_bytes(size, "big")))
        *files, last = files
        told = socket.socket(fileno=last)
        if pid := os.fork():
            _tell(told, pid)
            running[pid] = told
            for file in files:
                os.close(file)
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (control, woken, wake, told, *running.values()):
            end.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        return wanted


def _tell(status: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody wants to know
        status.sendall(number.to_bytes(8, "big", signed=True))


def main() -> None:
    for module in LOADED:
        importlib.import_module(module)
    assert "prometheus_client" not in sys.modules
    gc.freeze()  # nobody looks through it again, at the end of each process least of all
    wanted = _forked()
    if wanted is None:
        return
    os.environ.clear()
    os.environ.update(wanted["env"])
    kind, program, *arguments = wanted["args"]
    sys.argv = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
