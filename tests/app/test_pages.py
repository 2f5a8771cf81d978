"""The participant's pages in process: plain forms, hostile input, errors as pages for people."""

import html
import re
import uuid
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response as Reply
from sqlalchemy import func, select

from app import auth, participation
from app.db import Database
from app.main import create_app
from app.models import Comment, Judgment, Participant, RecruiterId, Response
from app.recruiters import RECRUITER_KEYS
from app.serving import prepare
from app.settings import Settings
from app.web import SESSION_COOKIE
from ml.pack import Pack
from tests.app.conftest import Player, begin, installation
from tests.app.databases import KINDS
from tests.app.small import SMALL_STUDY, db, prepared, settings, study
from tests.packs import make_pack

__all__ = ["db", "prepared", "settings", "study"]  # fixtures

# PostgreSQL for what forms store, and for texts that it takes otherwise.
pytestmark = pytest.mark.quickly("sqlite")

Start = Callable[..., Player]

HOSTILE = """"><script>alert(1)</script><img src=x onerror=alert(2)>'{{7*7}}"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return make_pack(tmp_path_factory.mktemp("packs") / "test-pack", labels=tuple("3456"), targets=2)


def count(db: Database, table: type) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


class Fields(HTMLParser):
    """The inputs of a page, as a browser without JavaScript would send them when nothing is changed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.hidden: dict[str, str] = {}
        self.checked: dict[str, str] = {}
        self.action = ""
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.tags.append(tag)
        if tag == "form":
            self.action = values["action"]
        if tag == "input" and values["type"] == "hidden":
            self.hidden[values["name"]] = values["value"]
        if tag == "input" and "checked" in values and "name" in values:
            self.checked[values["name"]] = values["value"]


def form(player: Player) -> Fields:
    page = player.client.get(f"/s/{player.token}")
    assert page.status_code == 200
    return Fields(page.text)


def post(player: Player, fields: Fields, **chosen: str) -> Reply:
    return player.client.post(fields.action, data=fields.hidden | chosen, follow_redirects=False)


def assert_page(reply: Reply, status: int) -> str:
    """A page for people with that status; returns its text, without tags."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"].startswith("text/html")
    assert reply.headers["cache-control"] == "no-store"
    assert reply.text.startswith("<!doctype html>")
    main = reply.text.split("<main", 1)[1].split("</main>", 1)[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", f"<main{main}")).split())


def test_no_page_is_cached(start: Start, client: TestClient) -> None:
    assert_page(client.get("/"), 200)
    assert_page(client.get("/study/test"), 200)
    player = start()
    seen = []
    for state in ("labelling", "judging", "commenting", "finished"):
        player.answer(until=state)
        seen.append(assert_page(client.get(f"/s/{player.token}"), 200))
    assert len(set(seen)) == 4
    assert_page(client.get(f"/s/{player.token}/withdraw"), 200)
    client.post(f"/s/{player.token}/withdraw")
    assert "deleted" in assert_page(client.get(f"/s/{player.token}"), 200)


def test_looking_starts_nothing(client: TestClient, db: Database) -> None:
    for url in ("/", "/study/test", "/study/test?PROLIFIC_PID=abc", "/study/test?consent=yes"):
        assert client.get(url).status_code == 200
        assert client.head(url).status_code in (200, 405)
    assert client.post("/study/test?consent=yes").status_code == 422, "consent is given in the form"
    assert count(db, Participant) == 0


@pytest.mark.only(*KINDS)
def test_recruiter_ids_are_kept_from_the_link_to_the_database(client: TestClient, db: Database) -> None:
    sent = {key: f"{key}-äß&=+ %" for key in RECRUITER_KEYS}
    assert {"PROLIFIC_PID", "STUDY_ID", "SESSION_ID", "workerId", "id"} <= set(sent), "the contract's"
    first = Fields(client.get("/study/test", params=sent | {"other": "x"}).text)
    refused = client.post(first.action, data=first.hidden)
    assert "Please tick the box" in assert_page(refused, 422)
    second = Fields(refused.text)
    assert kept(second) == kept(first) == sent
    assert kept(Fields(client.get(second.action).text)) == sent, "the address alone keeps them as well"
    reply = client.post(second.action, data=second.hidden | {"consent": "yes"}, follow_redirects=False)
    assert reply.status_code == 303
    assert re.fullmatch(r"/s/[\w-]{32}", reply.headers["location"])
    with db.read() as session:
        stored = session.execute(select(RecruiterId.name, RecruiterId.value)).all()
    assert dict(stored) == sent


@pytest.mark.only(*KINDS)
def test_a_cookie_that_no_server_set_is_none(client: TestClient) -> None:
    for cookie in ('"\\000"', '"a\\000b\\377"', "\x7f", '"'):
        headers = {
            "Cookie": f"{SESSION_COOKIE}={cookie}; {auth.COOKIE}={cookie}; {auth.LINK_COOKIE}={cookie}"
        }
        for address, status in (("/", 200), ("/study/test", 200), ("/results", 401), ("/signin/link", 401)):
            assert client.get(address, headers=headers).status_code == status, (address, cookie)
        begun = client.post("/study/test", data={"consent": "yes"}, headers=headers, follow_redirects=False)
        assert begun.status_code == 303
        assert client.post("/signin/link", headers=headers).status_code in (401, 429)


def kept(fields: Fields) -> dict[str, str]:
    """The recruiter's ids among the hidden inputs."""
    return {
        key: value for key, value in fields.hidden.items() if key not in ("request_id", "language", "version")
    }


