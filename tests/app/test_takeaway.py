"""The whole export: what is in it and what is not, and that every number of the page can be recomputed from it."""

import copy
import csv
import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import recompute
import recompute_answers
import recompute_methods
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app import auth, bundle, cli, codebook, results, sequential, stats, tables
from app.db import Database
from app.main import create_app
from app.models import Participant, RecruiterId, Study
from app.settings import ROOT, Settings
from ml.pack import Pack
from tests.app.conftest import SECRET, STUDY, begin
from tests.app.oracle import at_random, play, read_csv, strict
from tests.packs import make_pack

TEXTS = STUDY[STUDY.index("[texts]") :]
STUDIES = {
    # Everything that a study file can ask for.
    "full-study": """packs = ["three", "three-b"]
trials = 9
practice = 1
controls = 2
rotate_questions = true
target_participants = 10
[primary]
pack = "three-b"
a = "gradient_regularized"
b = "undefended"
[looks]
at = [8]
[exclusions]
min_median_label_rt_ms = 100
max_same_label_share = 0.8
min_controls_right = 1
""",
    "labels": """packs = ["three"]
trials = 9
target_participants = 3
questions = ["label"]
[primary]
pack = "three"
""",
    "once": """packs = ["three"]
trials = 9
target_participants = 2
questions = ["label", "plausibility"]
[primary]
pack = "three"
outcome = "mistake_reasonable_direct"
""",
    "one": 'packs = ["three"]\ntrials = 9\ntarget_participants = 5\n[primary]\npack = "three"\n',
    "masked": 'packs = ["three"]\ntrials = 9\ntarget_participants = 5\n[primary]\npack = "three"\n',
}
PLAYED = [
    ("full-study", "real"),
    ("full-study", "simulated"),
    ("labels", "real"),
    ("once", "real"),
    ("one", "real"),  # one participant, unmasked
    ("one", "simulated"),  # nobody, unmasked
    ("masked", "real"),
    ("masked", "simulated"),  # nobody
]
NASTY = (
    "=1+1 by J. Doe",
    "'quoted'",
    "+49 30",
    "-",
    '@home, "here"\nand there',
    "\tindented",
    "＝1",
    "Nice.",
)
SHOWN = {
    "css_width": 280,
    "css_height": 280.5,
    "device_pixel_ratio": 1.25,
    "interpolation": "pixelated",
    "zoom": 1,
    "viewport_width": 1280,
    "viewport_height": 720,
    "input": "mouse",
    "hidden_times": 1,
    "hidden_ms": 250,
    "held_keys": 0,
    "too_early": 2,
    "image_retries": 0,
}
# What no page sends, and somebody may.
ODD = {
    "input": "=HYPERLINK(1)",
    "interpolation": 3,
    "hidden_times": 0.5,
    "held_keys": True,
    "too_early": "7",
    "image_retries": -2,
    "agent": "J. Doe's browser",
    "zoom": None,
}


@dataclass
class World:
    client: TestClient
    settings: Settings
    secrets: list[str]  # of all participants: tokens, withdrawal and completion codes, recruiters' ids
    folder: Path

    def archive(self, study: str, data: str = "real", query: str = "") -> zipfile.ZipFile:
        reply = self.client.get(f"/results/{study}/export.zip?data={data}{query}")
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"] == "application/zip"
        assert int(reply.headers["content-length"]) == len(reply.content)
        return zipfile.ZipFile(io.BytesIO(reply.content))

    def export(self, study: str, data: str = "real") -> Path:
        """An export, unpacked; the same each time it is asked for."""
        folder = self.folder / f"{study}-{data}"
        if not folder.exists():
            self.archive(study, data).extractall(folder)
        return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("takeaway")
    packs = [
        make_pack(root / "packs" / name, name, tuple("012"), targets=2, seed=seed)
        for seed, name in enumerate(("three", "three-b"))
    ]
    (root / "studies").mkdir()
    for slug, text in STUDIES.items():
        head = f'title = "A study: {slug}"\nseed = 11\nmin_answer_ms = 0\n'
        (root / "studies" / f"{slug}.toml").write_text(head + text + TEXTS)
    settings = Settings(f"sqlite:///{root / 'study.db'}", SECRET, root / "studies", root / "packs")
    cli.prepare(settings)
    with TestClient(create_app(settings)) as client:
        client.cookies.set(auth.COOKIE, auth.cookie(SECRET))
        _play_all(client, packs)
        for data in ("real", "simulated"):
            client.post(f"/results/one/unmask?data={data}")
        db = Database(settings.database_url)
        with db.read() as session:
            secrets = [
                secret
                for person in session.scalars(select(Participant))
                for secret in (
                    person.token,
                    person.withdrawal_code,
                    person.completion_code,
                    str(person.request_id),
                )
                if secret
            ]
            secrets += session.scalars(select(RecruiterId.value).where(RecruiterId.name == "PROLIFIC_PID"))
        db.close()
        yield World(client, settings, [s for s in secrets if s != "None"], root / "exports")


