"""What leaves the server: the CSV and JSON that other programs rely on, and who may fetch them."""

import json
import os
import re
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from app import auth, cli, report, tables
from app.db import Database
from app.models import Participant, Unmasking
from app.settings import Settings
from ml.pack import Pack
from tests.app.conftest import Player, sign_in
from tests.app.databases import KINDS
from tests.app.oracle import by_labels, play, read_csv, strict

# PostgreSQL for the rows themselves and who is among them.
pytestmark = pytest.mark.quickly("sqlite")

Start = Callable[..., Player]

COLUMNS = re.split(
    r"\s+",
    "participant study version pack position kind stimulus model source_label target_label label runner_up "
    "plausible fooled reasonable label_rt_ms plausibility_rt_ms answered_at excluded",
)
RESULTS = ("", ".json", "/responses.csv")
PLAIN = by_labels(
    {"undefended": (1, 2, 1, 2), "distilled": (0, 3, 0, 1), "gradient_regularized": (4, 1, 2, 6)}
)


def csv(client: TestClient, query: str = "") -> str:
    reply = client.get(f"/results/test/responses.csv{query}")
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "text/csv; charset=utf-8"
    return reply.text


def pseudonym(settings: Settings, token: str) -> str:
    db = Database(settings.database_url)
    with db.read() as session:
        name = session.scalars(select(Participant.pseudonym).where(Participant.token == token)).one()
    db.close()
    return name


@pytest.mark.only(*KINDS)
def test_one_row_an_answered_trial_as_it_was_answered(
    researcher: TestClient, settings: Settings, start: Start, pack: Pack
) -> None:
    hidden = {s.sha256: s for s in pack.stimuli}
    clean = {image.sha256: image.source_label for image in pack.clean}
    before = datetime.now(UTC)
    player = start(PROLIFIC_PID="=1+1")
    sent: dict[int, dict[str, Any]] = {}

    def choose(trial: dict[str, Any]) -> dict[str, Any]:
        position = trial["position"]
        if trial["state"] == "judging":
            answer = {"plausible": position % 3 == 0, "rt_ms": 700.1234567 + position}
        else:
            source = hidden[trial["image"][9:73]].source_label if not trial["practice"] else "4"
            target = hidden[trial["image"][9:73]].target_label if not trial["practice"] else "5"
            answer = [
                {"label": target, "runner_up": source, "rt_ms": 1234.5678},
                {"label": source, "runner_up": target, "rt_ms": 0.04},
                {"label": source, "runner_up": "none", "rt_ms": None},
                {"label": "none", "runner_up": "none", "rt_ms": 1e7},
            ][position % 4]
        sent[position] = sent.get(position, {}) | {trial["state"]: answer} | {"image": trial["image"][9:73]}
        return answer

    player.answer(choose, until="judging")
    player.answer(choose, most=9)
    rows = read_csv(csv(researcher))
    assert list(rows.columns) == COLUMNS
    assert list(rows["position"]) == [str(position) for position in range(1, 33)]
    version = strict(researcher.get("/results/test.json").text)["version"]
    name = pseudonym(settings, player.token)
    times = []
    for row in rows.to_dict("records"):
        position = int(row["position"])
        label, verdict = sent[position]["labelling"], sent[position].get("judging")
        stimulus = hidden.get(sent[position]["image"])
        times.append(datetime.fromisoformat(row.pop("answered_at")))
        fooled, reasonable = ("1", "0", "0", "0")[position % 4], ("1", "1", "0", "1")[position % 4]
        assert row == {
            "participant": name,
            "study": "test",
            "version": version,
            "pack": "test-pack",
            "position": str(position),
            "kind": "main" if stimulus else "practice",
            "stimulus": sent[position]["image"],
            "model": stimulus.model if stimulus else "",
            "source_label": stimulus.source_label if stimulus else clean[sent[position]["image"]],
            "target_label": stimulus.target_label if stimulus else "",
            "label": label["label"],
            "runner_up": label["runner_up"],
            "plausible": str(int(verdict["plausible"])) if verdict else "",
            "fooled": fooled if stimulus else "",
            "reasonable": reasonable if stimulus else "",
            # As measured: rounding could carry a time over the limit of an exclusion rule.
            "label_rt_ms": ("1234.5678", "0.04", "", "10000000.0")[position % 4],
            "plausibility_rt_ms": repr(verdict["rt_ms"]) if verdict else "",
            "excluded": "0",
        }
    assert sum("judging" in one for one in sent.values()) == 9
    assert all(t.utcoffset() == timedelta(0) for t in times)
    assert before <= times[0]
    assert sorted(times) == times
    assert times[-1] <= datetime.now(UTC)