@pytest.mark.only(*KINDS)
def test_absurd_recruiter_ids_do_no_harm(client: TestClient, db: Database) -> None:
    """An id is kept whole or not at all: a part of it could be somebody else's."""
    for query in (
        {"PROLIFIC_PID": "x" * 201},
        {"id": "a\x00b"},
        {"workerId": "M%FCller"},  # as httpx sends it, percent and all: kept
    ):
        name = next(iter(query))
        readable = name == "workerId"
        page = client.get("/study/test", params=query)
        assert_page(page, 200 if readable else 422)
        assert readable or f"The {name} in this link cannot be read" in page.text
        reply = client.post("/study/test", data=query | {"consent": "yes"}, follow_redirects=False)
        assert reply.status_code == (303 if readable else 422)
    assert_page(client.get("/study/test?id=M%FCller"), 422)  # Latin-1: two people would become one
    assert count(db, Participant) == 1
    reply = client.post(
        "/study/test?another=yes", data={"workerId": "   ", "consent": "yes", "another": "yes"}
    )
    assert reply.status_code == 200
    with db.read() as session:
        stored = session.execute(select(RecruiterId.name, RecruiterId.value)).all()
    assert dict(stored) == {"workerId": "M%FCller"}


@pytest.mark.only(*KINDS)
def test_hostile_values_are_escaped(
    client: TestClient, researcher: TestClient, start: Start, db: Database
) -> None:
    plain = client.get("/study/test?id=plain")
    hostile = client.get("/study/test", params={"id": HOSTILE})
    assert Fields(hostile.text).tags == Fields(plain.text).tags
    assert kept(Fields(hostile.text)) == {"id": HOSTILE}
    refused = client.post("/study/test", data={"id": HOSTILE})
    assert "<script>alert" not in refused.text
    assert kept(Fields(refused.text)) == {"id": HOSTILE}
    for url in (f"/study/{HOSTILE}", f"/s/{HOSTILE}", f"/results/{HOSTILE}"):
        unknown = client.get(url)
        assert unknown.status_code == 404
        assert "<script>alert" not in unknown.text
        assert "<img src=x" not in unknown.text

    player = start()
    player.answer(until="commenting")
    fields = form(player)
    long = post(player, fields, text=HOSTILE + "x" * 10_000)
    assert "too long" in assert_page(long, 422)
    assert "<script>alert" not in long.text
    assert HOSTILE in html.unescape(long.text), "what was written is still there"
    assert post(player, fields, text=HOSTILE).status_code == 303
    with db.read() as session:
        assert session.scalars(select(Comment.text)).all() == [HOSTILE]
    shown = researcher.get("/results/test").text
    assert "<script>alert" not in shown
    assert "<img src=x" not in shown
    assert "49" not in re.findall(r"onerror=alert.*?</blockquote>", shown, re.S)[0]


