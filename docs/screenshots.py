"""Makes the pictures of the docs from the real app: `.venv/bin/python -m docs.screenshots` (after `make test`).

`README` pictures take a minute; `dashboard` pictures, with up to 1,000 simulated participants, some ten.
"""

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests import browser

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PORT = "8765"
FIRST, SECOND = "9", "4"  # what the fifth image of the first participant looks like
SIZES = (0, 1, 11, 1000)  # simulated participants
WIDTH = 1100  # of the dashboard, in CSS pixels; the pictures are WIDTH * SCALE wide
SCALE = 0.6


@dataclass(frozen=True)
class App:
    """The bundled study on a new database, and a browser."""

    url: str
    dashboard: str
    environment: dict[str, str]
    chromium: Browser

    def simulate(self, participants: int, *options: str) -> None:
        command = [sys.executable, "-m", "app", "simulate", "--url", self.url]
        command += ["--participants", str(participants), *options]
        subprocess.run(command, cwd=ROOT, env=self.environment, check=True)


@contextmanager
def serving() -> Iterator[App]:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"DATABASE_URL": f"sqlite:///{folder}/study.db", "PORT": PORT}
        command = [sys.executable, "-m", "app", "serve"]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            said = ""
            while "Dashboard:" not in said:
                line = server.stdout.readline()
                assert line, f"the server ended after saying: {said}"
                said += line
            (dashboard,) = re.findall(r"^Dashboard: (\S+)$", said, re.M)
            try:
                with sync_playwright() as playwright:
                    chromium = playwright.chromium.launch(
                        executable_path=browser.find(), args=["--no-sandbox"] if os.geteuid() == 0 else []
                    )
                    yield App(dashboard.split("/signin")[0], dashboard, environment, chromium)
                    chromium.close()
            finally:
                server.terminate()


def readme(app: App) -> None:
    """A trial and the top of the dashboard."""
    page = app.chromium.new_page(viewport={"width": 1120, "height": 620})
    trial(page, f"{app.url}/study/mnist")
    app.simulate(20)
    page.goto(app.dashboard)
    page.goto(f"{app.url}/results/mnist?data=simulated")
    page.set_viewport_size({"width": 1120, "height": 1000})
    page.screenshot(path=IMAGES / "dashboard.png")


def trial(page: Page, study: str) -> None:
    """Up to the fifth image, with two labels chosen."""
    page.goto(study)
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Begin").click()
    progress = page.locator("#progress-text")
    for text in ("Practice 1 of 2", "Practice 2 of 2", *(f"Image {n} of 30" for n in range(1, 6))):
        page.wait_for_function(
            "text => document.querySelector('#progress-text')?.innerText.startsWith(text)", arg=text
        )
        page.locator("[data-shown]").wait_for()
        page.wait_for_timeout(400)  # no person answers sooner, and the page takes no such answer
        page.keyboard.press(FIRST)
        page.keyboard.press(SECOND)
        if "Image 5" not in progress.inner_text():
            page.keyboard.press("Enter")
    page.wait_for_timeout(400)  # the keys have taken their color
    page.screenshot(path=IMAGES / "trial.png")


def dashboards(app: App) -> None:
    """The whole page in light, dark and print as participants come: masked at first, then unmasked on record."""
    page = app.chromium.new_page(viewport={"width": WIDTH, "height": 900})
    page.goto(app.dashboard)
    url = f"{app.url}/results/mnist?data=simulated"
    photograph(page, url, "masked")
    page.goto(url)
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Unmask now").click()
    there = 0
    for size in SIZES:
        if size > there:
            people = ("--sd-participant", "0.6", "--sd-image", "0.5", "--sd-pair", "0.5", "--seed", str(size))
            some = ("--dropout", "0.08", "--bad", "0.04") if size > 100 else ()
            app.simulate(size - there, *people, *some)
            there = size
        photograph(page, url, str(size))


def photograph(page: Page, url: str, name: str) -> None:
    for scheme in ("light", "dark", "print"):
        page.emulate_media(
            color_scheme="dark" if scheme == "dark" else "light",
            media="print" if scheme == "print" else "screen",
        )
        page.goto(url)
        if scheme == "print":
            page.locator("details").evaluate_all("all => all.forEach((details) => (details.open = true))")
        with Image.open(io.BytesIO(page.screenshot(full_page=True))) as taken:
            small = taken.convert("RGB").resize((int(WIDTH * SCALE), int(taken.height * SCALE)))
        small.save(IMAGES / f"dashboard-{name}-{scheme}.webp", quality=70, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.screenshots")
    parser.add_argument("which", nargs="?", choices=("readme", "dashboard"), default="readme")
    which = parser.parse_args().which
    IMAGES.mkdir(exist_ok=True)
    with serving() as app:
        (readme if which == "readme" else dashboards)(app)


if __name__ == "__main__":
    main()
