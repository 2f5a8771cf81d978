"""No text of a page is forgotten: the catalogs are complete, and every page in every state shows nothing else."""

import ast
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from babel.messages.catalog import Message
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po
from babel.support import NullTranslations
from fastapi.testclient import TestClient
from httpx2 import Response as Reply
from sqlalchemy.exc import OperationalError

from app import definition as definitions
from app import i18n, participation
from app.db import Database
from app.i18n import CATALOGS, LANGUAGES, SOURCE
from app.main import create_app
from app.security import AddressLimit
from app.serving import prepare
from app.settings import ROOT, Settings
from tests.app.conftest import STUDY, Player
from tests.packs import make_pack

# Texts of pages, whatever the database.
pytestmark = pytest.mark.quickly("sqlite")

PLACEHOLDER = re.compile(r"(%\(\w+\)s)")
TRANSLATIONS = sorted(set(LANGUAGES) - {SOURCE})

# Texts that no page shows unless somebody changes its form by hand, or two things happen within a millisecond.
HARD_TO_MEET = {
    "This study cannot take participants: %(reason)s.",
    "This request_id has begun a session of another study.",
    "This study shows images of other packs.",
    "This request_id has begun the session of somebody else.",
    "This session has no image %(position)s; it has images 1 to %(last)s.",
    "%(missing)s answers are still missing; the next one is image %(next)s.",
    "This session was withdrawn; its answers are deleted and no more are stored.",
    "“%(label)s” is not one of the labels %(choices)s.",
    "This study does not ask for a runner_up.",
    "The runner_up must differ from the label; both are “%(label)s”.",
    "Where no label is plausible there is no runner_up; send “none” for both.",
    "This image has another answer already; the first one counts.",
    "This session is at %(state)s; there is no such question to answer.",
    "This session is at %(state)s, image %(next_position)s.",
    "This answer_id belongs to another answer; nothing was stored.",
    "runner_up is missing; send “none” where no other label is plausible.",
    "There is no image of this name here.",
}


def marked_texts(folder: str) -> set[str]:
    """The texts that the files of a folder mark, found as `make messages` finds them."""
    mappings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["babel"]["mappings"]
    methods = [(mapping["pattern"], mapping["method"]) for mapping in mappings]
    options: dict[str, Any] = {mapping["pattern"]: mapping for mapping in mappings}
    found = extract_from_dir(str(ROOT / folder), methods, options)
    return {text for _, _, text, _, _ in found if isinstance(text, str)}


def entries(language: str) -> list[Message]:
    with (CATALOGS / f"{language}.po").open("rb") as file:
        catalog = read_po(file, locale=language, abort_invalid=True)
    assert not catalog.obsolete
    return [message for message in catalog if message.id]


# The catalogs


def test_every_language_has_a_catalog() -> None:
    assert sorted(path.stem for path in CATALOGS.glob("*.po")) == TRANSLATIONS


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_catalog_has_every_text_and_no_other(language: str) -> None:
    marked = marked_texts("app") | marked_texts("templates")
    assert len(marked) > 100, "the extraction has found the texts"
    listed = {str(message.id) for message in entries(language)}
    assert marked - listed == set(), "make messages lists these in the catalog; then translate them"
    assert listed - marked == set(), "make messages takes these out of the catalog"


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_every_text_is_translated(language: str) -> None:
    for message in entries(language):
        assert message.string, message.id
        assert not message.fuzzy, message.id
        source, translation = str(message.id), str(message.string)
        assert translation == translation.strip(), message.id
        assert sorted(PLACEHOLDER.findall(translation)) == sorted(PLACEHOLDER.findall(source)), message.id
        for text in (source, translation):
            assert "%" not in PLACEHOLDER.sub("", text), "a lone % breaks the filling in of values"
        values = dict.fromkeys(re.findall(r"%\((\w+)\)s", source), "7")
        assert i18n.translate(language, source, **values) == translation % values


def test_chinese_is_set_as_chinese() -> None:
    """Full-width punctuation, and a space between Chinese and digits, Latin words or what is filled in."""
    texts = [str(message.string) for message in entries("zh")]
    for path in (ROOT / "studies").glob("*.toml"):
        study = definitions.Definition.model_validate(definitions.read(path))
        chinese = study.translations["zh"]
        texts += list(strings(chinese.model_dump()))
        for part in ("information", "consent", "debrief"):
            assert len(getattr(chinese, part)) == len(getattr(study.texts, part)), (path.name, part)
    for text in texts:
        assert re.search(r"[\u4e00-\u9fff]", text), text
        assert not re.search(
            r"[\u4e00-\u9fff][,.:;!?()]|[,:;!?()][\u4e00-\u9fff]", text.replace("%(", "%")
        ), text
        shown = PLACEHOLDER.sub("7", text)
        assert not re.search(r"[\u4e00-\u9fff][A-Za-z0-9]|[A-Za-z0-9][\u4e00-\u9fff]", shown), text
        assert not re.search(r"[，。：；？！（）“”] | [，。：；？！（）“”]", shown), text
        assert text.count("“") == text.count("”"), text
        assert "你" not in text, "participants are addressed as 您"


