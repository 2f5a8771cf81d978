"""The MNIST study in Chinese on a small phone, by touch, from consent to code; with pictures, in build/."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from app import definition as definitions
from app.definition import Definition
from app.settings import ROOT, Settings
from tests.app.chromium.test_pages_shown import assert_accessible
from tests.app.chromium.visitor import VERDICTS, Visitor, advance, label_of, painted, saved, token_of
from tests.app.conftest import SECRET, Player, Server, serving

pytestmark = pytest.mark.quickly("sqlite")

FOLDER = ROOT / "build" / "screenshots-chinese"
STUDY = ROOT / "studies" / "mnist.toml"
PAUSE_AFTER = 15
NAMES = {"Reasonable", "Mistakes", "English", "UTC"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled study, with pauses; a test must not be held up by the guard against early answers."""
    file = re.sub(r"(?m)^(pause_after|min_answer_ms) = .*\n", "", STUDY.read_text(encoding="utf-8"))
    options = f"practice = 2\npause_after = {PAUSE_AFTER}\nmin_answer_ms = 0"
    path = tmp_path_factory.mktemp("chinese") / "mnist.toml"
    path.write_text(file.replace("practice = 2", options), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def mnist(study: Path) -> Iterator[Server]:
    with serving(Settings(f"sqlite:///{study.parent / 'study.db'}", SECRET, study.parent)) as server:
        yield server


@pytest.fixture
def phone(browser: Browser, mnist: Server) -> Iterator[Visitor]:
    """A small phone whose owner reads Chinese."""
    context = browser.new_context(
        base_url=mnist.url,
        viewport={"width": 360, "height": 640},
        device_scale_factor=2,
        has_touch=True,
        is_mobile=True,
        locale="zh-CN",
    )
    visitor = Visitor(context, mnist.url, forgiven="422|ERR_INTERNET_DISCONNECTED")
    yield visitor
    context.close()
    assert visitor.faults == []


class Reader:
    """One who reads Chinese only, and looks at every page that is new."""

    def __init__(self, page: Page, definition: Definition) -> None:
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        self.page = page
        self.seen: list[str] = []
        own = definition.translated("zh")
        texts = " ".join([own.title, *map(str, own.texts.model_dump().values())])
        self.known = NAMES | set(re.findall(r"[A-Za-z]{2,}", texts))  # the study cites an English title

    def look(self, name: str) -> None:
        """This page is in Chinese, fits, and can be used with a screen reader."""
        page = self.page
        self.seen.append(name)
        # A picture of the full page lets go of the phone's emulation for a moment: not in the middle of a trial.
        whole = page.locator("body.trial").count() == 0
        page.screenshot(path=FOLDER / f"{len(self.seen):02}-{name}.png", full_page=whole)
        assert page.locator("html").get_attribute("lang") == "zh-Hans"
        words = set(re.findall(r"[A-Za-z]{2,}", "\n".join(self._said())))
        assert words <= self.known, f"{name}: {words - self.known}"
        wide, room = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
        assert wide <= room == 360, f"{name} scrolls sideways: {wide} pixels in {room}"
        assert_accessible(page, dark=False)  # the colors are the English page's

    def _said(self) -> list[str]:
        """The visible text, the title, and what a screen reader adds to them; codes are nobody's words."""
        said: list[str] = self.page.evaluate(
            """() => {
              const said = [document.title, document.body.innerText];
              for (const element of document.querySelectorAll("*")) {
                if (!element.checkVisibility({ visibilityProperty: true })) continue;
                for (const name of ["alt", "aria-label", "title", "placeholder"]) {
                  said.push(element.getAttribute(name) ?? "");
                }
              }
              return said;
            }"""
        )
        return [re.sub(r"\b[2-9A-Z]{4}(-[2-9A-Z]{4}){1,2}\b", "", text) for text in said]

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def go_on(self) -> None:
        """The button is on the first screen, without scrolling."""
        box = self.button("继续").bounding_box()
        assert box is not None
        assert self.page.evaluate("scrollY") == 0
        assert box["y"] + box["height"] <= 640
        self.button("继续").tap()

    def rest(self, name: str) -> None:
        expect(self.page.get_by_role("heading", name="休息一下")).to_be_visible()
        self.look(name)
        self.page.wait_for_timeout(600)  # a press meant for the image before ends no pause
        self.button("继续").tap()

    def leave_to(self, player: Player, answers: int) -> None:
        """So many images that look like the one before are answered at the API."""
        expect(saved(self.page)).to_have_text("已保存")
        advance(player, "finished", most=answers)
        self.page.reload()

    def label(self, position: int) -> None:
        painted(self.page)
        label, runner_up = label_of(position)
        first = self.page.get_by_role("group", name="您认为哪种读法最有可能？")
        first.get_by_role("radio", name="都不太可能" if label == "none" else label, exact=True).tap()
        if label != "none":
            second = self.page.get_by_role("group", name="第二有可能的是哪种？")
            second.get_by_role(
                "radio", name="没有其他" if runner_up == "none" else runner_up, exact=True
            ).tap()
        self.go_on()

    def judge(self, number: int) -> None:
        painted(self.page)
        question = self.page.get_by_role("group", name="这是一个合理的错误吗？")
        verdict = "是" if VERDICTS[number % len(VERDICTS)] else "不是"
        question.get_by_role("radio", name=verdict, exact=True).tap()
        self.go_on()


@pytest.fixture
def api(mnist: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=mnist.url) as client:
        yield client


def test_every_page_of_a_session_in_chinese(phone: Visitor, study: Path, api: httpx2.Client) -> None:
    page = phone.page("/")
    reader = Reader(page, Definition.model_validate(definitions.read(study)))
    progress = page.locator("#progress-text")

    reader.look("studies")
    page.get_by_role("link", name="您看到的是什么数字？").tap()
    reader.look("information")
    agree = page.get_by_role("checkbox", name="我同意以上全部内容，并愿意参加。")
    agree.evaluate("box => { box.required = false; }")
    reader.button("开始").tap()
    expect(page.get_by_role("alert")).to_be_visible()
    reader.look("no-consent")
    agree.tap()
    reader.button("开始").tap()
    expect(progress).to_have_text("练习 1/2")
    player = Player(api, token_of(page))

    for position in (*range(1, 6), PAUSE_AFTER + 2, PAUSE_AFTER + 3, 32):
        number = position - 2
        if position in (PAUSE_AFTER + 2, 32):
            reader.leave_to(player, position - (6 if position < 32 else PAUSE_AFTER + 4))
        expected = f"练习 {position}/2" if position <= 2 else f"第 {number} 张，共 30 张"
        expect(progress).to_have_text(expected)
        painted(page)
        if position in (1, 3):
            reader.look("practice" if position == 1 else "first-image")
            reader.go_on()
            expect(page.get_by_role("alert")).to_have_text("请选择一种读法，或选择“都不太可能”。")
            reader.look("nothing-chosen" if position == 1 else "nothing-chosen-again")
        if position == 5:
            page.context.set_offline(True)
        reader.label(position)
        if position == 5:
            expect(page.get_by_text("网络已断开。")).to_be_visible()
            expect(page.locator("#saved")).to_have_text("未保存：1")
            painted(page)
            reader.look("no-connection")
            page.context.set_offline(False)
            expect(page.locator("#saved")).to_have_text("已保存")
        if number == PAUSE_AFTER:
            reader.rest("pause")
    for number in (1, 2, PAUSE_AFTER, PAUSE_AFTER + 1, 30):
        if number in (PAUSE_AFTER, 30):
            reader.leave_to(player, number - (3 if number < 30 else PAUSE_AFTER + 2))
        expect(page.get_by_text("电脑的答案：")).to_be_visible()
        expect(progress).to_have_text(f"第 {number} 张，共 30 张")
        painted(page)
        if number == 1:
            reader.look("judging")
            reader.go_on()
            expect(page.get_by_role("alert")).to_have_text("请选择“是”或“不是”。")
            reader.look("nothing-judged")
        reader.judge(number)
        if number == PAUSE_AFTER:
            reader.rest("pause-in-judging")

    comment = page.get_by_role("textbox", name="这几张大图有什么不同？")
    expect(comment).to_be_visible()
    reader.look("impressions")
    comment.fill("大图 A 最容易看懂。")
    reader.button("完成").tap()
    expect(page.get_by_role("heading", name="谢谢您")).to_be_visible()
    expect(page.locator("#completion-code")).to_have_text(re.compile("^[2-9A-Z]{4}-[2-9A-Z]{4}$"))
    reader.look("finished")

    code = page.locator("#withdrawal-code").inner_text()
    page.goto("/study/mnist")
    reader.look("welcome-back")
    page.goto("/withdraw")
    page.get_by_role("textbox", name="私密代码").fill(code)
    reader.look("private-code")
    reader.button("继续").tap()
    expect(page.get_by_role("heading", name="要删除您的全部回答吗？")).to_be_visible()
    reader.look("withdraw")
    reader.button("全部删除").tap()
    expect(page.get_by_role("heading", name="您的回答已删除")).to_be_visible()
    reader.look("withdrawn")
