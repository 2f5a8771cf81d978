"""Makes the README's pictures from the real app: `.venv/bin/python -m docs.screenshots` (after `make test`)."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests import browser

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PORT = "8765"
FIRST, SECOND = "9", "4"  # what the fifth image of the first participant looks like


def main() -> None:
    """Serve the bundled study on a new database, play it, and photograph a trial and the dashboard."""
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
            study, dashboard = re.findall(r"^(?:Study|Dashboard): (\S+)$", said, re.M)
            try:
                with sync_playwright() as playwright:
                    chromium = playwright.chromium.launch(
                        executable_path=browser.find(), args=["--no-sandbox"] if os.geteuid() == 0 else []
                    )
                    page = chromium.new_page(viewport={"width": 1120, "height": 620})
                    trial(page, study)
                    simulate = [sys.executable, "-m", "app", "simulate", "--url", study.split("/study")[0]]
                    subprocess.run(simulate, cwd=ROOT, env=environment, check=True)
                    page.goto(dashboard)
                    page.goto(study.replace("/study/", "/results/"))
                    page.set_viewport_size({"width": 1120, "height": 1000})
                    page.screenshot(path=IMAGES / "dashboard.png")
                    chromium.close()
            finally:
                server.terminate()


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


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    main()
