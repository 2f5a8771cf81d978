"""The container image and the compose file, read and run without a container engine."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from app.db import CONNECTIONS
from app.settings import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
WEB, DB, PROXY = (COMPOSE["services"][name] for name in ("web", "db", "proxy"))


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments of an instruction in exec form or shell form."""
        found: list[str] = json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)
        return found


def dockerfile() -> list[list[Instruction]]:
    """Its stages."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    stages: list[list[Instruction]] = []
    for line in filter(str.strip, lines):
        name, _, rest = line.partition(" ")
        assert re.fullmatch(
            "FROM|WORKDIR|RUN|COPY|ENV|USER|EXPOSE|VOLUME|HEALTHCHECK|STOPSIGNAL|CMD", name
        ), line
        if name == "FROM":
            stages.append([])
        stages[-1].append(Instruction(name, rest.strip()))
    return stages


BUILD, FINAL = dockerfile()


def of(stage: list[Instruction], name: str) -> list[Instruction]:
    return [instruction for instruction in stage if instruction.name == name]


def copied(stage: list[Instruction]) -> list[tuple[str, str]]:
    """(source in the repository, destination in the work directory) of each COPY from the outside."""
    pairs: list[tuple[str, str]] = []
    for instruction in of(stage, "COPY"):
        *sources, destination = instruction.words
        if not sources[0].startswith("--from"):
            pairs += [(source, destination) for source in sources]
    return pairs


def test_what_is_copied_is_there_and_sent_to_the_builder() -> None:
    sent = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#"]
    assert sent[0] == "*"
    for source, _ in copied(BUILD) + copied(FINAL):
        assert (ROOT / source).exists(), source
        assert any(line[0] == "!" and (source + "/").startswith(line[1:] + "/") for line in sent), source
    for line in sent:
        assert line == "*" or "__pycache__" in line or (ROOT / line[1:]).exists(), line


def test_no_secret_and_no_data_is_sent_to_the_builder() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert not {"data", ".env", ".git", "checkpoints", ".venv"} & allowed


def test_the_image_has_no_torch_and_every_dependency_pinned() -> None:
    (install,) = [run for run in of(BUILD, "RUN") if "pip" in run.text]
    words = install.words
    assert words[words.index("-c") + 1] == "constraints.txt"
    (extras,) = re.findall(r"^\.\[(.*)\]$", words[words.index("-e") + 1])
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    wanted = [*project["dependencies"]]
    for extra in extras.split(","):
        wanted += project["optional-dependencies"][extra]
    closure = all_of(wanted)
    assert "torch" not in closure
    assert closure <= pinned, closure - pinned


def all_of(wanted: list[str]) -> set[str]:
    """The names of these requirements and of all that they require, as installed here."""
    found: set[str] = set()
    queue = [(Requirement(text), "") for text in wanted]
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = requirement.name.lower().replace("_", "-")
        if name in found and not requirement.extras:
            continue
        found.add(name)
        for text in requires(name) or ():
            queue += [(Requirement(text), wants) for wants in ("", *requirement.extras)]
    return found


def test_it_runs_without_rights() -> None:
    (user,) = of(FINAL, "USER")
    assert int(user.text) > 0
    place = {name: FINAL.index(of(FINAL, name)[0]) for name in ("USER", "CMD")}
    assert place["USER"] < place["CMD"]
    assert WEB["read_only"] is True
    assert WEB["cap_drop"] == ["ALL"]


def test_compose_names_only_what_there_is() -> None:
    assert WEB["build"] == "."
    for volume in WEB["volumes"]:
        source, target, *_ = volume.split(":")
        if source.startswith("."):
            assert (ROOT / source).is_dir(), source
            workdir = of(FINAL, "WORKDIR")[0].text
            assert f"{workdir}/{source.removeprefix('./')}" == target
        else:
            assert source in COMPOSE["volumes"]
    for service in COMPOSE["services"].values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service.get("depends_on", ())) <= set(COMPOSE["services"])
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert "ports" not in DB, "the database is nobody else's"
    assert "ports" not in WEB, "only the proxy is reached from outside"
    (config,) = PROXY["configs"]
    proxied = re.findall(r"reverse_proxy (\S+)", COMPOSE["configs"][config["source"]]["content"])
    assert proxied == [f"web:{environment_of_the_image()['PORT']}"]


def test_the_database_of_compose_takes_as_many_connections_as_a_process_for_each_core_holds() -> None:
    (most,) = re.findall(r"max_connections=(\d+)", " ".join(DB["command"]))
    assert int(most) >= 16 * (CONNECTIONS + 2) + 20


def test_compose_sets_only_settings_that_the_documentation_explains() -> None:
    table = (ROOT / "docs" / "deploy.md").read_text().split("\n\n")
    explained = set(re.findall(r"`([A-Z_]+)`", next(part for part in table if part.startswith("| setting"))))
    assert set(WEB["environment"]) <= explained
    code = "".join(path.read_text() for path in (ROOT / "app").glob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", code))
    assert read - {"PROMETHEUS_MULTIPROC_DIR"} <= explained, (
        "every setting that the program reads is in the table"
    )


def test_every_secret_must_be_given() -> None:
    text = (ROOT / "compose.yaml").read_text()
    for name in ("SECRET_KEY", "POSTGRES_PASSWORD", "STUDY_HOST"):
        assert f"${{{name}:?" in text
        assert f"{name}:-" not in text
    asked = re.findall(r"\$\{(\w+):\?", text)
    (env,) = re.findall(r"^printf '(.*?)'", (ROOT / "docs" / "deploy.md").read_text(), re.M)
    assert {part.split("=")[0] for part in env.split("\\n") if part} == set(asked)


def environment_of_the_image() -> dict[str, str]:
    return dict(word.split("=", 1) for env in of(FINAL, "ENV") for word in env.words)


def environment_of_compose(values: dict[str, str]) -> dict[str, str]:
    def filled(text: str) -> str:
        return re.sub(r"\$\{(\w+)(?::[?-]([^}]*))?\}", lambda m: values.get(m[1], m[2] or ""), text)

    return {name: filled(str(value)) for name, value in WEB["environment"].items()}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """What the image holds, as a folder: only what COPY puts there, and what is compiled here already."""
    work = tmp_path / "srv"
    for source, destination in copied(FINAL):
        target = work / destination / Path(source).name if destination.endswith("/") else work / destination
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target)
        else:
            shutil.copy(ROOT / source, target if not target.is_dir() else target / source)
    return work


def test_the_images_commands_run_without_an_engine(
    image: Path, tmp_path: Path, empty_postgresql: str
) -> None:
    """Password, server and health check, as user and compose run them, with PostgreSQL and without PyTorch."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    without = tmp_path / "without"
    without.mkdir()
    for package in ("torch", "sklearn", "pytest"):
        (without / f"{package}.py").write_text("raise ModuleNotFoundError('not in the image')\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(without),
        **environment_of_the_image(),
        **environment_of_compose(
            {"STUDY_HOST": "study.example.org", "SECRET_KEY": "a-key-of-this-test-0123"}
        ),
        "MPLCONFIGDIR": str(tmp_path / "matplotlib"),
        "DATABASE_URL": empty_postgresql,
        "PORT": str(port),
    }
    before = files(image)

    def natively(words: list[str]) -> list[str]:
        return [sys.executable if word == "python" else word for word in words]

    def run(words: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            natively(words), cwd=image, env=environment, text=True, capture_output=True, check=False, **more
        )

    (command,) = of(FINAL, "CMD")
    refused = run(command.words)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "password" in refused.stderr
    said = run(["python", "-m", "app", "password", "--stdin"], input="correct horse battery\n")
    assert said.returncode == 0, said.stderr

    (check,) = of(FINAL, "HEALTHCHECK")
    health = json.loads(check.text.split("CMD ", 1)[1])
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(natively(command.words), cwd=image, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while "Dashboard:" not in (said_by_it := (tmp_path / "log").read_text()):
            assert server.poll() is None, said_by_it
            assert time.monotonic() < end
            time.sleep(0.1)
        assert run(health).returncode == 0
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/study/mnist",
            headers={"Host": "study.example.org", "X-Forwarded-Proto": "https"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            assert b"<form" in reply.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as reply:
            assert json.load(reply)["status"] == "ready"
    finally:
        server.send_signal(getattr(signal, of(FINAL, "STOPSIGNAL")[0].text))
        status = server.wait(timeout=60)
    assert status == 0, (tmp_path / "log").read_text()
    assert run(health).returncode != 0
    assert files(image) == before, "the file system is read-only in the container"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not fnmatch(path.name, "*.pyc")}
