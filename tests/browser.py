"""The browser that the tests drive: found, or installed by `python -m tests.browser`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
ADVICE = "No Chromium for the browser tests: install it (Debian: apt-get install chromium), then run again."


def find() -> str | None:
    """The path of a Chromium on this machine: the system's, else the one that Playwright downloaded."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install() -> bool:
    """Try the system's package when root, else Playwright's download; True if a browser is there then."""
    attempts: list[list[str]] = []
    if os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get"):
        attempts += [["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]]
    attempts += [[sys.executable, "-m", "playwright", "install", "chromium"]]
    for command in attempts:
        print(" ".join(command), flush=True)
        subprocess.run(
            command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, stdout=sys.stderr, check=False
        )
        if find():
            return True
    return False


if __name__ == "__main__":
    if not (find() or install()):
        sys.exit(ADVICE)
    print(f"Browser: {find()}")
