"""Who begins and who comes back: one session a person, whatever link, device or double click brought them."""

import html
import random
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response as Reply
from sqlalchemy import delete, func, select, update

from app.db import Database
from app.exposures import ABANDONED_AFTER, Exposures
from app.main import create_app
from app.models import Participant, RecruiterId, Study, Trial
from app.recruiters import PERSONAL
from app.serving import prepare
from app.settings import Settings
from app.web import now
from tests.app.conftest import Player, begin
from tests.app.databases import contents
from tests.app.small import SMALL_STUDY, db, prepared, settings, small, study
from tests.app.test_pages import Fields, count

__all__ = ["db", "prepared", "settings", "small", "study"]  # fixtures

Start = Callable[..., Player]


@pytest.fixture
def policies(settings: Settings, prepared: str) -> Iterator[TestClient]:
    """An app with three more studies: one for each policy, and a second one of the default."""
    for policy in ("refuse", "new", "resume"):
        text = f'{SMALL_STUDY}\n[recruitment]\nreturning = "{policy}"\n'
        (settings.studies / f"{policy}.toml").write_text(text)
    prepare(settings)
    with TestClient(create_app(settings)) as client:
        yield client


def consent(client: TestClient, url: str = "/study/test", **fields: str) -> Reply:
    return client.post(url, data={"consent": "yes"} | fields, follow_redirects=False)


def token(reply: Reply) -> str:
    assert reply.status_code == 303, reply.text
    return reply.headers["location"].removeprefix("/s/")


def anew(client: TestClient) -> TestClient:
    """Another device: no cookies."""
    return TestClient(client.app)


# By a recruiter's id


def test_a_recruiters_id_has_one_session_on_any_device(client: TestClient, db: Database) -> None:
    for already, name in enumerate(PERSONAL):
        first = token(consent(anew(client), f"/study/test?{name}=abc&SESSION_ID=1"))
        assert token(consent(anew(client), f"/study/test?{name}=abc&SESSION_ID=2")) == first, name
        assert begin(anew(client), **{name: "abc"}).token == first, name
        begin(anew(client), **{name: "abd"})
        assert count(db, Participant) == 2 * (already + 1), name


def test_coming_back_leads_to_where_one_was(client: TestClient, db: Database) -> None:
    player = begin(client, PROLIFIC_PID="abc")
    player.answer(most=5)
    page = anew(client).get("/study/test?PROLIFIC_PID=abc").text
    assert "Welcome back" in page
    assert f'href="/s/{player.token}"' in page
    player.answer()
    page = anew(client).get("/study/test?PROLIFIC_PID=abc").text
    assert "You have already taken part" in page
    code = re.search(r'id="completion-code">([^<]+)<', anew(client).get(f"/s/{player.token}").text)
    assert code is not None
    assert code[1] not in page, "the code is on the session's own page alone"
    assert begin(anew(client), PROLIFIC_PID="abc").token == player.token
    assert count(db, Participant) == 1


def test_an_id_counts_in_its_own_study_and_under_its_own_name(policies: TestClient, db: Database) -> None:
    tokens = {
        begin(policies, PROLIFIC_PID="7").token,
        begin(policies, workerId="7").token,
        begin(policies, id="7").token,
        begin(policies, "resume", PROLIFIC_PID="7").token,
    }
    assert len(tokens) == 4
    assert begin(policies, STUDY_ID="7").token not in tokens, "what all participants share is no person"
    assert begin(policies, STUDY_ID="7").token not in tokens


def test_a_new_version_of_the_study_does_not_begin_the_same_person_again(
    settings: Settings, client: TestClient, db: Database
) -> None:
    before = begin(client, PROLIFIC_PID="abc")
    before.answer(most=3)
    path = settings.studies / "test.toml"
    path.write_text(path.read_text().replace("A summary.", "Another summary."))
    prepare(settings)
    assert begin(client, PROLIFIC_PID="abc").token == before.token
    assert "A summary." not in client.get("/study/test?PROLIFIC_PID=abc").text
    before.answer()
    path.rename(path.with_suffix(".closed"))
    prepare(settings)
    assert client.get("/study/test").status_code == 404
    assert "already taken part" in client.get("/study/test?PROLIFIC_PID=abc").text, (
        "a closed study knows its own"
    )