def strings(value: object) -> Iterator[str]:
    """All strings in what JSON can hold."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def test_every_refusal_is_marked() -> None:
    """What a Refusal says to participants goes through N_(); the researcher's pages are English."""
    unmarked = []
    for path in sorted((ROOT / "app").glob("*.py")):
        if path.name in (
            "auth.py",
            "dashboard.py",
            "gallery.py",
            "models_page.py",
            "power_page.py",
            "showing.py",
        ):
            continue
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Refusal":
                text = call.args[1]
                if isinstance(text, ast.Constant | ast.JoinedStr | ast.BinOp):
                    unmarked.append(f"{path.name}:{call.lineno}: {ast.unparse(text)}")
    # Said to programs alone.
    assert [line for line in unmarked if "main.py" not in line] == []
    assert len(unmarked) <= 2, unmarked


# The pages: with a catalog that puts every text into ⟦brackets⟧, what stands outside of them was forgotten.


class Pseudo(NullTranslations):
    """Brackets around every text, values left out of them; remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def gettext(self, message: str) -> str:
        self.asked.add(message)
        parts = PLACEHOLDER.split(message)
        return "".join(part if i % 2 or not part else f"⟦{part}⟧" for i, part in enumerate(parts))


class Shown(HTMLParser):
    """What a page says to people: its text, the attributes that are read out, and the texts for its scripts."""

    SPOKEN = ("alt", "title", "aria-label", "aria-description", "aria-valuetext", "placeholder", "label")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._raw = ""  # inside of what is no text: "data", "code", "key"
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.texts += [values[name] for name in self.SPOKEN if name in values]
        if tag == "input" and values.get("type") in ("submit", "button", "reset"):
            self.texts.append(values.get("value", "Submit"))
        if tag == "meta" and values.get("name") == "description":
            self.texts.append(values["content"])
        if tag == "script":
            self._raw = "data" if values.get("type") == "application/json" else "code"
        if tag in ("style", "kbd"):
            self._raw = "code" if tag == "style" else "key"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style", "kbd"):
            self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw == "data":
            self.texts += strings(json.loads(data))
        elif not self._raw and data.strip():
            self.texts.append(" ".join(data.split()))


NO_TEXT = re.compile(
    "|".join(
        (
            "⟦[^⟦⟧]*⟧",  # from the catalog
            "⟪[^⟪⟫]*⟫",  # from the study's file
            "Reasonable Mistakes",
            *LANGUAGES.values(),
            r"\b[2-9A-Z]{4}(-[2-9A-Z]{4}){1,2}\b",  # codes
            r"\d{4}年\d+月\d+日 [\d:]+ UTC",
            r"\b[0-9a-f]{8,}\b",  # a study's version
            r"\b[A-F]\b",  # the sheets
            r"\{\w+\}",  # what a script fills in
            "(?<=⟧)id(?=⟦)",  # a name in the recruiter's link
        )
    )
)


def untranslated(page: str) -> list[str]:
    """The texts of a page that come neither from the catalog nor from the study's file."""
    return [text for text in Shown(page).texts if any(letter.isalpha() for letter in NO_TEXT.sub("", text))]


def test_a_forgotten_text_is_found() -> None:
    for page, text in (
        ("<p>Forgotten</p>", "Forgotten"),
        ("<p>⟦Image ⟧1⟦ of ⟧2 forgotten</p>", "⟦Image ⟧1⟦ of ⟧2 forgotten"),
        ("<title>Forgotten · Reasonable Mistakes</title>", "Forgotten · Reasonable Mistakes"),
        ('<img alt="Forgotten image">', "Forgotten image"),
        ('<nav aria-label="Forgotten"></nav>', "Forgotten"),
        ('<input placeholder="Forgotten">', "Forgotten"),
        ('<input type="submit">', "Submit"),
        ('<abbr title="Forgotten">⟦x⟧</abbr>', "Forgotten"),
        ('<script type="application/json">{"a": ["Not saved"]}</script>', "Not saved"),
        ("<p>忘记</p>", "忘记"),
    ):
        assert untranslated(page) == [text]
    assert untranslated("<p>⟦Sheet ⟧A, 3 · ⟪title⟫</p><kbd>Enter</kbd><script>let x;</script>") == []