def _play_all(client: TestClient, packs: list[Pack]) -> None:
    first, second = packs

    def go(study: str, role: object, runner_up: bool = True, **options: Any) -> str:
        shown = packs if study == "full-study" else [first]
        return play(client, study, shown, at_random(f"{study} {role}", "012", runner_up), **options)

    clean = {image.sha256: image.source_label for pack in (first, second) for image in pack.clean}

    def careful(seed: int) -> Any:
        rng = random.Random(seed)

        def choose(trial: dict[str, Any]) -> dict[str, Any]:
            if trial["state"] == "judging":
                return {
                    "plausible": rng.random() < 0.5,
                    "rt_ms": None if rng.random() < 0.1 else 800.5,
                    "display": SHOWN,
                }
            label = clean.get(trial["image"][9:73]) or rng.choice(("0", "1", "2", "none"))
            runner_up = (
                "none" if label == "none" else rng.choice([x for x in ("0", "1", "2", "none") if x != label])
            )
            rt_ms = None if rng.random() < 0.1 else rng.lognormvariate(7, 0.5)
            return {
                "label": label,
                "runner_up": runner_up,
                "rt_ms": rt_ms,
                "display": ODD if rng.random() < 0.3 else SHOWN,
            }

        return choose

    for number in range(11):
        player = begin(client, "full-study", PROLIFIC_PID=f"=prolific{number:02}", STUDY_ID="s1")
        player.answer(careful(number), until="commenting")
        client.post(f"{player.base}/comments", json={"text": NASTY[number % len(NASTY)]})
        client.post(f"{player.base}/finish")
    for number, labels in enumerate((0, 1, 7, 12)):
        go("full-study", f"midway {number}", labels=labels, judgments=4)
    for role, rt_ms in (("fast", 20.0), ("slow", 2000.0)):  # controls are read wrongly by chance
        for number in range(2):
            go("full-study", f"{role} {number}", rt_ms=rt_ms)
    gone = go("full-study", "withdrawn")
    assert client.post(f"/api/sessions/{gone}/withdraw").status_code == 200
    for number in range(2):
        go("full-study", f"simulated {number}", simulated="yes")
    for number in range(4):
        go("labels", number, runner_up=False)
    for number in range(3):
        go("once", number, runner_up=False)
    go("one", 0)
    go("masked", 0)
    go("masked", 1, labels=5)


# What is in it


def test_the_files_are_named_summed_and_whole(world: World) -> None:
    archive = world.archive("full-study", query="&comments=1&recruiter_ids=1")
    names = archive.namelist()
    data = [name for name in names if name.startswith("data/")]
    # The form of Psych-DS: keywords from its list, values of letters and digits.
    form = r"data/study-[a-zA-Z0-9]+_description-[a-zA-Z0-9]+_data\.csv"
    assert all(re.fullmatch(form, name) for name in data)
    assert data == [codebook.file_name("full-study", table) for table in codebook.TABLES]
    assert set(names) - set(data) == {
        "README.md",
        "codebook.md",
        "dataset_description.json",
        ".psychds-ignore",
        "results.json",
        "results.csv",
        "study/study.json",
        "study/frozen.json",
        "packs/three/manifest.json",
        "packs/three-b/manifest.json",
        "recompute.py",
        "recompute_answers.py",
        "recompute_methods.py",
        "recompute.R",
        "SHA256SUMS",
    }
    sums = dict(line.split("  ")[::-1] for line in archive.read("SHA256SUMS").decode().splitlines())
    assert sums == {n: hashlib.sha256(archive.read(n)).hexdigest() for n in names if n != "SHA256SUMS"}
    for script in (ROOT / "app" / "analysis").glob("recompute*"):
        if script.is_file():
            assert archive.read(script.name) == script.read_bytes()
    assert "{" not in archive.read("README.md").decode()


