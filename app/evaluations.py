"""What the laboratory measured about networks: the folders that `python -m ml.evaluate` writes, read for pages.

A folder holds `report.json`, `report.html` and PNGs. It may come from elsewhere or be half written, so nothing in
it is taken on trust: a report that cannot be used is one line that says why, and of the files only `report.html`
and the PNGs that the report lists are ever served.
"""

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from app.printed import percent, points

REPORT, PAGE = "report.json", "report.html"
MOST_BYTES = 32 * 1024 * 1024  # of a report.json; one is some 100 kB

DEEPEST = 5  # lists and objects in one another that are written out

_FIGURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.png")
_PNG = b"\x89PNG\r\n\x1a\n"


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)  # what else a report holds is left alone


class Data(_Read):
    name: str
    note: str = ""  # that the files are only a part of the published set
    test_images: int | None = None


class Network(_Read):
    checkpoint_sha256: str
    clean_accuracy: float | None = None


class Claim(_Read):
    """A claim of the paper with its verdict; each of `numbers` is a sentence."""

    title: str
    claim: str = ""
    criterion: str = ""
    verdict: str
    reason: str = ""
    numbers: list[str] = []
    figures: list[str] = []  # their files

    @field_validator("numbers", mode="before")
    @classmethod
    def _as_sentences(cls, numbers: object) -> list[str]:
        if not isinstance(numbers, list):
            raise ValueError("not a list")
        return [said(number) for number in numbers]


class _Listed(_Read):
    file: str
    title: str
    caption: str = ""


class Schedule(_Read):
    words: str = ""


class Report(_Read):
    """The part of a report.json that the pages show."""

    dataset: Data
    models: dict[str, Network]
    schedule: Schedule = Schedule()
    command: str = ""
    seconds: float | None = Field(default=None, ge=0, le=1e9)
    claims: list[Claim] = []
    figures: list[_Listed] = []


@dataclass(frozen=True)
class Figure:
    """A PNG that the report lists and that is there; width and height in pixels."""

    file: str
    title: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Evaluation:
    """One folder that could be read; `left_out` has a line for each listed figure that cannot be shown."""

    folder: Path
    report: Report
    figures: list[Figure]
    left_out: list[str]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def page(self) -> Path | None:
        """The report as one HTML file, where it is there."""
        return _inside(self.folder, PAGE)

    def figure(self, file: str) -> Path | None:
        """The PNG of this name, where the report lists it."""
        return _inside(self.folder, file) if any(f.file == file for f in self.figures) else None

    def is_about(self, checkpoints: Mapping[str, str | None]) -> bool:
        """Whether it is about these very networks: model -> sha256 of its checkpoint, where that is known."""
        measured = {name: network.checkpoint_sha256 for name, network in self.report.models.items()}
        return bool(checkpoints) and all(
            sha256 is not None and measured.get(name) == sha256 for name, sha256 in checkpoints.items()
        )


def read_all(results: Path) -> tuple[list[Evaluation], list[str]]:
    """Every evaluation in the folder `results`, by name, and one line for each that cannot be used."""
    found, broken = [], []
    try:
        folders = sorted(path.parent for path in results.glob(f"*/{REPORT}"))
    except OSError as error:
        return [], [f"{results.name}: cannot be read ({error.strerror})"]
    for folder in folders:
        try:
            found.append(_read(folder))
        except _BrokenError as error:
            broken.append(f"{folder.name}/{REPORT}: {error}")
    return found, broken


