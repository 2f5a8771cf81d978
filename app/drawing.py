"""Drawings as SVG: lines, areas, dots and texts in the page's text color and typeface, in light, dark or print.

All are WIDTH units wide, so that equal type sizes are equal on a page; positions are in these units from the upper
left corner. What has to lie beside a text is placed by `text_width`: which typeface a reader has is not known.
Written directly, as matplotlib takes some fifty times as long, and a page while answers come draws six anew.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from html import escape

INK = "currentColor"  # the page's text color
WIDTH = 720  # of every figure
SIZE = 11  # of text
SMALL = 10
BELOW_MIDDLE = 0.38  # of the size: how far the baseline of a line of text lies below its middle
Point = tuple[float, float]


class Drawing:
    """A figure of WIDTH x `height` units, drawn from back to front."""

    def __init__(self, height: float) -> None:
        self.height = height
        self._parts: list[str] = []
        self._fills: dict[tuple[str, str], str] = {}  # (color, color of the hatches) -> id

    def line(
        self,
        points: Sequence[Point],
        color: str = INK,
        width: float = 1,
        cap: str = "butt",
        opacity: float = 1,
        dashes: str = "",
    ) -> None:
        """A line through the points; a pen that is lifted at those that are not numbers."""
        stroke = f' stroke="{color}" stroke-width="{width:g}" stroke-linecap="{cap}"'
        stroke += f' stroke-opacity="{opacity:g}"' if opacity != 1 else ""
        stroke += f' stroke-dasharray="{dashes}"' if dashes else ""
        drawn: list[str] = []
        pen = "M"
        for x, y in points:
            if math.isnan(x) or math.isnan(y):
                pen = "M"
                continue
            drawn.append(f"{pen} {_n(x)} {_n(y)}")
            pen = "L"
        if len(drawn) > 1:
            self._parts.append(f'<path d="{" ".join(drawn)}" fill="none"{stroke}/>')

    def box(
        self,
        left: float,
        top: float,
        width: float,
        height: float,
        color: str,
        opacity: float = 1,
        hatch: str = "",
    ) -> None:
        """An area, which `hatch`, a color, fills with slanted lines."""
        fill = f"url(#{{{self._fill(color, hatch)}}})" if hatch else color
        seen = f' fill-opacity="{opacity:g}"' if opacity != 1 else ""
        right, bottom = _n(left + width), _n(top + height)
        at = f"M {_n(left)} {_n(top)} L {right} {_n(top)} L {right} {bottom} L {_n(left)} {bottom} z"
        self._parts.append(f'<path d="{at}" fill="{fill}"{seen}/>')

    def edge(self, left: float, top: float, width: float, height: float) -> None:
        """A box's outline, in the text's color: dark boxes are hardly to be seen on a dark page."""
        right, bottom = left + width, top + height
        self.line([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], width=0.75)

    def dot(self, x: float, y: float, radius: float, color: str) -> None:
        self._parts.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{radius:g}" fill="{color}"/>')

    def text(
        self,
        x: float,
        y: float,
        words: str,
        anchor: str = "middle",
        size: float = SIZE,
        color: str = INK,
        upright: bool = False,
    ) -> None:
        """`words` in a line whose middle, from top to bottom, is at the point; `upright` reads upwards."""
        down = BELOW_MIDDLE * size
        x, y = (x + down, y) if upright else (x, y + down)
        turned = f' transform="rotate(-90 {_n(x)} {_n(y)})"' if upright else ""
        self._parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}"{turned} font-size="{_n(size)}px" text-anchor="{anchor}" fill="{color}">'
            f"{escape(words, quote=False)}</text>"
        )

    def lines(self, x: float, y: float, lines: Sequence[str], anchor: str = "start") -> None:
        """Lines of text, the middle of the first at the point."""
        for i, line in enumerate(lines):
            self.text(x, y + 1.2 * SIZE * i, line, anchor)

    def inline(self, title: str, description: str) -> str:
        """The figure as a part of a page, with all that it shows in words."""
        label = escape(f"{title}. {description}")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="100%" {self._view()} '
            f'role="img" aria-label="{label}">{self._inside(label)}</svg>'
        )

    def alone(self, title: str) -> str:
        """The figure as a file, black on white."""
        return (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{self.height:g}" {self._view()} '
            f'color="#000000" font-family="sans-serif"><title>{escape(title)}</title>'
            f'<rect width="{WIDTH}" height="{self.height:g}" fill="#ffffff"/>{self._inside(title)}</svg>\n'
        )

    def _view(self) -> str:
        return f'viewBox="0 0 {WIDTH} {_n(self.height)}" stroke-linejoin="round"'

    def _fill(self, color: str, hatch: str) -> str:
        return self._fills.setdefault((color, hatch), f"hatch{len(self._fills)}")

    def _inside(self, label: str) -> str:
        """The parts; fills have ids, which no two figures of a page may share."""
        drawn = "".join(self._parts)
        if not self._fills:
            return drawn
        unique = sha256(f"{label} {drawn}".encode()).hexdigest()[:10]
        patterns = []
        for (color, hatch), name in self._fills.items():
            drawn = drawn.replace(f"url(#{{{name}}})", f"url(#{name}-{unique})")
            patterns.append(
                f'<pattern id="{name}-{unique}" patternUnits="userSpaceOnUse" width="6" height="6">'
                f'<rect width="6" height="6" fill="{color}"/>'
                f'<path d="M -1 1 L 1 -1 M 0 6 L 6 0 M 5 7 L 7 5" stroke="{hatch}" stroke-width="1.2"/></pattern>'
            )
        return f"<defs>{''.join(patterns)}</defs>{drawn}"


@dataclass(frozen=True)
class Panel:
    """A part of a drawing with a horizontal axis from `first` to `last`, logarithmic if so said."""

    drawing: Drawing
    left: float
    top: float
    width: float
    height: float
    first: float = 0
    last: float = 100
    log: bool = False

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def x(self, value: float) -> float:
        """Where a value lies."""
        first, last = self.first, self.last
        if self.log:
            value, first, last = math.log(value), math.log(first), math.log(last)
        return self.left + self.width * (value - first) / (last - first)

    def ticks(self, values: Sequence[float], said: Sequence[str]) -> None:
        """The grid's lines, and below them what they stand for."""
        for value, words in zip(values, said, strict=True):
            x = self.x(value)
            self.drawing.line([(x, self.bottom), (x, self.top)], cap="square", opacity=0.15)
            self.drawing.text(x, self.bottom + 11.8, words, size=SMALL)

    def percents(self) -> None:
        """An axis of 0 to 100 % with its grid."""
        self.ticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])

    def headed(self, words: str, width: float, above: float = 22) -> None:
        """A heading, its first line so far above the panel."""
        self.drawing.lines(self.left, self.top - above - 1.3, wrapped(words, width))


def _n(number: float) -> str:
    """A position or size: a thousandth of a unit is less than anybody sees."""
    return f"{number:.3f}".rstrip("0").rstrip(".")


def text_width(words: str, size: float = SIZE) -> float:
    """About how wide `words` get, rather too wide: which of the page's typefaces a reader has is not known."""
    return size * sum(map(_em, words))


@lru_cache(1024)
def _em(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF":
        return 1.05
    if character in "iljtfrI.,:;'’|()[] -":
        return 0.37
    return 0.9 if character in "mwMW@%" else 0.72 if character.isupper() else 0.58


def wrapped(words: str, width: float, lines: int = 2) -> list[str]:
    """`words` in at most so many lines of that width, broken at spaces; "…" stands for what does not fit."""
    words = " ".join(words.replace("_", " ").split())
    found: list[str] = []
    while words:
        cut = words
        while text_width(cut) > width:
            cut = cut[:-1]
        if cut == words:
            return [*found, words]
        if len(found) == lines - 1:
            while text_width(cut + "…") > width:
                cut = cut[:-1]
            return [*found, cut.rstrip() + "…"]
        head = words[: len(cut) + 1].rpartition(" ")[0] or cut
        found.append(head)
        words = words[len(head) :].lstrip()
    return found