@pytest.mark.parametrize(("study", "data"), PLAYED)
def test_csv_and_json_are_those_of_the_other_addresses(world: World, study: str, data: str) -> None:
    archive = world.archive(study, data)
    served = world.client.get(f"/results/{study}/responses.csv?data={data}").content
    assert archive.read(codebook.file_name(study, "responses")) == served
    found = strict(archive.read("results.json").decode())
    now = strict(world.client.get(f"/results/{study}.json?data={data}").text)
    assert found.pop("computed_at") <= now.pop("computed_at")
    assert found == now
    frozen = archive.read("study/frozen.json")
    assert hashlib.sha256(frozen).hexdigest()[:12] == found["version"]


def test_every_column_is_described(world: World) -> None:
    archive = world.archive("full-study", query="&comments=1&recruiter_ids=1")
    book = archive.read("codebook.md").decode()
    description = json.loads(archive.read("dataset_description.json"))
    assert (description["@type"], description["@context"]) == ("Dataset", "https://schema.org/")
    measured = {variable["name"]: variable for variable in description["variableMeasured"]}
    assert len(measured) == len(description["variableMeasured"])
    seen = set()
    for table, about in codebook.TABLES.items():
        name = codebook.file_name("full-study", table)
        rows = read_csv(archive.read(name).decode())
        assert list(rows.columns) == list(about.columns)
        section = book.split(f"## {name}\n")[1].split("\n## ")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.M) == list(about.columns)
        for column in rows.columns:
            seen.add(column)
            assert measured[column]["description"] in section.replace("\\|", "|")
            # A column's values are among its levels.
            levels = {level["value"] for level in measured[column].get("valueReference", ())}
            found = set(rows[column]) - {""}
            assert not levels or found <= levels, column
            if about.columns[column].numeric:
                assert all(float(cell) == float(cell) for cell in found), column
    assert seen == set(measured), "and no column is described that is in no file"
    by_default = json.loads(world.archive("full-study").read("dataset_description.json"))
    assert not {"comment", "id_value"} & {v["name"] for v in by_default["variableMeasured"]}


def test_the_display_is_flattened_and_what_has_no_column_is_counted(world: World) -> None:
    rows = read_csv((world.export("full-study") / codebook.file_name("full-study", "trials")).read_text())
    odd = rows[rows["label_display_left_out"] == "4"]
    usual = rows[rows["label_display_left_out"] == "0"]
    assert len(odd) > 10
    for _, row in odd.iterrows():
        assert (row["label_input"], row["label_interpolation"], row["label_too_early"]) == ("", "", "")
        assert (row["label_hidden_times"], row["label_held_keys"], row["label_image_retries"]) == (
            "0.5",
            "1",
            "-2",
        )
    told = usual[usual["label_css_width"] != ""]
    assert {name: set(told[f"label_{name}"]) for name in SHOWN} == {n: {str(v)} for n, v in SHOWN.items()}
    assert set(rows["plausibility_css_width"]) == {"", "280"}
    responses = read_csv(
        (world.export("full-study") / codebook.file_name("full-study", "responses")).read_text()
    )
    assert rows[["participant", "position", "kind"]].equals(responses[["participant", "position", "kind"]])