def test_the_studys_policy_decides(policies: TestClient, db: Database) -> None:
    external = {"PROLIFIC_PID": "abc"}
    first = begin(policies, "refuse", **external)
    page = policies.get("/study/refuse?PROLIFIC_PID=abc")
    assert (page.status_code, first.token in page.text) == (200, False), "the link alone gives nothing away"
    assert "This link can be used once" in page.text
    again = policies.post("/api/sessions", json={"study": "refuse", "consent": True, "external": external})
    assert again.status_code == 409
    assert again.json() == {"detail": "This link has been used already; a second session is not possible."}
    assert consent(anew(policies), "/study/refuse?PROLIFIC_PID=abc").status_code == 409
    first.answer(most=2)
    assert policies.get(f"/s/{first.token}").status_code == 200, "their own address still works"

    assert begin(policies, "new", **external).token != begin(policies, "new", **external).token
    assert begin(policies, "resume", **external).token == begin(policies, "resume", **external).token
    assert count(db, Participant) == 4


def test_the_present_files_policy_decides_for_those_of_before_too(
    policies: TestClient, settings: Settings, db: Database
) -> None:
    def change(policy: str) -> None:
        path = settings.studies / "new.toml"
        path.write_text(f'{SMALL_STUDY}\n[recruitment]\nreturning = "{policy}"\n')
        prepare(settings)

    first, second = (begin(policies, "new", id="a") for _ in range(2))
    first.answer()
    change("resume")
    assert begin(policies, "new", id="a").token == first.token, "the one that is finished, of several"
    change("refuse")
    refused = policies.post("/api/sessions", json={"study": "new", "consent": True, "external": {"id": "a"}})
    assert refused.status_code == 409
    change("new")
    assert begin(policies, "new", id="a").token not in (first.token, second.token)
    assert count(db, Participant) == 3


def test_a_link_that_works_once_goes_on_in_the_browser_that_began(policies: TestClient, db: Database) -> None:
    url = "/study/refuse?survey_code=12345"
    first, second = (Fields(policies.get(url).text).hidden for _ in range(2))
    mine = token(consent(policies, url, **first))
    assert token(consent(policies, url, **second)) == mine, "a second tab that was open already"
    assert f'href="/s/{mine}"' in policies.get(url).text
    assert mine not in anew(policies).get(url).text
    assert consent(anew(policies), url, **second).status_code == 409
    assert count(db, Participant) == 1


def test_a_placeholder_that_was_not_filled_in_is_nobody(client: TestClient) -> None:
    for unfilled in ("{{%PROLIFIC_PID%}}", "%SURVEY_CODE%", "${e://Field/id}", "[%id%]", "<your id>"):
        tokens = {token(consent(anew(client), "/study/test", PROLIFIC_PID=unfilled)) for _ in range(2)}
        tokens |= {begin(client, PROLIFIC_PID=unfilled).token for _ in range(2)}
        assert len(tokens) == 4, unfilled
        page = anew(client).get("/study/test", params={"PROLIFIC_PID": unfilled})
        assert "Your consent" in page.text, unfilled


def test_spaces_around_an_id_are_nobodys(client: TestClient) -> None:
    assert begin(client, id=" a ").token == begin(client, id="a").token
    assert token(consent(client, "/study/test?id=a%20")) == begin(client, id="a").token


def test_consent_is_given_to_the_version_that_was_read(
    client: TestClient, settings: Settings, db: Database
) -> None:
    read = Fields(client.get("/study/test?id=a").text)
    path = settings.studies / "test.toml"
    path.write_text(path.read_text().replace('"I agree."', '"I agree, and to more than that."'))
    prepare(settings)
    reply = consent(client, "/study/test?id=a", **read.hidden)
    assert reply.status_code == 422
    assert "The study has changed since this page was opened; please read it again." in reply.text
    assert "and to more than that" in reply.text
    assert count(db, Participant) == 0
    again = Fields(reply.text)
    assert again.hidden["id"] == "a"
    mine = token(consent(client, "/study/test?id=a", **again.hidden))
    begin(client, id="b"), begin(client, id="c")
    with db.read() as session:
        person = session.scalars(select(Participant).where(Participant.token == mine)).one()
        assert person.study.version == again.hidden["version"]
        assert person.consented_at <= now()
        assert (person.language, person.consent_language) == ("en", "en")


def test_those_who_cannot_begin_take_nothing_from_the_limit(client: TestClient) -> None:
    limit = client.app.state.creation_limit  # type: ignore[attr-defined]
    for _ in range(3):
        assert client.post("/api/sessions", json={"study": "nothing", "consent": True}).status_code == 404
        assert consent(client, "/study/nothing").status_code == 404
    assert len(limit) == 0
    first = begin(client, id="a")
    assert begin(client, id="a").token == first.token
    assert len(limit) == 1


