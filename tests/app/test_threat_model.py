"""Each line of docs/threat-model.md names tests, and they exist."""

import ast
import re

from app import auth, bounds, connections, security
from app.settings import ROOT

TESTS = ROOT / "tests"
MODEL = (ROOT / "docs" / "threat-model.md").read_text()
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def lines() -> list[list[str]]:
    """The cells of each threat, tables' heads left out."""
    rows = [line.strip("|").split("|") for line in MODEL.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not re.match(r" *(threat|---) *$", row[0])]


def names_in(file: str) -> set[str]:
    folders = (TESTS / "app", TESTS / "ml")
    (path,) = (folder / file for folder in folders if (folder / file).is_file())
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_each_line_says_what_stops_the_threat_and_which_test_would_fail() -> None:
    threats = lines()
    assert len(threats) > 40
    for row in threats:
        assert len(row) == 3, row
        assert row[0], row
        assert row[1], row
        assert NAMED.search(row[2]), f"no test: {row[0]}"


def test_the_limits_are_those_of_the_program() -> None:
    stopped_by = " ".join(row[1] for row in lines())
    for said in (
        f"{bounds.MOST_BYTES // 1024} KiB, whether or not it says its length",
        f"{bounds.MOST_ANSWER_BYTES // 1024} KiB for an answer",
        f"{bounds.MOST_HEADERS} headers, {bounds.MOST_HEADER_BYTES // 1024} KiB; "
        f"{bounds.MOST_URL_BYTES // 1024} KiB",
        f"{connections.FAIR_MOST}; who has waited longest",
        f"{security.CAPACITY} at once, then one a second",
        f"{security.GUESSES[0]} tries, then six a minute",
        f"once, {auth.LINK_FOR.seconds // 60} minutes; sessions end",
    ):
        assert said in stopped_by, said
    assert (security.REFILL_PER_S, security.GUESSES[1], auth.LINK_FOR.days) == (1, 0.1, 0)


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall(MODEL)
    assert len(named) == MODEL.count("::"), "a name is not as the others are"
    for file, name in named:
        assert name in names_in(file), f"{file} has no {name}"


def test_no_threat_is_listed_twice() -> None:
    threats = [row[0] for row in lines()]
    assert len(set(threats)) == len(threats)