@pytest.fixture
def pseudo(monkeypatch: pytest.MonkeyPatch) -> Pseudo:
    pseudo = Pseudo()
    monkeypatch.setattr(i18n, "catalog", lambda language: pseudo)
    return pseudo


@pytest.fixture
def visitor(settings: Settings, tmp_path: Path) -> Iterator[TestClient]:
    """A browser that asks for Chinese, at studies that come in it: every text of their files in ⟪brackets⟫."""
    texts = STUDY.split("[texts]")[1]
    chinese = re.sub(r'"([^"]*)"', r'"⟪\1⟫"', f'\ntitle = "Title"{texts}')
    options = "practice = 2\npause_after = 10"
    (settings.studies / "full.toml").write_text(
        f"{STUDY.replace('practice = 2', options)}\n[translations.zh]{chinese}", encoding="utf-8"
    )
    options = 'practice = 0\nquestions = ["label"]\ncomments = false'
    outcome = '[primary]\noutcome = "human_fooled"'
    (settings.studies / "bare.toml").write_text(
        STUDY.replace("practice = 2", options).replace("[primary]", outcome)
        + '\n[completion]\nredirect_url = "https://example.com/"\n[recruitment]\nreturning = "refuse"\n'
        + f"[translations.zh]{chinese}",
        encoding="utf-8",
    )
    packs = 'packs = ["one", "two"]\ntrials = 12\nquestions = ["label", "runner_up"]'
    several = STUDY.replace('packs = ["test-pack"]', packs).replace('pack = "test-pack"', 'pack = "one"')
    (settings.studies / "several.toml").write_text(f"{several}\n[translations.zh]{chinese}", encoding="utf-8")
    for name in ("one", "two"):
        make_pack(tmp_path / "stimuli" / name, name, labels=("10", "11", "12", "13"), targets=1)
    (settings.studies / "test.toml").unlink()
    prepare(replace(settings, stimuli=tmp_path / "stimuli"))
    prepare(settings)
    with TestClient(
        create_app(settings), headers={"Accept-Language": "zh-CN,zh;q=0.9"}, raise_server_exceptions=False
    ) as visitor:
        yield visitor


def assert_translated(reply: Reply, status: int = 200) -> str:
    assert reply.status_code == status, reply.text
    assert '<html lang="zh-Hans">' in reply.text
    assert untranslated(reply.text) == [], reply.url
    return reply.text