def test_a_hostile_choice_is_refused_and_escaped(start: Start, db: Database) -> None:
    player = start()
    reply = post(player, form(player), label=HOSTILE[:40], runner_up="none")
    assert_page(reply, 422)
    assert "<script>alert" not in reply.text
    assert_page(post(player, form(player), label="x" * 51, runner_up="none"), 422)
    assert count(db, Response) == 0


def test_without_consent_one_clear_sentence(client: TestClient, db: Database) -> None:
    for data in ({}, {"consent": ""}, {"consent": "no"}):
        text = assert_page(client.post("/study/test?id=7", data={"id": "7"} | data), 422)
        assert text.count("Please tick the box if you agree to take part") == 1
    assert count(db, Participant) == 0


def test_what_does_not_exist_is_a_page_in_one_sentence(client: TestClient) -> None:
    for url, sentence in (
        ("/study/nothing", "There is no study “nothing” open here."),
        ("/s/nobody", "This link belongs to no session; please use the link you were given, whole."),
        ("/s/nobody/withdraw", "This link belongs to no session; please use the link you were given, whole."),
        ("/nothing", "There is nothing at this address."),
        ("/static/nothing.css", "There is nothing at this address."),
    ):
        assert sentence in assert_page(client.get(url), 404)
    valid = {"position": "1", "answer_id": str(uuid.uuid4())}
    for url in ("label", "plausibility", "comments", "withdraw"):
        assert_page(client.post(f"/s/nobody/{url}", data=valid), 404)
    assert_page(client.post("/study/nothing", data={"consent": "yes"}), 404)
    assert_page(client.post("/study/nothing"), 404)


def test_the_wrong_method_is_a_page(client: TestClient) -> None:
    for url in ("/", "/study/test", "/s/nobody"):
        reply = client.delete(url)
        assert "does not take that method" in assert_page(reply, 405)
        assert "GET" in reply.headers["allow"]


def test_errors_are_json_for_programs(client: TestClient) -> None:
    for reply, status in (
        (client.get("/api/nothing"), 404),
        (client.delete("/api/sessions"), 405),
        (client.post("/api/sessions", content="{"), 422),
        (client.get("/stimuli/nothing.png"), 404),
        (client.get("/results/test.json"), 401),
    ):
        assert reply.status_code == status
        assert reply.headers["content-type"] == "application/json"
        assert isinstance(reply.json()["detail"], str)


def test_nothing_chosen_loses_nothing(start: Start, db: Database) -> None:
    player = start()
    for chosen, message in (
        ({}, "Choose a reading, or “none is plausible”."),
        ({"runner_up": "4"}, "Choose a reading, or “none is plausible”."),
        ({"label": "3"}, "Choose a second reading too, or “no other”."),
        ({"label": "3", "runner_up": "3"}, "Choose two different readings, or “no other”."),
    ):
        reply = post(player, form(player), **chosen)
        assert message in assert_page(reply, 422)
        assert "<title>Error: " in reply.text
        assert Fields(reply.text).checked == chosen, "what was chosen is still chosen"
    assert count(db, Response) == 0
    assert post(player, form(player), label="3", runner_up="4").status_code == 303
    player.answer(until="judging")
    for chosen in ({}, {"plausible": "ye"}):
        assert "Choose yes or no." in assert_page(post(player, form(player), **chosen), 422)
    assert_page(post(player, form(player), plausible="perhaps"), 422)
    assert count(db, Judgment) == 0


