"""What is installed is what was tested: every package pinned exactly, each of the app's own for a stated reason.

Whether one of them has a known hole is asked by `make audit`, which needs the network and is no part of the tests.
"""

import re
import tomllib
from importlib import metadata
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVED: list[str] = PROJECT["dependencies"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
TESTED = [*SERVED, *(line for name, lines in EXTRAS.items() if name != "bench" for line in lines)]


def pins() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pinned = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line)
            assert pinned, f"constraints.txt pins no exact version: {line!r}"
            name = canonicalize_name(pinned[1])
            assert name not in found, f"pinned twice: {name}"
            found[name] = pinned[2]
    return found


def closure(wanted: list[str]) -> set[str]:
    """These and all that they bring, as installed here."""
    found: set[tuple[str, str]] = set()
    waiting = [(Requirement(line), "") for line in wanted]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for each in {"", *requirement.extras}:
            if (name, each) not in found:
                found.add((name, each))
                waiting += [(Requirement(line), each) for line in metadata.requires(name) or ()]
    return {name for name, _ in found}


def test_everything_that_is_installed_is_pinned_to_the_version_that_is_here() -> None:
    pinned = pins()
    for name in sorted(closure(TESTED)):
        assert name in pinned, f"{name} is installed and not in constraints.txt"
        assert metadata.version(name).split("+")[0] == pinned[name], name


def test_nothing_is_pinned_that_nothing_brings() -> None:
    tools = {"pip", "setuptools", "wheel"}
    elsewhere = {name for name in pins() if not _here(name)}  # brought on another system only
    assert pins().keys() - closure(TESTED) - tools - elsewhere == set()


def _here(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.parametrize("block", ["dependencies", "ml", "postgresql"])
def test_every_package_that_a_server_or_the_laboratory_needs_has_its_reason(block: str) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(rf"^{block} = \[\n(.*?)^\]", text, re.M | re.S)
    assert found
    lines = found[1].splitlines()
    wanted = SERVED if block == "dependencies" else EXTRAS[block]
    assert len(lines) == len(wanted)
    for line in lines:
        assert re.fullmatch(r' {4}"[^"]+",? +# .{8,}', line), f"no reason is given: {line}"


def test_serving_needs_nothing_of_the_laboratory_or_the_tests() -> None:
    served = closure([*SERVED, *EXTRAS["postgresql"]])
    assert not served & {
        "torch",
        "scikit-learn",
        "pytest",
        "hypothesis",
        "pandas",
        "playwright",
        "schemathesis",
    }
    assert "requests" not in served
