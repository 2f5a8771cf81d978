"""Folders that are replaced whole or not at all, with what others keep in them, and whether they can be written."""

import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replaced(folder: Path, ours: Callable[[Path], Iterable[str]]) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` once the block ends without an error.

    Of what `folder` held, the names that `ours` gives for it go; all else is kept: files, folders, links. A link to
    a folder stays one. After an error or an interruption everything is as it was; whoever is killed between the two
    last renames leaves the old folder hidden beside it, from where the next `replaced` brings it back. Raises
    OSError.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder.parent):
        _bring_back(folder)
    holder = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    fresh, old = holder / "fresh", holder / "old" / folder.name
    try:
        fresh.mkdir()
        old.parent.mkdir()
        yield fresh
        with _alone_in(folder.parent):
            try:
                if folder.exists():
                    gone = set(ours(folder))
                    for other in folder.iterdir():
                        if other.name not in gone:
                            _copy(other, fresh / other.name)
                    folder.rename(old)
                fresh.rename(folder)
            except BaseException:
                if old.exists() and not folder.exists():
                    old.rename(folder)
                raise
    finally:
        # Alone, or another one's renames could be under way; what cannot be cleaned hides no error of the block's.
        with suppress(OSError), _alone_in(folder.parent):
            if folder.exists() or not old.exists():  # else it is all that there is
                shutil.rmtree(holder, ignore_errors=True)


def obstacle(path: Path) -> str | None:
    """Why nothing can be written at a path, whose folders may be yet to be made; None where it can.

    It is tried out, as permissions alone do not tell; nothing is left behind.
    """
    if str(path).encode(errors="ignore").decode() != str(path):
        return "its name is not UTF-8"
    folder = path.parent
    try:
        path = path.resolve()
        if Path.cwd().is_relative_to(path):
            return "the current folder is there"
        folder = path.parent
        while not os.path.lexists(folder):
            folder = folder.parent
        if not folder.is_dir():
            return f"{folder} is not a folder"
        Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=folder)).rmdir()
    except RuntimeError:  # of links
        return "a link that leads to itself"
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None


def _bring_back(folder: Path) -> None:
    for holder in sorted(folder.parent.glob(f".{glob.escape(folder.name)}-*")):
        old = holder / "old" / folder.name  # its name again, as another folder's may begin alike
        if old.is_dir() and not folder.exists():
            old.rename(folder)
            shutil.rmtree(holder, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


@contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """One process at a time, where the system can lock a folder; a lock goes with its process."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