def test_simulated_participants_are_nobody(client: TestClient, db: Database) -> None:
    pretended = begin(client, PROLIFIC_PID="abc", simulated="yes")
    real = begin(client, PROLIFIC_PID="abc")
    assert begin(client, PROLIFIC_PID="abc", simulated="yes").token not in (pretended.token, real.token)
    assert begin(client, PROLIFIC_PID="abc").token == real.token


def test_one_who_withdrew_may_come_again_as_nothing_is_known_of_them(
    client: TestClient, db: Database
) -> None:
    first = token(consent(client, "/study/test?PROLIFIC_PID=abc"))
    client.post(f"/s/{first}/withdraw")
    assert "Your consent" in client.get("/study/test?PROLIFIC_PID=abc").text
    assert token(consent(client, "/study/test?PROLIFIC_PID=abc")) != first
    assert count(db, RecruiterId) == 1


def test_many_devices_with_one_link_at_once_are_one_session(client: TestClient, db: Database) -> None:
    tokens: list[str] = []

    def arrive() -> None:
        tokens.append(begin(client, PROLIFIC_PID="abc").token)

    threads = [threading.Thread(target=arrive) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 12
    assert len(set(tokens)) == 1
    assert count(db, Participant) == 1


# By the client's own request


def test_a_request_sent_again_begins_nothing(client: TestClient, db: Database) -> None:
    body = {"study": "test", "consent": True, "request_id": str(uuid.uuid4())}
    replies = [client.post("/api/sessions", json=body) for _ in range(3)]
    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.json()["token"] for reply in replies}) == 1
    assert count(db, Participant) == 1
    assert client.post("/api/sessions", json=body | {"request_id": "7"}).status_code == 422
    client.post(f"/api/sessions/{replies[0].json()['token']}/withdraw")
    late = client.post("/api/sessions", json=body).json()["token"]
    assert client.get(f"/api/sessions/{late}").json()["state"] == "withdrawn", (
        "a late copy brings nobody back"
    )


def test_a_request_id_of_another_study_is_nobody(policies: TestClient) -> None:
    body = {"study": "test", "consent": True, "request_id": str(uuid.uuid4())}
    assert policies.post("/api/sessions", json=body).status_code == 201
    other = policies.post("/api/sessions", json=body | {"study": "new"})
    assert other.status_code == 409
    assert other.json()["detail"] == "This request_id has begun a session of another study."


def test_begin_pressed_twice_is_one_session(client: TestClient, db: Database) -> None:
    fields = Fields(client.get("/study/test").text)
    assert token(consent(anew(client), **fields.hidden)) == token(consent(anew(client), **fields.hidden))
    other = Fields(client.get("/study/test").text)
    assert other.hidden["request_id"] != fields.hidden["request_id"]
    assert token(consent(anew(client), request_id="nonsense")), "a broken form still begins"
    assert count(db, Participant) == 2


def test_a_request_id_begins_one_persons_session(client: TestClient, db: Database) -> None:
    body = {"study": "test", "consent": True, "request_id": str(uuid.uuid4())}
    for first, second in (({"id": "a"}, {"id": "b"}), ({}, {"id": "b"}), ({"id": "c"}, {})):
        body["request_id"] = str(uuid.uuid4())
        assert client.post("/api/sessions", json=body | {"external": first}).status_code == 201
        reply = client.post("/api/sessions", json=body | {"external": second})
        assert reply.status_code == 409
        assert reply.json()["detail"] == "This request_id has begun the session of somebody else."
    assert count(db, Participant) == 3


# By the browser


def test_the_browser_remembers_from_consent_on(client: TestClient, db: Database) -> None:
    for url in ("/", "/study/test", "/study/test?PROLIFIC_PID=abc", "/withdraw", "/s/nobody"):
        assert "set-cookie" not in client.get(url).headers
    assert "set-cookie" not in client.post("/study/test", data={}).headers, "not without consent"
    reply = consent(client)
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "Path=/study/test" in cookie
    assert "samesite=lax" in cookie.lower()
    mine = token(reply)
    page = client.get("/study/test").text
    assert "Welcome back" in page
    assert f'href="/s/{mine}"' in page
    assert token(consent(client)) == mine, "Back and Begin again"
    assert count(db, Participant) == 1


def test_somebody_else_at_the_same_device_begins_their_own(client: TestClient, db: Database) -> None:
    mine = token(consent(client))
    page = client.get("/study/test").text
    assert "/study/test?another=yes" in page
    form = Fields(client.get("/study/test?another=yes").text)
    assert form.hidden["another"] == "yes"
    theirs = token(consent(client, **form.hidden))
    assert theirs != mine
    assert f'href="/s/{theirs}"' in client.get("/study/test").text
    assert token(consent(client, "/study/test?PROLIFIC_PID=x")) not in (mine, theirs), "an id is a person"
    assert count(db, Participant) == 3