def said(number: object, depth: int = 0) -> str:
    """A number of a claim as a sentence: an estimate with interval, n and what was wanted, or whatever it is."""
    if isinstance(number, dict) and isinstance(number.get("what"), str):
        estimate = number.get("estimate", number)
        value, low, high, n = (
            estimate.get(key) if isinstance(estimate, dict) else None for key in ("value", "low", "high", "n")
        )
        unit = number.get("unit")
        if _is_number(value):
            digits, sign = _shown(value, unit)
            more = [f"n = {n}"] if _is_number(n) else []
            if _is_number(low) and _is_number(high):
                more.insert(0, f"{_shown(low, unit)[0]} to {_shown(high, unit)[0]}{sign}")
            interval = f" ({', '.join(more)})" if more else ""
            wanted = f"; wanted: {number['wanted']}" if number.get("wanted") else ""
            verdict = f" ({number['verdict']})" if number.get("verdict") else ""
            return f"{number['what']}: {digits}{sign}{interval}{wanted}{verdict}"
    if isinstance(number, dict | list) and depth == DEEPEST:
        return "…"
    if isinstance(number, dict):
        return ", ".join(
            f"{str(key).replace('_', ' ')}: {said(value, depth + 1)}" for key, value in number.items()
        )
    if isinstance(number, list):
        return ", ".join(said(value, depth + 1) for value in number)
    if isinstance(number, bool) or number is None:
        return {True: "yes", False: "no", None: "–"}[number]
    return f"{number:g}" if isinstance(number, float) else str(number)


def as_text(value: object) -> str:
    """The same of anything else that JSON knows; "" where there is nothing."""
    return "" if value is None or value == "" else said(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _shown(value: Any, unit: object) -> tuple[str, str]:
    """The digits and what stands behind them."""
    if unit == "share" and abs(value) <= 1:
        return percent(value), " %"
    if unit == "points" and abs(value) <= 1:
        return points(value), " points"
    return f"{value:.4g}", " times" if unit == "factor" else ""


class _BrokenError(ValueError):
    """A report that cannot be used; the message is one line, without the file's name."""


def _read(folder: Path) -> Evaluation:
    try:
        if (folder / REPORT).stat().st_size > MOST_BYTES:
            raise _BrokenError(f"larger than {MOST_BYTES} bytes")
        content = json.loads((folder / REPORT).read_bytes())
        json.dumps(content, ensure_ascii=False).encode()  # a page cannot show halves of characters
        report = Report.model_validate(content)
    except _BrokenError:
        raise
    except OSError as error:
        raise _BrokenError(f"cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _BrokenError(" ".join(f"{where or 'the file'}: {first['msg']}".split())) from None
    except UnicodeError:
        raise _BrokenError("contains text that is not Unicode") from None
    except json.JSONDecodeError as error:
        raise _BrokenError(f"not valid JSON ({error})") from None
    except (ValueError, RecursionError):
        raise _BrokenError("nested too deeply, or with a number too long") from None
    figures, left_out = _figures(folder, report.figures)
    return Evaluation(folder, report, figures, left_out)


def _figures(folder: Path, listed: Iterable[_Listed]) -> tuple[list[Figure], list[str]]:
    figures, left_out = [], []
    for figure in {figure.file: figure for figure in listed}.values():
        path = _inside(folder, figure.file) if _FIGURE.fullmatch(figure.file) else None
        if not _FIGURE.fullmatch(figure.file):
            left_out.append(f"{figure.file}: not the name of a PNG in the report's folder")
        elif path is None:
            left_out.append(f"{figure.file}: not in the report's folder")
        elif (size := _png_size(path)) is None:
            left_out.append(f"{figure.file}: not a PNG")
        else:
            figures.append(Figure(figure.file, figure.title, figure.caption, *size))
    return figures, left_out


def _inside(folder: Path, name: str) -> Path | None:
    """The file of this name in this very folder; None where there is none, or it is a link that leads elsewhere."""
    path = folder / name
    try:
        return path if path.resolve().parent == folder.resolve() and path.is_file() else None
    except (OSError, RuntimeError):  # may not be read, or links that lead in a circle
        return None


def _png_size(path: Path) -> tuple[int, int] | None:
    """(width, height) in pixels, from the header; None where it is no PNG."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError:
        return None
    if len(head) < 24 or not head.startswith(_PNG) or head[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", head[16:24])
    return (width, height) if width and height else None
