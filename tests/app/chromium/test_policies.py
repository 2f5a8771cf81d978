"""The policy of every reply, as Chromium keeps it: our pages live with it, what somebody smuggles in does not.

Each test fails, besides on its own asserts, on a console warning and on a request to another host (`Visitor`).
"""

import contextlib
import re
import socket
from collections.abc import Callable, Iterator

import httpx2
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from app import web
from app.security import CONTENT_SECURITY_POLICY
from tests.app.chromium.visitor import (
    QUICK,
    Visit,
    Visitor,
    advance,
    by_clicks,
    choose,
    go,
    judge_by_clicks,
    painted,
    saved,
    token_of,
)
from tests.app.conftest import Player, Server, begin

pytestmark = pytest.mark.quickly("sqlite")

WATCH = """
addEventListener("securitypolicyviolation", (event) =>
  violated(`${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile}`), true);
"""


def watched(visitor: Visitor) -> list[str]:
    """What the policy has blocked on this visitor's pages, from here on."""
    found: list[str] = []

    def watch(page: Page) -> None:
        page.expose_binding("violated", lambda _, told: found.append(told))
        page.add_init_script(WATCH)

    visitor.prepare = watch
    return found


def test_no_page_of_a_session_violates_anything(visit: Visit, api: httpx2.Client) -> None:
    visitor = visit()
    visitor.forgiven = "404|422"
    violations = watched(visitor)
    page = visitor.page("/")
    for path in ("/withdraw", "/nothing", "/?lang=de", "/"):
        page.goto(path)
    page.locator("a[href*='/study/test']").click()
    page.get_by_role("checkbox").evaluate("box => { box.required = false; }")
    page.get_by_role("button", name="Begin").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Begin").click()
    player = Player(api, token_of(page))
    address = f"/s/{player.token}"
    by_clicks(page, range(1, 4))
    painted(page)
    go(page).click()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(saved(page)).to_have_text("Saved")
    advance(player, "judging")
    page.goto(address)
    judge_by_clicks(page, range(1, 3))
    expect(saved(page)).to_have_text("Saved")
    advance(player, "commenting")
    page.goto(address)
    for sheet in page.get_by_role("img", name="Sheet").all():
        assert sheet.evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
    page.get_by_role("textbox", name="How do the sheets differ?").fill("The first is blurred.")
    page.goto("/study/test")
    page.get_by_role("link", name="Go on where I was").click()
    page.get_by_role("button", name="Finish").click()
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    page.goto(f"{address}/withdraw")
    page.get_by_role("button", name="Delete everything").click()
    expect(page.get_by_role("heading", name="Receipt")).to_be_visible()
    assert violations == []


def test_the_dashboard_violates_nothing_and_keeps_its_looks(
    visit: Visit, server: Server, api: httpx2.Client
) -> None:
    advance(begin(api, "looked-at"), "judging")
    visitor = visit()
    violations = watched(visitor)
    page = visitor.page(server.dashboard)
    page.add_init_script(QUICK)
    page.goto("/results/looked-at")
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Unmask now").click()
    looks = figure_looks(page)
    strokes = {look["stroke"] for look in looks if look["stroke-linecap"] == "round"}
    assert len(strokes) == 3, "a color for every model"
    assert {look["fill"] for look in looks if look["stroke-linecap"] == "round"} == {"none"}
    page.locator("#live").evaluate("live => { live.querySelector('.tiles').dataset.old = 'yes'; }")
    advance(begin(api, "looked-at"), "judging", most=3)
    expect(page.locator("[data-old]")).to_have_count(0, timeout=15_000)
    again = {look["stroke"] for look in figure_looks(page) if look["stroke-linecap"] == "round"}
    assert again == strokes, "a figure that static/live.js put there looks as one that came with the page"
    for name in ("Answers as CSV", "Results as JSON"):
        assert visitor.context.request.get(page.get_by_role("link", name=name).get_attribute("href") or "").ok
    assert violations == []


def figure_looks(page: Page) -> list[dict[str, str]]:
    """How the browser draws the paths of the first figure."""
    found: list[dict[str, str]] = page.locator(".figure svg").first.evaluate(
        """svg => [...svg.querySelectorAll("path")].map((path) => {
          const style = getComputedStyle(path);
          return Object.fromEntries(["fill", "stroke", "stroke-width", "stroke-linecap"].map(
            (name) => [name, style.getPropertyValue(name)]));
        })"""
    )
    assert len(found) > 20
    return found


def test_no_cookie_nor_anything_else_is_kept_before_consent(visit: Visit) -> None:
    visitor = visit()
    visitor.forgiven = "404|401|422"
    page = visitor.page("/")
    for path in (
        "/study/test?PROLIFIC_PID=policy",
        "/withdraw",
        "/nothing",
        "/s/nobody",
        "/results",
        "/study/test",
    ):
        page.goto(path)
        assert kept(visitor.context, page) == ([], 0, []), path
    page.get_by_role("checkbox").evaluate("box => { box.required = false; }")
    page.get_by_role("button", name="Begin").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert kept(visitor.context, page) == ([], 0, []), "consent was not given"
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Begin").click()
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    (cookie,) = visitor.context.cookies()
    assert (cookie["name"], cookie["path"]) == (web.SESSION_COOKIE, "/study/test")
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"


def kept(context: BrowserContext, page: Page) -> tuple[list[str], int, list[str]]:
    """The browser's cookies, entries of its storages, databases."""
    stored = page.evaluate("localStorage.length + sessionStorage.length")
    databases = page.evaluate("indexedDB.databases().then((all) => all.map((one) => one.name))")
    return [cookie.get("name", "") for cookie in context.cookies()], stored, databases