def test_a_withdrawn_session_is_not_offered_again(client: TestClient) -> None:
    mine = token(consent(client))
    client.post(f"/s/{mine}/withdraw")
    assert "Your consent" in client.get("/study/test").text
    assert token(consent(client)) != mine


# Back to the recruiter


def test_the_way_back_names_whom_the_recruiter_sent(settings: Settings) -> None:
    url = "https://sona.example/credit?experiment=7&survey_code={survey_code}&cc={code}&pid={PROLIFIC_PID}"
    text = f'{SMALL_STUDY}\n[completion]\nredirect_url = "{url}"\n'
    (settings.studies / "test.toml").write_text(text)
    prepare(settings)
    with TestClient(create_app(settings)) as client:
        player = begin(client, survey_code="a b&c=ä{code}")
        player.answer(until="commenting")
        assert "sona.example" not in client.get(f"/s/{player.token}").text, (
            "not before every answer is counted"
        )
        assert client.post(f"{player.base}/finish").json()["redirect_url"]
        code = codes(client.get(f"/s/{player.token}").text)["completion-code"]
        expected = f"https://sona.example/credit?experiment=7&survey_code=a%20b%26c%3D%C3%A4%7Bcode%7D&cc={code}&pid="
        assert client.post(f"{player.base}/finish").json()["redirect_url"] == expected
        assert f'href="{html.escape(expected)}"' in client.get(f"/s/{player.token}").text
        client.post(f"/s/{player.token}/withdraw")
        assert "sona.example" not in client.get(f"/s/{player.token}").text


# What counts as shown


def test_what_is_remembered_of_exposures_is_what_reading_all_says(client: TestClient, db: Database) -> None:
    """Whatever happens in between: people begin, answer, fall silent, come back, withdraw."""
    rng, remembered = random.Random(3), Exposures()
    players: list[Player] = []
    for _ in range(25):
        event = rng.choice(("begin", "begin", "answer", "answer", "silent", "withdraw"))
        if event == "begin" or not players:
            players.append(begin(client, **({"simulated": "yes"} if rng.random() < 0.2 else {})))
        elif event == "answer":
            rng.choice(players).answer(most=rng.randint(1, 8))
        elif event == "withdraw":
            gone = players.pop(rng.randrange(len(players)))
            assert client.post(f"{gone.base}/withdraw").status_code == 200
        else:
            long_ago = now() - ABANDONED_AFTER - timedelta(seconds=rng.randint(1, 1000))
            silent = rng.choice(players).token
            with db.write() as session:
                session.execute(
                    update(Participant).where(Participant.token == silent).values(last_seen_at=long_ago)
                )
                session.commit()
        with db.read() as session:
            study = session.scalars(select(Study)).one()
            for simulated in (False, True):
                kept = remembered.count(session, study.id, simulated, now())
                assert kept == Exposures().count(session, study.id, simulated, now())
                assert all(n > 0 for n in kept.values())


def test_exposures_are_what_was_answered_or_may_still_be(client: TestClient, db: Database) -> None:
    finished, amid, silent, withdrawn, pretended = (
        begin(client),
        begin(client),
        begin(client),
        begin(client),
        begin(client, simulated="yes"),
    )
    finished.answer()
    for player, images in ((amid, 7), (silent, 5), (withdrawn, 9), (pretended, 4)):
        player.answer(most=2 + images)
    client.post(f"/api/sessions/{withdrawn.token}/withdraw")
    long_ago = now() - ABANDONED_AFTER - timedelta(seconds=1)
    with db.write() as session:
        for player in (finished, silent):
            session.execute(
                update(Participant).where(Participant.token == player.token).values(last_seen_at=long_ago)
            )
        session.commit()
    with db.read() as session:
        study = session.scalars(select(Study)).one()
        counted = {
            simulated: Exposures().count(session, study.id, simulated, now()) for simulated in (False, True)
        }
        expected: Counter[int] = Counter()
        for player, images in ((finished, 12), (amid, 12), (silent, 5)):
            expected.update(
                session.scalars(
                    select(Trial.stimulus_id)
                    .join(Participant)
                    .where(Participant.token == player.token, Trial.kind == "main")
                    .order_by(Trial.position)
                    .limit(images)
                )
            )
    assert counted[False] == expected
    assert sum(counted[True].values()) == 12


# Leaving


def codes(page: str) -> dict[str, str]:
    return dict(re.findall(r'id="(completion-code|withdrawal-code)">([^<]+)<', page))


