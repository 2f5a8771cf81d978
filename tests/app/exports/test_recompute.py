"""That every number of the page can be recomputed from the export, and that what differs is found."""

import csv
import json
import random
import re
import shutil
import subprocess
import sys
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import recompute
import recompute_answers
import recompute_methods
from sqlalchemy import select

from app import codebook, results, sequential
from app.db import Database
from app.differences import sign_flip
from app.models import Study
from app.results_json import results_json
from tests.app.exports.conftest import PLAYED, World
from tests.app.oracle import strict

# The script reads files; test_contents.py runs it on those that come from PostgreSQL.
pytestmark = pytest.mark.quickly("sqlite")


def main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """The script's exit status and what it prints."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["recompute.py", *map(str, arguments)])
        return recompute.main(), capsys.readouterr().out


@pytest.mark.parametrize(("study", "data"), PLAYED)
def test_the_script_recomputes_every_number(
    world: World, study: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = world.export(study, data)
    status, said = main(capsys, folder, "--write", tmp_path / "out.json")
    assert status == 0, said
    found = strict((folder / "results.json").read_text())
    records = recompute.recorded(found)
    leaves = {path: value for path, value in recompute.leaves(found) if not path.startswith(records)}
    numbers = sum(recompute.is_number(value) for value in leaves.values())
    assert said.endswith(f"\n{numbers} numbers recomputed, 0 differ\n")
    assert ("withdrawn since it was seen" in said) == (study == "left")
    again = strict((tmp_path / "out.json").read_text())
    assert {path for path, _ in recompute.leaves(again) if not path.startswith(records)} == set(leaves)


def test_the_shipped_script_runs_by_itself(world: World, tmp_path: Path) -> None:
    script = world.export("full-study") / "recompute.py"
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" numbers recomputed, 0 differ\n")


def test_the_played_data_are_worth_testing(world: World) -> None:
    found = strict((world.export("full-study") / "results.json").read_text())
    assert found["participants"]["withdrawn"] == 1
    assert found["monitoring"]["active"] == 4
    assert sum(found["monitoring"]["excluded"].values()) == found["participants"]["excluded"] >= 2
    assert all(found["monitoring"]["disturbed"][name] for name in ("hidden_times", "too_early", "held_keys"))
    assert found["monitoring"]["unmeasured"] > 0
    assert [look["comparison"] is not None for look in found["looks"]] == [True, True]
    assert not found["masked"]
    one, nobody = (
        strict((world.export("one", data) / "results.json").read_text()) for data in ("real", "simulated")
    )
    assert {c["participants"] for c in one["packs"]["three"]["comparisons"]} == {1}
    assert {c["participants"] for c in nobody["packs"]["three"]["comparisons"]} == {0}
    assert strict((world.export("masked") / "results.json").read_text())["packs"]["three"]["views"] is None


def test_people_who_are_silent_for_long_count_as_left(world: World, tmp_path: Path) -> None:
    """All here are of just now: the script is told of a later instant, and held against what the page says then."""
    folder = _copy(world.export("full-study"), tmp_path)
    text = (folder / "study" / "study.json").read_text()
    at = json.loads(text)["computed_at"]
    later = f"{int(at[:4]) + 1}{at[4:]}" if at[5:10] != "02-29" else at.replace("02-29", "03-29")
    (folder / "study" / "study.json").write_text(text.replace(at, later))
    monitoring = recompute.recompute(folder, [])["monitoring"]
    assert (monitoring["active"], sum(monitoring["dropouts"].values())) == (0, 4)
    assert all(monitoring["dropouts"][state] for state in ("labelling", "judging"))
    db = Database(world.settings.database_url)
    with db.read() as session:
        study = session.scalars(select(Study).where(Study.slug == "full-study")).one()
        found = results.compute(session, study, "real", now=datetime.fromisoformat(later))
        assert results_json(found)["monitoring"] == monitoring
    db.close()


def test_a_look_whose_people_are_gone_is_not_recomputed(world: World) -> None:
    folder = world.export("left")
    found = strict((folder / "results.json").read_text())
    assert [look["still"] for look in found["looks"]] == [False]
    expected = recompute.recompute(folder, [])
    assert expected["looks"][0]["comparison"] != found["looks"][0]["comparison"]
    assert not list(recompute.differing(found, expected))
    found["looks"][0]["still"] = True
    assert list(recompute.differing(found, expected))
    for name in ("still", "seen_at"):  # an export from before they were said
        del found["looks"][0][name]
    assert all(line.startswith("looks/0/comparison") for line in recompute.differing(found, expected))


@pytest.mark.parametrize(("study", "data"), [("full-study", "real"), ("masked", "real")])
def test_every_kind_of_number_is_compared(world: World, study: str, data: str) -> None:
    """One leaf of each kind in results.json is changed a little; the script must name just those."""
    folder = world.export(study, data)
    problems: list[str] = []
    expected = recompute.recompute(folder, problems)
    assert problems == []
    kinds: dict[str, str] = {}
    names = r"(?<=/)(\d+|undefended|distilled|gradient_regularized|three(-b)?)(?=/|$)"
    for path, _ in recompute.leaves(expected):
        kinds.setdefault(re.sub(names, "*", path), path)
    assert len(kinds) > 100
    text = (folder / "results.json").read_text()
    for start in range(10):  # not all at once: some say of others whether they count
        changed, found = list(kinds.values())[start::10], json.loads(text)
        for path in changed:
            *way, last = path.split("/")
            branch: Any = found
            for key in way:
                branch = branch[int(key) if isinstance(branch, list) else key]
            place: Any = int(last) if isinstance(branch, list) else last
            branch[place] = _altered(branch[place])
        lines = list(recompute.differing(found, expected))
        starts = {path: (f"{path}:", f"{path}/") for path in changed}
        assert [path for path in changed if not any(line.startswith(starts[path]) for line in lines)] == []
        every = tuple(start for both in starts.values() for start in both)
        assert [line for line in lines if not line.startswith(every)] == []
    assert not list(recompute.differing(json.loads(text), expected))


def _altered(value: Any) -> Any:
    if value is None:
        return 0.5
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * (1 + 1e-7) + (1e-7 if value == 0 else 0)
    return None if isinstance(value, str) else {"a": 1}  # an empty object or list


@pytest.mark.parametrize(
    ("table", "column", "of", "value"),
    [
        ("responses", "label", {"kind": "main"}, lambda cell: "1" if cell == "0" else "0"),
        ("responses", "runner_up", {"kind": "main", "runner_up": "none"}, lambda cell: "2"),
        ("responses", "plausible", {"plausible": "1"}, lambda cell: "0"),
        ("responses", "model", {"model": "distilled"}, lambda cell: "undefended"),
        ("responses", "source_label", {"kind": "main"}, lambda cell: "1" if cell == "0" else "0"),
        ("responses", "label_rt_ms", {"kind": "main"}, lambda cell: "55555.5"),
        ("responses", "excluded", {"excluded": "0"}, lambda cell: "1"),
        ("responses", "fooled", {"fooled": "1"}, lambda cell: "0"),
        ("participants", "finished_at", {"state": "finished"}, lambda cell: "2099-01-01T00:00:00.000000Z"),
        ("participants", "state", {"state": "finished"}, lambda cell: "judging"),
        ("participants", "excluded_reason", {"excluded_reason": ""}, lambda cell: "something"),
        ("participants", "answers", {"state": "finished"}, lambda cell: str(int(cell) + 1)),
        ("participants", "answers_asked", {"state": "finished"}, lambda cell: str(int(cell) + 1)),
        ("participants", "minutes", {"state": "finished"}, lambda cell: str(float(cell) + 0.01)),
        ("participants", "median_label_rt_ms", {"state": "finished"}, lambda cell: "1"),
        ("participants", "controls_right", {"state": "finished"}, lambda cell: "7"),
        ("trials", "source_index", {"kind": "main"}, lambda cell: "77"),
        ("trials", "placebo_label", {"kind": "main"}, lambda cell: "x"),
        ("trials", "label_too_early", {"label_too_early": "2"}, lambda cell: "0"),
        ("stimuli", "target_label", {}, lambda cell: cell + "x"),
    ],
)
def test_a_changed_cell_is_found(
    world: World, tmp_path: Path, table: str, column: str, of: dict[str, str], value: Any
) -> None:
    folder = _copy(world.export("full-study"), tmp_path)
    path = folder / codebook.file_name("full-study", table)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), reader.fieldnames
    assert columns is not None
    left_out = {p["participant"] for p in _rows(folder, "participants") if p["excluded_reason"]}
    shown = {
        (r["stimulus"], r["model"]) for r in _rows(folder, "responses") if r["participant"] not in left_out
    }
    row = next(
        row
        for row in rows
        if all(row[name] == cell for name, cell in of.items())
        and row.get("participant") not in left_out
        and (table != "stimuli" or (row["stimulus"], row["model"]) in shown)
    )
    row[column] = value(row[column])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    problems: list[str] = []
    expected = recompute.recompute(folder, problems)
    assert [*recompute.differing(json.loads((folder / "results.json").read_text()), expected), *problems]


def test_the_script_says_what_differs(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _copy(world.export("once"), tmp_path)
    changed = json.loads((folder / "results.json").read_text())
    was = changed["packs"]["three"]["comparisons"][0]["p"]
    changed["packs"]["three"]["comparisons"][0]["p"] = 0.0123
    (folder / "results.json").write_text(json.dumps(changed))
    (folder / "study" / "frozen.json").write_text((folder / "study" / "frozen.json").read_text() + " ")
    status, said = main(capsys, folder)
    assert status == 1
    assert said.splitlines()[-2:] == [
        f"packs/three/comparisons/0/p: 0.0123 in results.json, recomputed {was!r}",
        "the files contradict each other: study/frozen.json is not the study of this version",
    ]


def _copy(folder: Path, to: Path) -> Path:
    return shutil.copytree(folder, to / "export")


def _rows(folder: Path, table: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = recompute_answers.read_csv(folder, table)
    return found


def test_the_scripts_statistics_agree_on_harder_cases() -> None:
    rng = random.Random(1)
    for n in (2, 5, 40, 120):
        differences = [Fraction(rng.randint(-9, 10), rng.randint(7, 10)) for _ in range(n)]
        flip = sign_flip(differences)
        found = recompute_methods.sign_flip(differences)
        assert flip is not None
        assert (found["p"], found["p_mid"]) == pytest.approx((flip.p, flip.p_mid), rel=1e-12)
        assert found["p_exact"] is flip.exact is True
    coarse = [Fraction(rng.randint(-900, 960), rng.choice((997, 991, 983))) for _ in range(24)]
    flip, found = sign_flip(coarse), recompute_methods.sign_flip(coarse)
    assert flip is not None
    assert found["p_exact"] is flip.exact is False
    assert (found["p"], found["p_mid"]) == pytest.approx((flip.p, flip.p_mid), rel=1e-9)
    for sizes in ([40], [20, 40], [10, 20, 30, 40], [33, 34, 40], [*range(50, 600, 50), 600]):
        expected = sequential.boundaries([size / sizes[-1] for size in sizes])
        assert recompute_methods.boundaries(sizes) == pytest.approx(expected, rel=1e-9)


# The script in R, where R is at hand


def _lacks_r() -> str | None:
    if shutil.which("Rscript") is None:
        return "Rscript is not on the PATH"
    check = ["Rscript", "-e", "quit(status = !requireNamespace('lme4', quietly = TRUE))"]
    return "R has no package lme4" if subprocess.run(check, capture_output=True).returncode else None


def test_the_script_in_r_agrees(world: World, tmp_path: Path) -> None:
    if reason := _lacks_r():
        pytest.skip(reason)

    def run(folder: Path) -> tuple[int, str]:
        done = subprocess.run(["Rscript", folder / "recompute.R"], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    for study, data in (
        ("full-study", "real"),
        ("labels", "real"),
        ("one", "simulated"),
        ("masked", "real"),
    ):
        folder = world.export(study, data)
        status, said = run(folder)
        assert status == 0, f"{study}: {said}"
        numbers = re.search(r"^(\d+) numbers recomputed, 0 differ$", said, re.M)
        assert numbers is not None
        assert int(numbers.group(1)) > 60
        assert "Additional analysis, not the headline" in said
        if data == "real" and study != "masked":
            assert "(Intercept)" in said
        assert ("not fitted while the study is masked" in said) == (study == "masked")
    folder = _copy(world.export("masked"), tmp_path)
    text, changed = re.subn("/kept_source/count,", r"\g<0>9", (folder / "results.csv").read_text(), count=1)
    assert changed
    new = [
        "packs/three/models/undefended/human_fooled/median",
        "packs/three/models/distilled/new/rate",
        "packs/three/comparisons/0/p_new",
    ]
    text += "".join(f"{path},0.5\n" for path in new)
    (folder / "results.csv").write_text(text)
    status, said = run(folder)
    assert status == 1
    assert " numbers recomputed, 1 differ\n" in said
    assert said.endswith("".join(f"{path} is in results.csv, and not known here\n" for path in new))
