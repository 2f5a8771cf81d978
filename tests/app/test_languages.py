"""Which language a page is in: the browser's, the one switched to, the session's; never a mixture."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import example, given
from hypothesis import strategies as st

from app import definition as definitions
from app.definition import DefinitionError
from app.i18n import LANGUAGE_TAGS, LANGUAGES, preferred
from app.main import create_app
from app.serving import prepare
from app.settings import Settings
from tests.app.conftest import STUDY, Player, begin
from tests.app.databases import KINDS
from tests.app.small import SMALL_STUDY, prepared, settings, small, study
from tests.app.test_pages import Fields

__all__ = ["prepared", "settings", "small", "study"]  # fixtures

# The words of pages; that the language of a session is stored is asked of both.
pytestmark = pytest.mark.quickly("sqlite")

CHINESE = """
[translations.zh]
title = "测试用的研究"
summary = "摘要。"
minutes = 5
information = ["说明。"]
consent = ["我同意。"]
debrief = ["总结。"]
contact = "请询问测试。"
"""
DATES = {"en": r"[A-Z][a-z]{2} \d+, \d{4}, ", "zh": r"\d{4}年\d+月\d+日 "}
HAN = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture
def visit(settings: Settings, prepared: str) -> Iterator[Callable[[str], TestClient]]:
    """A browser that asks for a language; the study "test" is English only, "both" comes in Chinese too."""
    (settings.studies / "both.toml").write_text(SMALL_STUDY + CHINESE, encoding="utf-8")
    prepare(settings)
    app = create_app(settings)
    with TestClient(app):
        yield lambda accepted: TestClient(app, headers={"Accept-Language": accepted})


def language_of(page: str) -> str:
    """As the html element says; a Chinese page has Chinese on it, an English one none but the switch."""
    tag = re.findall(r'<html lang="([^"]*)">', page)[0]
    language = next(language for language, known in LANGUAGE_TAGS.items() if known == tag)
    assert bool(HAN.search(page.replace(LANGUAGES["zh"], ""))) == (language == "zh"), page
    return language


# The browser's header


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8,en-GB;q=0.7,en-US;q=0.6", "zh"),  # Edge in China
        ("zh-CN,zh;q=0.8,zh-TW;q=0.7,zh-HK;q=0.5,en-US;q=0.3,en;q=0.2", "zh"),  # Firefox
        ("zh-CN,zh-Hans;q=0.9", "zh"),  # Safari
        ("zh-Hans-CN", "zh"),
        ("zh-TW,zh;q=0.9,en-US;q=0.8,en;q=0.7", "zh"),
        ("zh;q=0.5,en;q=0.9", "en"),
        ("en-US,en;q=0.9,zh-CN;q=0.8", "en"),
        ("de-DE,de;q=0.9,zh;q=0.8,en;q=0.7", "zh"),
        ("de", "en"),
        ("en;q=0,zh;q=0.1", "zh"),
        ("zh;q=0", "en"),
        ("*", "en"),
        ("*;q=0.5,zh", "zh"),
        ("ZH-cn", "zh"),
        ("ZH", "zh"),
        ("EN", "en"),
        (" zh ; q = 0.9 , en ; q = 0.8 ", "zh"),
        ("", "en"),
        (",,;q=1,;;", "en"),
        ("zh;q=nonsense", "en"),
        ("zh;q=1e9", "en"),
        ("zh\x00", "en"),
        ("x" * 100_000, "en"),
        ("zh," + "en," * 100_000, "zh"),
        ("a-" * 50_000, "en"),
    ],
)
def test_what_browsers_ask_for(header: str, language: str) -> None:
    assert preferred(header, ["en", "zh"]) == language


def test_a_study_decides_what_there_is() -> None:
    for header in ("zh-CN", "en", "de", "*", ""):
        assert preferred(header, ["en"]) == "en"
        assert preferred(header, ["zh"]) == "zh"
    assert preferred("de", ["zh", "en"]) == "zh", "the study's own language comes first"


TAGS = st.sampled_from(["zh", "ZH-Hans-CN", "zh_CN", "en", "En-us", "de", "*", "", "i-klingon", "zh-"])
QUALITIES = st.sampled_from(
    ["", ";q=0", ";q=0.5", ";Q=1", ";q=", ";q=2", ";q=-1", ";level=1", ";q=0.3;q=1", "q"]
)
HEADERS = st.lists(st.tuples(TAGS, QUALITIES).map("".join)).map(",".join)


@given(st.text() | HEADERS, st.sampled_from([["en"], ["zh"], ["en", "zh"], ["zh", "en"]]))
@example("ZH", ["en", "zh"])
def test_any_header_gets_a_language_that_there_is(header: str, offered: list[str]) -> None:
    assert preferred(header, offered) in offered


@given(st.permutations([("zh-CN", 0.9), ("en-US", 0.8), ("de", 1.0), ("fr", 0.1)]))
def test_the_order_of_a_header_says_nothing(wanted: list[tuple[str, float]]) -> None:
    assert preferred(", ".join(f"{tag};q={quality}" for tag, quality in wanted), ["en", "zh"]) == "zh"


# Before a session


def test_pages_are_in_the_browsers_language(visit: Callable[[str], TestClient]) -> None:
    for header, language in (("zh-CN,zh;q=0.9", "zh"), ("en-US", "en"), ("de", "en"), ("", "en")):
        browser = visit(header)
        for url in ("/study/both", "/withdraw", "/study/nothing", "/nothing", "/s/nobody"):
            assert language_of(browser.get(url).text) == language, (url, header)
        assert language_of(browser.post("/study/both").text) == language
        assert language_of(browser.post("/withdraw", data={"code": "x"}).text) == language
        assert language_of(browser.delete("/").text) == language


def test_a_choice_beats_the_browser(visit: Callable[[str], TestClient]) -> None:
    for url in ("/", "/study/both", "/withdraw"):
        assert language_of(visit("zh-CN").get(f"{url}?lang=zh").text) == "zh"
        assert visit("zh-CN").get(f"{url}?lang=en").text.startswith('<!doctype html>\n<html lang="en">')
        assert language_of(visit("en").get(f"{url}?lang=zh").text) == "zh"
        for nonsense in ("fr", "ZH", "zh\x00", "../../etc/passwd", "x" * 5000):
            page = visit("zh").get(url, params={"lang": nonsense}).text
            assert language_of(page) == "zh"
            assert f'lang="{nonsense}"' not in page


def test_the_switch_keeps_the_recruiters_ids(visit: Callable[[str], TestClient]) -> None:
    browser = visit("en")
    page = browser.get("/study/both", params={"PROLIFIC_PID": "a&b", "STUDY_ID": "ä", "lang": "en"}).text
    links = re.findall(r'<a href="([^"]+)" lang="([^"]+)" hreflang="([^"]+)"', page)
    assert [(tag, target) for _, tag, target in links] == [("zh-Hans", "zh-Hans")], "the other language"
    switched = browser.get(f"/study/both{links[0][0].replace('&amp;', '&')}").text
    assert language_of(switched) == "zh"
    fields = Fields(switched)
    assert fields.hidden["PROLIFIC_PID"] == "a&b"
    assert fields.hidden["STUDY_ID"] == "ä"
    reply = browser.post(fields.action, data=fields.hidden, follow_redirects=False)
    assert language_of(reply.text) == "zh", "the error keeps the language that was switched to"
    reply = browser.post(fields.action, data=fields.hidden | {"consent": "yes"})
    assert language_of(reply.text) == "zh"


def test_the_list_says_in_which_language_a_study_is(visit: Callable[[str], TestClient]) -> None:
    page = visit("zh-CN").get("/").text
    assert re.search(r'<h2 lang="en"><a [^>]*>A study for tests</a>', page)
    assert re.search(r'<h2 lang="zh-Hans"><a [^>]*>测试用的研究</a>', page)
    assert language_of(visit("zh-CN").get("/study/test?lang=zh").text) == "en"


# In a session


def pages_of(browser: TestClient, player: Player) -> Iterator[str]:
    """Every page of a session, from practice to the deletion."""
    page = f"/s/{player.token}"
    for state in ("labelling", "judging", "commenting", "finished"):
        player.answer(until=state)
        yield browser.get(page).text
        yield browser.get(f"{page}/withdraw").text
        if state in ("labelling", "judging"):
            form = dict(hidden(browser.get(page).text))
            question = "label" if state == "labelling" else "plausibility"
            reply = browser.post(f"{page}/{question}", data=form)
            assert reply.status_code == 422
            yield reply.text
    yield browser.get("/study/test").text
    yield browser.post(f"{page}/withdraw").text


def hidden(page: str) -> list[tuple[str, str]]:
    return re.findall(r'<input type="hidden" name="(position|answer_id)" value="([^"]+)">', page)


def test_an_english_study_stays_english(visit: Callable[[str], TestClient]) -> None:
    """No word of Chinese around English texts, and no switch to what there is not."""
    browser = visit("zh-CN,zh;q=0.9")
    seen = [browser.get("/study/test").text, browser.post("/study/test").text]
    begun = browser.post("/study/test?lang=zh", data={"consent": "yes", "language": "zh"})
    player = Player(browser, begun.url.path.removeprefix("/s/"))
    seen += [begun.text, *pages_of(browser, player)]
    for page in seen:
        assert language_of(page) == "en"
        assert LANGUAGES["zh"] not in page
    reply = browser.post(f"/s/{player.token}/language", data={"language": "zh"})
    assert reply.status_code == 422
    assert "没有该语言" in reply.text, "an error speaks to the browser"


def test_a_session_keeps_its_language_on_another_device(visit: Callable[[str], TestClient]) -> None:
    for language, other in (("zh", "en-US"), ("en", "zh-CN")):
        player = begin(visit(other), "both")
        assert language_of(visit(other).get(f"/s/{player.token}").text) == "en", (
            "the study's own, unless asked"
        )
        reply = visit(other).post(f"/s/{player.token}/language", data={"language": language})
        assert language_of(reply.text) == language
        assert [language_of(page) for page in pages_of(visit(other), player)][:-2] == [language] * 10

    reply = visit("zh").post("/api/sessions", json={"study": "both", "consent": True, "language": "zh"})
    assert language_of(visit("en").get(reply.json()["url"]).text) == "zh"
    reply = visit("zh").post("/api/sessions", json={"study": "both", "consent": True, "language": "fr"})
    assert language_of(visit("zh").get(reply.json()["url"]).text) == "en"


@pytest.mark.only(*KINDS)
def test_one_who_comes_back_is_greeted_in_the_sessions_language(visit: Callable[[str], TestClient]) -> None:
    begun = visit("zh-CN").post("/study/both?lang=zh", data={"id": "7", "consent": "yes", "language": "zh"})
    assert language_of(begun.text) == "zh"
    assert language_of(visit("en").get("/study/both?id=7").text) == "zh"


def test_the_switch_in_a_session(visit: Callable[[str], TestClient]) -> None:
    browser = visit("zh-CN")
    player = begin(browser, "both")
    player.answer(most=5)
    for state in ("labelling", "judging", "commenting", "finished"):
        player.answer(until=state)
        for language in ("zh", "en"):
            reply = browser.post(f"/s/{player.token}/language", data={"language": language})
            assert reply.url.path == f"/s/{player.token}"
            assert language_of(reply.text) == language
            buttons = re.findall(r'<button type="submit" name="language" value="(\w+)"', reply.text)
            assert buttons == [other for other in LANGUAGES if other != language]
            assert player.session()["state"] == state
            if state == "finished":
                assert re.search(rf"{DATES[language]}\d+:\d\d:\d\d.{{0,3}} UTC", reply.text)
    for nonsense in ("", "fr", "zh\x00", "x" * 5000):
        reply = browser.post(f"/s/{player.token}/language", data={"language": nonsense})
        assert reply.status_code == 422
        assert language_of(browser.get(f"/s/{player.token}").text) == "en"


def test_programs_are_told_in_english(visit: Callable[[str], TestClient]) -> None:
    browser = visit("zh-CN")
    player = begin(browser, "both")
    browser.post(f"/s/{player.token}/language", data={"language": "zh"})
    for reply in (
        browser.get("/api/sessions/nobody"),
        browser.get("/api/nothing"),
        browser.post("/api/sessions", content="{"),
        browser.post("/api/sessions", json={"study": "nothing", "consent": True}),
        player.put(1, label="x", runner_up="none"),
        player.put(9, label="3", runner_up="none"),
        browser.get("/stimuli/nothing.png"),
    ):
        assert reply.status_code >= 400
        assert reply.json()["detail"].isascii() or "“" in reply.json()["detail"]
        assert not HAN.search(reply.text)


def test_the_researchers_pages_are_english(visit: Callable[[str], TestClient]) -> None:
    assert language_of(visit("zh-CN").get("/results").text) == "en"


# Dates and the study's file


def test_a_date_is_written_in_the_pages_language(visit: Callable[[str], TestClient]) -> None:
    environment = visit("").app.state.templates.env  # type: ignore[attr-defined]
    moment = datetime(2026, 3, 9, 17, 5, 1, tzinfo=UTC)
    written = {
        language: environment.from_string("{{ moment | moment }}").render(language=language, moment=moment)
        for language in LANGUAGES
    }
    assert written == {"en": "Mar 9, 2026, 5:05:01\u202fPM UTC", "zh": "2026年3月9日 17:05:01 UTC"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text.replace("[translations.zh]", "[translations.fr]"), "translations.fr"),
        (
            lambda text: text.replace("[translations.zh]", "[translations.en]"),
            "translations.en repeats the language",
        ),
        (
            lambda text: text.replace("seed = 7", 'seed = 7\nlanguage = "zh"'),
            "translations.zh repeats the language",
        ),
        (
            lambda text: text.replace("seed = 7", 'seed = 7\nlanguage = "fr"'),
            "language: Input should be 'en' or 'zh'",
        ),
        (lambda text: text.replace('debrief = ["总结。"]\n', ""), "translations.zh.debrief: Field required"),
        (lambda text: text.replace('title = "测试用的研究"\n', ""), "translations.zh.title: Field required"),
    ],
)
def test_a_wrong_translation_is_one_clear_line(
    tmp_path: Path, change: Callable[[str], str], complaint: str
) -> None:
    path = tmp_path / "both.toml"
    path.write_text(STUDY + CHINESE, encoding="utf-8")
    definitions.read(path)
    path.write_text(change(STUDY + CHINESE), encoding="utf-8")
    with pytest.raises(DefinitionError) as refused:
        definitions.read(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_study_may_be_in_chinese_alone(settings: Settings) -> None:
    texts = CHINESE.replace("[translations.zh]", "[texts]").replace('title = "测试用的研究"\n', "")
    head = SMALL_STUDY.split("[texts]")[0].replace("A study for tests", "测试用的研究")
    (settings.studies / "test.toml").write_text(
        head.replace("seed = 7", 'seed = 7\nlanguage = "zh"') + texts, encoding="utf-8"
    )
    prepare(settings)
    with TestClient(create_app(settings), headers={"Accept-Language": "en-US"}) as browser:
        assert language_of(browser.get("/study/test").text) == "zh"
        player = begin(browser)
        assert language_of(browser.get(f"/s/{player.token}").text) == "zh"
