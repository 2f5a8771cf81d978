"""The dashboard's figures: SVG that takes its text color and typeface from the page, light, dark or print.

They are written element by element: a figure has hundreds of small texts, which cost matplotlib a millisecond each.
No element has a style, and none but a hatching has an id, so that any number of figures share a page.
"""

import math
import unicodedata
from functools import lru_cache
from hashlib import sha256
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from app.outcomes import OUTCOMES
from app.printed import percent
from app.stats import Rate

INK = "#010203"  # in what matplotlib draws: replaced by the page's text color
COLORS = {  # Okabe-Ito: told apart by color-blind readers and in grey print
    "undefended": "#d55e00",
    "distilled": "#0072b2",
    "gradient_regularized": "#009e73",
    "adversarially_trained": "#cc79a7",
    "double_backprop": "#e69f00",
}
OTHER = "#777777"
VIRIDIS = (
    "#440154",
    "#482475",
    "#414487",
    "#355f8d",
    "#2a788e",
    "#21918c",
    "#22a884",
    "#44bf70",
    "#7ad151",
    "#bddf26",
    "#fde725",
)
WIDTH = 720  # of every figure, in units of its viewBox: on one page, equal type sizes are equal
SIZE = 11  # of text
SMALL = 10
NAMES = 126  # the widest that the names of models get
MIDDLE = 0.35  # of the type size: from the middle of a line of text to its baseline
NO_ANSWERS = "no answers yet"

SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