def test_every_page_in_every_state_is_translated(
    visitor: TestClient, settings: Settings, pseudo: Pseudo, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_study(visitor)
    bare_study(visitor)
    study_of_several_packs(visitor)
    errors(visitor, monkeypatch)
    database = Database(settings.database_url)
    with database.write() as session:
        definitions.close_all_but(session, [])
        session.commit()
    database.close()
    assert_translated(visitor.get("/"))

    marked = marked_texts("app") | marked_texts("templates")
    assert marked - pseudo.asked == HARD_TO_MEET, "every text was met on the way"


def full_study(visitor: TestClient) -> None:
    """From the list of studies to the receipt of the deletion, with every mistake that a person can make."""
    here = "/study/full?id=7"
    for url in ("/", here, "/withdraw"):
        assert_translated(visitor.get(url))
    assert_translated(visitor.post(here, data={"id": "7"}), 422)
    old = {"id": "7", "consent": "yes", "version": "0123456789ab"}
    assert_translated(visitor.post(here, data=old), 422)
    assert_translated(visitor.get("/study/full", params={"id": "x" * 201}), 422)
    player = consent(visitor, "/study/full")
    page = f"/s/{player.token}"
    assert_translated(visitor.get("/study/full"))  # this browser has begun a session

    assert_translated(visitor.get(page))
    wrong: tuple[dict[str, str], ...] = ({}, {"label": "3"}, {"label": "3", "runner_up": "3"})
    for chosen in wrong:
        assert_translated(send(player, "label", **chosen), 422)
    player.answer(most=2)
    assert_translated(visitor.get(page))
    assert_translated(visitor.get(f"{page}/withdraw"))
    player.answer(most=10)
    assert_translated(visitor.get(f"{page}/pause", follow_redirects=False))
    player.answer(until="judging")
    assert_translated(visitor.get(page))
    assert_translated(send(player, "plausibility"), 422)
    player.answer(most=1)
    assert_translated(visitor.get(page))
    player.answer(until="commenting")
    assert_translated(visitor.get(page))
    assert_translated(visitor.post(f"{page}/comments", data={"text": "⟪x⟫" * 5000}), 422)
    player.answer()
    code = re.findall(r'id="withdrawal-code">([^<]+)<', assert_translated(visitor.get(page)))[0]
    assert_translated(visitor.get("/study/full"))
    assert_translated(visitor.post(f"{page}/comments", data={"text": "Another."}), 409)
    assert_translated(visitor.post(f"{page}/language", data={"language": "fr"}), 422)

    assert_translated(visitor.post("/withdraw", data={"code": "2222-2222-2222"}), 422)
    assert_translated(visitor.post("/withdraw", data={"code": code.lower()}))
    assert_translated(visitor.post(f"{page}/withdraw"))


def bare_study(visitor: TestClient) -> None:
    """A study that asks for little, takes nobody twice, and sends its participants on."""
    player = consent(visitor, "/study/bare", id="7")
    assert_translated(visitor.get(f"/s/{player.token}"))
    assert_translated(visitor.get("/study/bare?id=7"))
    visitor.cookies.clear()  # another device
    assert_translated(visitor.get("/study/bare?id=7"))
    again = visitor.post("/study/bare", data={"id": "7", "consent": "yes"})
    assert_translated(again, 409)
    player.answer(until="commenting")
    assert_translated(visitor.get(f"/s/{player.token}"))
    player.answer()
    assert_translated(visitor.get(f"/s/{player.token}"))
    assert_translated(visitor.get("/study/bare?id=7"))


def study_of_several_packs(visitor: TestClient) -> None:
    """Their labels are no single characters: they are chosen by position."""
    player = consent(visitor, "/study/several")
    assert_translated(visitor.get(f"/s/{player.token}"))
    player.answer(until="commenting")
    page = assert_translated(visitor.get(f"/s/{player.token}"))
    assert re.findall(r"<h2>⟦Sheets ⟧(.*)</h2>", page) == ["A, B, C", "D, E, F"]


def errors(visitor: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_translated(visitor.get("/study/404"), 404)
    assert_translated(visitor.get("/s/404"), 404)
    assert_translated(visitor.get("/404"), 404)
    assert_translated(visitor.delete("/"), 405)
    torn = {"Content-Type": "multipart/form-data"}
    assert_translated(visitor.post("/study/full", content=b"nonsense", headers=torn), 400)
    assert_translated(visitor.get("/", headers={"Host": "evil.example"}), 400)
    assert_translated(visitor.get("/?" + "x" * 10_000), 414)
    assert_translated(visitor.get("/", headers={"Cookie": "x" * 20_000}), 431)
    assert_translated(visitor.post("/withdraw", data={"code": "x" * 300_000}), 413)
    # The field's name is all that is said of it, in Latin letters.
    broken = visitor.post("/s/404/label", data={"position": "x"})
    assert untranslated(broken.text) == [
        "⟦The form did not arrive as this page sends it (⟧position⟦); please go back and try again.⟧"
    ]
    elsewhere = {"Origin": "https://evil.example"}
    assert_translated(visitor.post("/study/full", data={"consent": "yes"}, headers=elsewhere), 422)
    monkeypatch.setattr(visitor.app.state, "creation_limit", AddressLimit(capacity=0))  # type: ignore[attr-defined]
    assert_translated(visitor.post("/study/full", data={"consent": "yes", "another": "yes"}), 429)
    monkeypatch.setattr(visitor.app.state, "guess_limit", AddressLimit(capacity=0))  # type: ignore[attr-defined]
    assert_translated(visitor.post("/withdraw", data={"code": "A"}), 429)
    monkeypatch.setattr(visitor.app.state, "link_limit", AddressLimit(capacity=0))  # type: ignore[attr-defined]
    assert_translated(visitor.get("/s/404"), 429)
    for error, status in ((RuntimeError("x"), 500), (OperationalError("x", {}, Exception()), 503)):
        monkeypatch.setattr(participation, "view", raising(error))
        assert_translated(visitor.get("/s/404"), status)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def consent(visitor: TestClient, url: str, **fields: str) -> Player:
    begun = visitor.post(url, data={"consent": "yes", "language": "zh"} | fields, follow_redirects=False)
    assert begun.status_code == 303
    return Player(visitor, begun.headers["location"].removeprefix("/s/"))


def send(player: Player, question: str, **chosen: str) -> Reply:
    page = player.client.get(f"/s/{player.token}").text
    hidden = dict(re.findall(r'<input type="hidden" name="(position|answer_id)" value="([^"]+)">', page))
    return player.client.post(f"/s/{player.token}/{question}", data=hidden | chosen)
