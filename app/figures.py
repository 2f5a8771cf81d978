"""The dashboard's figures: matplotlib's SVG, with the page's text color and typeface, in light, dark or print.

All are WIDTH units wide, so that equal type sizes are equal on a page. What has to lie beside a text is placed by
`text_width`, since the page's typeface is not matplotlib's.
"""

import io
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING, Any, ParamSpec
from xml.etree import ElementTree

from app.outcomes import OUTCOMES
from app.printed import percent
from app.stats import Rate

if TYPE_CHECKING:  # slow to import, and few commands need it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType

INK = "#010203"  # replaced by the page's text color
COLORS = {  # Okabe-Ito: told apart by color-blind readers and in gray print
    "undefended": "#d55e00",
    "distilled": "#0072b2",
    "gradient_regularized": "#009e73",
    "adversarially_trained": "#cc79a7",
    "double_backprop": "#e69f00",
}
OTHER = "#777777"
WIDTH = 720  # of every figure, in units of its viewBox
SIZE = 11  # of text
SMALL = 10
NAMES = 126  # the widest that the names of models get
NO_ANSWERS = "no answers yet"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in a name is a "$"
    "font.family": "sans-serif",
    "font.size": SIZE,
    "text.color": INK,
    "axes.titlesize": SIZE,
    "axes.titlelocation": "left",
    "axes.labelsize": SMALL,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.axisbelow": True,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 8,
    "ytick.major.pad": 6,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 1,
    "lines.linewidth": 3,
    "lines.markersize": 8,
    "lines.markeredgewidth": 0,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.handlelength": 14 / SIZE,
    "legend.handleheight": 14 / SIZE,
    "legend.handletextpad": 6 / SIZE,
    "legend.labelspacing": 0.45,
    "hatch.color": OTHER,
    "hatch.linewidth": 1.2,
}

SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")

P = ParamSpec("P")
_LOCK = Lock()  # matplotlib's settings are the process's
_DRAWN: dict[bytes, str] = {}  # figures by what they show, the latest used last
_KEPT = 64


def drawn(draw: Callable[P, str]) -> Callable[P, str]:
    """Draw in STYLE, one figure at a time, and the same figure only once: arguments are known by their repr."""

    @wraps(draw)
    def kept(*args: P.args, **kwargs: P.kwargs) -> str:
        key = sha256(f"{draw.__qualname__} {args!r} {kwargs!r}".encode()).digest()
        with _LOCK:
            svg = _DRAWN.pop(key, None) or _styled(draw, *args, **kwargs)
            _DRAWN[key] = svg
            if len(_DRAWN) > _KEPT:
                del _DRAWN[next(iter(_DRAWN))]
        return svg

    return kept


def _styled(draw: Callable[P, str], *args: P.args, **kwargs: P.kwargs) -> str:
    import matplotlib

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": draw.__qualname__}), warnings.catch_warnings():
        # The page's typeface may well have what matplotlib's lacks.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        return draw(*args, **kwargs)


def canvas(height: float) -> "Figure":
    """A figure of WIDTH x `height` units."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / 72, height / 72), frameon=False)


def panel(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Axes without a frame and a vertical axis, in units from the figure's upper left corner."""
    tall = 72 * figure.get_figheight()
    ax = figure.add_axes(
        (left / WIDTH, 1 - (top + height) / tall, width / WIDTH, height / tall), frame_on=False
    )
    ax.yaxis.set_visible(False)
    return ax


def note(ax: "Axes", x: float, y: float, words: str, dx: float = 0, dy: float = 0, **how: Any) -> None:
    """`words` beside a point of the data: the middle of the line lies `dx` units to its right and `dy` above."""
    how = {"ha": "center", "va": "center_baseline", "annotation_clip": False, **how}
    ax.annotate(words, (x, y), (dx, dy), textcoords="offset points", **how)


def write(ax: "Axes", x: float, y: float, words: str, **how: Any) -> None:
    """`words` with their middle at a point of the data: hundreds, and not clipped by the axes, which takes time."""
    ax.figure.text(
        x, y, words, transform=ax.transData, **{"ha": "center", "va": "center_baseline", "size": SMALL, **how}
    )


def headed(ax: "Axes", words: str, width: float, above: float = 22) -> None:
    """A heading, its first line so far above the axes."""
    ax.set_title("\n".join(wrapped(words, width)), y=1, pad=above + SIZE / 2, va="top")


def named(ax: "Axes", names: Sequence[str], gap: float = 14) -> None:
    """The names of models to the left of rows 0, 1, ..."""
    for row, name in enumerate(names):
        lines = wrapped(name, NAMES)
        for i, line in enumerate(lines):  # each a text of its own: right-aligned in any typeface
            at = ((len(lines) - 1) / 2 - i) * 1.2 * SIZE
            note(ax, 0, row, line, -gap, at, xycoords=("axes fraction", "data"), ha="right")


def names_width(names: Sequence[str]) -> float:
    """The room that `named` takes."""
    return max((text_width(line) for name in names for line in wrapped(name, NAMES)), default=0)


def percent_axis(ax: "Axes") -> None:
    """A horizontal axis of 0 to 100 % with its grid."""
    ax.set_xlim(0, 100)
    ax.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    ax.grid(axis="x", clip_on=False)


