"""The pages of results in a browser: reachable, accessible, live, printable; the report stands alone."""

import re
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect

from ml.pack import Pack
from tests.app.chromium.test_pages_shown import assert_accessible
from tests.app.chromium.visitor import QUICK, Visit, assert_crisp
from tests.app.conftest import Server, begin
from tests.app.evaluation import write_evaluation

pytestmark = pytest.mark.quickly("sqlite")

WIDTHS = (360, 768, 1366)


@pytest.fixture(scope="module")
def results(server: Server, pack: Pack) -> str:
    """The address of a study at its target, seen by nobody yet, whose networks the laboratory has evaluated."""
    write_evaluation(server.settings.results, pack)
    with httpx2.Client(base_url=server.url) as api:
        for _ in range(3):
            begin(api, "results").answer()
    return f"{server.url}/results/results"


def signed_in(page: Page, server: Server) -> Page:
    page.goto(server.dashboard)
    return page


def test_a_researcher_walks_from_the_table_to_one_image_and_back(
    visit: Visit, server: Server, results: str
) -> None:
    page = signed_in(visit().page("/"), server)
    page.goto(results)
    expect(page.get_by_role("img", name=re.compile("^Rates per model with 95 % intervals"))).to_be_visible()
    page.get_by_role("link", name=re.compile(r"All \d+ images that were labeled")).click()
    first = page.locator(".gallery figure").first
    expect(first).to_contain_text(re.compile(r"\d of \d"))
    first.get_by_role("link").click()
    expect(page.get_by_role("heading", name="People’s answers")).to_be_visible()
    for alt in ("The altered image", "The original image"):
        picture = page.get_by_role("img", name=alt)
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    table = page.get_by_role("region", name="People’s answers")
    said = page.get_by_text("excluded participants’ are left out").inner_text()
    answers = int(said.split()[0])
    firsts = [int(row.split("\t")[1]) for row in table.inner_text().splitlines()[2:] if "\t" in row]
    assert sum(firsts) == answers >= 1
    page.get_by_role("link", name=re.compile("gradient regularized|distilled|undefended")).first.click()
    expect(page.get_by_role("heading", name="People’s answers")).to_be_visible()


def test_the_pages_of_results_have_no_wcag_violation_and_fit_every_screen(
    visit: Visit, server: Server, results: str
) -> None:
    page = signed_in(visit().page("/"), server)
    page.goto(f"{results}/images")
    image = page.locator(".gallery a").first.get_attribute("href")
    for url in (
        results,
        f"{results}/images",
        f"{server.url}{image}",
        f"{results}/power",
        f"{results}/models",
    ):
        page.goto(url)
        assert_accessible(page)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            wide, room = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
            assert wide <= room, f"{url} scrolls sideways in {width} pixels"


def test_the_networks_are_shown_sharp_with_the_figures_of_their_evaluation(
    visit: Visit, server: Server, results: str
) -> None:
    page = signed_in(visit(device_scale_factor=1.25).page("/"), server)
    page.goto(results)
    page.get_by_role("link", name="The networks behind test-pack").click()
    grids = page.get_by_role("img", name=re.compile("^Images made for"))
    assert grids.count() == 3
    for grid in grids.all():
        assert grid.evaluate("image => image.decode().then(() => image.naturalWidth)") == 291
        assert grid.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
        box = grid.bounding_box()
        assert box is not None
        assert_crisp(box["width"], 1.25, 291)
        assert box["width"] > 1.5 * 291, "large, where there is room"
    figure = page.get_by_role("img", name="Accuracy over epsilon")
    figure.scroll_into_view_if_needed()
    assert figure.evaluate("image => image.decode().then(() => image.naturalWidth)") == 1400
    page.get_by_role("link", name="Accuracy over epsilon").click()
    assert page.url.endswith("#evaluation-1-1-curves.png")
    with page.expect_download() as download:
        page.get_by_role("link", name="The whole report, as a file").click()
    assert download.value.suggested_filename == "test-report.html"


def test_what_the_reader_opened_stays_open_when_numbers_change(
    visit: Visit, server: Server, api: httpx2.Client, results: str
) -> None:
    visitor = visit()
    visitor.prepare = lambda page: page.add_init_script(QUICK)
    page = signed_in(visitor.page("/"), server)
    page.goto(results)
    summary = page.locator("#live summary")
    summary.click()
    started = page.get_by_role("listitem").filter(has_text="started")
    before = int(re.findall(r"\d+", started.inner_text())[0])
    begin(api, "results")
    expect(started).to_have_text(re.compile(rf"^\s*{before + 1}\s"), timeout=15_000)
    assert page.locator("#live details").evaluate("details => details.open")
    expect(summary).to_be_focused()


def test_the_report_is_one_file_that_needs_no_server(
    visit: Visit, server: Server, results: str, tmp_path: Path
) -> None:
    page = signed_in(visit().page("/"), server)
    page.goto(results)
    with page.expect_download() as download:
        page.get_by_role("link", name="Report").click()
    file = tmp_path / download.value.suggested_filename
    assert re.fullmatch(r"results-[0-9a-f]{12}-real\.html", file.name)
    download.value.save_as(file)
    assert page.context.browser is not None
    page = page.context.browser.new_page()  # not the visitor's, who asks no other address than the server's
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    expect(page.get_by_role("heading", name="Methods")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^Rates per model"))).to_be_visible()
    for shown in page.locator("img").all():
        assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    page.emulate_media(media="print")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    page.close()