def test_no_label_plausible_needs_no_second(start: Start, db: Database) -> None:
    player = start()
    for chosen in ({"label": "none"}, {"label": "none", "runner_up": "3"}):
        assert post(player, form(player), **chosen).status_code == 303
    assert post(player, form(player), label="3", runner_up="none").status_code == 303
    with db.read() as session:
        rows = session.execute(select(Response.label, Response.runner_up).order_by(Response.trial_id)).all()
    assert [tuple(row) for row in rows] == [("none", "none"), ("none", "none"), ("3", "none")]


def test_a_broken_form_is_a_page(start: Start, db: Database) -> None:
    player = start()
    fields = form(player)
    for field, value in (
        ("position", "x"),
        ("position", ""),
        ("position", "1.5"),
        ("answer_id", "7"),
        ("answer_id", ""),
        ("label", "x" * 1000),
    ):
        text = assert_page(post(player, fields, **{"label": "3", "runner_up": "4"} | {field: value}), 422)
        assert field in text
        assert "the address of your session takes you back" in text
        assert count(db, Response) == 0, (field, value)
    missing = player.client.post(fields.action, data={"label": "3"})
    assert_page(missing, 422)
    torn = player.client.post(
        "/study/test", content=b"--x\r\nnonsense", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert torn.status_code in (400, 422)
    assert_page(torn, torn.status_code)


@pytest.mark.only(*KINDS)
def test_a_form_from_an_old_page_leads_to_the_current_one(start: Start, db: Database) -> None:
    player = start()
    old = form(player)
    assert post(player, old, label="3", runner_up="4").status_code == 303
    for chosen in (
        {"label": "3", "runner_up": "4"},
        {"label": "5", "runner_up": "6"},
        {"label": ""},
        {"label": "nonsense", "runner_up": "4"},
        {"position": "9"},
        {"position": "900"},
    ):
        reply = post(player, old, **chosen)
        assert (reply.status_code, reply.headers["location"]) == (303, f"/s/{player.token}")
    with db.read() as session:
        assert session.execute(select(Response.label, Response.runner_up)).one() == ("3", "4")
    assert form(player).hidden["position"] == "2"

    player.answer(until="judging")
    judging = form(player)
    assert post(player, old, label="5", runner_up="6").status_code == 303, "a label when judging has begun"
    assert post(player, judging, plausible="yes").status_code == 303
    for plausible in ("yes", "no", ""):
        assert post(player, judging, plausible=plausible).status_code == 303
    assert count(db, Judgment) == 1
    early = player.client.post(f"/s/{player.token}/comments", data={"text": "early"}, follow_redirects=False)
    assert early.status_code == 303
    assert count(db, Comment) == 0

    player.answer(until="commenting")
    last = form(player)
    for text in ("The end.", "The end."):
        assert post(player, last, text=text).status_code == 303
    assert post(player, last, text="Another end.").status_code == 409, "not stored, and said so"
    for fields, chosen in ((old, {"label": "5"}), (judging, {"plausible": "no"})):
        assert post(player, fields, **chosen).status_code == 303
    with db.read() as session:
        assert session.scalars(select(Comment.text)).all() == ["The end."]
    player.client.post(f"/s/{player.token}/withdraw")
    for fields, chosen in ((old, {"label": "5"}), (judging, {"plausible": "no"}), (last, {"text": "x"})):
        assert post(player, fields, **chosen).status_code == 303
    assert count(db, Response) == count(db, Judgment) == count(db, Comment) == 0


def test_the_address_of_a_refused_form_can_be_opened(start: Start) -> None:
    player = start()
    for name in ("label", "plausibility", "comments"):
        reply = player.client.get(f"/s/{player.token}/{name}", follow_redirects=False)
        assert (reply.status_code, reply.headers["location"]) == (303, f"/s/{player.token}")


@pytest.mark.only(*KINDS)
def test_a_comment_counts_lines_as_the_browser_does(start: Start, db: Database) -> None:
    player = start()
    player.answer(until="commenting")
    written = "ab\n" * 3333 + "c"  # 10,000 characters in the text area, 13,333 as the browser sends them
    assert post(player, form(player), text=written.replace("\n", "\r\n")).status_code == 303
    with db.read() as session:
        assert session.scalars(select(Comment.text)).all() == [written]


def test_the_trial_page_tells_nothing_that_is_hidden(start: Start) -> None:
    player = start()
    for _ in range(14):
        page = player.client.get(f"/s/{player.token}").text
        for secret in ("undefended", "distilled", "gradient", "source", "target", "computer’s answer"):
            assert secret not in page
        assert post(player, Fields(page), label="none").status_code == 303
    assert "The computer’s answer" in player.client.get(f"/s/{player.token}").text


def test_a_fault_of_ours_is_said_without_its_insides(
    settings: Settings, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the insides")

    monkeypatch.setattr(participation, "view", broken)
    with TestClient(create_app(settings), raise_server_exceptions=False) as visitor:
        assert "Something went wrong on the server" in assert_page(visitor.get("/s/somebody"), 500)
        reply = visitor.get("/api/sessions/somebody")
        assert (reply.status_code, "insides" in reply.text) == (500, False)
        assert reply.json()["detail"].endswith(".")


def test_scripts_and_styles_are_asked_for_anew(client: TestClient) -> None:
    for name in ("style.css", "session.js", "crisp.js", "live.js"):
        reply = client.get(f"/static/{name}")
        assert (reply.status_code, reply.headers["cache-control"]) == (200, "no-cache")
        again = client.get(f"/static/{name}", headers={"If-None-Match": reply.headers["etag"]})
        assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")


@pytest.mark.parametrize(
    ("labels", "keys", "said"),
    [
        (tuple("ABC"), [], "A – C choose ·"),
        (("box", "horizontal", "vertical"), ["1", "2", "3"], "1 – 3 choose by position ·"),
        (tuple(str(n) for n in range(12)), [*"1234567890", "", ""], "1 – 9 , 0 choose by position ·"),
    ],
)
def test_labels_that_are_no_single_characters_have_their_position_for_a_key(
    tmp_path: Path, database_url: str, labels: tuple[str, ...], keys: list[str], said: str
) -> None:
    """tests/app/chromium/test_trials.py presses them."""
    pack = make_pack(tmp_path / "stimuli" / "test-pack", labels=labels, targets=1)
    english = SMALL_STUDY.replace("trials = 12", f"trials = {3 * len(labels)}")
    own = installation(tmp_path, pack, database_url, english)
    (own.studies / "chinese.toml").write_text(english.replace("seed = 7", 'seed = 7\nlanguage = "zh"'))
    prepare(own)
    given = keys or [""] * len(labels)
    in_chinese = said.replace("choose by position", "按位置选择").replace("choose", "选择")
    every_row = f"Every row had one reading at first ({labels[0]} to {labels[-1]}, from top to bottom)"
    with TestClient(create_app(own)) as client:
        for study, at_the_images, at_the_sheets in (
            ("test", said, every_row),
            ("chinese", in_chinese, f"从上到下依次为 {labels[0]} 到 {labels[-1]}"),
        ):
            player = begin(client, study)
            assert player.session()["labels"] == [*labels]
            page = client.get(f"/s/{player.token}").text
            found = re.findall(
                r'name="label" value="(\w+)"(?: data-key="(\d?)")?><span>\w+</span>(?:<kbd[^>]*>(\d?)</kbd>)?<',
                page,
            )[: len(labels)]
            assert found == [*zip(labels, given, given, strict=True)]
            assert ("data-key" in page) is bool(keys)
            assert at_the_images in " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())
            player.answer(until="commenting")
            assert at_the_sheets in assert_page(client.get(f"/s/{player.token}"), 200)