class Canvas:
    """An <svg> of WIDTH x `height` units, y downwards; what is drawn later lies above."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.root = Element(
            f"{SVG}svg",
            {
                "viewBox": f"0 0 {WIDTH} {number(height)}",
                "width": "100%",
                "role": "img",
                "fill": "currentColor",
                "font-size": str(SIZE),
            },
        )
        self._hatches: list[tuple[Element, Element]] = []  # pattern, what it fills

    def text(
        self,
        x: float,
        y: float,
        words: str,
        anchor: str = "start",
        size: float = SIZE,
        fill: str = "currentColor",
    ) -> Element:
        """`words` with their vertical middle at y."""
        text = self._add("text", x=x, y=y + MIDDLE * size, fill=fill)
        if anchor != "start":
            text.set("text-anchor", anchor)
        if size != SIZE:
            text.set("font-size", number(size))
        text.text = words
        return text

    def upright(self, x: float, y: float, words: str) -> None:
        """`words` running upwards from (x, y)."""
        text = self.text(0, 0, words, size=SMALL)
        text.set("transform", f"translate({number(x)} {number(y)}) rotate(-90)")

    def line(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        stroke: str,
        width: float,
        *,
        round_ends: bool = False,
    ) -> Element:
        line = self._add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_width=width)
        if round_ends:
            line.set("stroke-linecap", "round")
        return line

    def grid(self, x1: float, y1: float, x2: float, y2: float) -> None:
        self.line(x1, y1, x2, y2, "currentColor", 1).set("stroke-opacity", "0.15")

    def dot(self, x: float, y: float, fill: str, r: float = 4) -> None:
        self._add("circle", cx=x, cy=y, r=r, fill=fill)

    def rect(self, x: float, y: float, width: float, height: float, fill: str) -> Element:
        return self._add("rect", x=x, y=y, width=width, height=height, fill=fill)

    def hatch(self, over: Element, stroke: str) -> None:
        """Draw diagonal lines over a rectangle."""
        pattern = Element(
            f"{SVG}pattern",
            {"width": "6", "height": "6", "patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)"},
        )
        SubElement(
            pattern,
            f"{SVG}line",
            {"x1": "1", "y1": "0", "x2": "1", "y2": "6", "stroke": stroke, "stroke-width": "1.2"},
        )
        self._hatches.append((pattern, SubElement(self.root, over.tag, over.attrib)))

    def names(self, names: list[str], left: float, y: float, row: float) -> None:
        """The names of models, right-aligned at `left`, one row each."""
        for i, name in enumerate(names):
            lines = wrapped(name, NAMES)
            for j, words in enumerate(lines):
                self.text(left, y + i * row + (j - (len(lines) - 1) / 2) * 1.2 * SIZE, words, "end")

    def finish(self, title: str, description: str) -> str:
        """The figure as a part of a page, with all that it shows in words."""
        self.root.set("aria-label", f"{title}. {description}")
        if self._hatches:
            defs = Element(f"{SVG}defs")
            self.root.insert(0, defs)
            for i, (pattern, filled) in enumerate(self._hatches):
                content = ElementTree.tostring(pattern)
                name = (
                    f"hatch-{sha256(content + self.root.attrib['aria-label'].encode()).hexdigest()[:12]}-{i}"
                )
                pattern.set("id", name)
                filled.set("fill", f"url(#{name})")
                defs.append(pattern)
        return ElementTree.tostring(self.root, encoding="unicode")

    def _add(self, tag: str, **attributes: float | str) -> Element:
        return SubElement(
            self.root,
            SVG + tag,
            {
                name.replace("_", "-"): value if isinstance(value, str) else number(value)
                for name, value in attributes.items()
            },
        )


def number(x: float) -> str:
    """A coordinate. Raises ValueError where it is none."""
    if not math.isfinite(x):
        raise ValueError(f"a figure cannot show {x}")
    return f"{x:.2f}".rstrip("0").rstrip(".")


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
    words = words.replace("_", " ")
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


def names_width(names: list[str]) -> float:
    """The room that `Canvas.names` takes."""
    return max((text_width(line) for name in names for line in wrapped(name, NAMES)), default=0)


def percent_axis(canvas: Canvas, x0: float, width: float, top: float, bottom: float) -> None:
    """A horizontal axis of 0 to 100 % with its grid."""
    for value in (0, 25, 50, 75, 100):
        x = x0 + width * value / 100
        canvas.grid(x, top, x, bottom)
        canvas.text(x, bottom + 12, "100 %" if value == 100 else str(value), "middle", SMALL)


def shown(rate: Rate) -> tuple[float, float, float] | None:
    """Rate, low and high, where there are any."""
    if rate.rate is None or rate.low is None or rate.high is None:
        return None
    return rate.rate, rate.low, rate.high


def viridis(share: float) -> str:
    """The color of a share in [0, 1]: even steps look even, to color-blind readers and in grey print too."""
    place = share * (len(VIRIDIS) - 1)
    i = min(int(place), len(VIRIDIS) - 2)
    mixed = (
        round(a + (b - a) * (place - i)) for a, b in zip(_rgb(VIRIDIS[i]), _rgb(VIRIDIS[i + 1]), strict=True)
    )
    return "#" + "".join(f"{c:02x}" for c in mixed)


def on(fill: str) -> str:
    """Black or white, whichever has more contrast (WCAG) on that color."""
    r, g, b = (c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in _rgb(fill))
    return "#000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else "#fff"


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def rates_figure(models: dict[str, dict[str, Rate]], outcomes: dict[str, str], title: str) -> str:
    """Rates with their intervals, one panel an outcome, one line a model; a tick is the level of chance.

    `outcomes` gives the panels: key of the rate -> heading. A rate of chance has the key that OUTCOMES names.
    """
    names = list(models)
    left, top, row = names_width(names) + 14, 52, 40
    bottom = top + row * (len(names) - 1) + 26
    canvas = Canvas(bottom + 22)
    canvas.names(names, left - 14, top, row)
    gap = 44  # between panels
    width = (WIDTH - left - 30 + gap) / max(1, len(outcomes)) - gap
    explained = False
    for i, (outcome, heading) in enumerate(outcomes.items()):
        x0 = left + i * (width + gap) + 6
        for j, line in enumerate(wrapped(heading, width + gap - 12)):
            canvas.text(x0, 8 + 13 * j, line)
        percent_axis(canvas, x0, width, top - 22, bottom)
        levels = []  # of chance: (x, y)
        for j, (name, rates) in enumerate(models.items()):
            y, color = top + row * j, COLORS.get(name, OTHER)
            found, chance = shown(rates[outcome]), chance_of(rates, outcome)
            if found:
                low, high = (x0 + share * width for share in found[1:])
                canvas.line(low, y, high, y, color, 3, round_ends=True)
            else:
                canvas.text(x0 + 4, y, NO_ANSWERS, size=SMALL)
            if chance is not None:
                levels.append((x0 + chance * width, y))
                canvas.line(levels[-1][0], y - 7, levels[-1][0], y + 9, "currentColor", 1.5)
            if found:
                canvas.dot(x0 + found[0] * width, y, color)
                canvas.text(x0 + found[0] * width, y - 14, f"{percent(found[0])} %", "middle")
        if levels and not explained:  # at the lowest, which no other row's percentage can touch
            canvas.text(levels[-1][0], levels[-1][1] + 16, "chance", "middle", SMALL)
            explained = True
    return canvas.finish(title, describe(models, outcomes))


def chance_of(rates: dict[str, Rate], outcome: str) -> float | None:
    """The level of chance of an outcome, where it has one and there are answers."""
    key = OUTCOMES[outcome].chance if outcome in OUTCOMES else None
    rate = rates.get(key) if key else None
    return rate.rate if rate else None


def describe(models: dict[str, dict[str, Rate]], outcomes: dict[str, str]) -> str:
    """The figure of rates in words."""
    parts = []
    for outcome, heading in outcomes.items():
        parts.append(f"{heading}: {in_words({name: rates[outcome] for name, rates in models.items()})}.")
        levels = [(name, chance_of(rates, outcome)) for name, rates in models.items()]
        chance = [f"{name.replace('_', ' ')} chance {percent(x)} %" for name, x in levels if x is not None]
        if chance:
            parts.append(f"{heading}, for a label that is neither: {', '.join(chance)}.")
    return " ".join(parts)


def in_words(rates: dict[str, Rate]) -> str:
    """Rates and intervals by name, as far as there are any."""
    values = [
        f"{name.replace('_', ' ')} {percent(found[0])} % "
        f"(95 % interval {percent(found[1])} to {percent(found[2])})"
        for name, found in ((name, shown(rate)) for name, rate in rates.items())
        if found
    ]
    return ", ".join(values) or NO_ANSWERS


def _inline(svg: str, title: str, description: str) -> str:
    """What matplotlib drew, for a page whose policy forbids inline styles, which would also reach all of it."""
    root = ElementTree.fromstring(svg[svg.index("<svg") :].replace(INK, "currentColor"))
    for element in root.iter():
        for name, value in _declarations(element.attrib.pop("style", "")):
            element.set(name, value)
    for defs in root.findall(f"{SVG}defs"):
        for style in defs.findall(f"{SVG}style"):
            # The one rule, for *, becomes what everything inherits.
            for name, value in _declarations((style.text or "").strip().removeprefix("*{").removesuffix("}")):
                root.set(name, value)
            defs.remove(style)
    for metadata in root.findall(f"{SVG}metadata"):
        root.remove(metadata)
    del root.attrib["height"]
    root.set("width", "100%")
    root.set("role", "img")
    root.set("aria-label", f"{title}. {description}")
    return ElementTree.tostring(root, encoding="unicode")


def _declarations(css: str) -> list[tuple[str, str]]:
    """`a: b; c: d` as pairs. Every property that matplotlib sets is also an attribute of the same name."""
    pairs = (declaration.partition(":") for declaration in css.split(";") if declaration.strip())
    return [(name.strip(), value.strip()) for name, _, value in pairs]