def test_times_are_utc_iso_8601(researcher: TestClient, start: Start) -> None:
    start().answer(most=2)
    for time in read_csv(csv(researcher))["answered_at"]:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time)


def test_nothing_in_the_csv_names_a_person_or_runs_as_a_formula(
    researcher: TestClient, settings: Settings, start: Start
) -> None:
    nasty = "=HYPERLINK(1)"
    player = start(PROLIFIC_PID=nasty, workerId="+cmd")
    assert player.put(1, label=nasty, runner_up="none").status_code == 422
    player.answer(lambda trial: {"display": {"agent": nasty}}, until="commenting")
    player.client.post(f"{player.base}/comments", json={"text": f"{nasty}<script>alert(1)</script>"})
    player.client.post(f"{player.base}/finish")
    text = csv(researcher)
    assert nasty not in text
    assert "cmd" not in text
    assert player.token not in text
    name = pseudonym(settings, player.token)
    assert re.fullmatch(r"P-[2-9A-Z]{8}", name)
    assert name[2:] not in player.token
    cells = {cell for line in text.splitlines() for cell in line.split(",")}
    assert not [cell for cell in cells if re.match(r"[=+\-@\t\r|%]", cell)]
    assert '"' not in text, "nothing needs quotes, so nothing can break out of them"
    page = researcher.get("/results/test").text
    assert "workerId" not in page
    assert "<script>alert" not in page
    assert f"<blockquote>{nasty}&lt;script&gt;alert(1)&lt;/script&gt;" in page, "a comment is text"


@pytest.mark.only(*KINDS)
def test_who_is_in_the_csv(researcher: TestClient, settings: Settings, start: Start, pack: Pack) -> None:
    excluded = play(researcher, "test", [pack], lambda s: {"label": "1", "runner_up": "2", "plausible": True})
    unfinished, stranger, leaves = start(), start(simulated="yes"), start()
    for player in (unfinished, stranger, leaves):
        player.answer(lambda trial: {"label": "1", "runner_up": "2"}, most=7)
    leaves.client.post(f"{leaves.base}/withdraw")
    rows = read_csv(csv(researcher))
    by_name = {who: (len(own), set(own["excluded"])) for who, own in rows.groupby("participant", sort=False)}
    assert by_name == {
        pseudonym(settings, excluded): (32, {"1"}),  # raw rows are never dropped, practice included
        pseudonym(settings, unfinished.token): (7, {"0"}),
    }
    simulated = read_csv(csv(researcher, "?data=simulated"))
    assert set(simulated["participant"]) == {pseudonym(settings, stranger.token)}
    assert csv(researcher, "?data=real") == csv(researcher)


def test_before_anybody_came_there_is_a_header(researcher: TestClient) -> None:
    assert csv(researcher) == ",".join(COLUMNS) + "\r\n"