def test_the_command_writes_the_same_files(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", world.settings.database_url)
    monkeypatch.setenv("SECRET_KEY", SECRET)
    for extra in ([], ["--zip"], ["--comments", "--recruiter-ids"]):
        out = tmp_path / "-".join(["out", *extra])
        assert cli.main(["export", "--study", "once", "--out", str(out), *extra]) == 0
        assert (out / "responses.csv").read_bytes() == world.client.get("/results/once/responses.csv").content
        if "--zip" in extra:
            assert sorted(path.name for path in out.iterdir()) == [
                "export.zip",
                "responses.csv",
                "results.json",
            ]
            (out / "results.json").unlink()
            zipfile.ZipFile(out / "export.zip").extractall(out)
        tables_there = {p.name.split("description-")[1].split("_")[0] for p in (out / "data").iterdir()}
        assert ({"comments", "recruiterids"} <= tables_there) == ("--comments" in extra)
        done = subprocess.run([sys.executable, out / "recompute.py"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_same_instant_gives_the_same_bytes(world: World) -> None:
    db = Database(world.settings.database_url)
    archives = []
    for _ in range(2):
        with db.read() as session:
            study = session.scalars(select(Study).where(Study.slug == "full-study")).one()
            found = results.compute(session, study, "real", now=datetime(2030, 1, 1, tzinfo=UTC))
            with bundle.zipped(session, found, comments=True, recruiter_ids=True) as file:
                archives.append(file.read())
    db.close()
    assert archives[0] == archives[1]


# What is not in it


@pytest.mark.parametrize(("study", "data"), PLAYED)
def test_nothing_in_it_names_a_person(world: World, study: str, data: str) -> None:
    archive = world.archive(study, data)
    everything = b"\n".join(archive.read(name) for name in archive.namelist())
    assert len(world.secrets) > 60
    for secret in world.secrets:
        assert secret.encode() not in everything
    for text in (*NASTY[:1], "prolific", "HYPERLINK", "J. Doe", "agent"):
        assert text.encode() not in everything
    for name in archive.namelist():
        if name.startswith("data/"):
            for row in csv.reader(io.StringIO(archive.read(name).decode())):
                for cell in row:
                    assert not re.match(r"[=+@\t\r\n'|%]|-(?!\d+(\.\d+)?$)", cell), (name, cell)


def test_comments_and_recruiters_ids_come_on_request_and_as_they_were_written(world: World) -> None:
    for query, there in (("&comments=1", "comments"), ("&recruiter_ids=1", "recruiterids")):
        archive = world.archive("full-study", query=query)
        (name,) = (name for name in archive.namelist() if re.search("comments|recruiterids", name))
        assert name == codebook.file_name("full-study", there)
        others = b"\n".join(archive.read(other) for other in archive.namelist() if other != name)
        assert b"J. Doe" not in others
        assert b"prolific" not in others
        _, *rows = csv.reader(io.StringIO(archive.read(name).decode(), newline=""))
        cells = [cell for row in rows for cell in row[1:]]
        assert not [cell for cell in cells if re.match(r"[=+\-@\t\r\n＝]", cell)]
        written = {cell.removeprefix("'") if cell.startswith("'") else cell for cell in cells}
        assert written >= (set(NASTY) if there == "comments" else {f"=prolific{i:02}" for i in range(11)})
    assert [tables.marked(text) for text in ("=1", "'=1", "1=1", "")] == ["'=1", "''=1", "1=1", ""]


def test_of_who_withdrew_only_that_is_told(world: World) -> None:
    folder = world.export("full-study")
    rows = read_csv((folder / codebook.file_name("full-study", "participants")).read_text())
    (gone,) = rows[rows["state"] == "withdrawn"].to_dict("records")
    told = {column for column, cell in gone.items() if cell}
    assert told == {"participant", "study", "version", "simulated", "number", "state"}
    for table in ("responses", "trials"):
        assert gone["participant"] not in (folder / codebook.file_name("full-study", table)).read_text()


def test_a_pseudonym_does_not_follow_from_the_token(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.enrollment.secrets.token_urlsafe", lambda size: "the-same-token-twice")
    db = Database(settings.database_url)
    names = []
    for replaced in ("a", "b"):
        begin(client)
        with db.write() as session:
            of_token = Participant.token == "the-same-token-twice"
            names.append(session.scalars(select(Participant.pseudonym).where(of_token)).one())
            session.execute(update(Participant).where(of_token).values(token=replaced))
            session.commit()
    db.close()
    assert len(set(names)) == 2


def test_it_is_for_the_researcher_alone(world: World) -> None:
    with TestClient(create_app(world.settings)) as stranger:
        for query in ("", "?comments=1"):
            reply = stranger.get(f"/results/once/export.zip{query}")
            assert (reply.status_code, "detail" in reply.json()) == (401, True)
    for where, status in (
        ("nothing", 404),
        (f"once/export.zip?version={'0' * 12}", 404),
        ("once/export.zip?data=x", 422),
    ):
        path = where if "/" in where else f"{where}/export.zip"
        assert world.client.get(f"/results/{path}").status_code == status


# Every number can be recomputed


@pytest.mark.parametrize(("study", "data"), PLAYED)
def test_the_shipped_script_recomputes_every_number(
    world: World, study: str, data: str, tmp_path: Path
) -> None:
    folder = world.export(study, data)
    command = [
        sys.executable,
        "-W",
        "error",
        str(folder / "recompute.py"),
        "--write",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = strict((folder / "results.json").read_text())
    numbers = sum(recompute.is_number(value) for _, value in recompute.leaves(found))
    assert done.stdout.endswith(f"\n{numbers} numbers recomputed, 0 differ\n")
    again = strict((tmp_path / "out.json").read_text())
    assert set(dict(recompute.leaves(again))) == set(dict(recompute.leaves(found)))


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
    """All here are of just now: the script is told of a later instant, and what the page would say then."""
    folder = _copy(world.export("full-study"), tmp_path)
    text = (folder / "study" / "study.json").read_text()
    at = json.loads(text)["computed_at"]
    later = f"{int(at[:4]) + 1}{at[4:]}" if at[5:10] != "02-29" else at.replace("02-29", "03-29")
    (folder / "study" / "study.json").write_text(text.replace(at, later))
    monitoring = recompute.recompute(folder, [])["monitoring"]
    assert (monitoring["active"], sum(monitoring["dropouts"].values())) == (0, 4)
    assert all(monitoring["dropouts"][state] for state in ("labelling", "judging"))


def test_every_kind_of_number_is_compared(world: World) -> None:
    """One leaf of each kind in results.json is changed a little; the script must name just that one."""
    for study, data in PLAYED:
        folder = world.export(study, data)
        problems: list[str] = []
        expected = recompute.recompute(folder, problems)
        assert problems == []
        kinds: dict[str, str] = {}
        for path, _ in recompute.leaves(expected):
            kinds.setdefault(
                re.sub(r"(?<=/)(\d+|undefended|distilled|gradient_regularized|three(-b)?)(?=/|$)", "*", path),
                path,
            )
        assert len(kinds) > 100
        for path in kinds.values():
            found = copy.deepcopy(json.loads((folder / "results.json").read_text()))
            *way, last = (
                int(key) if key.isdigit() and _is_list(found, path, i) else key
                for i, key in enumerate(path.split("/"))
            )
            branch = found
            for key in way:
                branch = branch[key]
            branch[last] = _altered(branch[last])
            lines = list(recompute.differing(found, expected))
            assert lines
            assert all(re.match(rf"{re.escape(path)}[:/]", line) for line in lines), lines


def _is_list(tree: Any, path: str, depth: int) -> bool:
    for key in path.split("/")[:depth]:
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    return isinstance(tree, list)


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


def test_the_script_says_what_differs(world: World, tmp_path: Path) -> None:
    folder = _copy(world.export("once"), tmp_path)
    changed = json.loads((folder / "results.json").read_text())
    was = changed["packs"]["three"]["comparisons"][0]["p"]
    changed["packs"]["three"]["comparisons"][0]["p"] = 0.0123
    (folder / "results.json").write_text(json.dumps(changed))
    (folder / "study" / "frozen.json").write_text((folder / "study" / "frozen.json").read_text() + " ")
    done = subprocess.run([sys.executable, "recompute.py"], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-2:] == [
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
        flip = stats.sign_flip(differences)
        found = recompute_methods.sign_flip(differences)
        assert flip is not None
        assert (found["p"], found["p_mid"]) == pytest.approx((flip.p, flip.p_mid), rel=1e-12)
        assert found["p_exact"] is flip.exact is True
    coarse = [Fraction(rng.randint(-900, 960), rng.choice((997, 991, 983))) for _ in range(24)]
    flip, found = stats.sign_flip(coarse), recompute_methods.sign_flip(coarse)
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
    for study, data in PLAYED:
        folder = world.export(study, data)
        done = subprocess.run(["Rscript", folder / "recompute.R"], capture_output=True, text=True)
        assert done.returncode == 0, f"{study}: {done.stdout}{done.stderr}"
        numbers = re.search(r"^(\d+) numbers recomputed, 0 differ$", done.stdout, re.M)
        assert numbers is not None
        assert int(numbers.group(1)) > 60
        assert "Additional analysis, not the headline" in done.stdout
        if data == "real" and study in ("full-study", "labels", "once"):
            assert "(Intercept)" in done.stdout
        assert ("masked" in done.stdout) == strict((folder / "results.json").read_text())["masked"]
    folder = _copy(world.export("once"), tmp_path)
    text = (folder / "results.csv").read_text()
    assert text.count("/p_mid,") > 3
    (folder / "results.csv").write_text(re.sub(r"/p_mid,0\.", "/p_mid,0.9", text, count=1))
    done = subprocess.run(["Rscript", folder / "recompute.R"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "1 differ" in done.stdout


def test_the_address_names_version_and_data(world: World) -> None:
    db = Database(world.settings.database_url)
    with db.read() as session:
        version = session.scalars(select(Study).where(Study.slug == "once")).one().version
    db.close()
    reply = world.client.get(f"/results/once/export.zip?version={version}")
    assert reply.headers["content-disposition"] == f'attachment; filename="once-{version}-real.zip"'
    assert reply.headers["cache-control"] == "no-store"
