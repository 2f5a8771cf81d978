"""The whole export: what is in it, and what is not."""

import csv
import hashlib
import io
import json
import re
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
import recompute
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update

from app import bundle, cli, codebook, results, tables
from app.db import Database
from app.main import create_app
from app.models import Judgment, Participant, Response, Study, Trial
from app.settings import ROOT, Settings
from tests.app.conftest import SECRET, begin
from tests.app.exports.conftest import NASTY, PLAYED, SHOWN, World
from tests.app.oracle import read_csv, strict

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
    assert set(SHOWN) == set(codebook.DISPLAY)
    rows = world.table("full-study", "trials")
    usual, odd, alike = (rows[rows["label_display_left_out"].isin(n)] for n in (["0"], ["4"], ["1", "3"]))
    assert len(odd) > 10
    for _, row in odd.iterrows():
        assert (row["label_input"], row["label_interpolation"], row["label_too_early"]) == ("", "", "")
        assert (row["label_hidden_times"], row["label_held_keys"], row["label_image_retries"]) == (
            "0.5",
            "1",
            "-2",
        )
    assert set(alike["label_display_left_out"]) == {"1", "3"}
    assert set(alike["label_too_early"]) == {"3"}
    told = usual[usual["label_css_width"] != ""]
    assert {name: set(told[f"label_{name}"]) for name in SHOWN} == {n: {str(v)} for n, v in SHOWN.items()}
    assert set(rows["plausibility_css_width"]) == {"", "280"}
    responses = world.table("full-study", "responses")
    assert rows[["participant", "position", "kind"]].equals(responses[["participant", "position", "kind"]])


def test_the_stimuli_are_the_packs(world: World) -> None:
    assert world.table("full-study", "stimuli").to_dict("records") == [
        {
            "stimulus": s.sha256,
            "pack": pack.name,
            "model": s.model,
            "source_index": str(s.source_index),
            "source_label": s.source_label,
            "target_label": s.target_label,
            "prediction": s.prediction,
            "target_probability": str(s.target_probability),
            "iterations": str(s.iterations),
            "pixels_changed": str(s.pixels_changed),
            "l2": str(s.l2),
            "linf": str(s.linf),
        }
        for pack in world.packs
        for s in pack.stimuli
    ]


@pytest.mark.parametrize(("study", "data"), PLAYED)
def test_the_participants_are_the_databases(world: World, study: str, data: str) -> None:
    asked = {"labels": "label", "once": "label plausibility"}.get(study, "label runner_up plausibility")
    to_label = 12 if study == "full-study" else 9

    def instant(at: datetime | None) -> str:
        return at.isoformat(timespec="microseconds").replace("+00:00", "Z") if at else ""

    found = world.table(study, "participants", data).to_dict("records")
    derived = (
        "excluded_reason",
        "answers",
        "answers_asked",
        "minutes",
        "median_label_rt_ms",
        "controls_right",
    )
    reasons = [[row.pop(name) for name in derived] for row in found]  # recompute.py compares them
    db = Database(world.settings.database_url)
    with db.read() as session:
        version = session.scalars(select(Study).where(Study.slug == study)).one()
        people = session.execute(
            select(Participant, func.count(Response.trial_id), func.count(Judgment.trial_id))
            .outerjoin(Trial, Trial.participant_id == Participant.id)
            .outerjoin(Response, Response.trial_id == Trial.id)
            .outerjoin(Judgment, Judgment.trial_id == Trial.id)
            .where(Participant.study_id == version.id, Participant.simulated == (data == "simulated"))
            .group_by(Participant.id)
            .order_by(Participant.number)
        ).all()
        expected = []
        for person, labeled, judged in people:
            state = "judging" if judged < 9 and "plausibility" in asked else "commenting"
            row = dict.fromkeys(codebook.PARTICIPANTS, "") | {
                "participant": person.pseudonym,
                "study": study,
                "version": version.sha256[:12],
                "simulated": "1" if data == "simulated" else "0",
                "number": str(person.number),
                "state": "labelling" if labeled < to_label else "finished" if person.finished_at else state,
                "started_at": instant(person.consented_at),
                "last_seen_at": instant(person.last_seen_at),
                "finished_at": instant(person.finished_at),
                "language": person.language,
                "consent_language": person.consent_language,
                "runner_up_first": "1" if person.runner_up_first else "0",
                "questions": asked.replace("label runner_up", "runner_up label")
                if person.runner_up_first
                else asked,
                "grid_order": " ".join(person.grid_order),
            }
            for name in derived:
                del row[name]
            if person.withdrawn_at:
                told = ("participant", "study", "version", "simulated", "number")
                row = {name: cell if name in told else "" for name, cell in row.items()}
                row["state"] = "withdrawn"
            expected.append(row)
    db.close()
    assert found == expected
    assert not any(told[0] and row["state"] != "finished" for row, told in zip(found, reasons, strict=True))
    if study == "full-study" and data == "real":
        assert {row["runner_up_first"] for row in found} == {"", "0", "1"}
        assert {row["state"] for row in found} == {"labelling", "judging", "finished", "withdrawn"}


def test_the_language_is_that_of_now(world: World) -> None:
    """Also where nothing else has changed since the last export."""
    player = begin(world.client, "spoken")
    name = codebook.file_name("spoken", "participants")
    for language in ("en", "zh", "en"):
        reply = world.client.post(f"/s/{player.token}/language", data={"language": language})
        assert reply.status_code == 200
        (row,) = read_csv(world.archive("spoken").read(name).decode()).to_dict("records")
        assert (row["language"], row["consent_language"]) == (language, "en")


def test_the_command_writes_the_same_files(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", world.settings.database_url)
    monkeypatch.setenv("SECRET_KEY", SECRET)
    for extra in ([], ["--zip"], ["--comments", "--recruiter-ids"]):
        out = tmp_path / "-".join(["out", *extra])
        assert cli.main(["export", "--study", "full-study", "--out", str(out), *extra]) == 0
        served = world.client.get("/results/full-study/responses.csv").content
        assert (out / "responses.csv").read_bytes() == served
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
        problems: list[str] = []
        expected = recompute.recompute(out, problems)
        found = strict((out / "results.json").read_text())
        assert not [*recompute.differing(found, expected), *problems]


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
        assert written >= (
            set(NASTY) if there == "comments" else {f"=prolific{i:02}" for i in range(len(NASTY))}
        )
    assert [tables.marked(text) for text in ("=1", "'=1", "1=1", "")] == ["'=1", "''=1", "1=1", ""]


def test_of_who_withdrew_only_that_is_told(world: World) -> None:
    folder = world.export("full-study")
    rows = world.table("full-study", "participants")
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


def test_the_address_names_version_and_data(world: World) -> None:
    db = Database(world.settings.database_url)
    with db.read() as session:
        version = session.scalars(select(Study).where(Study.slug == "once")).one().version
    db.close()
    reply = world.client.get(f"/results/once/export.zip?version={version}")
    assert reply.headers["content-disposition"] == f'attachment; filename="once-{version}-real.zip"'
    assert reply.headers["cache-control"] == "no-store"
