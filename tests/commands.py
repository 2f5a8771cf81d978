"""The commands of a documentation page, and a fresh installation to run them in.

Every fenced block of `sh` is run, in the page's order, with fewer participants and repetitions than the page says,
unless a comment before it says otherwise:

    <!-- not run: REASON -->
    <!-- in the background until: TEXT -->     a server; it runs until the next such block, or the page's end
    <!-- while this runs: COMMAND -->         a server is started first, and has printed its Dashboard line
    <!-- typed: TEXT -->                       answers each prompt, as for a password
"""

import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_BEHIND = (
    ".git",
    ".venv",
    "build",
    "data",
    "checkpoints",
    ".*_cache",
    ".hypothesis",
    "*.egg-info",
)
LONGEST_S = 420.0
FEWER = {"--participants": 6, "--replicates": 50}
BLOCK = re.compile(r"^(?:<!-- (?P<note>[^\n]*?) -->\n+)?^```sh\n(?P<commands>.*?)^```", re.M | re.S)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    commands: str
    not_run: str | None = None
    until: str | None = None
    server: str | None = None
    typed: str | None = None


def blocks(page: Path) -> list[Block]:
    """Raises ValueError for a comment that is none of these."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        kind, _, said = (match["note"] or "").partition(": ")
        if match["note"] and (
            kind not in ("not run", "in the background until", "while this runs", "typed") or not said
        ):
            raise ValueError(f"{page.name}: what does <!-- {match['note']} --> mean?")
        found.append(
            Block(
                page=page.name,
                line=text.count("\n", 0, match.start("commands")) + 1,
                commands=match["commands"],
                not_run=said if kind == "not run" else None,
                until=said if kind == "in the background until" else None,
                server=said if kind == "while this runs" else None,
                typed=said if kind == "typed" else None,
            )
        )
    return found


class CommandError(AssertionError):
    """A command of the documentation does not do what the page says."""


class Installation:
    """A copy of the repository with an environment of its own, into which only what is installed here is lent."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder / "repository"
        self._terminal = folder / "terminal.sh"
        self.renew()
        self.port = _free_port()
        self.environment = {
            **{
                key: value
                for key, value in os.environ.items()
                if not key.startswith(("DATABASE_URL", "PYTHONPATH"))
            },
            "PORT": str(self.port),
            "PIP_NO_BUILD_ISOLATION": "1",  # the builder is lent, too: nothing is downloaded
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **environment,
        }
        self._server: subprocess.Popen[bytes] | None = None
        self._said = folder / "server.log"

    def renew(self, installed: bool = False) -> None:
        """As at the beginning, or as it is once `make run` has installed it, if that was done before."""
        venv = self.folder / ".venv"
        if self.folder.exists():
            for path in self.folder.iterdir():
                if path != venv or not installed:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._terminal.unlink(missing_ok=True)
        # With the times of the files: what is compiled here, in __pycache__, need not be there again.
        shutil.copytree(ROOT, self.folder, ignore=shutil.ignore_patterns(*LEFT_BEHIND), dirs_exist_ok=True)
        if venv.exists():
            return
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        lent = venv / "lib" / version / "site-packages" / "lent.pth"
        lent.write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, block: Block) -> str:
        """Run a block in the foreground or start it in the background; returns what it printed."""
        if block.until is not None:
            return self._serve(block, block.until)
        if block.typed is not None:
            return self._type(block, block.typed)
        if block.server is not None:
            self._serve(replace(block, commands=block.server + "\n", until="Dashboard:"), "Dashboard:")
        process = subprocess.Popen(
            self._shell(block),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            said = process.communicate(timeout=LONGEST_S)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the shell's children, too
            raise
        if process.returncode != 0:
            raise CommandError(f"{block.page}, line {block.line}: exit status {process.returncode}\n{said}")
        return said

    def stop(self) -> None:
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGTERM)
            self._server.wait(timeout=60)
            self._server = None

    def _shell(self, block: Block) -> list[str]:
        # What one block sets, as `. ./study.env` does, holds in the next one, as in the reader's terminal.
        kept = self._terminal
        commands = block.commands.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        for option, most in FEWER.items():
            for number in re.findall(rf"{option} (\d+)", commands):
                commands = commands.replace(f"{option} {number}", f"{option} {min(most, int(number))}")
        commands = commands.replace("-m app power ", "-m app power --replicates 50 ")
        keep = f"trap 'export -p > {kept}' EXIT" if block.until is None else ""
        return ["bash", "-c", f"[ -e {kept} ] && . {kept}; {keep}\nset -euo pipefail\n{commands}"]

    def _serve(self, block: Block, until: str) -> str:
        self.stop()
        with self._said.open("wb") as log:
            self._server = subprocess.Popen(
                self._shell(block),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + LONGEST_S
        while until not in (said := self._said.read_text(errors="replace")):
            if self._server.poll() is not None or time.monotonic() > end:
                raise CommandError(f"{block.page}, line {block.line}: {until!r} was not printed\n{said}")
            time.sleep(0.1)
        return said

    def _type(self, block: Block, text: str) -> str:
        """Run it in a terminal, and type the text whenever a line ends in a question."""
        command = self._shell(block)
        process, terminal = pty.fork()
        if process == 0:  # pragma: no cover (the child)
            os.chdir(self.folder)
            os.execvpe(command[0], command, self.environment)
        said, answered = b"", 0
        end = time.monotonic() + LONGEST_S
        while time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    new = os.read(terminal, 4096)
                except OSError:  # the terminal closes with its process
                    break
                if not new:
                    break
                said += new
            if said.rstrip(b" ").endswith(b":") and said.count(b":") > answered:
                answered = said.count(b":")
                os.write(terminal, text.encode() + b"\n")
        _, status = os.waitpid(process, 0)
        os.close(terminal)
        if status != 0:
            raise CommandError(
                f"{block.page}, line {block.line}: status {status}\n{said.decode(errors='replace')}"
            )
        return said.decode(errors="replace")


@contextmanager
def installation(folder: Path, environment: Mapping[str, str]) -> Iterator[Installation]:
    there = Installation(folder, environment)
    try:
        yield there
    finally:
        there.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