# What the policy blocks. The server's own reply is changed on its way, headers as they are, as a hole in a template
# would change it.


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Another host, which nobody may turn to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert heard(listener) == b""


def heard(listener: socket.socket) -> bytes:
    """What was said to it; Chromium opens a connection, without a word, ahead of a form that it may not send."""
    said = b""
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(BlockingIOError):
                connection.setblocking(False)
                said += connection.recv(1000)
    return said


def smuggle(visitor: Visitor, path: str, change: Callable[[str], str]) -> Page:
    """An empty page, which will get `path` changed."""
    visitor.forgiven = "Content Security Policy"

    def changed(route: Route) -> None:
        reply = route.fetch()
        assert reply.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        route.fulfill(response=reply, body=change(reply.text()))

    page = visitor.blank()
    page.route(f"**{path}", changed)
    return page


SMUGGLED = [
    ("<script>window.ran = true</script>", "script-src-elem inline"),
    ("<script type=module>window.ran = true</script>", "script-src-elem inline"),
    ("<img src=/static/icon.svg onload='window.ran = true'>", "script-src-attr inline"),
    ("<a id=bait href='javascript:window.ran = true'>x</a>", "script-src-elem inline"),
    ("<script src=ELSEWHERE/x.js></script>", "script-src-elem ELSEWHERE"),
    ("<script src='data:text/javascript,window.ran = true'></script>", "script-src-elem data"),
    ("<iframe srcdoc='<script>parent.ran = true</script>'></iframe>", "script-src-elem inline"),
    ("<object data='data:text/html,x'></object>", "object-src data"),
    ("<iframe src='/study/test'></iframe>", "frame-src"),
    ("<base href=/elsewhere/>", "base-uri"),
    ("<img src=ELSEWHERE/x.png>", "img-src ELSEWHERE"),
    ("<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>", "img-src data"),
    ("<link rel=stylesheet href=ELSEWHERE/x.css>", "style-src-elem ELSEWHERE"),
    ("<style>main { position: fixed; color: rgb(1, 2, 3) }</style>", "style-src-elem inline"),
    ("<p style='position: fixed'>x</p>", "style-src-attr inline"),
    ("<video src=/static/icon.svg></video>", "media-src"),
    ("<form id=trap action=ELSEWHERE/ method=post></form>", "form-action ELSEWHERE"),
]


def test_what_is_smuggled_into_a_page_is_blocked(visit: Visit, elsewhere: str) -> None:
    visitor = visit()
    violations = watched(visitor)
    markup = "".join(markup for markup, _ in SMUGGLED).replace("ELSEWHERE", elsewhere)
    page = smuggle(visitor, "/study/test", lambda html: html.replace("</main>", f"{markup}</main>"))
    page.goto("/study/test")
    for selector, act in (("#bait", "link => link.click()"), ("#trap", "form => form.submit()")):
        page.locator(selector).evaluate(act)
    expected = [blocked.replace("ELSEWHERE", elsewhere) for _, blocked in SMUGGLED]
    wait_for(page, lambda: len(violations) >= len(expected))
    for blocked, violation in zip(sorted(expected), sorted(violations), strict=True):
        assert violation.startswith(blocked)
    assert page.evaluate("window.ran") is None
    assert page.evaluate("getComputedStyle(document.querySelector('main')).position") == "static"
    assert page.url.endswith("/study/test")
    forgive_blocked(visitor, elsewhere)


def forgive_blocked(visitor: Visitor, elsewhere: str) -> None:
    """Playwright reports also a request that the policy keeps from leaving the browser."""
    visitor.faults = [fault for fault in visitor.faults if elsewhere not in fault]


def wait_for(page: Page, true: Callable[[], bool]) -> None:
    for _ in range(100):
        if true():
            return
        page.wait_for_timeout(50)
    pytest.fail("it did not come true in 5 s")


ATTEMPTS = """
window.outcomes = [];
const attempts = [() => eval("1"), () => new Function("return 1")(), () => setTimeout("window.ran = true", 0)];
for (const attempt of attempts) {
  try { attempt(); outcomes.push("done"); } catch (error) { outcomes.push(error.name); }
}
fetch("ELSEWHERE/x").catch((error) => outcomes.push(error.name));
"""


def test_even_our_own_scripts_turn_no_text_into_code_and_call_nobody(
    visit: Visit, api: httpx2.Client, elsewhere: str
) -> None:
    visitor = visit()
    violations = watched(visitor)
    attempts = ATTEMPTS.replace("ELSEWHERE", elsewhere)
    page = smuggle(visitor, "/static/scripted.js", lambda script: script + attempts)
    page.goto(f"/s/{begin(api).token}")
    choose(page, "3", "5")
    wait_for(page, lambda: len(violations) == 4)
    assert page.evaluate("window.outcomes") == ["EvalError", "EvalError", "done", "TypeError"]
    assert page.evaluate("window.ran") is None
    assert sorted(told.split()[0] for told in violations) == ["connect-src", *["script-src"] * 3]
    forgive_blocked(visitor, elsewhere)


def test_no_other_site_can_frame_our_pages(visit: Visit, server: Server) -> None:
    visitor = visit()
    visitor.forgiven = "frame-ancestors|X-Frame-Options"
    page = visitor.context.new_page()
    page.route("http://localhost/", lambda route: route.fulfill(content_type="text/html", body="<p>Bait</p>"))
    visitor.home = "http://localhost"
    page.goto("http://localhost/")
    visitor.home = server.url
    page.evaluate(
        "url => { const frame = document.createElement('iframe'); frame.src = url; document.body.append(frame); }",
        f"{server.url}/study/test",
    )
    wait_for(page, lambda: page.frames[-1].url.startswith("chrome-error:"))
    assert not re.search("consent", page.frames[-1].content())
