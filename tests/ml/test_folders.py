"""A folder is replaced whole or not at all, and what others keep in it stays."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, current_thread, main_thread

import pytest

from ml import folders
from tests.ml.conftest import ROOT


def ours(folder: Path) -> list[str]:
    return ["result.txt", "images"]


def write(folder: Path, text: str) -> None:
    with folders.replaced(folder, ours) as fresh:
        (fresh / "images").mkdir()
        (fresh / "images" / f"{text}.txt").write_text(text)
        (fresh / "result.txt").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "made" / "here"
    write(folder, "old")
    (folder / "README.md").write_text("mine")
    (folder / "notes" / "deep").mkdir(parents=True)
    (folder / "notes" / "deep" / "a.txt").write_text("precious")
    (folder / "link").symlink_to("README.md")
    (folder / "dangling").symlink_to("nowhere")
    return folder


def test_what_others_keep_there_stays(folder: Path) -> None:
    write(folder, "new")
    kept = {"README.md": "mine", "link": "mine", "notes/deep/a.txt": "precious"}
    assert contents(folder) == {"result.txt": "new", "images/new.txt": "new", **kept}
    assert (folder / "link").readlink() == Path("README.md")
    assert (folder / "dangling").readlink() == Path("nowhere")
    assert [path.name for path in folder.parent.iterdir()] == ["here"]


def test_a_link_to_a_folder_stays_one(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    write(link, "new")
    assert link.is_symlink()
    assert (folder / "result.txt").read_text() == "new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("when", ["filling", "first rename", "second rename"])
def test_after_an_error_everything_is_as_it_was(
    error: type[BaseException], when: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, renames = contents(folder), 0
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == {"first rename": 1, "second rename": 2}.get(when):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)

    def fill() -> None:
        with folders.replaced(folder, ours) as fresh:
            (fresh / "result.txt").write_text("half")
            if when == "filling":
                raise error

    with pytest.raises(error):
        fill()
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["here"]


def test_what_a_kill_hid_is_brought_back(folder: Path) -> None:
    before = contents(folder)
    code = """
import os, sys
from pathlib import Path
from ml import folders
rename = Path.rename
def once(self, target):
    rename(self, target)
    os.kill(os.getpid(), 9)
Path.rename = once
with folders.replaced(Path(sys.argv[1]), lambda old: ["result.txt", "images"]) as fresh:
    pass
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, env=os.environ, check=False)
    assert done.returncode == -9
    assert not folder.exists()
    (hidden,) = folder.parent.glob(".here-*/old/here")
    assert contents(hidden) == before
    for alike in ("her", "here-too", "he[r]e"):
        write(folder.with_name(alike), "another")
        assert contents(folder.with_name(alike)).keys() == {"result.txt", "images/another.txt"}
        shutil.rmtree(folder.with_name(alike))
    write(folder, "new")
    assert contents(folder)["notes/deep/a.txt"] == "precious"
    assert contents(folder)["result.txt"] == "new"
    assert [path.name for path in folder.parent.iterdir()] == ["here"]


def test_of_several_writers_at_once_one_is_last_and_nothing_is_lost(folder: Path) -> None:
    def many(text: str) -> None:
        for _ in range(20):
            write(folder, text)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(many, text) for text in "abcd"]:
            done.result()
    found = contents(folder)
    last = found["result.txt"]
    assert found.keys() == {"result.txt", f"images/{last}.txt", "README.md", "link", "notes/deep/a.txt"}
    assert [path.name for path in folder.parent.iterdir()] == ["here"]


def test_who_is_done_while_another_one_renames_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one looks at what is there just when the second one has put the folder away."""
    rename, exists = Path.rename, Path.exists
    first_is_in_place, put_away, first_is_done = Event(), Event(), Event()

    def renamed(source: Path, target: Path) -> None:
        rename(source, target)
        if source == folder and first_is_in_place.is_set():
            put_away.set()
            first_is_done.wait(0.5)
        elif target == folder:
            first_is_in_place.set()

    def looked_for(path: Path) -> bool:
        if path == folder and first_is_in_place.is_set() and current_thread() is not main_thread():
            put_away.wait(0.5)
        return exists(path)

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "exists", looked_for)
    with ThreadPoolExecutor(1) as pool, folders.replaced(folder, ours) as fresh:
        (fresh / "result.txt").write_text("second")
        first = pool.submit(write, folder, "first")
        first.add_done_callback(lambda _: first_is_done.set())
        assert first_is_in_place.wait(60)
    first.result()
    assert contents(folder)["result.txt"] == "second"
    assert [path.name for path in folder.parent.iterdir()] == ["here"]


def test_the_folder_may_be_read_as_any_other(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert folder.stat().st_mode == other.stat().st_mode