def test_the_private_code_deletes_everything_and_proves_it(
    client: TestClient, start: Start, db: Database, settings: Settings
) -> None:
    player = start(PROLIFIC_PID="somebody-to-forget")
    player.answer(until="commenting")
    remark = "a remark that must not stay anywhere"
    client.post(f"/s/{player.token}/comments", data={"text": remark})
    found = codes(client.get(f"/s/{player.token}").text)
    private = found["withdrawal-code"]
    assert re.fullmatch(r"[2-9A-Z]{4}-[2-9A-Z]{4}-[2-9A-Z]{4}", private)
    assert private != found["completion-code"]

    elsewhere = anew(client)
    for wrong in ("", "AAAA-BBBB-CCCC", found["completion-code"], player.token, "x" * 101, "%"):
        reply = elsewhere.post("/withdraw", data={"code": wrong}, follow_redirects=False)
        assert reply.status_code == 422, wrong
    typed = private.replace("-", "\N{EN DASH}").lower()
    wide = str.maketrans({chr(33 + i): chr(0xFF01 + i) for i in range(94)})
    assert elsewhere.post(
        "/withdraw", data={"code": private.translate(wide)}, follow_redirects=False
    ).is_redirect
    page = elsewhere.post("/withdraw", data={"code": f" {typed} "})
    assert "Delete all your answers?" in page.text
    for line in ("images read: 14", "mistakes judged: 12", "comments: 1", "ids from a recruiter’s link: 1"):
        assert line in page.text
    assert remark.encode() in contents(settings.database_url)
    receipt = elsewhere.post(str(page.url.path)).text
    for line in ("images read: 14", "mistakes judged: 12", "comments: 1", "ids from a recruiter’s link: 1"):
        assert line in receipt
    assert "Counted in the database just now: 0 of these are left." in receipt
    assert receipt == elsewhere.get(f"/s/{player.token}").text, "the receipt stays"
    with db.read() as session:
        person = session.scalars(select(Participant).where(Participant.token == player.token)).one()
        assert (person.finished_at, person.completion_code) == (None, None), "the code is no longer valid"
        assert person.deleted == {
            "labels": 14,
            "judgments": 12,
            "images": 14,
            "comments": 1,
            "recruiter_ids": 1,
        }
        assert session.scalar(select(func.count()).select_from(RecruiterId)) == 0
    assert remark.encode() not in contents(settings.database_url), "not in the freed pages of the file either"
    assert b"somebody-to-forget" not in contents(settings.database_url)
    again = elsewhere.post("/withdraw", data={"code": private})
    assert "Your answers are deleted" in again.text


def test_a_receipt_counts_what_was_written(start: Start) -> None:
    player = start()
    player.answer(until="commenting")
    player.client.post(f"{player.base}/comments", json={"text": ""})
    rows = player.client.post(f"{player.base}/withdraw").json()["rows_deleted"]
    assert rows == {"labels": 14, "judgments": 12, "images": 14, "comments": 0, "recruiter_ids": 0}


def test_who_answers_holds_their_images(client: TestClient, db: Database) -> None:
    player = begin(client)
    player.answer(most=3)
    for question in ("label", "plausibility"):
        with db.write() as session:
            session.execute(update(Participant).values(last_seen_at=now() - 2 * ABANDONED_AFTER))
            session.commit()
        with db.read() as session:
            study = session.scalars(select(Study)).one()
            held = sum(Exposures().count(session, study.id, False, now()).values())
        assert held == (1 if question == "label" else 12)
        player.answer(most=1)
        with db.read() as session:
            assert session.scalars(select(Participant.last_seen_at)).one() > now() - ABANDONED_AFTER
            assert sum(Exposures().count(session, study.id, False, now()).values()) == 12
        player.answer(until="judging")


def test_who_gets_the_id_of_somebody_deleted_is_counted_as_themselves(
    client: TestClient, db: Database
) -> None:
    """SQLite gives the largest id again, after `erase --all` for example."""
    remembered, gone = Exposures(), begin(client)

    def counts() -> list[dict[int, int]]:
        with db.read() as session:
            study = session.scalars(select(Study)).one()
            return [kind.count(session, study.id, False, now()) for kind in (remembered, Exposures())]

    assert counts()[0] == counts()[1]
    with db.write() as session:
        person = session.scalars(select(Participant).where(Participant.token == gone.token)).one()
        session.execute(delete(Trial).where(Trial.participant_id == person.id))
        session.execute(delete(Participant).where(Participant.id == person.id))
        session.commit()
    begin(client)
    begin(client)
    kept, anew = counts()
    assert kept == anew