@pytest.mark.only(*KINDS)
def test_batches_leave_nothing_out(
    researcher: TestClient, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start().answer(most=12)
    whole = csv(researcher)
    for size in (1, 5, 12, 13):
        monkeypatch.setattr(tables, "BATCH", size)
        assert csv(researcher) == whole


def test_a_row_has_a_cell_for_every_column_and_no_other() -> None:
    row: tables.Row = {"written_at": None, "comment": "Nice.", "participant": "P-1"}
    assert "".join(tables.lines("comments", [row])) == "participant,written_at,comment\r\nP-1,,Nice.\r\n"
    with pytest.raises(ValueError, match="text"):
        list(tables.lines("comments", [row | {"text": "Nice."}]))
    del row["comment"]
    with pytest.raises(ValueError, match="a row of comments lacks \\['comment'\\]"):
        list(tables.lines("comments", [row]))


def test_the_file_says_what_is_in_it(researcher: TestClient, start: Start) -> None:
    start(simulated="yes")
    version = strict(researcher.get("/results/test.json").text)["version"]
    for data in ("real", "simulated"):
        headers = researcher.get(f"/results/test/responses.csv?data={data}").headers
        assert headers["content-disposition"] == f'attachment; filename="test-{version}-{data}.csv"'
        assert headers["cache-control"] == "no-store"
    default = researcher.get("/results/test/responses.csv").headers["content-disposition"]
    assert default.endswith('-simulated.csv"'), "as on the page"


def test_the_json_has_what_the_contract_promises(researcher: TestClient, pack: Pack) -> None:
    play(researcher, "test", [pack], PLAIN)
    assert strict(researcher.get("/results/test.json").text)["packs"]["test-pack"]["comparisons"] == []
    researcher.post("/results/test/unmask")
    reply = researcher.get("/results/test.json")
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    found = strict(reply.text)
    assert set(found) >= {"study", "version", "participants", "responses", "packs", "masked"}
    assert (found["study"], found["masked"], found["responses"]) == ("test", False, 30)
    assert re.fullmatch("[0-9a-f]{12}", found["version"])
    assert set(found["participants"]) >= {"started", "finished", "excluded"}
    assert list(found["packs"]) == ["test-pack"]
    models = found["packs"]["test-pack"]["models"]
    assert list(models) == ["undefended", "distilled", "gradient_regularized"]
    for rates in models.values():
        assert rates["n"] == 10
        assert set(rates) >= {
            "n",
            "human_fooled",
            "mistake_reasonable",
            "mistake_reasonable_direct",
            "target_first",
            "target_second",
            "none_plausible",
            "kept_source",
            "placebo_reasonable",
        }
        for name, rate in rates.items():
            if name == "n":
                continue
            assert set(rate) == {"count", "n", "rate", "low", "high"}
            assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
            assert rate["rate"] == rate["count"] / rate["n"]
    assert len(found["packs"]["test-pack"]["comparisons"]) == 9
    for comparison in found["packs"]["test-pack"]["comparisons"]:
        keys = "a b outcome primary difference low high p p_holm p_new_images p_naive"
        assert set(comparison) >= set(keys.split())


def test_the_export_command_writes_what_the_server_sends(
    researcher: TestClient, settings: Settings, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(researcher, "test", [pack], PLAIN)
    play(researcher, "test", [pack], lambda s: {"label": "1", "runner_up": "2", "plausible": True})
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("SECRET_KEY", settings.secret)
    assert cli.main(["export", "--study", "test", "--out", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    sent = strict(researcher.get("/results/test.json").text)
    assert written.pop("computed_at") <= sent.pop("computed_at")
    assert written == sent
    assert (tmp_path / "out" / "responses.csv").read_bytes().decode() == csv(researcher)
    assert set(read_csv(csv(researcher))["excluded"]) == {"0", "1"}


def test_what_the_commands_write_is_its_owners_alone(
    settings: Settings, prepared: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(PROLIFIC_PID="somebody").answer(most=2)
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("SECRET_KEY", settings.secret)
    monkeypatch.setattr(report, "render_report", lambda *_: "the report")
    before, out = os.umask(0o022), tmp_path / "out"
    try:
        assert cli.main(["export", "--study", "test", "--out", str(out), "--recruiter-ids"]) == 0
        assert cli.main(["export", "--study", "test", "--out", str(out / "zip"), "--zip"]) == 0
        assert cli.main(["report", "--study", "test", "--out", str(out / "new" / "report.html")]) == 0
        assert os.umask(0o022) == 0o022, "as it was"
    finally:
        os.umask(before)
    for path in (out, *out.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


# Who may look


def test_results_are_for_the_researcher_alone(client: TestClient, settings: Settings, start: Start) -> None:
    start().answer(most=3)
    own = sign_in(client).cookies[auth.COOKIE]
    for cookie in (None, "", "yes", own[:-1], own + "A", own.swapcase()):
        client.cookies.clear()
        if cookie is not None:
            client.cookies.set(auth.COOKIE, cookie)
        replies = [client.get(f"/results/test{what}") for what in RESULTS]
        replies += [client.get("/results"), client.post("/results/test/unmask")]
        for reply in replies:
            assert reply.status_code == 401, (cookie, reply.url)
            assert "P-" not in reply.text
    db = Database(settings.database_url)
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(Unmasking)) == 0
    db.close()
    client.cookies.clear()
    assert client.get(f"/signin?key={auth.sign_in_key(settings.secret)}x").status_code == 401
    assert client.get(f"/signin?key={auth.sign_in_key(settings.secret)}").status_code == 200
    assert [client.get(f"/results/test{what}").status_code for what in RESULTS] == [200] * 3


def test_what_is_not_there_is_said_not_to_be(researcher: TestClient) -> None:
    for what in RESULTS:
        assert researcher.get(f"/results/nothing{what}").status_code == 404
        assert researcher.get(f"/results/test{what}?version={'0' * 12}").status_code == 404
        assert researcher.get(f"/results/test{what}?version=%25").status_code == 422
        assert researcher.get(f"/results/test{what}?data=all").status_code == 422
    assert researcher.post("/results/nothing/unmask").status_code == 404
    detail = researcher.get("/results/nothing.json").json()["detail"]
    assert detail == "There is no such study or version here: 'nothing'."