def finish(figure: "Figure", title: str, description: str) -> str:
    """The figure as a part of a page, with all that it shows in words."""
    import matplotlib

    salt = f"{matplotlib.rcParams['svg.hashsalt']} {title} {description}"
    with matplotlib.rc_context({"svg.hashsalt": salt}):  # so that figures of a page share no id
        return _inline(as_svg(figure), title, description)


def as_svg(figure: "Figure", **how: Any) -> str:
    """The figure as a file."""
    out = io.StringIO()
    figure.savefig(out, format="svg", **{"metadata": {"Date": None}, **how})
    return out.getvalue()


def _inline(svg: str, title: str, description: str) -> str:
    """What matplotlib drew, for a page whose policy forbids inline styles, which would also reach all of it."""
    root = ElementTree.fromstring(svg[svg.index("<svg") :].replace(INK, "currentColor"))
    for defs in root.findall(f"{SVG}defs"):
        for style in defs.findall(f"{SVG}style"):
            # The one rule, for *, becomes what everything inherits.
            for name, value in _declarations((style.text or "").strip().removeprefix("*{").removesuffix("}")):
                root.set(name, value)
            defs.remove(style)
    for metadata in root.findall(f"{SVG}metadata"):
        root.remove(metadata)
    named, meant = [], set()
    for element in root.iter():
        element.tail = None
        if not (element.text or "").strip():
            element.text = None
        for name, value in _declarations(element.attrib.pop("style", "")):
            if name != "font-family":  # the page's
                element.set(name, value)
        if "id" in element.attrib:
            named.append(element)
        for value in element.attrib.values():
            if "#" in value:
                meant.add(value.removeprefix("url(").removesuffix(")").removeprefix("#"))
    for element in named:
        if element.attrib["id"] not in meant:
            del element.attrib["id"]
    del root.attrib["height"]
    root.set("width", "100%")
    root.set("role", "img")
    root.set("aria-label", f"{title}. {description}")
    return ElementTree.tostring(root, encoding="unicode")


def _declarations(css: str) -> list[tuple[str, str]]:
    """`a: b; c: d` as pairs. Every property that matplotlib sets is also an attribute of the same name."""
    pairs = (declaration.partition(":") for declaration in css.split(";") if declaration.strip())
    return [(name.strip(), value.strip()) for name, _, value in pairs]


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


def apart(places: list[float], least: float, first: float, last: float) -> list[float]:
    """The places moved as little as it takes to be `least` apart and not past `last`, in their order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = dict.fromkeys(order, 0.0)
    at = first - least
    for i in order:
        at = moved[i] = max(places[i], at + least)
    at = last + least
    for i in reversed(order):
        at = moved[i] = min(moved[i], at - least)
    return [moved[i] for i in range(len(places))]


def shown(rate: Rate) -> tuple[float, float, float] | None:
    """Rate, low and high, where there are any."""
    if rate.rate is None or rate.low is None or rate.high is None:
        return None
    return rate.rate, rate.low, rate.high


def on(color: "ColorType") -> str:
    """Black or white, whichever has more contrast (WCAG) on that color."""
    from matplotlib.colors import to_rgb

    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color))
    return "#000000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else "#ffffff"


@drawn
def rates_figure(models: dict[str, dict[str, Rate]], outcomes: dict[str, str], title: str) -> str:
    """Rates with their intervals, one panel an outcome, one line a model; a tick is the level of chance.

    `outcomes` gives the panels: key of the rate -> heading. A rate of chance has the key that OUTCOMES names.
    """
    names = list(models)
    left, top, row = names_width(names) + 14, 52, 40
    bottom = top + row * max(len(names) - 1, 0) + 26
    figure = canvas(bottom + 22)
    gap = 44  # between panels
    width = (WIDTH - left - 30 + gap) / max(1, len(outcomes)) - gap
    explained = False
    for i, (outcome, heading) in enumerate(outcomes.items()):
        ax = panel(figure, left + i * (width + gap) + 6, top - 22, width, bottom - top + 22)
        ax.set_ylim(max(len(names) - 1, 0) + 26 / row, -22 / row)
        headed(ax, heading, width + gap - 12)
        percent_axis(ax)
        if i == 0:
            named(ax, names, 20)
        levels = []  # of chance: (row, percent)
        for y, (name, rates) in enumerate(models.items()):
            found, chance = shown(rates[outcome]), chance_of(rates, outcome)
            if chance is not None:
                levels.append((y, 100 * chance))
                ends = (y - 7 / row, y + 9 / row)
                ax.vlines(100 * chance, *ends, colors=INK, linewidth=1.5, clip_on=False, zorder=2.5)
            if not found:
                note(ax, 0, y, NO_ANSWERS, 4, ha="left", size=SMALL)
                continue
            rate, low, high = (100 * share for share in found)
            color = COLORS.get(name, OTHER)
            ax.plot([low, high], [y, y], color=color, solid_capstyle="round", clip_on=False)
            ax.plot(rate, y, "o", color=color, clip_on=False, zorder=3)
            note(ax, rate, y, f"{percent(found[0])} %", dy=14)
        if levels and not explained:  # at the lowest, which no other row's percentage can touch
            note(ax, levels[-1][1], levels[-1][0], "chance", dy=-16, size=SMALL)
            explained = True
    return finish(figure, title, describe(models, outcomes))


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
